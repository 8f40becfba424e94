"""Faults that no test notices: `make mutants FILES="lua/trim.lua persister/heal.py"`.

Each small fault of these files (a comparison, a guard, a bound, an order, a statement left out) is planted
by itself in a copy of the checkout, and the tests that the file concerns are run there. A fault with which
they pass survives: a test is missing, or it is the same program. The reasons for the latter stand in
tests/mutants/reasons.toml. Exit code 0 where none survives without a reason, else 1.
"""

from __future__ import annotations

import argparse
import ast
import os
import signal
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import accumulate
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory

from tests.mutants.concerned import Tree
from tests.mutants.copies import Copy, Measured
from tests.mutants.fault import Fault
from tests.mutants.in_text import lua_faults, sql_faults

ROOT = Path(__file__).resolve().parent.parent.parent
REASONS = Path(__file__).with_name("reasons.toml")
NEAREST = 4


def faults_in(path: str) -> list[Fault]:
    """All faults of a file. ValueError for one of another kind."""
    text = (ROOT / path).read_text()
    if path.endswith(".lua"):
        return lua_faults(path, text)
    if path.endswith(".sql"):
        return sql_faults(path, text)
    if path.endswith(".py"):
        from tests.mutants.in_python import python_faults  # needs mutmut

        return python_faults(path, text)
    raise ValueError(f"{path} is neither Python nor Lua nor SQL")


def reasons() -> dict[tuple[str, str, str], str]:
    """Why a fault is the same program, by file, before and after; lines may move."""
    kept = tomllib.loads(REASONS.read_text())
    return {(r["file"], r["before"], r["after"]): r["why"] for r in kept.get("same", [])}


class Run:
    """The faults of some files, with the tests that each concerns, on some copies."""

    def __init__(
        self, tests: Mapping[str, Sequence[str]], copies: Sequence[Copy], at_most_s: float
    ) -> None:
        """``tests``: the files of tests by the file that they are about, the nearest first."""
        self._tests = tests
        self._at_most_s = at_most_s
        self._copies: SimpleQueue[Copy] = SimpleQueue()
        for copy in copies:
            self._copies.put(copy)
        self._all = list(copies)
        self._names: list[str] = []
        self._noticed: Counter[tuple[str, str]] = Counter()  # by file and test
        self._measured: Measured | None = None

    def begin(self) -> None:
        """Run all of the tests as it is: how long they take, and which lines of Python they run."""
        files = list(dict.fromkeys(file for files in self._tests.values() for file in files))
        for copy in self._all:
            self._names = copy.begin(files)
        _say(f"{len(self._names)} tests in {len(files)} files, without any fault first")
        self._measured = self._all[0].measure(
            [path for path in self._tests if path.endswith(".py")]
        )
        if self._measured.fails:
            _say(f"LEFT OUT, they fail without any fault: {' '.join(self._measured.fails)}")

    def end(self) -> None:
        for copy in self._all:
            copy.close()

    def survivors(self, faults: Sequence[Fault]) -> Iterator[Fault]:
        """One after the other as they are found; progress goes to stderr."""
        with ThreadPoolExecutor(len(self._all)) as pool:
            asked = {pool.submit(self._notices, fault): fault for fault in faults}
            try:
                for number, done in enumerate(as_completed(asked), 1):
                    test = done.result()
                    _say(f"{number}/{len(faults)} {test or 'SURVIVES'}  {asked[done]}")
                    if test is None:
                        yield asked[done]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                self.end()
                raise

    def _notices(self, fault: Fault) -> str | None:
        """The test that notices it."""
        assert self._measured is not None
        tests = self._tests_of(fault, self._measured)
        copy = self._copies.get()
        try:
            found = copy.notices(fault.path, fault.text, tests, self._measured.seconds)
        finally:
            self._copies.put(copy)
        if found:
            self._noticed[fault.path, found.removesuffix(" hangs")] += 1
        return found if found is None else found or "when imported"

    def _tests_of(self, fault: Fault, measured: Measured) -> list[str]:
        """First those that noticed others of its file, then those of a file of its name, then those of the
        nearest files."""
        files = self._tests[fault.path]
        names = {name for name in self._names if name.partition("::")[0] in set(files)}
        first, last = function_around(fault)
        for lines in statement_around(fault), (first, last):
            running = names & measured.running(fault.path, *lines)
            if running:
                names = running
                break
        left = names - set(measured.fails)
        ordered = widely(left, measured.seconds)
        stem = Path(fault.path).stem
        ordered.sort(
            key=lambda name: (
                -self._noticed[fault.path, name],
                not Path(name.partition("::")[0]).stem.startswith(f"test_{stem}"),
                name.partition("::")[0] not in files[:NEAREST],
            )
        )
        spent = accumulate([measured.seconds[name] for name in ordered])
        return [name for name, at_s in zip(ordered, spent, strict=True) if at_s <= self._at_most_s]


