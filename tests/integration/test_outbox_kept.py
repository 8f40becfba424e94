"""What was acknowledged stays in the outbox for a while: how long, how much of it, and what never."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
import pytest
from kafka_kit import messages, relaying, through_kafka, watch_the_relay
from kit import Partition, move
from redis import Redis
from running import (
    REPOSITORY,
    all_acknowledged,
    check_clean,
    environment,
    eventually,
    in_process,
    is_open,
    on_one_redis,
    open_anew,
    persisting,
    wait_for_ledger,
)

from engine import keys
from engine.acknowledged import acknowledged, is_acknowledged
from engine.engine import Engine
from engine.settings import Settings
from persister import database, heal
from persister.heal import check_outbox
from persister.ledger import Ledger, Position
from persister.sources import OutboxSource

pytestmark = on_one_redis
OUTBOX = keys.outbox(0)
LONG_MS = 3_600_000


def replaced(settings: Settings, **fields: object) -> Settings:
    return msgspec.structs.replace(settings, **fields)


def sell(p: Partition, name: str, count: int = 10) -> None:
    for number in range(count):
        p.hold(f"{name}-{number}", ("A", 1, "X"))


def size_of(redis: Redis) -> int:
    return sum(len(fields[b"events"]) for _, fields in redis.xrange(OUTBOX))


def until_acknowledged(settings: Settings, redis: Redis) -> None:
    wait_for_ledger(settings)
    eventually("all is acknowledged", lambda: all_acknowledged(redis))


@contextmanager
def process(settings: Settings, name: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`holdfast persister` or `relay`, with these settings; ended in order where it still runs."""
    with log.open("ab") as output:
        running = subprocess.Popen(
            [sys.executable, "-m", "api.cli", name],
            cwd=REPOSITORY,
            env=environment(settings, HOLDFAST_OUTBOX_KEEP_MS=str(settings.outbox_keep_ms)),
            stdout=output,
            stderr=output,
        )
    try:
        yield running
    finally:
        running.terminate()
        running.wait(30)


@contextmanager
def at_work(settings: Settings, way: str, log: Path) -> Iterator[None]:
    """A persister, reading directly or behind a relay."""
    with ExitStack() as ends:
        if way == "relay":
            ends.enter_context(process(settings, "relay", log))
        ends.enter_context(persisting(settings))
        yield


@pytest.fixture
def p(redis: Redis) -> Partition:
    p = Partition(redis)
    p.receive("A", 10_000)
    return p


def test_given_an_idle_outbox_then_what_is_old_enough_goes_by_itself(
    settings: Settings, redis: Redis, p: Partition
) -> None:
    settings = replaced(settings, outbox_keep_ms=2_000)
    sell(p, "r")
    with persisting(settings):
        until_acknowledged(settings, redis)
        kept = redis.xlen(OUTBOX)
        head = p.head()
        assert (kept, head["trimmed_seq"]) == (p.seq(), "0")
        assert head["acknowledged_seq"] == str(p.seq())
        assert head["acknowledged_bytes"] == head["written_bytes"]
        eventually("nothing is kept", lambda: redis.xlen(OUTBOX) == 0)
        assert p.head()["trimmed_seq"] == str(p.seq())
        assert p.head()["trimmed_bytes"] == p.head()["written_bytes"]


def test_given_more_bytes_than_may_be_kept_then_the_oldest_go(
    settings: Settings, redis: Redis, p: Partition
) -> None:
    settings = replaced(settings, outbox_keep_ms=LONG_MS, outbox_keep_bytes=5_000)
    with persisting(settings):
        for number in range(20):
            sell(p, f"r{number}", 5)
            until_acknowledged(settings, redis)
            assert size_of(redis) <= 5_000
        left = [event.seq for event in p.events()]
        assert left and left[0] > 1 and left[-1] == p.seq()
        assert int(p.head()["trimmed_seq"]) == left[0] - 1
        head = p.head()
        assert int(head["written_bytes"]) - int(head["trimmed_bytes"]) == size_of(redis)


def test_given_a_ledger_that_does_not_answer_then_nothing_gets_old(
    redis: Redis, p: Partition
) -> None:
    """A persister that wakes can't know whether the ledger fell back while it was frozen."""
    sell(p, "r")
    settings = Settings(outbox_keep_ms=50)
    source = OutboxSource(redis, p.scripts, settings, 0)
    source.begin(Position(0, 0))
    source.read(Position(0, 0), 0)
    answered_s = time.monotonic()
    source.committed(Position(1, 11), answered_s)
    while time.monotonic() < answered_s + 0.2:
        source.begin(Position(1, 11))
        source.committed(Position(1, 11), answered_s)
    assert redis.xlen(OUTBOX) == 11
    source.committed(Position(1, 11), time.monotonic())
    eventually(
        "it is gone",
        lambda: source.committed(Position(1, 11), time.monotonic()) or not redis.xlen(OUTBOX),
    )


