"""The supervisor of a stack: who died is started again and told, what a dead one left is ended."""

import os
import re
import signal
import sys
from pathlib import Path

import pytest
from test_servers import redis_server, wait_until

from api.processes import ProcessId, identify
from api.servers import RedisServer, Server, ServerError
from api.state_file import Part, State, failing_children, read_state, write_state
from api.supervisor import DirectoryLock, Program, Supervisor, end_leftovers

__all__ = ["redis_server"]

SLEEPER = [sys.executable, "-c", "import time; print('hello', flush=True); time.sleep(600)"]


def program(tmp_path: Path, name: str, command: list[str]) -> Program:
    log = tmp_path / f"{name}.log"
    return Program(name, command, environ=os.environ, log=log, cwd=tmp_path)


TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"


def test_a_child_that_dies_is_restarted_and_told_to_be_back_with_times(tmp_path: Path) -> None:
    said: list[str] = []
    parts: list[Part] = []
    supervisor = Supervisor(said.append, lambda now: parts.__setitem__(slice(None), now))
    child = program(tmp_path, "sleeper", SLEEPER)
    supervisor.start(child, stop_order=0)
    try:
        wait_until(lambda: "hello" in child.log.read_text())
        first = child.pid
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: not child.running())
        supervisor.watch()
        supervisor.watch()
        (ended,) = said
        reason = "killed by SIGKILL; its log ends with: hello"
        assert re.fullmatch(rf"{TIME} sleeper ended, restarting: {reason}", ended), ended
        assert child.running() and child.pid != first
        assert [part.process.pid for part in parts] == [child.pid]

        def is_said() -> bool:
            supervisor.watch()
            return len(said) > 1

        wait_until(is_said)
        back = re.fullmatch(rf"{TIME} sleeper is back, (\d+\.\d) s after it ended", said[1])
        assert back and float(back[1]) >= 1, said
        supervisor.watch()
    finally:
        supervisor.stop()
    assert [re.sub(rf"^{TIME} ", "", line) for line in said[2:]] == ["sleeper: stopped"]
    assert not child.running()


def test_a_server_is_back_once_it_answers(redis_server: RedisServer) -> None:
    said: list[str] = []
    supervisor = Supervisor(said.append, lambda now: None)
    supervisor.start(redis_server, stop_order=0)
    try:
        wait_until(redis_server.answers)
        redis_server.kill()
        wait_until(lambda: supervisor.watch() is None and "is back" in said[-1])
        assert redis_server.answers()
    finally:
        supervisor.stop()


def test_why_one_ended_by_itself_is_the_line_that_says_so(tmp_path: Path) -> None:
    printed = [f"line {number}" for number in range(9)]
    loud = program(
        tmp_path, "loud", ["printf", "\\n".join([*printed, "x\\033[31my", "FATAL: full", ""])]
    )
    loud.launch()
    wait_until(lambda: not loud.running())
    assert loud.last_words("FATAL") == "exit code 0: FATAL: full"
    assert loud.last_words() == (
        "exit code 0; its log ends with: line 8 / x\\x1b[31my / FATAL: full"
    )
    loud.log.write_text("cut by logrotate\n")
    assert loud.last_words("FATAL") == "exit code 0; its log ends with: cut by logrotate"


def test_a_child_that_keeps_ending_is_an_alarm_and_a_line_a_minute_while_it_is_started_again(
    tmp_path: Path,
) -> None:
    said: list[str] = []
    changes: list[list[str]] = []
    supervisor = Supervisor(said.append, lambda now: changes.append(supervisor.failing()))
    broken = [sys.executable, "-c", "raise SystemExit('no such setting')"]
    child = program(tmp_path, "broken", broken)
    supervisor.start(child, stop_order=0)

    def gives_up() -> bool:
        supervisor.watch()
        return supervisor.hopeless() is not None

    wait_until(gives_up, timeout_s=90)
    why = "exit code 1; its log ends with: no such setting"
    assert supervisor.hopeless() == f"broken keeps ending: {why}"
    assert said[1].endswith(f" broken ended, restarting in 0.5 s: {why}")
    told = "CRITICAL broken keeps ending, 5 times within a minute; it is started again for ever"
    assert told in said[-1] and len(said) == 5
    assert supervisor.failing() == changes[-1] == ["broken"]
    first = child.pid

    def ended_again() -> bool:
        supervisor.watch()
        return child.pid != first and not child.running()

    wait_until(ended_again, timeout_s=60)
    supervisor.watch()
    assert len(said) == 5, "started again, without a line each"
    supervisor.stop()


def test_metrics_and_status_know_which_child_keeps_ending(tmp_path: Path) -> None:
    state = State(supervisor=identify(os.getpid()), failing=["sweeper"])
    write_state(tmp_path, state)
    assert failing_children(str(tmp_path)) == ["sweeper"]
    write_state(tmp_path, State(supervisor=ProcessId(os.getpid(), 1.0), failing=["sweeper"]))
    assert failing_children(str(tmp_path)) is None
    assert failing_children("") is None


def test_what_a_dead_supervisor_left_is_ended_but_never_a_stranger(tmp_path: Path) -> None:
    orphan, stranger = program(tmp_path, "http", SLEEPER), program(tmp_path, "other", SLEEPER)
    servers: list[Program | Server] = [orphan, stranger]
    for child in servers:
        child.launch()
    process = identify(orphan.pid)
    assert process is not None
    reused = ProcessId(stranger.pid, process.started - 3600)
    parts = [Part("http", process, 15, 5.0, 0), Part("other", reused, 15, 5.0, 0)]
    write_state(tmp_path, State(parts=parts, redis_port=1234))

    assert end_leftovers(read_state(tmp_path)) == ["http"]

    assert not orphan.running()
    assert stranger.running()
    stranger.kill()


def test_one_supervisor_a_directory(tmp_path: Path) -> None:
    with (
        DirectoryLock(tmp_path),
        pytest.raises(ServerError, match=f"already running on .*, pid {os.getpid()}: stop it"),
        DirectoryLock(tmp_path),
    ):
        pass
    with DirectoryLock(tmp_path):
        assert (tmp_path / "lock").read_text().strip() == str(os.getpid())
