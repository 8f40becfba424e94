"""A process that has everything imported and forks for each run: starting Python and pytest takes longer than
most tests of a script do. Only for faults outside of Python.

A run is a line of JSON on stdin (the arguments of pytest, and how many seconds it has), its answer one on
stdout (the exit code, null where it was not done in time, and what pytest said).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import IO

import pytest

import api.kafka_server
import api.servers  # noqa: F401
import engine.engine  # noqa: F401
import persister.persister  # noqa: F401

TIDY_S = 20.0


def run(arguments: Sequence[str], timeout_s: float, output: IO[bytes]) -> int | None:
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        code = int(pytest.main(list(arguments)))
        sys.stdout.flush()
        os._exit(code)
    ended = _wait(pid, timeout_s)
    if ended is None:
        _end(pid)
    return ended


def _end(pid: int) -> None:
    """As Ctrl-C would, so that the servers it has started end too; then by force."""
    for number in (signal.SIGINT, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(pid, number)
        if _wait(pid, TIDY_S) is not None:
            return


def _wait(pid: int, timeout_s: float) -> int | None:
    """Its exit code; None where it has not ended by then."""
    give_up_at = time.monotonic() + timeout_s
    while time.monotonic() < give_up_at:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    return None


def main() -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        with tempfile.TemporaryFile() as output:
            code = run(asked["arguments"], asked["timeout_s"], output)
            output.seek(0)
            said = output.read().decode(errors="replace")
        print(json.dumps({"code": code, "output": said}), flush=True)


if __name__ == "__main__":
    main()
