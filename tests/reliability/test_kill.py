"""`kill -9` of every part of a running stack under load: nothing acknowledged is lost or doubled."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from load import Load, check_nothing_lost, receive_stock, restarted
from running import REPOSITORY, Up, environment, eventually, holdfast


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Up]:
    stack = Up(tmp_path / "stack")
    stack.start()
    receive_stock(stack)
    yield stack
    if stack.process is not None and stack.process.poll() is None:
        assert stack.stop() == 0, stack.output.read_text()


def test_each_part_is_killed_in_turn_and_comes_back(stack: Up) -> None:
    """Redis, the HTTP worker, the persister, the sweeper and PostgreSQL, under load."""
    with Load(stack.url) as load:
        for name in ("redis", "http-1", "persister", "sweeper", "postgresql", "redis"):
            load.goes_on()
            old = stack.pids()[name]
            stack.kill(name)
            restarted(stack, name, old)
        load.goes_on()
    assert "restarting" in stack.output.read_text()
    check_nothing_lost(stack, load)


def test_the_supervisor_alone_is_killed_and_the_next_start_takes_over(stack: Up) -> None:
    """Its orphans are not "port in use"; the load meanwhile knocks at the same port."""
    with Load(stack.url) as load:
        for _ in range(2):
            load.goes_on()
            orphans = set(stack.pids().values())
            stack.kill("supervisor")
            stack.start()
            assert not [pid for pid in orphans if psutil.pid_exists(pid) and not _zombie(pid)]
        load.goes_on()
    check_nothing_lost(stack, load)


def test_workers_end_themselves_when_their_supervisor_is_gone(stack: Up) -> None:
    pids = stack.pids()
    stack.kill("supervisor")
    ours = [pids[name] for name in ("http-1", "persister", "sweeper")]
    eventually("they end", lambda: all(not psutil.pid_exists(p) or _zombie(p) for p in ours), 20)
    stack.start()
    assert set(stack.pids().values()).isdisjoint(ours), "the next start has workers of its own"


def test_everything_at_once_is_killed_and_the_next_start_has_it_all(stack: Up) -> None:
    with Load(stack.url) as load:
        for _ in range(2):
            load.goes_on()
            stack.kill("supervisor", *[name for name in stack.pids() if name != "supervisor"])
            stack.start()
        load.goes_on()
    check_nothing_lost(stack, load)


def test_sigterm_under_load_ends_with_0_and_leaves_no_process(stack: Up) -> None:
    """What the ledger then has is all that was acknowledged: the next start finds nothing missing."""
    with Load(stack.url) as load:
        load.goes_on()
        processes = set(stack.pids().values()) | {
            child.pid for child in psutil.Process(stack.pids()["supervisor"]).children(True)
        }
        assert stack.stop() == 0, stack.output.read_text()
        assert not [pid for pid in processes if psutil.pid_exists(pid)]
        assert "Traceback" not in stack.output.read_text()
        stack.start()
        load.goes_on()
    check_nothing_lost(stack, load)


def test_ctrl_c_of_the_whole_terminal_ends_with_0(tmp_path: Path) -> None:
    """SIGINT reaches every process of the foreground group, the children too; twice, even."""
    stack = Up(tmp_path / "stack")
    with stack.output.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "api.cli", "up", *stack.options()],
            cwd=REPOSITORY, env=environment(), stdout=output, stderr=output, process_group=0,
        )  # fmt: skip
    try:
        eventually("it is ready", stack.ready, 60)
        os.killpg(process.pid, signal.SIGINT)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 0, stack.output.read_text()
        assert "Traceback" not in stack.output.read_text()
    finally:
        process.kill()
        process.wait()


def _zombie(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def refused(stack: Up) -> str:
    """What `up` says when it can't start: one line, exit code 2."""
    done = holdfast("up", *stack.options(), timeout_s=30)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("holdfast: ") and done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stdout
    return done.stderr


def test_a_second_stack_on_the_directory_is_refused(stack: Up) -> None:
    second = Up(stack.data_dir)
    assert "already running" in refused(second)
    assert stack.ready()


def test_a_port_in_use_is_refused_and_nothing_is_left_running(tmp_path: Path) -> None:
    stack = Up(tmp_path / "stack")
    with socket.create_server(("127.0.0.1", stack.port)):
        assert str(stack.port) in refused(stack)
    started = [
        p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in str(p.info["cmdline"])
    ]
    assert not started


@pytest.mark.parametrize("where", ["file", "below a file", "/proc/nothing", "/dev/null"])
def test_a_directory_that_can_not_be_used_is_refused(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("")
    path = {"file": tmp_path / "file", "below a file": tmp_path / "file" / "x"}.get(
        where, Path(where)
    )
    stack = Up(tmp_path / "unused")
    stack.data_dir = path
    done = holdfast("up", *stack.options(), timeout_s=30)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert str(path) in done.stderr


def test_files_of_others_in_the_directory_stay(tmp_path: Path) -> None:
    stack = Up(tmp_path / "stack")
    stack.data_dir.mkdir()
    (stack.data_dir / "notes.txt").write_text("mine")
    stack.start()
    assert stack.stop() == 0
    assert (stack.data_dir / "notes.txt").read_text() == "mine"
