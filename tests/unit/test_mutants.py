"""The tool that plants faults: which it makes of Lua and SQL, which tests a file concerns, and how it finds
out whether one is noticed."""

from __future__ import annotations

import asyncio
import getpass
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mutants.__main__ import ROOT, reasons, statement_around, widely
from tests.mutants.concerned import Tree
from tests.mutants.copies import Copy
from tests.mutants.fault import Fault, faults_of
from tests.mutants.in_text import lua_faults, sql_faults
from tests.mutants.swap import is_within_functions, swap_in

TREE = Tree(ROOT)
LUA = [
    ("if s and not s.damaged and whole(kept) then", "if s and not s.damaged then"),
    ("if s and not s.damaged and whole(kept) then", "if s and whole(kept) then"),
    ("if s and not s.damaged and whole(kept) then", "if not s.damaged and whole(kept) then"),
    ("if s and not s.damaged and whole(kept) then", "if false then"),
    ("local n = takes(a < 0 or kind == 'count')", "local n = takes(a < 0)"),
    ("local n = whole(kept[2]) or 0", "local n = 0"),
    ("local n = whole(kept[2]) or 0", "local n = whole(kept[2])"),
    ("if r.deadline > head.now then", "if r.deadline >= head.now then"),
    ("n = n + math.max(done, 1)", "n = n + done"),
    ("n = math.max(a.b, math.min(seq, c.seq))", "n = math.min(seq, c.seq)"),
    ("n = math.max(a.b, math.min(seq, c.seq))", "n = math.max(a.b, seq)"),
    ("if #damaged < 20 and not told[key] then", "if #damaged < 19 and not told[key] then"),
    ("if e[3] ~= head.seq + i or e[2] < head.epoch then", "if e[2] < head.epoch then"),
    ("if e[3] ~= head.seq + i then", "if e[3] ~= head.seq - i then"),
    ("  undo()", ""),
    ("  n = n + 1", ""),
    ("return first(a) and {b, 'x'} or {c}", "return first(a) and {b, 'x'}"),
    ("return first(a) and {b, 'x'} or {c}", "return {b, 'x'} or {c}"),
]  # fmt: skip
SQL = [
    ("a = coalesce(EXCLUDED.a, p.a), b = 1", "a = EXCLUDED.a, b = 1"),
    ("WHERE a = %(a)s AND (b, c) >= (%(b)s, %(c)s) ORDER BY b DESC", "WHERE a = %(a)s ORDER BY b DESC"),
    ("WHERE a = %(a)s AND (b, c) >= (%(b)s, %(c)s) ORDER BY b DESC",
     "WHERE (b, c) >= (%(b)s, %(c)s) ORDER BY b DESC"),
    ("WHERE a = %(a)s AND (b, c) >= (%(b)s, %(c)s) ORDER BY b DESC",
     "WHERE a = %(a)s AND (b, c) > (%(b)s, %(c)s) ORDER BY b DESC"),
    ("WHERE a = %(a)s AND b > 1 ORDER BY b DESC", "WHERE a = %(a)s AND b > 1 ORDER BY b"),
    ("WHERE kind IN ('confirm', 'repair')", "WHERE kind IN ('confirm')"),
    ("WHERE a BETWEEN 1 AND 2", "WHERE a BETWEEN 2 AND 2"),
    ("WHERE a IS NOT NULL", "WHERE a IS NULL"),
    ("SELECT a FROM t LEFT JOIN u USING (b) FOR UPDATE", "SELECT a FROM t LEFT JOIN u USING (b)"),
    ("SELECT a FROM t LEFT JOIN u USING (b) FOR UPDATE", "SELECT a FROM t JOIN u USING (b) FOR UPDATE"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("faults", "before", "after"),
    [*((lua_faults, *pair) for pair in LUA), *((sql_faults, *pair) for pair in SQL)],
)
def test_of_this_line_it_makes_that_one(
    faults: Callable[[str, str], list[Fault]], before: str, after: str
) -> None:
    made = {fault.after for fault in faults("file", f"-- 1 < 2\n{before}\n")}
    assert " ".join(after.split()) in made, made


def test_words_of_comments_and_texts_are_none_of_its_business() -> None:
    assert lua_faults("file", "-- a < b and c\nlocal text = 'a < b or c'\n") == []
    assert sql_faults("file", "-- a < b AND c\nSELECT 'a < b OR c'\n") == []
    assert sql_faults("file", "SELECT a FROM t WHERE b BETWEEN c AND d\n") == []


def test_a_fault_tells_its_line_and_is_made_once() -> None:
    (fault,) = faults_of(
        "file", "one\n  two < 3\n", [(10, 11, "<="), (10, 11, "<="), (10, 11, "<")]
    )
    assert (fault.line, fault.before, fault.after) == (2, "two < 3", "two <= 3")
    assert fault.text == "one\n  two <= 3\n"
    assert str(fault) == "file:2  two < 3  →  two <= 3"


@pytest.mark.parametrize(
    ("path", "nearest", "also"),
    [
        ("lua/trim.lua", "tests/lua/test_trim.py", "tests/lua/test_trim.py"),
        ("lua/lib/mend.lua", "tests/lua/test_mend.py", "tests/lua/test_mend.py"),
        ("lua/lib/replay.lua", "tests/lua/test_rebuild.py", "tests/lua/test_rebuild.py"),
        ("lua/lib/sourcing.lua", "tests/lua/test_expire.py", "tests/lua/test_sourcing.py"),
        ("persister/heal.py", "tests/integration/test_heal.py", "tests/integration/test_heal.py"),
        ("persister/live.py", "tests/unit/test_judging.py", "tests/integration/test_ledger.py"),
        ("engine/parts.py", "tests/unit/test_queue.py", "tests/integration/test_engine_order.py"),
        ("persister/sql/queries.sql", "tests/integration/test_audit.py", "tests/integration/test_restore.py"),
    ],
)  # fmt: skip
def test_which_tests_a_file_concerns_follows_from_names_imports_and_includes(
    path: str, nearest: str, also: str
) -> None:
    tests = TREE.tests_of(path)
    assert tests[0] == nearest and also in tests


def test_every_script_and_shared_file_concerns_a_test() -> None:
    for path in (ROOT / "lua").rglob("*.lua"):
        assert TREE.tests_of(str(path.relative_to(ROOT))), path


def test_each_reason_is_about_a_line_that_is_there() -> None:
    """Where the line has changed, somebody has to look again."""
    for (path, before, after), why in reasons().items():
        lines = [" ".join(line.split()) for line in (ROOT / path).read_text().splitlines()]
        assert before in lines and before != after and why, (path, before)


BEFORE = """
LIMIT = 5
def first(a: int, b: int = 1) -> int:
    return a + b
class C:
    kept: int = 3
    def method(self) -> int:
        return [n for n in (1, 2)][0]
    @property
    def value(self) -> int:
        return 7
key = lambda n: n + 1
"""


@pytest.mark.parametrize(
    ("old", "new", "is_within"),
    [
        ("a + b", "a - b", True),
        ("a + b", "a", True),
        ("(1, 2)", "(1, 3)", True),
        ("return 7", "return 8", True),
        ("    return a + b", "    if a:\n        return b\n    return a + b", False),
        ("LIMIT = 5", "LIMIT = 6", False),
        ("LIMIT = 5", "LIMIT = True", False),
        ("b: int = 1", "b: int = 2", False),
        ("kept: int = 3", "kept: int = 4", False),
        ("@property\n", "@cached\n", False),
        ("n + 1", "n - 1", False),
    ],
)
def test_what_is_run_at_import_is_told_from_what_a_function_does(
    old: str, new: str, is_within: bool
) -> None:
    """The lambda behind an inserted line stands elsewhere, which counts as changed: that is safe."""
    assert is_within_functions(BEFORE, BEFORE)
    assert is_within_functions(BEFORE, BEFORE.replace(old, new)) is is_within


MODULE = """
from contextlib import contextmanager
from functools import cache
import msgspec

def plain(): return 1
async def later(): return 1
def made():
    def inner(): return 1
    return inner
@cache
def remembered(): return 1
@contextmanager
def held(): yield 1
class Struct(msgspec.Struct):
    def method(self): return 1
    @property
    def value(self): return 1
    @staticmethod
    def static(): return 1
    @classmethod
    def cls(kind): return (super().__init_subclass__, 1)[1]
"""


def test_who_holds_a_function_already_has_the_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "swapped_module.py"
    file.write_text(MODULE)
    from swapped_module import Struct, held, later, made, plain, remembered  # type: ignore

    struct = Struct()
    held_by_others = [plain, made(), remembered, struct.method, struct.static, struct.cls]
    file.write_text(
        MODULE.replace("return 1", "return 2").replace("yield 1", "yield 2").replace(", 1)", ", 2)")
    )
    swap_in(str(file))
    assert [plain(), made()(), remembered(), *(f() for f in held_by_others)] == [2] * 9
    assert struct.value == 2 and asyncio.run(later()) == 2
    with held() as found:
        assert found == 2


@pytest.mark.parametrize(
    ("path", "holds", "begins", "ends"),
    [
        ("engine/counts.py", "if r.status is State.HELD", "counted = [", "]"),
        ("engine/counts.py", "if not told:", "if not told:", "if not told:"),
        ("engine/counts.py", 'return ""', 'return ""', 'return ""'),
        ("engine/addresses.py", "def why(error", "def why(error", "def why(error"),
        ("engine/addresses.py", '("db", "protocol"', "_SHOWN = frozenset(", ")"),
        ("lua/trim.lua", "if not read_head()", "if not read_head()", "if not read_head()"),
    ],
)
def test_the_lines_of_a_fault_are_those_of_its_statement(
    path: str, holds: str, begins: str, ends: str
) -> None:
    """The other branch of a conditional expression is on another line of it."""
    lines = (ROOT / path).read_text().splitlines()
    at = next(i for i, line in enumerate(lines, 1) if holds in line)
    first, last = statement_around(Fault(path, at, "", "", ""))
    assert lines[first - 1].strip().startswith(begins)
    assert lines[last - 1].strip().startswith(ends)


def test_the_quickest_tests_of_each_kind_come_first() -> None:
    seconds = {"a[1]": 1.0, "a[2]": 1.0, "a[3]": 1.0, "b": 2.5, "c[x]": 0.5, "c[y]": 9.0}
    assert widely(seconds, seconds) == ["c[x]", "a[1]", "a[2]", "b", "a[3]", "c[y]"]


def test_given_a_fault_that_breaks_what_all_share_then_the_next_one_is_judged_anew(
    tmp_path: Path,
) -> None:
    path, test = "persister/kept.py", "tests/unit/test_shared.py"
    copy = Copy(ROOT, tmp_path, all_servers=False)
    text = (ROOT / path).read_text()
    (tmp_path / test).write_text(
        "from pathlib import Path\nfrom persister.kept import Kept\n"
        "Path('broken').unlink(missing_ok=True)  # as a server that is started anew\n"
        "def test_it():\n    assert Kept(1, 1).take_over(0.0) is None and not Path('broken').exists()\n"
    )
    try:
        names = copy.begin([test])
        seconds = dict.fromkeys(names, 1.0)
        assert len(names) == 1

        def noticed(after: str) -> str | None:
            return copy.notices(path, text.replace("        place = None", after), names, seconds)

        assert noticed("        place = (0, 0)") == names[0]
        assert noticed("        place = open('broken', 'w').close()") == f"{names[0]} hangs"
        assert noticed("        place = None  # the same") is None
    finally:
        copy.end()


def test_in_a_copy_a_fault_is_noticed_or_survives_or_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each in a fork of the same process; what is run at import in a new one. Other servers keep their way
    to where temporary files are."""
    path, tests = "persister/kept.py", ["tests/unit/test_kept.py"]
    copy = Copy(ROOT, tmp_path / "copy", all_servers=False)
    shared = tmp_path / f"pytest-of-{getpass.getuser()}"
    shared.mkdir(mode=0o711)
    monkeypatch.setenv("PYTEST_DEBUG_TEMPROOT", str(tmp_path))
    text = (ROOT / path).read_text()
    try:
        names = copy.begin(tests)
        seconds = dict.fromkeys(names, 1.0)
        assert len(names) > 3 and all(name.startswith(tests[0]) for name in names)

        def noticed(before: str, after: str) -> str | None:
            assert text.count(before) == 1
            return copy.notices(path, text.replace(before, after), names, seconds)

        assert noticed("self._keep_s = keep_ms / 1000", "self._keep_s = keep_ms / 10") in names
        assert noticed("self.bytes_count -= part.bytes_count", "pass") in names
        assert noticed("TOGETHER_S = 0.1", "TOGETHER_S = 1e9") == ""
        assert copy.notices(path, text, names, seconds) is None
        seconds = dict.fromkeys(names, -1.0)  # it needn't be waited for so long
        hung = noticed(
            "        last = self._parts[-1]", "        while True: pass\n        last = 0"
        )
        assert hung and hung.removesuffix(" hangs") in names and hung not in names
    finally:
        copy.end()
    assert (tmp_path / "copy" / path).read_text() == text
    assert shared.stat().st_mode & 0o777 == 0o711
