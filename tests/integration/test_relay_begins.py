"""What relay and persister do where they begin: on a closed partition, before the other, at a gap."""

from __future__ import annotations

import pytest

from engine import keys
from engine.events import Event
from engine.partitions import read_head
from engine.settings import Settings
from persister import database
from persister.kafka import ensure_topic
from persister.ledger import KafkaMark, Ledger
from tests.kafka_kit import messages, produce, relaying, through_kafka, watch_the_relay
from tests.kit import Partition
from tests.running import all_acknowledged, eventually, on_one_redis, persisting, rows

pytestmark = on_one_redis


@pytest.fixture
def settings(settings, kafka_bootstrap) -> Settings:
    return through_kafka(settings, kafka_bootstrap)


def event(seq: int) -> Event:
    return Event(version=1, partition=0, epoch=1, seq=seq, type="extend", at_ms=seq, deadline_ms=9)


def test_given_a_closed_partition_when_the_relay_begins_then_nothing_is_sent(settings, redis):
    """This Redis may be an older one, or another."""
    p = Partition(redis)
    for number in range(4):
        p.receive(f"S{number}", 1)
    redis.hset(keys.head(0), "run_id", "")
    with relaying(settings):
        eventually("it is at work", lambda: p.head()["trimmer"] == "relay")
        watch_the_relay(p)
        assert messages(settings) == []
        assert redis.xlen(keys.outbox(0)) == 4
        p.open()
        eventually("all is in Kafka", lambda: all_acknowledged(redis))
    assert len(messages(settings)) == p.seq()


def test_given_no_relay_yet_when_opened_then_head_names_it_all_the_same(settings, redis):
    """What a persister that reads from Kafka opens is the relay's to trim."""
    with persisting(settings):
        assert read_head(redis, 0).trimmer == "relay"


def test_given_a_gap_then_the_whole_topic_is_read_once_and_not_at_every_try(
    settings, redis, caplog
):
    topic_id = ensure_topic(settings)
    with database.connect(settings.postgres_url) as connection:
        database.migrate(connection)
        connection.commit()
        Ledger(connection, 0).write([event(1)], KafkaMark(topic_id, 1))
    produce(settings, event(1).to_json(), event(3).to_json())
    tries = set()
    query = "SELECT updated_at FROM positions WHERE stopped IS NOT NULL"
    with persisting(settings, until_open=False):
        eventually(
            "it tries again",
            lambda: tries.update(rows(settings.postgres_url, query)) or len(tries) > 3,
        )
        assert caplog.text.count("looking for it from the first message of the topic") == 1
        produce(settings, event(2).to_json())
    assert (
        "after event 1-1 came 1-3"
        in rows(settings.postgres_url, "SELECT stopped FROM positions")[0][0]
    )
