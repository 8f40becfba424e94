"""/v1/status and /metrics tell the numbers of a situation that was made on real servers."""

from __future__ import annotations

import struct

import httpx
import msgspec
import psycopg
import pytest
from kafka_kit import relaying, through_kafka
from kit import Partition, release, reserve
from metrics_kit import look, numbers, reconcile
from redis import Redis
from running import (
    all_acknowledged,
    eventually,
    in_process,
    on_one_redis,
    persisting,
    rows,
    wait_for_ledger,
)

from api.metrics import GAUGES
from api.servers import RedisServer
from engine import keys
from engine.events import read_entry
from engine.settings import Settings
from persister import database
from persister.ledger import Ledger

pytestmark = pytest.mark.anyio

OUTBOX = keys.outbox(0)
#: How long a step of a test may take, in seconds, before an age is no longer what was made.
STEP_S = 30


def is_about(value: float | None, seconds: float) -> bool:
    return value is not None and seconds <= value < seconds + STEP_S


def happened_before(redis: Redis, *ages_s: int) -> None:
    """Make the events of the last entries of the outbox so many seconds old, an age an entry."""
    entries = redis.xrange(OUTBOX)
    redis.delete(OUTBOX)
    ages = [0] * (len(entries) - len(ages_s)) + list(ages_s)
    for (entry_id, fields), age_s in zip(entries, ages, strict=True):
        events = read_entry(0, entry_id.decode(), fields[b"events"])
        (at_ms,) = {event.at_ms for event in events}
        was, new = struct.pack(">Q", at_ms), struct.pack(">Q", at_ms - age_s * 1000)
        assert fields[b"events"].count(was) == len(events)
        redis.xadd(OUTBOX, {"events": fields[b"events"].replace(was, new)}, id=entry_id)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """What is kept after it was shipped is not what these tests are about."""
    return msgspec.structs.replace(settings, outbox_keep_ms=0)


@pytest.fixture
def shop(settings: Settings, redis: Redis) -> Partition:
    """Event 1 is in the ledger, the outbox is empty, and nobody works on it now."""
    shop = Partition(redis)
    shop.receive("tea", 100)
    with persisting(settings):
        wait_for_ledger(settings)
        eventually("all is acknowledged", lambda: all_acknowledged(redis))
    return shop


async def test_given_nothing_to_do_then_no_lag(shop: Partition, settings: Settings) -> None:
    async with in_process(settings) as client:
        found, partition = await look(client)
    lags = ("entries", "events", "bytes", "oldest_seconds")
    assert [found[f"holdfast_outbox_{name}"] for name in lags] == [0, 0, 0, 0]
    assert [partition["outbox"][name] for name in lags] == [0, 0, 0, 0]
    assert (found["holdfast_ledger_behind_events"], found["holdfast_ledger_behind_seconds"]) == (
        0,
        0,
    )
    assert (found["holdfast_partition_open"], found["holdfast_partition_seq"]) == (1, 1)
    assert (found["holdfast_ledger_epoch"], found["holdfast_ledger_seq"]) == (1, 1)
    assert partition["relay"] is None and "holdfast_relay_behind_events" not in found
    assert partition["reconciliation"] is None
    assert not any("reconciliation" in name for name in found)


async def test_given_the_persister_is_away_then_the_outbox_and_the_age_of_its_first_event(
    shop: Partition, settings: Settings, redis: Redis
) -> None:
    shop.hold("r1", "tea")
    shop.hold("r2", "tea")
    shop.hold("r3", "tea")
    happened_before(redis, 3600, 600, 60)
    size = sum(len(fields[b"events"]) for _, fields in redis.xrange(OUTBOX))
    async with in_process(settings) as client:
        found, partition = await look(client)
        assert found["holdfast_outbox_entries"] == found["holdfast_outbox_events"] == 3
        assert found["holdfast_outbox_bytes"] == partition["outbox"]["bytes"] == size
        assert (partition["outbox"]["entries"], partition["outbox"]["events"]) == (3, 3)
        assert found["holdfast_ledger_behind_events"] == 3
        assert partition["ledger"]["behind_events"] == 3
        for age in (
            found["holdfast_outbox_oldest_seconds"],
            partition["outbox"]["oldest_seconds"],
            found["holdfast_ledger_behind_seconds"],
            partition["ledger"]["behind_seconds"],
        ):
            assert is_about(age, 3600)
        # Committed but not trimmed yet: the outbox is as old as before, the ledger less behind.
        with psycopg.connect(settings.postgres_url, autocommit=True) as ledger:
            ledger.execute("UPDATE positions SET seq = 2")
        found, partition = await look(client)
        assert is_about(found["holdfast_outbox_oldest_seconds"], 3600)
        assert is_about(found["holdfast_ledger_behind_seconds"], 600)
        assert partition["ledger"]["behind_events"] == 2


