"""Reading events from Kafka, from where the ledger is.

Offsets live in the ledger's ``positions``, in the transaction that writes the rows; Kafka keeps none,
and there is no consumer group that could rebalance: the ledger's lease says who reads a partition.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition
from confluent_kafka import KafkaError as KafkaCode
from redis import Redis

from engine.acknowledged import acknowledged, is_acknowledged
from engine.errors import LedgerError
from engine.events import Event
from engine.settings import Settings
from persister.kafka import ANSWER_S, KafkaUnavailable, client_settings, ensure_topic
from persister.ledger import KafkaMark, Position
from persister.messages import UnreadableMessage, read_message
from persister.outbox import plain
from persister.shipment import fence
from persister.sources import Batch, Unreadable

log = logging.getLogger("holdfast.kafka")

EVENTS_A_BATCH = 5_000
LINES_A_BATCH = 50_000
PATIENCE_S = 600.0
_MESSAGES_A_CALL = 1_000


class KafkaSource:
    """Reads one partition of the topic from the ledger's mark on.

    What comes twice is the ledger's business. Where the marked offset is gone (the topic's head was
    deleted, or it is another topic) it reads from the first message there is, and the ledger finds
    out whether something is missing.
    """

    def __init__(
        self, settings: Settings, redis: Redis, partition: int, mark: KafkaMark | None
    ) -> None:
        self._settings = settings
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
                # What a relay that was replaced has not committed is never read. Between transactions are
                # offsets without a message: only the word at the end tells that nothing follows.
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
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

    @property
    def mark(self) -> KafkaMark:
        """Where it reads next."""
        return KafkaMark(self._topic_id, self._next)

    def go_to(self, offset: int) -> None:
        """Read on there, further on or once more."""
        self._next = offset
        self._seek()

    def rest(
        self, on_unreadable: Callable[[Unreadable], None] = lambda it: None
    ) -> Iterator[list[Event]]:
        """What stands there up to what is its end now, in batches, also empty ones; what can't be read is
        told and passed over. LedgerError where Kafka gives none of it for 10 minutes."""
        give_up_at = time.monotonic() + PATIENCE_S
        end = self._watermarks()[1]
        while self._next < end:
            batch = self.read(Position(0, 0), 100)
            yield batch.events
            if batch.unreadable is not None:
                on_unreadable(batch.unreadable)
                self.pass_over(batch.unreadable)
            if batch.events:
                give_up_at = time.monotonic() + PATIENCE_S
            elif time.monotonic() > give_up_at:
                raise LedgerError("Kafka has more events and does not give them; try again later")

    def begin(self, position: Position) -> None:
        """Nothing to do: whoever has the ledger's lease may read."""

    def fence(self) -> None:
        """Nothing comes any more by a relay that began before, so that what is there now is all."""
        fence(self._settings, self._partition)

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
                if error is not None and error.code() == KafkaCode._PARTITION_EOF:
                    self._next = max(self._next, int(message.offset() or 0))
                    continue
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

    def lacks_end(self, position: Position) -> bool:
        """Kafka may show the end of a transaction later than it acknowledges that."""
        return acknowledged(self._redis, self._partition)[1] > position.seq and self._is_read()

    def committed(self, position: Position, known_s: float) -> None:
        """Nothing to do: Kafka keeps what it has, the ledger its mark."""

    def pass_over(self, unreadable: Unreadable) -> None:
        self.go_to(int(unreadable.place) + 1)

    def is_at_end(self) -> bool:
        """What the relay has acknowledged, Kafka had before."""
        return is_acknowledged(self._redis, self._partition) and self._is_read()

    def _batch(self, events: list[Event], unreadable: Unreadable | None = None) -> Batch:
        return Batch(events, self.mark, unreadable)

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
            self.go_to(self._watermarks()[0])
        else:
            raise KafkaUnavailable(f"Kafka: {error.str()}")

    def _seek(self) -> None:
        at = TopicPartition(self._at.topic, self._at.partition, self._next or OFFSET_BEGINNING)
        self._consumer.assign([at])

    def _watermarks(self) -> tuple[int, int]:
        try:
            low, high = self._consumer.get_watermark_offsets(self._at, timeout=ANSWER_S)
        except KafkaException as error:
            raise KafkaUnavailable(f"Kafka does not answer: {error.args[0].str()}") from None
        return low, high
