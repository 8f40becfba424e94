"""Faults in Lua and SQL, found word by word: comparisons, guards, bounds, statements left out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from tests.mutants.fault import Change, Fault, faults_of, other_numbers

_SWAPS = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "+": "-", "-": "+"}
_LUA_SWAPS = _SWAPS | {"==": "~=", "~=": "=="}
_SQL_SWAPS = _SWAPS | {"<>": "=", "ASC": "", "DESC": "", "DISTINCT": "", "LEFT": "", "FULL": "LEFT"}

_LUA = re.compile(
    r"(?P<skip>--[^\n]*|#![^\n]*|\s+)|(?P<text>'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\")|(?P<number>\d[\w.]*)"
    r"|(?P<name>[A-Za-z_]\w*)|(?P<sign>\.\.\.?|[<>=~]=|.)",
    re.DOTALL,
)
_SQL = re.compile(
    r"(?P<skip>--[^\n]*|\s+)|(?P<text>'[^']*'|%\(\w+\)s|::\w+|->>?)|(?P<number>\d+)|(?P<name>\w+)"
    r"|(?P<sign><>|[<>]=|.)",
    re.DOTALL,
)
_OPENING, _CLOSING = "([{", ")]}"
_LUA_STATEMENT = re.compile(
    r"^[ ]+(?:[\w.:]+\(.*\)|(?P<same>[\w.]+)(?:, [\w.]+)* = (?P=same)\b.*|break)[ ]*(?=--|$)",
    re.MULTILINE,
)
_LUA_BEGINS = {
    "if",
    "elseif",
    "while",
    "until",
    "return",
    "local",
    "then",
    "do",
    "else",
    "function",
    "end",
}
_LUA_ENDS = {
    "then",
    "do",
    "end",
    "else",
    "elseif",
    "until",
    "local",
    "return",
    "if",
    "for",
    "while",
    "break",
}
_SQL_EDGES = {
    "where", "on", "select", "from", "group", "order", "limit", "having", "union", "set", "when",
    "then", "else", "end", "values", "join", "left", "as", "do", "except", "case", "using",
    "returning",
}  # fmt: skip


class _Word:
    """One word of a program; ``depth``: how many brackets it is in."""

    __slots__ = ("depth", "end", "kind", "start", "text")

    def __init__(self, kind: str, text: str, start: int, depth: int) -> None:
        self.kind, self.text, self.start, self.depth = kind, text, start, depth
        self.end = start + len(text)

    def is_value(self) -> bool:
        """May a value end or begin with it?"""
        return self.kind in ("name", "number", "text")


def _words(pattern: re.Pattern[str], text: str) -> list[_Word]:
    found: list[_Word] = []
    depth = 0
    for match in pattern.finditer(text):
        kind = match.lastgroup or ""
        if kind == "skip":
            continue
        depth -= match.group() in _CLOSING
        found.append(_Word(kind, match.group(), match.start(), depth))
        depth += match.group() in _OPENING
    return found


def _operand(words: list[_Word], at: int, step: int, edges: set[str]) -> int:
    """The last word of the operand that begins beside the word ``at``, in the direction of ``step``."""
    depth, last = words[at].depth, at
    for place in range(at + step, len(words) if step > 0 else -1, step):
        word, beside = words[place], words[last]
        if word.depth < depth or (word.depth == depth and word.text.lower() in edges):
            break
        left, right = (beside, word) if step > 0 else (word, beside)
        ends = left.text in (")", "]", "}") or (left.is_value() and left.text.lower() not in edges)
        begins = right.is_value() or (right.text == "{" and left.text == ")")
        are_names = right.kind != "name" or not {left.text.lower(), right.text.lower()} & _INFIX
        if last != at and word.depth == beside.depth == depth and ends and begins and are_names:
            break  # two values side by side: another statement begins
        last = place
    return last


_INFIX = {
    "and",
    "or",
    "not",
    "between",
    "in",
    "is",
    "null",
    "like",
    "any",
    "distinct",
    "from",
    "exists",
}


def _halves(words: list[_Word], at: int, edges: set[str], text: str) -> Iterator[Change]:
    """``a and b`` as ``a`` and as ``b``."""
    same = {"or", "and"} if words[at].text.lower() == "and" else {"or"}
    first, last = _operand(words, at, -1, edges | same), _operand(words, at, 1, edges | same)
    if first == at or last == at:
        return
    yield words[at - 1].end, words[last].end, ""
    yield words[first].start, words[at + 1].start, ""


def _arguments(words: list[_Word], at: int, text: str) -> list[str]:
    """Of the call whose opening bracket is the word ``at``, and behind them its end."""
    depth, parts, start = words[at].depth, [], words[at].end
    for word in words[at + 1 :]:
        if word.depth == depth + 1 and word.text == ",":
            parts.append(text[start : word.start].strip())
            start = word.end
        elif word.depth == depth and word.text == ")":
            return [*parts, text[start : word.start].strip(), str(word.end)]
    return []


def _changes(
    words: list[_Word], text: str, swaps: Mapping[str, str], edges: set[str]
) -> Iterator[Change]:
    for at, word in enumerate(words):
        name = word.text.lower()
        if word.text in swaps:
            yield word.start, word.end, swaps[word.text]
        if name in ("and", "or") and not _is_between(words, at):
            yield word.start, word.end, {"and": "or", "or": "and"}[name]
            yield from _halves(words, at, edges, text)
        elif name == "not" and words[at + 1].text.lower() != "null":
            yield word.start, words[at + 1].start, ""
        elif word.kind == "number" and word.text.isdigit() and words[at - 1].text != "[":
            yield from ((word.start, word.end, str(n)) for n in other_numbers(int(word.text)))
        elif name in ("max", "min", "coalesce") and words[at + 1].text == "(":
            *parts, end = _arguments(words, at + 1, text) or [""]
            start = words[at - 2].start if words[at - 1].text == "." else word.start
            if len(parts) == 2:
                yield from ((start, int(end), part) for part in parts)


def _is_between(words: list[_Word], at: int) -> bool:
    """Is this the `AND` of a `BETWEEN`?"""
    depth = words[at].depth
    before = [w.text.lower() for w in words[max(0, at - 12) : at] if w.depth == depth]
    return "between" in before and "and" not in before[before.index("between") :]


def lua_faults(path: str, text: str) -> list[Fault]:
    """Comparisons, signs, numbers, guards, bounds, conditions that are never met, statements left out."""
    words = _words(_LUA, text)
    edges = _LUA_BEGINS | _LUA_ENDS | {"=", ",", ";"}
    changes = list(_changes(words, text, _LUA_SWAPS, edges))
    for at, word in enumerate(words):
        if word.text in ("if", "elseif"):
            then = next(w for w in words[at:] if w.text == "then" and w.depth == word.depth)
            changes.append((words[at + 1].start, then.start, "false "))
    for match in _LUA_STATEMENT.finditer(text):
        changes.append((match.start() + len(match[0]) - len(match[0].lstrip()), match.end(), ""))
    return faults_of(path, text, changes)


def sql_faults(path: str, text: str) -> list[Fault]:
    """Comparisons, signs, numbers, conditions, bounds, orders, joins, and words of an IN left out."""
    words = _words(_SQL, text)
    changes = list(_changes(words, text, _SQL_SWAPS, _SQL_EDGES | {",", ";"}))
    for match in re.finditer(r"IS (NOT )?NULL", text):
        changes.append((*match.span(), "IS NULL" if match[1] else "IS NOT NULL"))
    for match in re.finditer(r"\bIN \(('\w+'(?:, '\w+')+)\)", text):
        items = match[1].split(", ")
        for item in items:
            changes.append((*match.span(1), ", ".join([each for each in items if each != item])))
    for match in re.finditer(r"(?<=\w) = (?=%\(|\w+\.)", text):
        if not re.search(
            r"\bSET\b[^;]*$", text[text.rfind("-- name", 0, match.start()) : match.start()]
        ):
            changes.append((*match.span(), " <> "))
    for match in re.finditer(r" FOR UPDATE\b", text):
        changes.append((*match.span(), ""))
    return faults_of(path, text, changes)
