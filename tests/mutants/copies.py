"""Copies of the checkout in which faults are planted and tests run, several at once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.mutants.swap import is_within_functions

#: Only the plugins that the tests need: starting the others takes longer than most tests.
_OPTIONS = ("--no-header", "--tb=line", "-q", "-p", "anyio.pytest_plugin")
_NEWEST = ("-p", "tests.mutants.one_server")
_END_S = 60.0


class Measured:
    """What the tests of a checkout do without any fault: ``seconds`` of each, and by file and line which of
    them run it."""

    def __init__(self, told: dict[str, Any], root: Path) -> None:
        self.seconds: dict[str, float] = told["seconds"]
        self.fails: list[str] = told["fails"]
        self._lines = {
            str(Path(file).relative_to(root)): {int(n): set(tests) for n, tests in lines.items()}
            for file, lines in told["lines"].items()
        }

    def running(self, path: str, first: int, last: int) -> set[str]:
        """Tests that run one of these lines."""
        lines = self._lines.get(path, {})
        return set().union(*(lines.get(line, set()) for line in range(first, last + 1)))


class Copy:
    """What git knows of a checkout, and what is new in it, in a directory of its own."""

    def __init__(self, source: Path, directory: Path, *, all_servers: bool) -> None:
        self.directory = directory
        self._options = (*_OPTIONS, *(() if all_servers else _NEWEST))
        self._files: Sequence[str] = ()
        self._written_at = time.time_ns()
        self._nursery: subprocess.Popen[str] | None = None
        self._is_closed = False
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=source,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for name in filter(None, listed.split("\0")):
            if (source / name).is_file():
                (directory / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source / name, directory / name)

    def begin(self, files: Sequence[str]) -> list[str]:
        """Have the tests of these files ready; what they are called."""
        self._files = files
        self._nursery = subprocess.Popen(
            [sys.executable, "-m", "tests.mutants.nursery", *self._options, *files],
            cwd=self.directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=self._environ(),
        )
        return list(self._answer()["tests"])

    def measure(self, paths: Sequence[str]) -> Measured:
        """Run all tests without any fault."""
        return Measured(
            self._ask({"measure": [str(self.directory / p) for p in paths]}), self.directory
        )

    def notices(
        self, path: str, text: str, tests: Sequence[str], seconds: dict[str, float]
    ) -> str | None:
        """The first of these tests that fails, or that ``hangs`` (said behind its name), with this text in
        the place of a file; None where they all pass, '' where which it was is not told. They run in the
        order given. Where that test doesn't pass without the fault either by then, a server that all share
        hangs: a script runs in a circle, and each later fault would seem to be noticed."""
        kept = (self.directory / path).read_text()
        self._write(path, text)
        try:
            if path.endswith(".py") and not is_within_functions(kept, text):
                return self._in_a_new_process(tests, seconds)
            limits_s = {test: 10 + 5 * seconds[test] for test in tests}
            asked = {"file": str(self.directory / path), "limits_s": limits_s}
            answer = self._ask(asked | {"tests": tests})
        finally:
            self._write(path, kept)
        failed: str | None = answer["failed"]
        if failed and (answer.get("hung") or self._ask(asked | {"tests": [failed]})["failed"]):
            self.end()
            failed += " hangs"
        if self._nursery is None and not self._is_closed:
            self.begin(self._files)
        return failed

    def close(self) -> None:
        """End what runs here for good, also while somebody waits for an answer."""
        self._is_closed = True
        self.end()

    def end(self) -> None:
        """End what runs here, and the servers with it."""
        if self._nursery is None:
            return
        assert self._nursery.stdin is not None and self._nursery.stdout is not None
        with suppress(OSError):
            self._nursery.stdin.close()
        try:
            self._nursery.wait(_END_S)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self._nursery.pid, signal.SIGKILL)
            self._nursery.wait()
        self._nursery.stdout.close()
        self._nursery = None

    def _in_a_new_process(self, tests: Sequence[str], seconds: dict[str, float]) -> str | None:
        """For what is run at import."""
        limit_s = 60 + 3 * sum(seconds[test] for test in tests)
        command = [sys.executable, "-m", "pytest", "-x", *self._options, *tests]
        with subprocess.Popen(
            command,
            cwd=self.directory,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=self._environ(),
            start_new_session=True,
        ) as process:
            try:
                return None if process.wait(limit_s) == 0 else ""
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGINT)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_END_S)
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                return ""

    def _environ(self) -> dict[str, str]:
        """With a place of its own for temporary files: pytest closes that, at its start, to the servers of
        all who use it, too."""
        own = {"PYTEST_DEBUG_TEMPROOT": str(self.directory)}
        return os.environ | own | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}

    def _write(self, path: str, text: str) -> None:
        """With a time of its own, in whole seconds: by that Python tells bytecode of before."""
        file = self.directory / path
        file.write_text(text)
        self._written_at += 2 * 10**9
        os.utime(file, ns=(self._written_at, self._written_at))

    def _ask(self, what: dict[str, Any]) -> dict[str, Any]:
        assert self._nursery is not None and self._nursery.stdin is not None
        self._nursery.stdin.write(json.dumps(what) + "\n")
        self._nursery.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._nursery is not None and self._nursery.stdout is not None
        line = self._nursery.stdout.readline()
        if not line:
            sys.exit(
                "mutants: the process of the tests has ended, because they can't be collected (then it said "
                f"so above) or because it was killed: {' '.join(self._files)}"
            )
        answer = dict(json.loads(line))
        if "broken" in answer:
            sys.exit(f"mutants: the nursery failed: {answer['broken']}")
        return answer