def test_with_0_nothing_is_kept(settings: Settings, redis: Redis, p: Partition) -> None:
    for fields in ({"outbox_keep_ms": 0}, {"outbox_keep_bytes": 0}):
        with persisting(replaced(settings, **fields)):
            sell(p, next(iter(fields)).replace("_", "-"))
            eventually("nothing is kept", lambda: redis.xlen(OUTBOX) == 0)


def test_given_a_full_server_then_nothing_is_kept_that_sales_could_be_refused_for(
    settings: Settings, redis: Redis, p: Partition
) -> None:
    settings = replaced(settings, outbox_keep_ms=LONG_MS)
    with persisting(settings):
        for number in range(40):
            p.send(*[move("receive", f"S{number}-{n}", 1) for n in range(500)])
        until_acknowledged(settings, redis)
        kept_bytes = size_of(redis)
        assert kept_bytes > 1_000_000
        used = redis.info("memory")["used_memory"]
        redis.config_set("maxmemory", used - kept_bytes // 2)
        more = move("receive", "more", 1)
        eventually("it sells", lambda: p.one(more).status == "applied")
        assert size_of(redis) < 1_000
        redis.config_set("maxmemory", 2**30)
        until_acknowledged(settings, redis)
    check_clean(settings)


def test_given_a_full_server_and_kafka_away_then_the_relay_lets_go_of_what_is_only_kept(
    settings: Settings, redis: Redis, p: Partition, kafka_bootstrap: str
) -> None:
    settings = replaced(through_kafka(settings, kafka_bootstrap), outbox_keep_ms=LONG_MS)
    with persisting(settings), relaying(settings):
        for number in range(40):
            p.send(*[move("receive", f"S{number}-{n}", 1) for n in range(500)])
        until_acknowledged(settings, redis)
    kept_bytes = size_of(redis)
    assert kept_bytes > 1_000_000
    redis.config_set("maxmemory", redis.info("memory")["used_memory"] - kept_bytes // 2)
    more = move("receive", "more", 1)
    assert p.one(more).status == "store_full"
    with relaying(replaced(settings, kafka_bootstrap="127.0.0.1:1")):
        eventually("it sells", lambda: p.one(more).status == "applied")
        assert size_of(redis) < 1_000, "it waits for Kafka"
    redis.config_set("maxmemory", 2**30)
    with persisting(settings), relaying(settings):
        until_acknowledged(settings, redis)
    check_clean(settings)


@pytest.mark.parametrize("way", ["persister", "relay"])
def test_given_a_kill_between_acknowledging_and_taking_away_then_the_next_one_does_it(
    settings: Settings, redis: Redis, p: Partition, kafka_bootstrap: str, tmp_path: Path, way: str
) -> None:
    """And nothing of it is sent or written again."""
    if way == "relay":
        settings = through_kafka(settings, kafka_bootstrap)
    settings = replaced(settings, outbox_keep_ms=LONG_MS)
    log = tmp_path / "log"
    if way == "relay":
        with persisting(settings):
            sell(p, "first")
            with process(settings, "relay", log) as running:
                until_acknowledged(settings, redis)
                running.send_signal(signal.SIGKILL)
                running.wait(10)
    else:
        redis.hset(keys.head(0), "run_id", "")
        with process(settings, "persister", log) as running:
            eventually("it is open", lambda: is_open(settings.redis_url))
            sell(p, "first")
            until_acknowledged(settings, redis)
            os.kill(running.pid, signal.SIGKILL)
            running.wait(10)
    kept = redis.xlen(OUTBOX)
    assert kept == p.seq(), "nothing is kept: this test tests nothing"
    sell(p, "later", 3)
    with at_work(settings, way, log):
        until_acknowledged(settings, redis)
        assert redis.xlen(OUTBOX) == kept + 3
    if way == "relay":
        assert len(messages(settings)) == p.seq(), "what was acknowledged was sent again"
    settings = replaced(settings, outbox_keep_ms=0)
    with at_work(settings, way, log):
        eventually("nothing is kept", lambda: redis.xlen(OUTBOX) == 0)
    check_clean(settings)
    if way == "relay":
        assert len(messages(settings)) == p.seq()


def test_given_a_relay_that_begins_again_then_it_sends_nothing_that_was_acknowledged(
    settings: Settings, redis: Redis, p: Partition, kafka_bootstrap: str
) -> None:
    """Also after an opening, and where a persister had acknowledged it before."""
    settings = through_kafka(settings, kafka_bootstrap)
    direct = replaced(settings, kafka_bootstrap="")
    sell(p, "direct")
    with persisting(direct):
        until_acknowledged(direct, redis)
    in_ledger = p.seq()
    with persisting(settings):
        for number in range(3):
            sell(p, f"r{number}")
            with relaying(settings):
                until_acknowledged(settings, redis)
                watch_the_relay(p, 2)
            open_anew(settings, redis)
    assert redis.xlen(OUTBOX) == p.seq(), "nothing is kept: this test tests nothing"
    assert len(messages(settings)) == p.seq() - in_ledger
    check_clean(settings)


def test_given_an_older_head_then_the_relay_sends_all_that_is_there(
    settings: Settings, redis: Redis, p: Partition, kafka_bootstrap: str
) -> None:
    """It doesn't tell what is acknowledged: its trimmer took away what was."""
    settings = through_kafka(settings, kafka_bootstrap)
    sell(p, "r")
    assert acknowledged(redis, 0) == (0, 0) and not is_acknowledged(redis, 0)
    with relaying(settings), persisting(settings):
        until_acknowledged(settings, redis)
    assert len(messages(settings)) == p.seq()


def test_direct_reading_can_begin_where_the_outbox_still_has_what_kafka_has(
    settings: Settings, redis: Redis, p: Partition, kafka_bootstrap: str
) -> None:
    settings = through_kafka(settings, kafka_bootstrap)
    direct = replaced(settings, kafka_bootstrap="")
    sell(p, "r")
    with relaying(settings):
        eventually("all is in Kafka", lambda: all_acknowledged(redis))
    with persisting(direct):
        wait_for_ledger(direct)
    assert p.head()["trimmer"] == "persister"
    check_clean(direct)


def test_of_what_is_only_kept_the_newest_is_compared_and_of_what_waits_all(
    settings: Settings, redis: Redis, p: Partition, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heal, "EVENTS_COMPARED", 5)
    with persisting(settings):
        sell(p, "r", 300)
        until_acknowledged(settings, redis)
    compared: list[int] = []
    with database.connect(settings.postgres_url) as connection:
        ledger = Ledger(connection, 0)
        compare = ledger.compare
        at = ledger.position()
        monkeypatch.setattr(
            ledger,
            "compare",
            lambda events: compared.extend(e.seq for e in events) or compare(events),
        )

        def look(position: Position) -> list[int]:
            compared.clear()
            check_outbox(redis, p.scripts, ledger, position)
            return list(compared)

        assert look(at) == [297, 298, 299, 300, 301]
        assert look(Position(1, 200)) == [196, 197, 198, 199, 200], "a ledger that fell back"
        assert look(Position(0, 0)) == []
        redis.hset(keys.head(0), mapping={"acknowledged_epoch": 1, "acknowledged_seq": 290})
        assert look(at) == list(range(291, 302))
        redis.hdel(keys.head(0), "acknowledged_epoch", "acknowledged_seq")
        assert look(at) == list(range(1, 302)), "an older head"


@pytest.mark.anyio
async def test_status_and_metrics_tell_apart_what_waits_and_what_is_kept(
    settings: Settings, redis: Redis, p: Partition
) -> None:
    sell(p, "r")
    with persisting(settings):
        until_acknowledged(settings, redis)
    kept, kept_bytes = p.seq(), size_of(redis)
    p.send(*[move("receive", f"S{n}", 1) for n in range(3)])
    engine = await Engine.start(settings)
    (state,) = await engine.states()
    await engine.close()
    assert (state.outbox_events, state.outbox_kept_events) == (3, kept)
    assert (state.outbox_bytes, state.outbox_kept_bytes) == (
        size_of(redis) - kept_bytes,
        kept_bytes,
    )
    async with in_process(settings) as client:
        outbox = (await client.get("/v1/status")).json()["partitions"][0]["outbox"]
        text = (await client.get("/metrics")).text
    assert (outbox["entries"], outbox["events"], outbox["kept_events"]) == (kept + 1, 3, kept)
    assert (outbox["bytes"], outbox["kept_bytes"]) == (state.outbox_bytes, kept_bytes)
    assert f'holdfast_outbox_kept_events{{partition="0"}} {kept}.0\n' in text
    assert f'holdfast_outbox_kept_bytes{{partition="0"}} {kept_bytes}.0\n' in text


def test_the_bytes_are_those_of_all_partitions_together(redis: Redis, p: Partition) -> None:
    sell(p, "r", 20)
    for partitions, left in ((1, 21), (2, 0)):
        shared = Settings(partitions=partitions, outbox_keep_bytes=size_of(redis) + 1)
        source, start = OutboxSource(redis, p.scripts, shared, 0), Position(0, 0)
        source.begin(start)
        source.read(start, 0)
        source.committed(Position(1, 21), time.monotonic())
        assert redis.xlen(OUTBOX) == left
