"""The tool that plants faults: which it makes of Lua and SQL, and which tests a file concerns."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.mutants.__main__ import ROOT, reasons
from tests.mutants.concerned import Tree
from tests.mutants.fault import Fault, faults_of
from tests.mutants.in_text import lua_faults, sql_faults

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
