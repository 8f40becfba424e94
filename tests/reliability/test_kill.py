"""`kill -9` of every part of a running stack under load: nothing acknowledged is lost or doubled."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx
import psutil
import pytest
from running import REPOSITORY, Up, environment, eventually, holdfast, rows, wait_for_ledger

SKUS = [f"s{n}" for n in range(5)]
STOCK = 1_000_000


class Load:
    """Buyers that reserve, and confirm or release a third each; what got no answer is sent again
    under the same id, as a good client does."""

    def __init__(self, url: str, buyers: int = 4) -> None:
        self._url = url
        self._stopping = Event()
        self._numbers = itertools.count()
        self.acknowledged: dict[str, str] = {}  # reservation_id → the last state that was answered
        self.wrong: list[str] = []
        self._threads = [Thread(target=self._buy, name=f"buyer-{n}") for n in range(buyers)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(60)
        assert not self.wrong, self.wrong[:3]

    def goes_on(self) -> None:
        """Wait for 150 more acknowledged reservations."""
        target = len(self.acknowledged) + 150
        eventually("the load goes on", lambda: self.wrong or len(self.acknowledged) > target, 60)

    def _buy(self) -> None:
        with httpx.Client(base_url=self._url, timeout=10, trust_env=False) as client:
            while not self._stopping.is_set():
                number = next(self._numbers)
                name = f"r{number}"
                line = {"sku": SKUS[number % len(SKUS)], "quantity": 1, "location": "MAIN"}
                order = {"reservation_id": name, "order_id": f"o{number}", "ttl_seconds": 3600}
                if self._insist(client, "", {**order, "lines": [line]}) is None:
                    return
                self.acknowledged[name] = "held"
                call, state = [("confirm", "confirmed"), ("release", "released"), ("", "held")][
                    number % 3
                ]
                if call:
                    answer = self._insist(client, f"/{name}/{call}", {})
                    if answer is None:
                        return
                    if answer["status"] != state:
                        self.wrong.append(f"{name}: {answer}")
                    self.acknowledged[name] = state

    def _insist(self, client: httpx.Client, path: str, body: object) -> dict[str, Any] | None:
        """Send until it is answered with a success; None when told to stop before."""
        while not self._stopping.is_set():
            try:
                answer = client.post(f"/v1/reservations{path}", json=body)
            except httpx.TransportError:
                time.sleep(0.05)
                continue
            if answer.is_success:
                content: dict[str, Any] = answer.json()
                return content
            if answer.status_code != 503:
                self.wrong.append(f"{path} {body}: {answer.status_code} {answer.text}")
                return None
            time.sleep(0.05)
        return None


def receive_stock(stack: Up) -> None:
    for sku in SKUS:
        move = {"movement_id": f"m-{sku}", "type": "receive", "sku": sku, "location": "MAIN"}
        answer = httpx.post(
            f"{stack.url}/v1/movements", json=move | {"quantity": STOCK}, trust_env=False
        )
        assert answer.status_code == 201, answer.text


def check_nothing_lost(stack: Up, load: Load) -> None:
    """Every acknowledged reservation is there once in Redis and once in the ledger, in the state
    that was answered; stock, reservations and ledger agree."""
    assert len(load.acknowledged) > 100
    wait_for_ledger(stack.settings())
    url = stack.settings().postgres_url
    told = {"reserve": "held", "confirm": "confirmed", "release": "released"}
    ledger: dict[str, list[str]] = {}
    query = (
        "SELECT reservation_id, type FROM movements WHERE reservation_id IS NOT NULL ORDER BY seq"
    )
    for name, kind in rows(url, query):
        ledger.setdefault(name, []).append(told[kind])
    held = dict.fromkeys(SKUS, 0)
    gone = dict.fromkeys(SKUS, 0)
    with httpx.Client(base_url=stack.url, timeout=10, trust_env=False) as client:
        for name, state in load.acknowledged.items():
            reservation = client.get(f"/v1/reservations/{name}").json()
            steps = ledger[name]
            # The last call before the load was stopped may have been done without an answer.
            assert steps[0] == "held" and len(steps) <= 2 and len(set(steps)) == len(steps), name
            assert reservation["status"] == steps[-1], name
            assert state in steps, (name, state, steps)
        for name, steps in ledger.items():
            sku = SKUS[int(name[1:]) % len(SKUS)]
            held[sku] += steps == ["held"]
            gone[sku] += steps[-1] == "confirmed"
        for sku in SKUS:
            stock = client.get(f"/v1/stock/{sku}").json()
            assert (stock["on_hand"], stock["held"]) == (STOCK - gone[sku], held[sku]), sku
    done = holdfast("reconcile", "--data-dir", str(stack.data_dir))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Up]:
    stack = Up(tmp_path / "stack")
    stack.start()
    receive_stock(stack)
    yield stack
    if stack.process is not None and stack.process.poll() is None:
        assert stack.stop() == 0, stack.output.read_text()


def restarted(stack: Up, name: str, old: int) -> None:
    """The supervisor has started it again, and the service is ready."""
    eventually(f"{name} runs again", lambda: stack.pids().get(name, old) != old, 60)
    eventually("it is ready", stack.ready, 60)


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
