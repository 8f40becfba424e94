"""`holdfast up --kafka`: a replay through the topic, every part killed, to direct reading and back.

One stack for most tests of this file; each leaves it running.
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import httpx
import psutil
import pytest
from kafka_kit import messages, next_offset
from load import Load, check_nothing_lost, receive_stock, restarted
from running import (
    REPOSITORY,
    Up,
    environment,
    eventually,
    holdfast,
    ledger_seq,
    rows,
    wait_for_ledger,
)

from api.kafka_server import KafkaServer
from api.local import discover
from engine import keys
from engine.events import from_json
from engine.partitions import read_head
from persister.persister import connect_redis

FILE = REPOSITORY / "tests" / "data" / "orders-2000-invoices.csv.gz"
PARTS = ["http-1", "sweeper", "relay", "persister", "redis", "kafka", "postgresql"]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, embedded_kafka: None) -> Iterator[Up]:
    # Nothing is kept once it was shipped: some of these tests are about events in Kafka only.
    data = tmp_path_factory.mktemp("up-kafka") / "stack"
    stack = Up(data, "--kafka", HOLDFAST_OUTBOX_KEEP_MS="0")
    stack.start()
    receive_stock(stack)
    yield stack
    if stack.process is not None and stack.process.poll() is None:
        assert stack.stop() == 0, stack.output.read_text()


def outbox_length(stack: Up) -> int:
    with connect_redis(stack.settings().redis_url) as redis:
        return int(redis.xlen(keys.outbox(0)))


def trimmed_seq(stack: Up) -> int:
    with connect_redis(stack.settings().redis_url) as redis:
        return int(redis.hget(keys.head(0), "trimmed_seq") or 0)


def trimmer(stack: Up) -> str:
    with connect_redis(stack.settings().redis_url) as redis:
        return read_head(redis, 0).trimmer


def receive(stack: Up, movement_id: str) -> None:
    move = {"movement_id": movement_id, "type": "receive", "sku": "tea", "location": "MAIN"}
    answer = httpx.post(f"{stack.url}/v1/movements", json={**move, "quantity": 1}, trust_env=False)
    assert answer.status_code == 201, answer.text


def test_a_broker_of_yours_is_used_and_left_running(tmp_path: Path, kafka_bootstrap: str) -> None:
    stack = Up(
        tmp_path / "stack",
        HOLDFAST_KAFKA_BOOTSTRAP=kafka_bootstrap,
        HOLDFAST_KAFKA_TOPIC=f"test.{uuid4().hex}",
    )
    stack.start()
    try:
        assert set(stack.pids()) == {*PARTS, "supervisor"} - {"kafka"}
        told = f"1 broker behind {kafka_bootstrap}"
        eventually("it is told", lambda: told in stack.output.read_text())
        receive(stack, "first")
        settings = stack.settings()
        wait_for_ledger(settings)
        assert settings.kafka_bootstrap == kafka_bootstrap
    finally:
        assert stack.stop() == 0
    assert len(messages(settings)) == 1


@pytest.mark.parametrize(
    ("environ", "word"),
    [
        ({"PATH": ""}, "no Java found, and Kafka needs it: install Java 17"),
        ({"HOLDFAST_KAFKA_BOOTSTRAP": "127.0.0.1:1"}, "no broker at 127.0.0.1:1"),
    ],
)
def test_given_no_kafka_then_nothing_is_started_and_one_line_says_what_to_do(
    tmp_path: Path, environ: dict[str, str], word: str
) -> None:
    stack = Up(tmp_path / "stack", "--kafka")
    done = holdfast("up", *stack.options(), environ=environment(**environ), timeout_s=30)
    assert done.returncode == 2
    assert word in done.stderr
    assert done.stderr.startswith("holdfast: ") and done.stderr.count("\n") == 1
    assert not list((stack.data_dir / "redis").iterdir())
    assert not list((stack.data_dir / "logs").iterdir())


def test_a_replay_goes_through_the_topic_event_by_event(stack: Up) -> None:
    done = holdfast("replay", str(FILE), "--data-dir", str(stack.data_dir), "--json")
    assert done.returncode == 0, done.stderr + done.stdout
    assert json.loads(done.stdout)["reconciliation"]["differences"] == []
    settings = stack.settings()
    seqs = [from_json(body).seq for body in messages(settings)]
    assert seqs == list(range(1, len(seqs) + 1))
    assert len(seqs) > 4_000
    [(seq, offset)] = rows(settings.postgres_url, "SELECT seq, kafka_offset FROM positions")
    behind = next_offset(settings)
    assert seq == len(seqs) and behind <= offset <= behind + 1
    assert rows(settings.postgres_url, "SELECT count(*) FROM events") == [(len(seqs),)]
    assert (trimmer(stack), outbox_length(stack)) == ("relay", 0)


def test_other_commands_are_told_the_broker(stack: Up) -> None:
    bootstrap = f"127.0.0.1:{stack.state()['kafka_port']}"
    done = holdfast("env", "--data-dir", str(stack.data_dir))
    assert f"export HOLDFAST_KAFKA_BOOTSTRAP='{bootstrap}'" in done.stdout.splitlines()
    assert discover(stack.data_dir, {}).kafka_bootstrap == bootstrap
    # Another Redis isn't this stack's, and so has nothing to do with its broker.
    other = {"HOLDFAST_REDIS_URL": "redis://elsewhere/0"}
    assert discover(stack.data_dir, other).kafka_bootstrap is None
    other["HOLDFAST_KAFKA_BOOTSTRAP"] = "elsewhere:9092"
    assert discover(stack.data_dir, other).kafka_bootstrap == "elsewhere:9092"


def test_broker_relay_and_persister_are_killed_in_turn_and_come_back(stack: Up) -> None:
    with Load(stack.url) as load:
        for name in ("kafka", "relay", "persister"):
            load.goes_on()
            old = stack.pids()[name]
            stack.kill(name)
            restarted(stack, name, old)
        load.goes_on()
    check_nothing_lost(stack, load)
    assert trimmer(stack) == "relay"


def test_given_a_killed_supervisor_and_events_in_kafka_only_then_up_refuses_and_up_kafka_goes_on(
    stack: Up,
) -> None:
    """Each of the two starts ends first what was left running, also what no state file names."""
    ports = ("redis_port", "postgres_port", "kafka_port", "kafka_controller_port")
    before, settings, plain = stack.state(), stack.settings(), Up(stack.data_dir)
    with Load(stack.url, prefix="ra") as load:
        os.kill(stack.pids()["persister"], signal.SIGSTOP)
        load.goes_on()
        seq = ledger_seq(settings) + 1
        eventually("the relay has moved some", lambda: trimmed_seq(stack) >= seq)
        orphans = [psutil.Process(pid) for pid in stack.pids().values()]
        stack.kill("supervisor", "persister")
        done = holdfast("up", *plain.options(), timeout_s=60)
        assert done.returncode == 2, done.stdout
        assert re.search(rf"events {seq:,} to [\d,]+ are in Kafka only", done.stderr), done.stderr
        assert "run 'holdfast up --kafka'" in done.stderr and done.stderr.count("\n") == 1
        assert not [each for each in orphans if _lives(each)]
        assert plain.state()["parts"] == []
        broker = KafkaServer(stack.data_dir / "kafka")
        broker.start()
        stack.start()
        assert not broker.running()
        load.goes_on()
    assert {port: stack.state()[port] for port in ports} == {port: before[port] for port in ports}
    assert before["kafka_port"] and before["kafka_controller_port"]
    check_nothing_lost(stack, load)


def test_ctrl_c_under_load_ends_all_in_order_and_direct_reading_goes_on(stack: Up) -> None:
    """Nothing is left in Kafka only, so that plain `up` takes over; and back to Kafka again."""
    plain = Up(stack.data_dir)
    with Load(stack.url, prefix="rb") as load:
        load.goes_on()
        assert stack.process is not None
        processes = [psutil.Process(pid) for pid in stack.pids().values()]
        stack.process.send_signal(signal.SIGINT)
        assert stack.process.wait(60) == 0, stack.output.read_text()
        assert not [each for each in processes if _lives(each)]
    assert (
        re.findall(r"^\S+Z (\S+): stopped$", stack.output.read_text(), re.MULTILINE)[-7:] == PARTS
    )
    plain.start()
    assert set(plain.pids()) == {*PARTS, "supervisor"} - {"kafka", "relay"}
    receive(plain, "direct")
    check_nothing_lost(plain, load)
    assert trimmer(plain) == "persister"
    assert plain.stop() == 0
    stack.start()
    receive(stack, "back")
    wait_for_ledger(stack.settings())
    done = holdfast("audit", "--data-dir", str(stack.data_dir))
    assert done.returncode == 0, done.stdout + done.stderr
    assert trimmer(stack) == "relay"


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
