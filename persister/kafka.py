"""Kafka: the topic of the events, and reading it from where the ledger is.

Offsets live in the ledger's ``positions``, in the transaction that writes the rows; Kafka keeps none,
and there is no consumer group that could rebalance: the ledger's lease says who reads a partition.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka import KafkaError as KafkaCode
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from redis import Redis

from engine import keys
from engine.errors import StoreError
from engine.events import Event
from engine.settings import Settings
from persister.ledger import KafkaMark, Position
from persister.messages import UnreadableMessage, read_message
from persister.outbox import plain
from persister.sources import Batch, Unreadable

log = logging.getLogger("holdfast.kafka")

EVENTS_A_BATCH = 5_000
LINES_A_BATCH = 50_000
_MESSAGES_A_CALL = 1_000
_ANSWER_S = 5.0
RETENTION_MS = 14 * 24 * 3_600_000
#: A cart of 2,000 lines, each split over many locations, is one event: 235 bytes a line with long names.
MESSAGE_BYTES_MAX = 64 * 1024 * 1024


class KafkaUnavailable(StoreError):
    """Kafka can't be asked now."""


def client_settings(settings: Settings) -> dict[str, Any]:
    """What every client of ours is given. Its own log lines come by ours, or not at all."""
    return {
        "bootstrap.servers": settings.kafka_bootstrap,
        "client.id": "holdfast",
        "reconnect.backoff.max.ms": 1_000,
        "topic.metadata.refresh.interval.ms": 30_000,
        "log_level": 2,
        "error_cb": _told,
    }


def _told(error: KafkaCode) -> None:
    log.debug("Kafka: %s", error)


def ensure_topic(settings: Settings) -> str:
    """The id of the topic, made with a partition each of ours where it is missing.

    KafkaUnavailable where no broker answers; StoreError where the topic has too few partitions.
    """
    admin = AdminClient(client_settings(settings))
    name = settings.kafka_topic
    topic = _describe(admin, name)
    if topic is None:
        _make(admin, settings)
        give_up_at = time.monotonic() + _ANSWER_S
        while topic is None and time.monotonic() < give_up_at:
            time.sleep(0.05)
            topic = _describe(admin, name)
        if topic is None:
            raise KafkaUnavailable(f"topic {name} was made and can't be seen yet")
    if len(topic.partitions) < settings.partitions:
        raise StoreError(
            f"topic {name} has {len(topic.partitions)} partitions, {settings.partitions} are needed;"
            " add some, or name another with HOLDFAST_KAFKA_TOPIC"
        )
    return str(topic.topic_id)


def _make(admin: AdminClient, settings: Settings) -> None:
    config = {
        "cleanup.policy": "delete",
        "retention.ms": str(RETENTION_MS),
        "max.message.bytes": str(MESSAGE_BYTES_MAX),
    }
    new = NewTopic(
        settings.kafka_topic,
        num_partitions=settings.partitions,
        replication_factor=settings.kafka_replication_factor or -1,
        config=config,
    )
    try:
        admin.create_topics([new], request_timeout=_ANSWER_S)[new.topic].result()
    except KafkaException as error:
        if error.args[0].code() != KafkaCode.TOPIC_ALREADY_EXISTS:
            settings_of_topic = ", ".join([f"{key}={value}" for key, value in config.items()])
            raise KafkaUnavailable(
                f"topic {settings.kafka_topic} can't be made with {settings_of_topic}:"
                f" {error.args[0].str()}; where that is forbidden make it yourself, with"
                f" {settings.partitions} partitions"
            ) from None


def _describe(admin: AdminClient, name: str) -> Any:
    try:
        return admin.describe_topics(TopicCollection([name]), request_timeout=_ANSWER_S)[
            name
        ].result()
    except KafkaException as error:
        if error.args[0].code() == KafkaCode.UNKNOWN_TOPIC_OR_PART:
            return None
        raise KafkaUnavailable(f"Kafka does not answer: {error.args[0].str()}") from None


