"""The sieve of the persister, one read at a time: what it judges by, and for how long its word stands."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kit import Partition
from redis import Redis
from running import all_acknowledged, eventually, on_one_redis, persisting, rows

from engine import keys
from engine.errors import PartitionStopped
from engine.settings import Settings
from persister import database, quarantine
from persister.kafka import ensure_topic
from persister.kafka_source import KafkaSource
from persister.ledger import KafkaMark, Ledger, Position
from persister.messages import wrap
from persister.outbox import Entry
from persister.sieve import Sieve
from persister.sources import OutboxSource
from tests.kafka_kit import messages, produce, relaying, through_kafka
from tests.quarantine_kit import damage, discards, stopped_at, wait_until_stopped

pytestmark = on_one_redis


@pytest.fixture
def shop(redis: Redis) -> Partition:
    """Four events, each an entry of its own."""
    p = Partition(redis)
    p.receive("tea", 100)
    for number in range(3):
        p.hold(f"R{number}", ("tea", 1, "X"))
    return p


@pytest.fixture
def ledger(settings: Settings) -> Iterator[Ledger]:
    with database.connect(settings.postgres_url) as connection:
        database.migrate(connection)
        connection.commit()
        yield Ledger(connection, 0)


def word(settings: Settings) -> str:
    return str(rows(settings.postgres_url, "SELECT coalesce(stopped, '') FROM positions")[0][0])


def test_given_a_closed_partition_then_its_head_does_not_tell_what_is_missing(
    settings: Settings, redis: Redis, shop: Partition, ledger: Ledger
) -> None:
    """It may be an older Redis, or another one: what it says would stand in the ledger for ever."""
    damage(redis, {4})
    sieve = Sieve(OutboxSource(redis, shop.scripts, settings, 0), ledger, redis)
    at = ledger.write(sieve.read(Position(0, 0), 0).events)
    with pytest.raises(PartitionStopped) as stopped:
        sieve.read(at, 0)
    ledger.stop(str(stopped.value), stopped.value.quarantine_id)
    quarantine.discard(ledger.connection, 1, by="ann", reason="junk")
    run_id = redis.hget(keys.head(0), "run_id")
    redis.hset(keys.head(0), "run_id", "")
    for _ in range(2):
        assert sieve.read(at, 0).events == []
        assert "the next one will tell" in word(settings)
    redis.hset(keys.head(0), mapping={"run_id": run_id, "last_ms": "soon"})
    assert sieve.read(at, 0).events == [], "nor does one whose clock can't be read"
    redis.hset(keys.head(0), "last_ms", shop.now_ms)
    (made,) = sieve.read(at, 0).events
    assert (made.type, made.epoch, made.seq, made.at_ms) == ("discard", 1, 4, shop.now_ms)


def test_given_nothing_read_yet_then_the_word_about_the_quarantine_stands(
    settings: Settings, redis: Redis, shop: Partition, ledger: Ledger, kafka_bootstrap: str
) -> None:
    """A persister that begins anew has nothing at its first reads; what it stopped at is still there."""
    settings = through_kafka(settings, kafka_bootstrap)
    with relaying(settings):
        eventually("all is in Kafka", lambda: all_acknowledged(redis))
    produce(settings, b"junk")
    with persisting(settings, until_open=False):
        wait_until_stopped(settings, 1)
    at = ledger.position()
    source = KafkaSource(settings, redis, 0, ledger.kafka_mark())
    sieve = Sieve(source, ledger, redis)
    empty = 0
    try:
        with pytest.raises(PartitionStopped):
            while True:
                assert sieve.read(at, 0).events == []
                empty += 1
                assert stopped_at(settings) == 1
    finally:
        source.close()
    assert empty, "the first read comes back before the broker can have answered"


def test_given_a_discarded_entry_of_a_higher_epoch_than_what_follows_then_it_is_told_in_that(
    settings: Settings, redis: Redis, shop: Partition, kafka_bootstrap: str
) -> None:
    """Somebody wrote it into the outbox, or the topic; epochs never go back in the ledger."""
    source = through_kafka(settings, kafka_bootstrap)
    with relaying(source):
        eventually("all is in Kafka", lambda: all_acknowledged(redis))
    real = messages(source)
    settings = through_kafka(settings, kafka_bootstrap)
    ensure_topic(settings)
    strange = wrap(0, Entry(7, 3, b"\xc1", [], "nobody wrote it"))
    produce(settings, real[0], real[1], strange, real[3])
    with persisting(settings, until_open=False):
        wait_until_stopped(settings, 1)
        with database.connect(settings.postgres_url) as connection:
            quarantine.discard(connection, 1, by="ann", reason="junk")
        query = "SELECT seq FROM positions WHERE stopped IS NULL"
        eventually("the ledger goes on", lambda: rows(settings.postgres_url, query) == [(4,)])
    assert [(epoch, seq) for epoch, seq, _ in discards(settings)] == [(1, 3)]


def test_given_a_mark_then_leaving_the_quarantine_moves_it(
    settings: Settings, ledger: Ledger
) -> None:
    ledger.stop("junk", None)
    ledger.connection.execute("UPDATE positions SET quarantine_id = 1")
    ledger.connection.commit()
    ledger.leave_quarantine(KafkaMark("topic", 5))
    assert ledger.kafka_mark() == KafkaMark("topic", 5)
    assert word(settings) == ""
