"""Copies of the checkout in which faults are planted and tests run, several at once."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

TIDY_S = 20.0
#: Only the plugins that the tests need: starting the others takes longer than most tests.
_PYTEST = ("-m", "pytest", "-x", "--no-header", "--tb=line", "-p", "anyio.pytest_plugin")


class Copy:
    """What git knows of a checkout, and what is new in it, in a directory of its own."""

    def __init__(self, source: Path, directory: Path) -> None:
        self.directory = directory
        self._process: subprocess.Popen[str] | None = None
        self._written_at = time.time_ns()
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

    def run_with(
        self, path: str, text: str, tests: Sequence[str], *, all_servers: bool, timeout_s: float
    ) -> tuple[bool, str]:
        """Do the tests pass with this text in the place of a file, in time? And what pytest said last."""
        kept = (self.directory / path).read_text()
        self._write(path, text)
        try:
            return self._run(tests, all_servers=all_servers, timeout_s=timeout_s)
        finally:
            self._write(path, kept)

    def _write(self, path: str, text: str) -> None:
        """With a time of its own, in whole seconds: by that Python tells bytecode of before."""
        file = self.directory / path
        file.write_text(text)
        self._written_at += 2 * 10**9
        os.utime(file, ns=(self._written_at, self._written_at))

    def end(self) -> None:
        """End what runs here."""
        if self._process is not None:
            _end(self._process)

    def _run(
        self, tests: Sequence[str], *, all_servers: bool, timeout_s: float
    ) -> tuple[bool, str]:
        """The tests run file by file in the order given and end at the first that fails."""
        plugin = [] if all_servers else ["-p", "tests.mutants.one_server"]
        self._process = subprocess.Popen(
            [sys.executable, *_PYTEST, *plugin, *tests],
            cwd=self.directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        )
        try:
            output, _ = self._process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            output = _end(self._process)
            return False, f"not done within {timeout_s:.0f} s\n{output}"
        return self._process.returncode == 0, output


def _end(process: subprocess.Popen[str]) -> str:
    """As Ctrl-C would, so that the servers it has started end too; then by force."""
    for number in (signal.SIGINT, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=TIDY_S)[0]
    return ""
