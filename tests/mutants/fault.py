"""One small fault in one file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

Change = tuple[int, int, str]  # from, to, what stands there instead


@dataclass(frozen=True)
class Fault:
    """``line``: where it is; ``before`` and ``after``: what stands there, without indentation; ``text``: the
    whole file with it."""

    path: str
    line: int
    before: str
    after: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}  {self.before}  →  {self.after or '(removed)'}"


def faults_of(path: str, text: str, changes: Iterable[Change]) -> list[Fault]:
    """Each change by itself, in the order of the file; none twice."""
    made: dict[str, Fault] = {}
    for start, end, new in sorted(changes):
        changed = text[:start] + new + text[end:]
        if changed == text:
            continue
        first = text.rfind("\n", 0, start) + 1
        last = text.find("\n", end)
        last = len(text) if last < 0 else last
        before = " ".join(text[first:last].split())
        after = " ".join((text[first:start] + new + text[end:last]).split())
        line = text.count("\n", 0, start) + 1
        made.setdefault(changed, Fault(path, line, before, after, changed))
    return list(made.values())


def other_numbers(number: int) -> list[int]:
    """One more and one less; of a large one, where that is as good, twice as much."""
    if number > 1_000:
        return [2 * number]
    return [number + 1, *([number - 1] if number > 1 else [])]
