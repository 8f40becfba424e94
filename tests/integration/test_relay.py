"""Outbox, Kafka, ledger on real servers: each event once, whatever comes twice or is missing."""

from __future__ import annotations

import msgspec
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from engine import keys
from engine.events import Event, from_json
from engine.partitions import read_head, read_server
from engine.settings import Settings
from persister import database
from persister.kafka import ensure_topic
from persister.ledger import KafkaMark, Ledger
from persister.outbox import Outbox
from persister.relay import Relay
from tests.kafka_kit import messages, next_offset, produce, relaying, through_kafka, watch_the_relay
from tests.kit import Partition, put_back, reserve, snapshot
from tests.running import (
    all_acknowledged,
    check_clean,
    eventually,
    is_open,
    ledger_seq,
    on_one_redis,
    persisting,
    rows,
    stopped,
    wait_for_ledger,
)

pytestmark = on_one_redis


@pytest.fixture
def settings(settings, kafka_bootstrap) -> Settings:
    return through_kafka(settings, kafka_bootstrap)


def filled(redis, holds: int = 50) -> Partition:
    p = Partition(redis)
    p.receive("A", 1_000)
    for number in range(holds):
        p.hold(f"R{number}", ("A", 1, "X"))
    return p


def event(seq: int, **changes) -> Event:
    made = Event(version=1, partition=0, epoch=1, seq=seq, type="extend", at_ms=seq, deadline_ms=9)
    return msgspec.structs.replace(made, **changes)


def open_at(redis, seq: int) -> None:
    """A partition that is open and has come to there."""
    head = {"epoch": 1, "seq": seq, "run_id": read_server(redis).run_id, "trimmer": "relay"}
    redis.hset(keys.head(0), mapping=head)


def check_mark(settings: Settings) -> None:
    """The ledger goes on reading behind the last message, or behind the end of its transaction."""
    [(offset,)] = rows(settings.postgres_url, "SELECT kafka_offset FROM positions")
    assert next_offset(settings) <= offset <= next_offset(settings) + 1


def test_events_go_through_kafka_in_order_and_the_outbox_is_acknowledged(settings, redis):
    p = filled(redis)
    with relaying(settings), persisting(settings):
        wait_for_ledger(settings)
        eventually("all is acknowledged", lambda: all_acknowledged(redis))
    seqs = [from_json(body).seq for body in messages(settings)]
    assert seqs == list(range(1, p.seq() + 1))
    check_mark(settings)
    assert (p.head()["trimmer"], p.head()["acknowledged_seq"]) == ("relay", str(p.seq()))
    check_clean(settings)


def test_given_deaths_between_produce_and_acknowledge_then_twice_in_kafka_and_once_in_the_ledger(
    settings, redis, monkeypatch
):
    p = filled(redis)
    deaths = []
    acknowledge = Outbox.acknowledge

    def die_first(self, *position):
        if len(deaths) < 3:
            deaths.append(position)
            raise RuntimeError("killed")
        acknowledge(self, *position)

    monkeypatch.setattr(Outbox, "acknowledge", die_first)
    with relaying(settings), persisting(settings):
        wait_for_ledger(settings)
        eventually("all is acknowledged", lambda: all_acknowledged(redis))
    assert len(deaths) == 3
    assert len(messages(settings)) > p.seq(), "nothing came twice: this test tests nothing"
    assert rows(settings.postgres_url, "SELECT count(*) FROM events") == [(p.seq(),)]
    check_clean(settings)


def test_given_a_restart_then_the_persister_goes_on_at_its_offset(settings, redis):
    p = filled(redis)
    with relaying(settings):
        with persisting(settings):
            wait_for_ledger(settings)
        for number in range(20):
            p.hold(f"again-{number}", ("A", 1, "X"))
        with persisting(settings):
            wait_for_ledger(settings)
    check_mark(settings)
    check_clean(settings)


@pytest.mark.parametrize(
    ("stream", "kept", "word"),
    [
        ([1, 2, 3, 1, 2, 3, 4], 4, ""),
        ([1, 2, 1, 3, 2, 4], 4, ""),
        ([1, 3, 2], 0, "after event 0-0"),
        ([1, 2, 4], 0, "what is between is missing"),
    ],
    ids=["duplicates", "two relays", "reordered", "a gap"],
)
def test_what_a_stream_may_be(settings, redis, stream, kept, word):
    """Twice is recognised; another order or a gap stops the partition, and says so."""
    ensure_topic(settings)
    produce(settings, *[event(seq).to_json() for seq in stream])
    with persisting(settings, until_open=False):
        if kept:
            eventually("all is in the ledger", lambda: ledger_seq(settings) == kept)
        else:
            assert eventually("it stops", lambda: stopped(settings))
            assert "missing" in stopped(settings)
    assert len(rows(settings.postgres_url, "SELECT seq FROM events")) == kept


