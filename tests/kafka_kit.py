"""What the tests with Kafka share: the relay in a thread, what stands in a topic, what is put there."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

import msgspec
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition

from engine.settings import Settings
from persister.relay import Relay
from tests.kit import Partition
from tests.running import eventually


def through_kafka(settings: Settings, bootstrap: str) -> Settings:
    """The same servers, with a topic of its own between them."""
    topic = f"test.{uuid.uuid4().hex}"
    return msgspec.structs.replace(settings, kafka_bootstrap=bootstrap, kafka_topic=topic)


@contextmanager
def relaying(settings: Settings) -> Iterator[Relay]:
    relay = Relay(settings)
    thread = Thread(target=relay.run, name="relay")
    thread.start()
    try:
        yield relay
    finally:
        relay.stop()
        thread.join(30)
        assert not thread.is_alive(), "the relay did not end"


def watch_the_relay(p: Partition, times: int = 8) -> None:
    """Wait until it has kept or given back its lease so often: each try of it does both."""
    for _ in range(times):
        last = p.head().get("lease_until_ms")
        eventually("the relay is at work", lambda: p.head().get("lease_until_ms") != last)  # noqa: B023


def messages(settings: Settings) -> list[bytes]:
    """All that is in the topic and was committed, in order."""
    return [body for _, body in _records(settings)]


def next_offset(settings: Settings) -> int:
    """The offset behind the last of these."""
    return _records(settings)[-1][0] + 1


def _records(settings: Settings) -> list[tuple[int, bytes]]:
    consumer = Consumer(
        {
            "bootstrap.servers": settings.kafka_bootstrap,
            "group.id": "test",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
        }
    )
    low, _ = consumer.get_watermark_offsets(TopicPartition(settings.kafka_topic, 0), timeout=10)
    consumer.assign([TopicPartition(settings.kafka_topic, 0, low)])
    found: list[tuple[int, bytes]] = []
    while (message := consumer.poll(10)) is not None:
        error = message.error()
        if error is not None:
            assert error.code() == KafkaError._PARTITION_EOF, error
            break
        found.append((message.offset(), message.value() or b""))
    consumer.close()
    return found


def produce(settings: Settings, *bodies: bytes) -> None:
    producer = Producer({"bootstrap.servers": settings.kafka_bootstrap})
    for body in bodies:
        producer.produce(settings.kafka_topic, body, partition=0)
    assert producer.flush(10) == 0