def widely(names: Iterable[str], seconds: Mapping[str, float]) -> list[str]:
    """The quickest first, but of one with many cases a further one costs as if it took as many times as
    long: two hundred cases of one kind say less than one of each of two hundred."""
    cases: Counter[str] = Counter()
    costs = {}
    for name in sorted(names, key=lambda name: (seconds[name], name)):
        cases[name.partition("[")[0]] += 1
        costs[name] = seconds[name] * cases[name.partition("[")[0]]
    return sorted(costs, key=lambda name: costs[name])


def statement_around(fault: Fault) -> tuple[int, int]:
    """First and last line of the statement that it is in, without the statements within that: of one with
    several lines a test may run others only. Its own line where it is in none."""
    found = []
    if fault.path.endswith(".py"):
        for each in ast.walk(ast.parse((ROOT / fault.path).read_text())):
            if isinstance(each, ast.stmt):
                within = getattr(each, "body", None)
                last = within[0].lineno - 1 if within else each.end_lineno or each.lineno
                if each.lineno <= fault.line <= last:
                    found.append((each.lineno, last))
    return max(found, default=(fault.line, fault.line))


def function_around(fault: Fault) -> tuple[int, int]:
    """First and last line of the function that it is in; (0, 0) where it is in none."""
    if not fault.path.endswith(".py"):
        return 0, 0
    functions = [
        (each.lineno, each.end_lineno or each.lineno)
        for each in ast.walk(ast.parse((ROOT / fault.path).read_text()))
        if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return max([(a, b) for a, b in functions if a < fault.line <= b], default=(0, 0))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+", help="of engine/, persister/, api/ or lua/")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) // 2))
    parser.add_argument("--only", type=int, nargs="+", metavar="LINE", help="faults of these lines")
    parser.add_argument(
        "--tests", nargs="+", metavar="FILE", help="only these, where they concern it"
    )
    parser.add_argument("--every", type=int, default=1, metavar="N", help="each Nth fault only")
    parser.add_argument(
        "--at-most-s",
        type=float,
        default=120,
        metavar="S",
        help="of tests a fault, the quickest of each kind first",
    )
    parser.add_argument("--all-servers", action="store_true", help="on each kind of Redis")
    asked = parser.parse_args()
    tree, known = Tree(ROOT), reasons()
    tests = {path: tree.tests_of(path) for path in asked.files}
    if asked.tests:
        tests = {
            p: [t for t in files if t in asked.tests] or asked.tests for p, files in tests.items()
        }
    for path, files in tests.items():
        if not files:
            sys.exit(f"mutants: no test names, imports or includes {path}")
    faults = [
        fault
        for path in asked.files
        for fault in faults_in(path)[:: asked.every]
        if not asked.only or fault.line in asked.only
    ]
    with TemporaryDirectory(prefix="holdfast-mutants-") as directory:
        Path(directory).chmod(0o755)  # PostgreSQL runs as a user of its own
        places = [Path(directory, str(number)) for number in range(asked.workers)]
        copies = [Copy(ROOT, place, all_servers=asked.all_servers) for place in places]
        run = Run(tests, copies, asked.at_most_s)
        found: list[Fault] = []
        try:
            run.begin()
            for fault in run.survivors(faults):
                found.append(fault)
        except KeyboardInterrupt:
            _say("interrupted: not all of them were tried")
        finally:
            run.end()
    without = [f for f in found if (f.path, f.before, f.after) not in known]
    print(f"\n{len(found)} faults survived, {len(found) - len(without)} of them with a reason:")
    for fault in sorted(found, key=lambda each: (each.path, each.line)):
        print(fault)
        if why := known.get((fault.path, fault.before, fault.after)):
            print(f"    the same program: {why}")
    return 1 if without else 0


if __name__ == "__main__":
    sys.exit(main())
