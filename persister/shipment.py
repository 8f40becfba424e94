"""Events on their way to Kafka: a transaction each time, so that nobody who was replaced adds anything.

The transactional id belongs to the partition: whoever begins with it fences every producer that had it
before, also one that is frozen and wakes later with messages in its queue. Consumers that read committed
messages only (``isolation.level=read_committed``) never see what was not committed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from confluent_kafka import KafkaError as KafkaCode
from confluent_kafka import KafkaException, Producer

from engine.errors import PartitionStopped, StoreError
from engine.settings import Settings
from persister.kafka import MESSAGE_BYTES_MAX, KafkaUnavailable, client_settings
from persister.messages import wrap
from persister.outbox import Entry

ANSWER_S = 10.0
STEP_S = 1.0
CLOSE_S = 5.0
_OVERHEAD_BYTES = 1_000  # of a message beside its body
_FENCED = frozenset(
    {KafkaCode._FENCED, KafkaCode.INVALID_PRODUCER_EPOCH, KafkaCode.PRODUCER_FENCED}
)
# librdkafka's own lines say once more what is raised here.
_quiet = logging.getLogger("holdfast.kafka.client")
_quiet.setLevel(logging.CRITICAL + 1)


class Replaced(StoreError):
    """Another producer of this partition has begun since: this one adds nothing any more."""


def transactional_id(settings: Settings, partition: int) -> str:
    return f"holdfast.{settings.kafka_topic}.{partition}"


def _producer(settings: Settings, partition: int) -> Producer:
    """A producer that has fenced all before it. KafkaUnavailable where Kafka does not say so."""
    producer = Producer(
        client_settings(settings)
        | {
            "transactional.id": transactional_id(settings, partition),
            "acks": "all",
            "linger.ms": 5,
            "batch.size": 1_000_000,
            "compression.type": "lz4",
            "message.max.bytes": MESSAGE_BYTES_MAX,
            "queue.buffering.max.messages": 200_000,
            "queue.buffering.max.kbytes": 256 * 1024,
        },
        logger=_quiet,
    )
    try:
        producer.init_transactions(ANSWER_S)
    except KafkaException as error:
        raise KafkaUnavailable(
            f"Kafka does not answer: transactional id {transactional_id(settings, partition)}:"
            f" {error.args[0].str()}"
        ) from None
    return producer


def fence(settings: Settings, partition: int) -> None:
    """From now on nothing enters the topic's partition by a producer that began before, and what one
    of them has not committed never will be. KafkaUnavailable where that can't be had."""
    _producer(settings, partition)


class Shipment:
    """A producer of one partition; making it fences those before it. KafkaUnavailable where Kafka does
    not answer."""

    def __init__(self, settings: Settings, partition: int) -> None:
        self._topic = settings.kafka_topic
        self._partition = partition
        self._failure: KafkaCode | None = None
        self._is_open = False
        self._producer = _producer(settings, partition)

    def send(self, entries: Sequence[Entry], wait_on: Callable[[float], bool]) -> None:
        """Have the events of these entries in the topic, all of them and in order; returns once they are
        committed. ``wait_on`` is asked each second that this takes, with the seconds so far.

        KafkaUnavailable where they are not, or where nobody waits any longer: whether they are is unknown
        then. Replaced where another producer has begun; PartitionStopped where an entry is larger than
        the topic takes.
        """
        self._failure = None
        try:
            self._producer.begin_transaction()
            self._is_open = True
            for entry in entries:
                self._produce(entry)
            self._commit(entries, wait_on)
        except KafkaException as error:
            self._refuse(entries, error.args[0])
        except BaseException:
            self._abort()
            raise

    def close(self) -> None:
        """Drop what is not committed: it is in the outbox."""
        self._abort()

    def _produce(self, entry: Entry) -> None:
        for body in [event.to_json() for event in entry.events] or [wrap(self._partition, entry)]:
            if len(body) > MESSAGE_BYTES_MAX - _OVERHEAD_BYTES:
                raise self._too_large(entry)
            while True:
                try:
                    self._producer.produce(
                        self._topic, body, partition=self._partition, on_delivery=self._delivered
                    )
                    break
                except BufferError:
                    self._producer.poll(0.1)

    def _commit(self, entries: Sequence[Entry], wait_on: Callable[[float], bool]) -> None:
        began = time.monotonic()
        while True:
            try:
                self._producer.commit_transaction(STEP_S)
                self._is_open = False
                return
            except KafkaException as error:
                if not error.args[0].retriable():
                    raise
            if not wait_on(time.monotonic() - began):
                raise KafkaUnavailable(
                    f"partition {self._partition}: Kafka has not committed outbox entries up to"
                    f" {entries[-1].epoch}-{entries[-1].seq}"
                )

    def _refuse(self, entries: Sequence[Entry], said: KafkaCode) -> NoReturn:
        failure = self._failure or said
        is_fenced = said.code() in _FENCED or failure.code() in _FENCED
        self._abort()
        if is_fenced:
            raise Replaced(
                f"partition {self._partition}: a persister that opens the partition, or another relay, has"
                " begun since; beginning at the head of the outbox"
            )
        if failure.code() == KafkaCode.MSG_SIZE_TOO_LARGE:
            raise self._too_large(entries[0])
        raise KafkaUnavailable(
            f"partition {self._partition}: Kafka did not take an event of outbox entry"
            f" {entries[0].epoch}-{entries[0].seq} or later: {failure.str()}"
        )

    def _too_large(self, entry: Entry) -> PartitionStopped:
        return PartitionStopped(
            f"partition {self._partition}: an event of outbox entry {entry.epoch}-{entry.seq} is too large"
            f" for topic {self._topic}, so nothing more is sent; let the topic take {MESSAGE_BYTES_MAX} bytes"
            f" (kafka-configs.sh --alter --topic {self._topic} --add-config"
            f" max.message.bytes={MESSAGE_BYTES_MAX}), or let the persister read the outbox directly"
            " (docs/operations.md, 'From Kafka to direct reading and back')"
        )

    def _abort(self) -> None:
        if self._is_open:
            self._is_open = False
            with suppress(KafkaException):
                self._producer.abort_transaction(CLOSE_S)

    def _delivered(self, error: KafkaCode | None, message: Any) -> None:
        if error is not None:
            self._failure = self._failure or error