async def test_events_of_one_call_are_one_entry_and_the_ledger_may_have_a_part_of_it(
    shop: Partition, settings: Settings, redis: Redis
) -> None:
    shop.send(*[reserve(f"r{number}", "tea") for number in range(7)])
    happened_before(redis, 3600)
    async with in_process(settings) as client:
        found, partition = await look(client)
        assert (found["holdfast_outbox_entries"], found["holdfast_outbox_events"]) == (1, 7)
        assert (partition["outbox"]["entries"], partition["outbox"]["events"]) == (1, 7)
        assert partition["ledger"]["behind_events"] == 7
        # As from Kafka, by messages: events 2 to 4 of 2 to 8.
        with psycopg.connect(settings.postgres_url, autocommit=True) as ledger:
            ledger.execute("UPDATE positions SET seq = 4")
        found, _ = await look(client)
    assert found["holdfast_ledger_behind_events"] == 4
    assert is_about(found["holdfast_ledger_behind_seconds"], 3600)


@on_one_redis
async def test_with_kafka_the_relay_and_the_persister_have_a_lag_each(
    settings: Settings, redis: Redis, kafka_bootstrap: str
) -> None:
    settings = through_kafka(settings, kafka_bootstrap)
    shop = Partition(redis)
    shop.receive("tea", 100)
    happened_before(redis, 7200)
    with relaying(settings), persisting(settings):
        wait_for_ledger(settings)
        eventually("all is acknowledged", lambda: all_acknowledged(redis))
    shop.hold("r1", "tea")
    shop.hold("r2", "tea")
    happened_before(redis, 3600, 3600)
    async with in_process(settings) as client:
        found, partition = await look(client)
        assert found["holdfast_relay_behind_events"] == 2
        assert partition["relay"]["behind_events"] == 2
        assert is_about(found["holdfast_relay_behind_seconds"], 3600)
        # The outbox still has the first event that the ledger lacks: its age is known.
        assert is_about(found["holdfast_ledger_behind_seconds"], 3600)
        with relaying(settings):
            eventually("Kafka has them", lambda: all_acknowledged(redis))
        found, partition = await look(client)
        assert partition["relay"] == {"behind_events": 0, "behind_seconds": 0}
        assert (found["holdfast_relay_behind_events"], found["holdfast_outbox_events"]) == (0, 0)
        assert found["holdfast_ledger_behind_events"] == 2
        # Now it is in Kafka, and at most as old as what the ledger has.
        assert is_about(found["holdfast_ledger_behind_seconds"], 7200)
        shop.hold("r3", "tea")
        happened_before(redis, 600)
        found, partition = await look(client)
        assert (found["holdfast_relay_behind_events"], found["holdfast_ledger_behind_events"]) == (
            1,
            3,
        )
        assert is_about(found["holdfast_relay_behind_seconds"], 600)
        assert is_about(partition["relay"]["behind_seconds"], 600)
        assert is_about(found["holdfast_ledger_behind_seconds"], 7200)
        # Their times were changed, so reconcile would tell of them while they are live.
        shop.send(*[release(name) for name in ("r1", "r2", "r3")])
        with relaying(settings), persisting(settings):
            wait_for_ledger(settings)
        reconcile(settings)
        found, _ = await look(client)
        assert found["holdfast_ledger_behind_seconds"] == 0
        of_a_stack = {"holdfast_children_failing"}
        assert set(found) == set(GAUGES) - of_a_stack, "docs and alarms speak of what is here"


