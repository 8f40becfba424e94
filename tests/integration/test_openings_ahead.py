"""What is looked through before any of it is written: all of the topic after the ledger's mark, each part of
it once, however often the persister begins anew."""

from __future__ import annotations

from contextlib import closing

import pytest
from kafka_kit import produce, through_kafka
from ledger_kit import receipt
from redis import Redis
from running import on_one_redis

from engine.settings import Settings
from persister.kafka import ensure_topic
from persister.kafka_source import KafkaSource
from persister.ledger import KafkaMark, Position
from persister.openings_ahead import OpeningsAhead
from persister.outbox import Entry
from persister.shipment import Shipment
from persister.sources import Batch

pytestmark = on_one_redis


class Counted(KafkaSource):
    """It knows how many events were read from it."""

    count = 0

    def read(self, after: Position, wait_ms: int) -> Batch:
        batch = super().read(after, wait_ms)
        self.count += len(batch.events)
        return batch


class Growing(Counted):
    """While it is read, more is added to it."""

    topic: Topic

    def read(self, after: Position, wait_ms: int) -> Batch:
        assert self.count < 20, "it runs after an end that moves away"
        batch = super().read(after, wait_ms)
        self.topic.put((1, 100 + self.count))
        return batch


class Topic:
    def __init__(self, settings: Settings, redis: Redis) -> None:
        self.settings = settings
        self._redis = redis
        self._topic_id = ensure_topic(settings)

    def put(self, *places: tuple[int, int]) -> None:
        for epoch, seq in places:
            produce(self.settings, receipt(seq, epoch=epoch).to_json())

    def put_junk(self) -> None:
        produce(self.settings, b"junk")

    def look(self, ahead: OpeningsAhead, offset: int, *, goes_on: bool = True) -> tuple[bool, int]:
        """What it says, from that offset on, and how many events it read for that."""
        mark = KafkaMark(self._topic_id, offset)
        with closing(Counted(self.settings, self._redis, 0, mark)) as source:
            said = ahead.look(source, lambda: goes_on)
            assert not said or source.mark == mark, "it stands where it stood"
            return said, source.count


@pytest.fixture
def topic(settings: Settings, redis: Redis, kafka_bootstrap: str) -> Topic:
    return Topic(through_kafka(settings, kafka_bootstrap), redis)


def test_of_each_epoch_it_is_the_lowest_seq_and_junk_is_passed_over(topic: Topic) -> None:
    ahead = OpeningsAhead()
    assert topic.look(ahead, 0) == (True, 0) and ahead.first_seqs == {}
    topic.put((1, 5), (1, 6))
    topic.put_junk()
    topic.put((2, 6), (1, 4), (3, 9))
    assert topic.look(ahead, 0) == (True, 5)
    assert ahead.first_seqs == {1: 4, 2: 6, 3: 9}


def test_what_was_looked_through_once_is_not_again(topic: Topic) -> None:
    ahead = OpeningsAhead()
    topic.put((1, 1), (1, 2), (1, 3))
    assert topic.look(ahead, 1) == (True, 2)
    assert topic.look(ahead, 1) == topic.look(ahead, 2) == topic.look(ahead, 3) == (True, 0)
    topic.put((2, 4))
    assert topic.look(ahead, 2) == (True, 1)
    assert ahead.first_seqs == {1: 2, 2: 4}


def test_what_cannot_be_read_at_the_end_is_left_to_be_read(topic: Topic) -> None:
    ahead = OpeningsAhead()
    topic.put((1, 1))
    topic.put_junk()
    assert topic.look(ahead, 1) == topic.look(ahead, 1) == (True, 0)
    topic.put((2, 2))
    assert topic.look(ahead, 1) == (True, 1)


def test_a_mark_before_it_or_behind_it_is_looked_at_from_there(topic: Topic) -> None:
    """The ledger fell back; or it read on for hours, and began anew."""
    ahead = OpeningsAhead()
    topic.put((1, 1), (1, 2), (1, 3))
    assert topic.look(ahead, 1) == (True, 2)
    assert topic.look(ahead, 0) == (True, 3)
    topic.put((1, 4), (1, 5))
    assert topic.look(ahead, 4) == (True, 1)
    assert topic.look(ahead, 3) == (True, 2), "4 was never looked at"
    assert topic.look(ahead, 3) == (True, 0)


def test_given_it_is_to_stop_then_it_does_and_goes_on_there_the_next_time(topic: Topic) -> None:
    ahead = OpeningsAhead()
    topic.put((1, 1), (2, 2))
    assert topic.look(ahead, 0, goes_on=False) == (False, 2)
    assert topic.look(ahead, 0) == (True, 0)
    assert ahead.first_seqs == {1: 1, 2: 2}


def test_given_a_sale_under_way_then_it_looks_to_what_was_the_end_and_no_further(
    topic: Topic, redis: Redis
) -> None:
    topic.put((1, 1), (1, 2))
    with closing(Growing(topic.settings, redis, 0, None)) as source:
        source.topic = topic
        assert OpeningsAhead().look(source)


def test_given_a_transaction_that_nobody_ends_then_it_looks_to_where_that_begins(
    topic: Topic, redis: Redis
) -> None:
    """A relay was killed: it is as if nothing of it were there, until it is committed."""
    topic.put((1, 1))
    entry = Entry(2, 2, b"", [receipt(2, epoch=2)])
    shipment = Shipment(topic.settings, 0)
    shipment._producer.begin_transaction()
    shipment._produce(entry)
    shipment._producer.flush(10)
    ahead = OpeningsAhead()
    with closing(Counted(topic.settings, redis, 0, None)) as source:
        assert ahead.look(source) and ahead.first_seqs == {1: 1}
    shipment._producer.abort_transaction(10)


def test_another_topic_is_looked_through_from_its_beginning(
    topic: Topic, settings: Settings, redis: Redis, kafka_bootstrap: str
) -> None:
    ahead = OpeningsAhead()
    topic.put((1, 1), (7, 2))
    topic.look(ahead, 0)
    another = Topic(through_kafka(settings, kafka_bootstrap), redis)
    another.put((1, 1), (2, 2))
    assert another.look(ahead, 0) == (True, 2)
    assert ahead.first_seqs == {1: 1, 2: 2}
