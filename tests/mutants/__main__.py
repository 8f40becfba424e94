"""Faults that no test notices: `make mutants FILES="lua/trim.lua persister/heal.py"`.

Each small fault of these files (a comparison, a guard, a bound, an order, a statement left out) is planted
by itself in a copy of the checkout, and the tests that the file concerns are run there. A fault with which
they pass survives: a test is missing, or it is the same program. The reasons for the latter stand in
tests/mutants/reasons.toml. Exit code 0 where none survives without a reason, else 1.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import tomllib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory

from tests.mutants.concerned import Tree
from tests.mutants.copies import Copy
from tests.mutants.fault import Fault
from tests.mutants.in_text import lua_faults, sql_faults

ROOT = Path(__file__).resolve().parent.parent.parent
REASONS = Path(__file__).with_name("reasons.toml")
FIRST_RUN_S = 1_800.0


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
    """All faults of one file, with the tests that it concerns, on some copies."""

    def __init__(
        self, path: str, tests: Sequence[str], copies: Sequence[Copy], *, all_servers: bool
    ) -> None:
        self._path = path
        self._tests = tests
        self._all_servers = all_servers
        self._copies: SimpleQueue[Copy] = SimpleQueue()
        for copy in copies:
            self._copies.put(copy)
        self._all = list(copies)
        self._limit_s = FIRST_RUN_S
        self.width = len(copies)

    def check(self) -> None:
        """The tests pass as it is; how long they take sets the limit of each fault. SystemExit else."""
        began = time.monotonic()
        passes, output = self._try((ROOT / self._path).read_text())
        if not passes:
            sys.exit(f"mutants: without any fault the tests of {self._path} fail:\n{output}")
        self._limit_s = 30 + 3 * (time.monotonic() - began)

    def end(self) -> None:
        """End what runs in the copies."""
        for copy in self._all:
            copy.end()

    def survives(self, fault: Fault) -> bool:
        """Do all the tests pass with it?"""
        return self._try(fault.text)[0]

    def _try(self, text: str) -> tuple[bool, str]:
        copy = self._copies.get()
        try:
            return copy.run_with(
                self._path,
                text,
                self._tests,
                all_servers=self._all_servers,
                timeout_s=self._limit_s,
            )
        finally:
            self._copies.put(copy)


def survivors_in(run: Run, faults: Sequence[Fault]) -> Iterable[Fault]:
    """One after the other as they are found; progress goes to stderr."""
    run.check()
    with ThreadPoolExecutor(run.width) as pool:
        asked = {pool.submit(run.survives, fault): fault for fault in faults}
        try:
            for number, done in enumerate(as_completed(asked), 1):
                word = "SURVIVES" if done.result() else "noticed"
                _say(f"{number}/{len(faults)} {word}  {asked[done]}")
                if done.result():
                    yield asked[done]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            run.end()
            raise


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+", help="of engine/, persister/, api/ or lua/")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) // 2))
    parser.add_argument("--only", type=int, nargs="+", metavar="LINE", help="faults of these lines")
    parser.add_argument("--tests", nargs="+", metavar="FILE", help="instead of those it concerns")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="each Nth fault only")
    parser.add_argument("--all-servers", action="store_true", help="on each kind of Redis")
    asked = parser.parse_args()
    tree, known = Tree(ROOT), reasons()
    found: list[Fault] = []
    with TemporaryDirectory(prefix="holdfast-mutants-") as directory:
        Path(directory).chmod(0o755)  # PostgreSQL runs as a user of its own
        copies = [Copy(ROOT, Path(directory, str(n))) for n in range(asked.workers)]
        for path in asked.files:
            tests = asked.tests or tree.tests_of(path)
            if not tests:
                sys.exit(f"mutants: no test names, imports or includes {path}")
            all_of_them = faults_in(path)[:: asked.every]
            faults = [f for f in all_of_them if not asked.only or f.line in asked.only]
            _say(f"{path}: {len(faults)} faults, {len(tests)} test files: {' '.join(tests)}")
            run = Run(path, tests, copies, all_servers=asked.all_servers)
            found += survivors_in(run, faults)
    without = [f for f in found if (f.path, f.before, f.after) not in known]
    print(f"\n{len(found)} faults survived, {len(found) - len(without)} of them with a reason:")
    for fault in sorted(found, key=lambda each: (each.path, each.line)):
        print(fault)
        if why := known.get((fault.path, fault.before, fault.after)):
            print(f"    the same program: {why}")
    return 1 if without else 0


if __name__ == "__main__":
    sys.exit(main())
