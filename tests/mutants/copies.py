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

#: Only the plugins that the tests need: starting the others takes longer than most tests.
_OPTIONS = ("-x", "--no-header", "--tb=line", "-p", "anyio.pytest_plugin")
_NURSERY = [sys.executable, "-m", "tests.mutants.nursery"]


class Copy:
    """What git knows of a checkout, and what is new in it, in a directory of its own."""

    def __init__(self, source: Path, directory: Path) -> None:
        self.directory = directory
        self._written_at = time.time_ns()
        self._nursery: subprocess.Popen[str] | None = None
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
        """Do the tests pass with this text in the place of a file, in time? And what pytest said.

        They run in the order given, and end at the first that fails."""
        kept = (self.directory / path).read_text()
        plugin = [] if all_servers else ["-p", "tests.mutants.one_server"]
        self._write(path, text)
        try:
            answer = self._ask([*_OPTIONS, *plugin, *tests], timeout_s)
        finally:
            self._write(path, kept)
            if not path.endswith(".lua"):
                self.end()  # it has imported what was there
        if answer["code"] is None:
            return False, f"not done within {timeout_s:.0f} s\n{answer['output']}"
        return answer["code"] == 0, answer["output"]

    def end(self) -> None:
        """End what runs here."""
        if self._nursery is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._nursery.pid, signal.SIGKILL)
            self._nursery.wait()
            self._nursery = None

    def _write(self, path: str, text: str) -> None:
        """With a time of its own, in whole seconds: by that Python tells bytecode of before."""
        file = self.directory / path
        file.write_text(text)
        self._written_at += 2 * 10**9
        os.utime(file, ns=(self._written_at, self._written_at))

    def _ask(self, arguments: Sequence[str], timeout_s: float) -> dict[str, Any]:
        if self._nursery is None:
            self._nursery = subprocess.Popen(
                _NURSERY,
                cwd=self.directory,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
                env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            )
        stdin, stdout = self._nursery.stdin, self._nursery.stdout
        assert stdin is not None and stdout is not None
        stdin.write(json.dumps({"arguments": arguments, "timeout_s": timeout_s}) + "\n")
        stdin.flush()
        line = stdout.readline()
        return dict(json.loads(line)) if line else {"code": 1, "output": "it can't be imported"}