@pytest.mark.parametrize("in_one_batch", [True, False])
def test_given_a_different_event_under_a_known_identity_then_it_stops(
    settings, redis, in_one_batch
):
    ensure_topic(settings)
    open_at(redis, 2)
    other = event(2, deadline_ms=10).to_json()
    produce(settings, event(1).to_json(), event(2).to_json(), *[other] * in_one_batch)
    with persisting(settings, until_open=False):
        if not in_one_batch:
            eventually("both are in the ledger", lambda: ledger_seq(settings) == 2)
            produce(settings, other)
        assert eventually("it stops", lambda: stopped(settings))
        assert "1-2 differs" in stopped(settings)


@pytest.mark.parametrize("body", [b"", b"junk", b"{}", event(2, version=3).to_json()])
def test_given_a_message_that_is_no_event_then_it_stops_behind_what_can_be_read(
    settings, redis, body
):
    ensure_topic(settings)
    produce(settings, event(1).to_json(), body, event(2).to_json())
    with persisting(settings, until_open=False):
        assert eventually("it stops", lambda: stopped(settings))
        assert "the message at offset 1 is no event" in stopped(settings)
    assert ledger_seq(settings) == 1


def test_given_the_head_of_the_topic_is_deleted_then_what_is_missing_is_told(settings, redis):
    """Nothing of it is kept in the outbox either."""
    filled(redis)
    with relaying(msgspec.structs.replace(settings, outbox_keep_ms=0)):
        eventually("all is in Kafka", lambda: redis.xlen(keys.outbox(0)) == 0)
    admin = AdminClient({"bootstrap.servers": settings.kafka_bootstrap})
    at = TopicPartition(settings.kafka_topic, 0, 10)
    for future in admin.delete_records([at]).values():
        future.result()
    with persisting(settings, until_open=False):
        assert eventually("it stops", lambda: stopped(settings))
        assert "after event 0-0 came 1-11" in stopped(settings)


def test_given_a_topic_made_anew_then_it_is_read_from_its_beginning(settings, redis):
    p = filled(redis)
    with relaying(settings), persisting(settings):
        wait_for_ledger(settings)
        eventually("all is acknowledged", lambda: all_acknowledged(redis))
    admin = AdminClient({"bootstrap.servers": settings.kafka_bootstrap})
    admin.delete_topics([settings.kafka_topic])[settings.kafka_topic].result()
    for number in range(100):
        p.hold(f"again-{number}", ("A", 1, "X"))
    with relaying(settings), persisting(settings):
        wait_for_ledger(settings)
    assert len(messages(settings)) == 100
    check_mark(settings)
    check_clean(settings)


def test_given_a_topic_that_lost_its_end_and_went_on_then_it_is_read_from_its_beginning(
    settings, redis
):
    """The broker lost messages that the ledger has, and took the next ones at their offsets."""
    topic_id = ensure_topic(settings)
    with database.connect(settings.postgres_url) as connection:
        database.migrate(connection)
        connection.commit()
        Ledger(connection, 0).write([event(seq) for seq in range(1, 11)], KafkaMark(topic_id, 10))
    open_at(redis, 33)
    kept = [*range(1, 7), *range(11, 31)]
    produce(settings, *[event(seq).to_json() for seq in kept])
    with persisting(settings, until_open=False):
        eventually("all is in the ledger", lambda: ledger_seq(settings) == 30)
        produce(settings, event(31).to_json(), event(33).to_json())
        assert "after event 1-31 came 1-33" in eventually("it stops", lambda: stopped(settings))
    found = rows(settings.postgres_url, "SELECT seq, kafka_offset FROM positions")
    assert found == [(30, 26)]


def test_given_a_closed_partition_then_nothing_is_sent_and_kafka_is_drained_before_it_opens(
    settings, redis
):
    p = filled(redis)
    with relaying(settings):
        eventually("all is in Kafka", lambda: all_acknowledged(redis))
        redis.hset(keys.head(0), "run_id", "")
        with persisting(settings):
            assert ledger_seq(settings) == p.seq()
    assert read_head(redis, 0).epoch == "2"
    check_clean(settings)


def test_given_a_relay_at_work_then_a_second_waits_for_its_end(settings, redis, caplog):
    caplog.set_level("INFO")
    p = filled(redis, 1)
    with relaying(settings):
        eventually("the first is at work", lambda: p.head().get("trimmer") == "relay")
        holder = p.head()["lease"]
        with relaying(settings):
            eventually("the second waits", lambda: "waiting for it" in caplog.text)
            assert p.head()["lease"] == holder
    # The first has ended and given its lease back.
    with relaying(settings):
        eventually(
            "the third is at work",
            lambda: redis.hget(keys.head(0), "lease").decode() != holder,
        )


