"""A process that has everything imported, all tests collected and the servers at work, and forks for each
fault: to start all that takes longer than most tests do.

A request is a line of JSON on stdin, answered by one on stdout. ``{"tests": …, "file": …}`` runs these tests
up to the first that fails; with a ``file`` its functions are what stands in it by now. ``{"measure": files}``
runs all tests, and tells of each how long it took and which lines of these files it ran.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import pytest
from _pytest.runner import runtestprotocol

from persister import queries
from tests.mutants.swap import swap_in

WARM = Path(__file__).with_name("warm.py")
TIDY_S = 20.0
LONGEST_S = 600.0
_WARMED_BY = {
    "redis_server": "test_redis",
    "postgres_server": "test_postgres",
    "kafka_bootstrap": "test_kafka",
}


class Nursery:
    """A plugin of pytest: in place of all tests it runs those that it is asked for."""

    def __init__(self, requests: IO[str], answers: IO[str]) -> None:
        self._requests = requests
        self._answers = answers
        self._items: dict[str, pytest.Item] = {}
        self._base = Path()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        warm = [item for item in session.items if item.path == WARM]
        self._items = {item.nodeid: item for item in session.items if item.path != WARM}
        used = {name for item in self._items.values() for name in item.fixturenames}
        wanted = {test for name, test in _WARMED_BY.items() if name in used}
        self._last = warm[-1]  # it shares nothing with another test but the servers
        for item in warm:
            if item.originalname in wanted:
                _run(item, next(iter(self._items.values())))
        self._base = session.config._tmp_path_factory.getbasetemp()
        self._tell({"tests": list(self._items)})
        for line in self._requests:
            asked = json.loads(line)
            before = set(self._base.iterdir())
            if "measure" in asked:
                self._tell(self._in_a_fork(list(self._items), asked, {}))
            else:
                self._tell(self._in_a_fork(asked["tests"], asked, asked["limits_s"]))
            for left in set(self._base.iterdir()) - before:
                shutil.rmtree(left, ignore_errors=True)
        return True

    def _tell(self, what: dict[str, Any]) -> None:
        self._answers.write(json.dumps(what) + "\n")
        self._answers.flush()

    def _in_a_fork(
        self, tests: Sequence[str], asked: dict[str, Any], limits_s: dict[str, float]
    ) -> dict[str, Any]:
        """What the child tells at its end; ``failed`` names the test in which it hung or died, too."""
        ours, theirs = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(ours)
            os.setsid()
            self._be_a_child(tests, asked, theirs)
        os.close(theirs)
        told: dict[str, Any] = {"begins": tests[0]}
        words = b""
        while "begins" in told:
            test = told["begins"]
            while b"\n" not in words:
                wait_s = limits_s.get(test, LONGEST_S)
                readable, _, _ = select.select([ours, self._requests], [], [], wait_s)
                if self._requests in readable:
                    _end(pid)
                    pytest.exit("nobody waits for an answer any more")
                read = os.read(ours, 1 << 20) if readable else b""
                if not read:
                    words = json.dumps({"failed": test, "hung": not readable}).encode() + b"\n"
                words += read
            line, _, words = words.partition(b"\n")
            told = json.loads(line)
        os.close(ours)
        _end(pid, 0.0 if told.get("hung") else TIDY_S)
        return told

    def _be_a_child(self, tests: Sequence[str], asked: dict[str, Any], words: int) -> None:
        code = 1
        try:
            null = os.open(os.devnull, os.O_RDWR)
            for number in (0, 1, 2):
                os.dup2(null, number)
            with os.fdopen(words, "w", buffering=1) as out:
                tell = lambda what: out.write(json.dumps(what) + "\n")  # noqa: E731
                try:
                    if "measure" in asked:
                        tell(self._measure(asked["measure"], tell))
                    else:
                        tell(self._try(tests, asked["file"], tell))
                except Exception:
                    tell({"broken": traceback.format_exc()})
            code = 0
        finally:
            # What it has started ends, but for the servers that all share.
            with suppress(BaseException):
                self._last.session._setupstate.teardown_exact(self._last)
            os._exit(code)

    def _try(self, tests: Sequence[str], file: str, tell: Any) -> dict[str, Any]:
        if file.endswith(".py"):
            swap_in(file)
        elif file.endswith(".sql"):
            queries.QUERIES.update(queries._load_queries())
        items = [self._items[test] for test in tests]
        for item, after in zip(items, [*items[1:], self._last], strict=True):
            tell({"begins": item.nodeid})
            if not _run(item, after):
                return {"failed": item.nodeid}
        return {"failed": None}

    def _measure(self, files: Sequence[str], tell: Any) -> dict[str, Any]:
        import coverage  # comes with mutmut

        measured = coverage.Coverage(
            data_file=None, include=list(files) or ["none"], config_file=False
        )
        seconds, shared_s, failed = {}, {}, []
        items = list(self._items.values())
        measured.start()
        for item, after in zip(items, [*items[1:], self._last], strict=True):
            tell({"begins": item.nodeid})
            measured.switch_context(item.nodeid)
            reports = runtestprotocol(item, nextitem=after, log=False)
            if any(report.failed for report in reports):
                failed.append(item.nodeid)
            seconds[item.nodeid] = sum(report.duration for report in reports)
            if _shares(item):
                shared_s[item.path] = max(shared_s.get(item.path, 0.0), reports[0].duration)
        measured.stop()
        for item in items:
            seconds[item.nodeid] += shared_s.get(item.path, 0.0) if _shares(item) else 0.0
        with warnings.catch_warnings(action="ignore"):  # of Lua nothing is measured
            data = measured.get_data()
        lines = {file: data.contexts_by_lineno(file) for file in data.measured_files()}
        return {"seconds": seconds, "fails": failed, "lines": lines}


def _shares(item: pytest.Item) -> bool:
    """Does it use what is made once for a file? By itself it would have to make that."""
    used = item._fixtureinfo.name2fixturedefs.values()
    return any(each.scope == "module" for fixtures in used for each in fixtures)


def _run(item: pytest.Item, after: pytest.Item) -> bool:
    """Does it pass? What it shares with the item ``after`` stays for that."""
    return not any(each.failed for each in runtestprotocol(item, nextitem=after, log=False))


def _end(pid: int, wait_s: float = 0.0) -> None:
    """As Ctrl-C would, so that the servers it has started end too; then by force."""
    for patience_s, number in (
        (wait_s, signal.SIGINT),
        (TIDY_S, signal.SIGKILL),
        (TIDY_S, signal.SIGKILL),
    ):
        give_up_at = time.monotonic() + patience_s
        while True:
            if os.waitpid(pid, os.WNOHANG)[0]:
                return
            if time.monotonic() > give_up_at:
                break
            time.sleep(0.005)
        with suppress(ProcessLookupError):
            os.killpg(pid, number)


def main() -> None:
    # Ignored where a shell began it in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    requests = os.fdopen(os.dup(0), "r")
    answers = os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)  # what pytest says
    sys.exit(pytest.main([*sys.argv[1:], str(WARM)], plugins=[Nursery(requests, answers)]))


if __name__ == "__main__":
    main()
