"""A hole in the ledger is told for ever, and everything else goes on around it."""

from __future__ import annotations

import json

import msgspec
import psycopg
import pytest
from adopt_kit import adopt, begin, change_much, lose_events, older_copy, trim
from consumer import Consumer
from kafka_kit import messages, produce, relaying, through_kafka
from kit import (
    Partition,
    confirm,
    line,
    put_back,
    release,
    snapshot,
)
from redis import Redis
from running import (
    check_clean,
    environment,
    eventually,
    holdfast,
    is_open,
    on_one_redis,
    persisting,
    rows,
    stopped,
    wait_for_ledger,
)

from engine import keys
from engine.events import from_json
from engine.settings import Settings
from persister import database
from persister.audit import audit
from persister.kafka import ensure_topic
from persister.ledger import Ledger
from persister.ownership import owner_of
from persister.restore import restore


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Nothing is kept in the outbox once it was shipped: what the ledger loses is lost."""
    return msgspec.structs.replace(settings, outbox_keep_ms=0)


@pytest.fixture
def lost(settings: Settings, redis: Redis) -> tuple[Settings, Partition]:
    return lose_events(settings, redis)


@pytest.mark.parametrize(
    ("when", "is_healed"),
    [("before", True), ("within", False), ("at its end", True), ("after", True)],
)
@on_one_redis
def test_given_redis_falls_back_after_it_then_it_is_healed_but_for_within_the_hole(
    settings: Settings, redis: Redis, when: str, is_healed: bool
) -> None:
    """Units that Redis had when they were taken over are not added to it once more."""
    p = Partition.of(redis)
    with persisting(settings):
        begin(p)
        wait_for_ledger(settings)
    moments = {"before": snapshot(redis)}
    dump = older_copy(settings)
    with persisting(settings):
        p.hold("half", line("tea", 5))
        wait_for_ledger(settings)
        moments["within"] = snapshot(redis)
        change_much(p)
        trim(p, settings)
    moments["at its end"] = snapshot(redis)
    adopt(dump)
    moments["after"] = snapshot(redis)
    stock = {name: p.numbers(name)[:4] for name in ("tea", "cup", "pot")}
    with persisting(dump):
        p.hold("later", line("tea", 6))
        wait_for_ledger(dump)
        assert p.one(release("later")).status == "released"
        wait_for_ledger(dump)
    owner = owner_of(redis, 0)
    put_back(redis, moments[when])
    redis.hset(keys.head(0), "ledger", owner)  # all of them are of this ledger
    if is_healed:
        with persisting(dump):
            wait_for_ledger(dump)
            assert {name: p.numbers(name)[:4] for name in stock} == stock
            assert p.one(confirm("new")).status == "confirmed"
            wait_for_ledger(dump)
        check_clean(dump)
        return

    with persisting(dump, until_open=False):
        assert "it stands within events" in eventually("it says why", lambda: stopped(dump))
        assert not is_open(dump.redis_url)


@on_one_redis
def test_given_a_ledger_with_a_hole_then_restore_makes_the_redis_that_it_was(
    lost: tuple[Settings, Partition],
) -> None:
    settings, p = lost
    adopt(settings)
    held = {name: p.record(name) for name in ("stays", "parted", "longer", "two", "new")}
    stock = {name: p.numbers(name) for name in ("tea", "cup", "pot")}
    p.redis.flushall()
    restore(settings, settings.redis_url)
    assert {name: p.record(name) for name in held} == held
    assert {name: p.numbers(name) for name in stock} == stock
    check_clean(settings)
    with persisting(settings):
        assert p.one(confirm("parted")).status == "confirmed"
        wait_for_ledger(settings)
    check_clean(settings)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ("UPDATE holes SET body = replace(body::text, 'kim', 'ann')::json", "broken_chain"),
        ("UPDATE holes SET to_seq = to_seq - 1", "wrong_hole"),
        ("DELETE FROM holes", "gap"),
    ],
)
@on_one_redis
def test_given_a_hole_that_was_changed_then_the_audit_finds_it(
    lost: tuple[Settings, Partition], change: str, fault: str
) -> None:
    settings, _ = lost
    adopt(settings)
    with psycopg.connect(settings.postgres_url) as connection:
        with pytest.raises(psycopg.errors.IntegrityConstraintViolation):
            connection.execute(change)
        connection.rollback()
        connection.execute("ALTER TABLE holes DISABLE TRIGGER holes_append_only")
        connection.execute(change)
        connection.execute("ALTER TABLE holes ENABLE ALWAYS TRIGGER holes_append_only")
    with database.connect(settings.postgres_url) as connection:
        assert fault in {str(finding.fault) for finding in audit(connection).findings}


@on_one_redis
def test_given_an_event_of_the_hole_that_comes_after_all_then_it_stays_out(
    settings: Settings, lost: tuple[Settings, Partition], caplog: pytest.LogCaptureFixture
) -> None:
    dump, _ = lost
    adopt(dump)
    query = "SELECT body::text FROM events WHERE type = 'confirm'"
    late = [from_json(body.encode()) for (body,) in rows(settings.postgres_url, query)]
    with database.connect(dump.postgres_url) as connection:
        Ledger(connection, 0).write(late)
    assert "came after all; it stays out" in caplog.text
    check_clean(dump)


@on_one_redis
def test_given_a_part_of_the_history_then_its_audit_goes_over_the_hole(
    lost: tuple[Settings, Partition],
) -> None:
    settings, p = lost
    adopt(settings)
    with persisting(settings):
        p.hold("later", line("tea"))
        wait_for_ledger(settings)
    times = rows(settings.postgres_url, "SELECT (body->>'at_ms')::bigint FROM events")
    with database.connect(settings.postgres_url) as connection:
        for (since_ms,) in times:
            report = audit(connection, since_ms=since_ms)
            assert report.clean, report.findings
            assert len(report.holes) == 1


@on_one_redis
def test_given_a_consumer_that_lacks_the_same_events_then_it_has_the_stock_again(
    lost: tuple[Settings, Partition],
) -> None:
    """Version 2's consumer knows neither the type nor its members; the gap it is told."""
    settings, p = lost
    adopt(settings)
    consumer = Consumer()
    bodies = rows(settings.postgres_url, "SELECT body::text FROM events ORDER BY epoch, seq")
    for (body,) in bodies:
        if hole := json.loads(body).get("hole"):
            assert hole["from"] == consumer.place[1] + 1
            consumer.place = (consumer.place[0], hole["to"])
        consumer.take(body.encode())
    for sku in ("tea", "cup", "pot"):
        counters = consumer.stock[sku, "X"]
        assert [counters[c] for c in ("on_hand", "held", "quarantined")] == list(p.numbers(sku)[:3])
    assert sum(p.numbers("pot")[:1]) == 7