@on_one_redis
async def test_the_last_reconciliation_and_the_last_clean_one(
    shop: Partition, settings: Settings, redis: Redis
) -> None:
    run_at = "holdfast_reconciliation_last_run_timestamp_seconds"
    success_at = "holdfast_reconciliation_last_success_timestamp_seconds"
    async with in_process(settings) as client:
        redis.hincrby(keys.stock(0, "tea", "X"), "held", 1)
        reconcile(settings)
        found, partition = await look(client)
        assert found["holdfast_reconciliation_differences"] == 1
        assert success_at not in found and found[run_at] > 0
        assert partition["reconciliation"]["last_success_at"] is None
        redis.hincrby(keys.stock(0, "tea", "X"), "held", -1)
        reconcile(settings)
        found, partition = await look(client)
        assert found[run_at] == found[success_at]
        assert partition["reconciliation"]["clean"] is True
        success = found[success_at]
        redis.hincrby(keys.stock(0, "tea", "X"), "held", 1)
        redis.hset(keys.stock(0, "new", "X"), mapping={"on_hand": 1, "held": 0, "quarantined": 0,
            "safety_stock": 0, "seq": 1})  # fmt: skip
        reconcile(settings)
        found, partition = await look(client)
    kept = rows(
        settings.postgres_url,
        "SELECT extract(epoch FROM finished_at) FROM reconciliations ORDER BY reconciliation_id",
    )
    first, clean, last = (float(moment) for (moment,) in kept)
    assert first < clean < last
    assert abs(success - clean) < 0.001
    assert found[success_at] == success and abs(found[run_at] - last) < 0.001
    assert found["holdfast_reconciliation_differences"] == 2
    told = partition["reconciliation"]
    assert (told["clean"], told["differences"]) == (False, 2)
    assert told["last_success_at"] < told["finished_at"]


@on_one_redis
async def test_a_ledger_that_stopped_and_a_clock_ahead(
    shop: Partition, settings: Settings, redis: Redis
) -> None:
    async with in_process(settings) as client:
        found, _ = await look(client)
        assert found["holdfast_ledger_stopped"] == 0
        assert found["holdfast_partition_clock_ahead_seconds"] == 0
        with database.connect(settings.postgres_url) as connection:
            Ledger(connection, 0).stop("a gap after 1-1")
        shop.set_clock((redis.time()[0] + 3600) * 1000)
        redis.hset(keys.head(0), "run_id", "")
        found, partition = await look(client)
    assert found["holdfast_ledger_stopped"] == 1
    assert partition["ledger"]["stopped"] == "a gap after 1-1"
    assert 3600 - STEP_S < found["holdfast_partition_clock_ahead_seconds"] <= 3600
    assert (found["holdfast_partition_open"], partition["open"]) == (0, False)


async def test_given_an_entry_that_can_not_be_read_then_its_age_is_not_told(
    shop: Partition, settings: Settings, redis: Redis
) -> None:
    shop.hold("r1", "tea")
    ((entry_id, _),) = redis.xrange(OUTBOX)
    redis.delete(OUTBOX)
    redis.xadd(OUTBOX, {"events": "junk"}, id=entry_id)
    async with in_process(settings) as client:
        found, partition = await look(client)
    assert found["holdfast_outbox_events"] == found["holdfast_outbox_entries"] == 1
    assert "holdfast_outbox_oldest_seconds" not in found
    assert partition["outbox"]["oldest_seconds"] is None
    # At most as old as the ledger's last event.
    assert is_about(found["holdfast_ledger_behind_seconds"], 0)
    assert found["holdfast_ledger_behind_seconds"] > 0


async def test_what_the_server_is_and_may_use(
    client: httpx.AsyncClient, redis_server: RedisServer, redis: Redis
) -> None:
    redis.config_set("maxmemory", 123 * 2**20)
    text = (await client.get("/metrics")).text
    assert f'durability="{redis_server.appendfsync}"' in text
    assert f'version="{redis_server.binary.version_text}"' in text
    found = numbers(text)
    assert found["holdfast_redis_maxmemory_bytes"] == 123 * 2**20
    used = redis.info("memory")["used_memory"]
    assert abs(found["holdfast_redis_used_memory_bytes"] - used) < 2**20
    limits = (found["holdfast_outbox_max_events"], found["holdfast_outbox_max_bytes"])
    assert limits == (Settings().outbox_max_events, Settings().outbox_max_bytes)


@on_one_redis
async def test_given_no_postgresql_then_what_redis_knows_is_told(
    client: httpx.AsyncClient, redis: Redis
) -> None:
    found, partition = await look(client)
    assert (found["holdfast_postgres_up"], found["holdfast_redis_up"]) == (0, 1)
    assert found["holdfast_partition_open"] == 1 and "holdfast_outbox_events" in found
    assert not any("ledger" in name or "reconciliation" in name for name in found)
    assert (partition["ledger"], partition["reconciliation"]) == (None, None)