class KafkaSource:
    """Reads one partition of the topic from the ledger's mark on.

    What comes twice is the ledger's business. Where the marked offset is gone (the topic's head was
    deleted, or it is another topic) it reads from the first message there is, and the ledger finds
    out whether something is missing.
    """

    def __init__(
        self, settings: Settings, redis: Redis, partition: int, mark: KafkaMark | None
    ) -> None:
        self._redis = redis
        self._topic_id = ensure_topic(settings)
        self._partition = partition
        self._at = TopicPartition(settings.kafka_topic, partition)
        self._consumer = Consumer(
            client_settings(settings)
            | {
                "group.id": "holdfast.persister",  # librdkafka wants a name; nothing is kept there
                "enable.auto.commit": False,
                "auto.offset.reset": "error",
                "queued.max.messages.kbytes": 32 * 1024,
                "fetch.wait.max.ms": 50,
                "check.crcs": True,
            }
        )
        low, high = self._watermarks()
        offset = mark.offset if mark and mark.topic_id == self._topic_id else low
        self._next = offset if low <= offset <= high else low
        if mark is not None and self._next != mark.offset:
            log.warning(
                "partition %s: offset %s of the ledger is not in the topic (%s to %s); from %s on",
                partition,
                mark.offset,
                low,
                high,
                self._next,
            )
        self._seek()

    def close(self) -> None:
        self._consumer.close()

    def begin(self, position: Position) -> None:
        """Nothing to do: whoever has the ledger's lease may read."""

    def is_drained(self, position: Position) -> bool:
        return self._is_read()

    def _is_read(self) -> bool:
        return self._next >= self._watermarks()[1]

    def read(self, after: Position, wait_ms: int) -> Batch:
        """About 5,000 events, up to a message that is no event of ours."""
        events: list[Event] = []
        lines = 0
        wait_s = wait_ms / 1000
        while len(events) < EVENTS_A_BATCH and lines < LINES_A_BATCH:
            messages = self._consumer.consume(_MESSAGES_A_CALL, wait_s)
            if not messages:
                break
            for message in messages:
                error = message.error()
                if error is not None:
                    self._stumbled(error)
                    return self._batch(events)
                try:
                    found = read_message(self._partition, message.value() or b"")
                except UnreadableMessage as unreadable:
                    self._seek()  # it comes again
                    return self._batch(events, self._unreadable(message, unreadable))
                events += found
                lines += sum([len(event.lines) for event in found])
                self._next = int(message.offset() or 0) + 1
            wait_s = 0.0
        return self._batch(events)

    def committed(self, position: Position) -> None:
        """Nothing to do: Kafka keeps what it has, the ledger its mark."""

    def pass_over(self, unreadable: Unreadable) -> None:
        self._next = int(unreadable.place) + 1
        self._seek()

    def is_at_end(self) -> bool:
        """What the relay has trimmed, Kafka had before."""
        return self._redis.xlen(keys.outbox(self._partition)) == 0 and self._is_read()

    def _batch(self, events: list[Event], unreadable: Unreadable | None = None) -> Batch:
        return Batch(events, KafkaMark(self._topic_id, self._next), unreadable)

    def _unreadable(self, message: Any, why: UnreadableMessage) -> Unreadable:
        return Unreadable(
            source="kafka",
            topic_id=self._topic_id,
            place=str(message.offset()),
            raw=message.value() or b"",
            why=plain(str(why)),
            epoch=why.epoch,
            last_seq=why.last_seq,
        )

    def _stumbled(self, error: KafkaCode) -> None:
        if error.code() in (KafkaCode.OFFSET_OUT_OF_RANGE, KafkaCode._AUTO_OFFSET_RESET):
            log.warning("partition %s: %s; from the first message on", self._partition, error.str())
            self._next = self._watermarks()[0]
            self._seek()
        elif error.code() != KafkaCode._PARTITION_EOF:
            raise KafkaUnavailable(f"Kafka: {error.str()}")

    def _seek(self) -> None:
        at = TopicPartition(self._at.topic, self._at.partition, self._next or OFFSET_BEGINNING)
        self._consumer.assign([at])

    def _watermarks(self) -> tuple[int, int]:
        try:
            low, high = self._consumer.get_watermark_offsets(self._at, timeout=_ANSWER_S)
        except KafkaException as error:
            raise KafkaUnavailable(f"Kafka does not answer: {error.args[0].str()}") from None
        return low, high