@on_one_redis
def test_given_kafka_that_lost_its_messages_then_what_it_has_is_read_and_the_rest_taken_over(
    settings: Settings, redis: Redis, kafka_bootstrap: str
) -> None:
    through = through_kafka(settings, kafka_bootstrap)
    p = Partition.of(redis)
    with relaying(through), persisting(through):
        begin(p)
        wait_for_ledger(through)
    dump = older_copy(through)
    first = p.seq() + 1
    with relaying(through), persisting(through):
        p.hold("in-kafka", line("tea", 2))
        wait_for_ledger(through)
    # The topic's end is lost with its broker; the relay goes on into what is left of it.
    kept = messages(through)
    anew = msgspec.structs.replace(
        dump, kafka_topic=through_kafka(dump, kafka_bootstrap).kafka_topic
    )
    with relaying(through), persisting(through):
        change_much(p)
        lost_to = p.seq()
        trim(p, through)
    produce_topic(anew, *kept)
    assert "set HOLDFAST_KAFKA_BOOTSTRAP" in adopt(dump_only(anew), code=2)
    done = holdfast(
        *("ledger", "adopt", "--by", "kim", "--reason", "the broker died"),
        environ=environment(anew),
    )
    assert done.returncode == 0, done.stderr
    with database.connect(anew.postgres_url) as connection:
        holes = audit(connection).holes
    assert [(hole.from_seq, hole.to_seq) for hole in holes] == [(first + 1, lost_to)]
    check_clean(anew)
    with relaying(anew), persisting(anew):
        assert p.one(confirm("new")).status == "confirmed"
        wait_for_ledger(anew)
        eventually("all is in Kafka", lambda: json.loads(messages(anew)[-1])["type"] == "confirm")
    check_clean(anew)
    told = [json.loads(body) for body in messages(anew)]
    assert {"from": first + 1, "to": lost_to} in [event.get("hole") for event in told]


def dump_only(settings: Settings) -> Settings:
    return msgspec.structs.replace(settings, kafka_bootstrap="")


def produce_topic(settings: Settings, *bodies: bytes) -> None:
    """A topic with these messages."""
    ensure_topic(settings)
    produce(settings, *bodies)


@on_one_redis
def test_given_kafka_is_gone_for_good_then_it_is_taken_over_without(
    settings: Settings, redis: Redis, kafka_bootstrap: str
) -> None:
    through = through_kafka(settings, kafka_bootstrap)
    p = Partition.of(redis)
    with relaying(through), persisting(through):
        begin(p)
        wait_for_ledger(through)
    with relaying(through):
        change_much(p)
        eventually("all is in Kafka", lambda: redis.xlen(keys.outbox(0)) == 0)
    assert "--without-kafka" in adopt(settings, code=2)
    assert "missing for good" in adopt(settings, "--without-kafka")
    check_clean(settings)
    with persisting(settings):
        assert p.one(confirm("new")).status == "confirmed"
        wait_for_ledger(settings)
    check_clean(settings)