@pytest.mark.parametrize("what", ["another trimmer", "opened anew"])
def test_given_a_change_under_its_feet_then_the_relay_begins_at_the_head_of_the_outbox(
    settings, redis, caplog, what
):
    """What it had sent and not trimmed is sent again; nothing is trimmed by what it knew before."""
    caplog.set_level("INFO")
    p = filled(redis)
    with relaying(settings), persisting(settings):
        wait_for_ledger(settings)
        if what == "another trimmer":
            redis.hset(keys.head(0), "trimmer", "persister")
            eventually("it is told", lambda: "a persister reads its outbox" in caplog.text)
        else:
            redis.hset(keys.head(0), "run_id", "")
            eventually("it is told", lambda: "or opened anew" in caplog.text)
        eventually("the relay is the trimmer", lambda: p.head()["trimmer"] == "relay")
        p.hold("later", ("A", 1, "X"))
        wait_for_ledger(settings)
        eventually("all is acknowledged", lambda: all_acknowledged(redis))
    check_clean(settings)


def test_given_a_relay_that_begins_first_then_it_waits_for_the_opening_without_a_word(
    settings, redis, caplog
):
    p = filled(redis, 1)
    redis.hset(keys.head(0), "run_id", "")
    with relaying(settings):
        eventually("the relay is the trimmer", lambda: p.head()["trimmer"] == "relay")
        watch_the_relay(p, 3)
        with persisting(settings):
            wait_for_ledger(settings)
    assert "opened anew" not in caplog.text
    check_clean(settings)


def test_over_to_kafka_and_back_loses_nothing(settings, redis):
    direct = msgspec.structs.replace(settings, kafka_bootstrap="")
    p = filled(redis)
    with persisting(direct):
        wait_for_ledger(direct)
    p.hold("between-1", ("A", 1, "X"))
    with relaying(settings), persisting(settings):
        wait_for_ledger(settings)
        eventually("all is acknowledged", lambda: all_acknowledged(redis))
    p.hold("between-2", ("A", 1, "X"))
    with persisting(direct):
        wait_for_ledger(direct)
    assert p.head()["trimmer"] == "persister"
    p.hold("between-3", ("A", 1, "X"))
    with relaying(settings), persisting(settings):
        wait_for_ledger(settings)
    assert p.head()["trimmer"] == "relay"
    check_clean(settings)


def test_given_events_in_kafka_only_then_direct_reading_is_refused_with_what_to_do(settings, redis):
    settings = msgspec.structs.replace(settings, outbox_keep_ms=0)
    p = filled(redis)
    with relaying(settings):
        eventually("all is in Kafka", lambda: all_acknowledged(redis))
    p.hold("later", ("A", 1, "X"))
    direct = msgspec.structs.replace(settings, kafka_bootstrap="")
    with persisting(direct, until_open=False):
        assert eventually("it is refused", lambda: stopped(direct))
        assert "events 1 to 51 are in Kafka only; run the persister with HOLDFAST_KAFKA" in stopped(
            direct
        )
    assert p.head()["trimmer"] == "relay"
    # Nobody could tell whether a Redis that was restarted is behind those events: it stays closed.
    redis.hset(keys.head(0), "run_id", "")
    with database.connect(direct.postgres_url) as connection:
        Ledger(connection, 0).go_on()
    with persisting(direct, until_open=False):
        assert eventually("it is refused again", lambda: stopped(direct))
        assert not is_open(direct.redis_url)
    with relaying(settings), persisting(settings):
        wait_for_ledger(settings)
    check_clean(settings)


def test_given_a_redis_that_lost_what_is_in_kafka_only_then_direct_reading_is_refused(
    settings, redis
):
    """Its own head can't tell: it has lost that as well. It would sell those units again."""
    direct = msgspec.structs.replace(settings, kafka_bootstrap="")
    p = filled(redis)
    with persisting(direct):
        wait_for_ledger(direct)
    with relaying(settings):
        eventually("the relay is the trimmer", lambda: p.head()["trimmer"] == "relay")
        before = snapshot(redis)
        p.hold("lost", ("A", 900, "X"))
        eventually("all is in Kafka", lambda: all_acknowledged(redis))
    put_back(redis, before)
    with persisting(direct, until_open=False):
        assert "can't be told without Kafka" in eventually("it says why", lambda: stopped(direct))
        assert not is_open(direct.redis_url)
    with persisting(settings):
        assert p.one(reserve("again", ("A", 900, "X"))).status == "insufficient_stock"
        with relaying(settings):
            wait_for_ledger(settings)
    # Both ended in order, the relay first: head says that the ledger has all, also after a restart.
    assert p.head()["trimmer"] == "persister"
    redis.hset(keys.head(0), "run_id", "")
    with persisting(direct):
        p.hold("direct", ("A", 1, "X"))
        wait_for_ledger(direct)
    check_clean(direct)


def test_given_no_kafka_then_the_relay_waits_and_selling_goes_on(settings, redis, caplog):
    away = msgspec.structs.replace(settings, kafka_bootstrap="127.0.0.1:1")
    p = filled(redis, 1)
    with relaying(away):
        eventually("it says so", lambda: "Kafka does not answer" in caplog.text)
        p.hold("meanwhile", ("A", 1, "X"))
    assert p.redis.xlen(keys.outbox(0)) == 3
    with pytest.raises(Exception, match="HOLDFAST_KAFKA_BOOTSTRAP is not set"):
        Relay(msgspec.structs.replace(settings, kafka_bootstrap=""))
