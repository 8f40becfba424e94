"""The relay: moves the outbox to Kafka, and trims only what Kafka has acknowledged in order.

It may be killed anywhere: what was produced and not yet trimmed is sent again, and the ledger
recognises it. Twice is allowed, never is not.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

from confluent_kafka import KafkaError as KafkaCode
from confluent_kafka import KafkaException, Producer
from redis import Redis
from redis.exceptions import RedisError

from engine.errors import HoldfastError, PartitionStopped, StoreError
from engine.partitions import Server, read_head, read_server
from engine.scripts import Scripts
from engine.settings import Settings
from persister.kafka import MESSAGE_BYTES_MAX, KafkaUnavailable, client_settings, ensure_topic
from persister.messages import WRAPPED_BYTES_MAX, wrap
from persister.outbox import Entry, LeaseTaken, Outbox, name_holder
from persister.persister import connect_redis

log = logging.getLogger("holdfast.relay")

READ_WAIT_MS = 50
CHECK_S = 0.5
PAUSE_S = 0.5
STOPPED_PAUSE_S = 5.0
DRAIN_S = 5.0
REPEAT_WORD_S = 60.0
IN_FLIGHT_EVENTS_MAX = 50_000
IN_FLIGHT_BYTES_MAX = 64 * 1024 * 1024
_OVERHEAD_BYTES = 1_000  # of a message beside its body
#: Brokers forget a producer that was idle for a day (producer.id.expiration.ms).
FORGOTTEN_AFTER_S = 3_600


class Relay:
    """The loop of one partition. ``run`` returns once ``stop`` was called."""

    def __init__(self, settings: Settings, partition: int = 0) -> None:
        if not settings.kafka_bootstrap:
            raise StoreError(
                "HOLDFAST_KAFKA_BOOTSTRAP is not set; name a broker, or leave the relay out:"
                " a persister without it reads the outbox itself"
            )
        self._settings = settings
        self._partition = partition
        self._stopping = threading.Event()
        self._last_word = ("", 0.0)
        # The same for all its tries: none of them waits for the lease of the one before.
        self._holder = name_holder("relay")
        # Up to here one entry at a time: Kafka refuses what is too large with all that travels with it.
        self._slowly_to = (0, 0)

    def stop(self) -> None:
        """Ask ``run`` to end: it moves what is in the outbox, 5 s at most, and returns."""
        self._stopping.set()

    def run(self) -> None:
        """Work until stopped. What breaks on the way is said and tried again."""
        while not self._stopping.is_set():
            pause_s = PAUSE_S
            try:
                self._work()
            except PartitionStopped as error:
                self._say(str(error), logging.CRITICAL)
                pause_s = STOPPED_PAUSE_S  # a try may send again what of that entry Kafka takes
            except LeaseTaken as error:
                self._say(str(error), logging.INFO)
            except (HoldfastError, RedisError, OSError) as error:
                self._say(str(error), logging.WARNING)
            except Exception as error:  # whatever it is: events must go on once it is gone
                self._say(f"unexpected: {error!r}", logging.CRITICAL)
            self._stopping.wait(pause_s)

    def _work(self) -> None:
        with connect_redis(self._settings.redis_url) as redis:
            scripts = Scripts.for_server(redis.info("server"))
            outbox = Outbox(redis, scripts, self._partition, "relay", self._holder)
            if outbox.keep() != "relay":
                # All that the persister has not written yet is still in the outbox: nothing to drain.
                outbox.become_trimmer()
            ensure_topic(self._settings)
            shipment = _Shipment(self._settings, self._partition)
            try:
                self._move(redis, outbox, shipment)
            finally:
                shipment.close()
                with suppress(RedisError, StoreError):
                    outbox.give_back()

    def _move(self, redis: Redis, outbox: Outbox, shipment: _Shipment) -> None:
        """1. Read entries after the last one sent.
        2. Produce their events in order.
        3. Take what Kafka has acknowledged of whole entries, in order.
        4. Trim the outbox up to the last of these.
        """
        after = (0, 0)
        check_at = drain_until = 0.0
        is_open = True
        begun_on: tuple[Server, str] | None = None
        while True:
            mono_s = time.monotonic()
            if self._stopping.is_set():
                drain_until = drain_until or mono_s + DRAIN_S
            if mono_s >= check_at:
                if outbox.keep() != "relay":
                    raise LeaseTaken(f"partition {self._partition}: a persister reads its outbox")
                # Closed: this Redis may be an older one, or another; its persister will tell.
                server, head = read_server(redis), read_head(redis, self._partition)
                is_open = head.is_open_on(server)
                if is_open:
                    begun_on = begun_on or (server, head.epoch)
                if begun_on and (server, head.epoch) != begun_on:
                    raise StoreError(
                        f"partition {self._partition}: Redis was restarted, or opened anew; beginning at"
                        " the head of its outbox"
                    )
                self._report(shipment)
                check_at = mono_s + CHECK_S
            slowly = after < self._slowly_to or not shipment.is_known()
            entries: list[Entry] = []
            if is_open and not shipment.is_full() and not (slowly and shipment.events):
                entries = outbox.read(after, 0 if shipment.events else READ_WAIT_MS)
            if slowly:
                del entries[1:]
            try:
                for entry in entries:
                    if entry.error:
                        self._hand_on(entry)
                    shipment.send(entry)
                    after = (entry.epoch, entry.seq)
                shipment.poll(0.0 if entries else 0.01)
            except PartitionStopped:
                shipment.flush()
                self._trim(outbox, shipment)  # what is before it needn't be sent again and again
                self._slowly_to = max(self._slowly_to, after)
                raise
            self._trim(outbox, shipment)
            if drain_until and (mono_s > drain_until or not (entries or shipment.events)):
                return

    def _hand_on(self, entry: Entry) -> None:
        """An entry that can't be read goes to Kafka as it is: the persister stops there, and one place
        handles it. PartitionStopped where it is too large for a message."""
        what = (
            f"partition {self._partition}: outbox entry {entry.epoch}-{entry.seq} can't be read"
            f" ({entry.error})"
        )
        size = len(wrap(self._partition, entry))
        if size > WRAPPED_BYTES_MAX:
            raise PartitionStopped(
                f"{what}, and with {size} bytes it is too large to be handed on to Kafka; nothing more"
                " is sent: let the persister read the outbox directly until it is handled"
                " (docs/operations.md, 'From Kafka to direct reading and back')"
            )
        self._say(
            f"{what}; it is handed on, and the persister stops there"
            " (docs/operations.md, 'A partition stopped')",
            logging.CRITICAL,
        )

    @staticmethod
    def _trim(outbox: Outbox, shipment: _Shipment) -> None:
        acknowledged = shipment.take_acknowledged()
        if acknowledged:
            last = acknowledged[-1]
            outbox.trim(last.epoch, last.seq, sum(len(entry.raw) for entry in acknowledged))

    def _report(self, shipment: _Shipment) -> None:
        waiting_s = shipment.waiting_s()
        if waiting_s > REPEAT_WORD_S / 12:
            self._say(
                f"partition {self._partition}: Kafka has acknowledged nothing for a while; the outbox"
                " grows (docs/operations.md, 'Kafka is away')",
                logging.WARNING,
            )

    def _say(self, text: str, level: int) -> None:
        """Log, but the same word at most once a minute."""
        last, said_at = self._last_word
        mono_s = time.monotonic()
        if text != last or mono_s - said_at > REPEAT_WORD_S:
            log.log(level, "%s", text)
            self._last_word = (text, mono_s)


class _Shipment:
    """Entries on their way: produced, and acknowledged in order.

    The producer is idempotent and never gives up a message (no timeout): what is acknowledged of one
    partition before a failure stands there in the order it was sent. A broker that knows nothing of a
    producer yet would take a later batch although it has refused the first one, so the first message
    goes alone. A failure ends in KafkaUnavailable, or in PartitionStopped where trying again is of no
    use, and the relay begins again at the head of the outbox.
    """

    def __init__(self, settings: Settings, partition: int) -> None:
        self._topic = settings.kafka_topic
        self._partition = partition
        self._producer = Producer(
            client_settings(settings)
            | {
                "enable.idempotence": True,
                "enable.gapless.guarantee": True,
                "acks": "all",
                "message.timeout.ms": 0,
                "linger.ms": 5,
                "batch.size": 1_000_000,
                "compression.type": "lz4",
                "message.max.bytes": MESSAGE_BYTES_MAX,
                "queue.buffering.max.messages": 4 * IN_FLIGHT_EVENTS_MAX,
                "queue.buffering.max.kbytes": 4 * IN_FLIGHT_BYTES_MAX // 1024,
            }
        )
        self._entries: deque[Entry] = deque()
        self._acknowledged = 0  # messages of the entries in the queue
        self._moved_at = time.monotonic()
        self._failure: KafkaCode | None = None
        self._is_known = False
        self._held_back: list[bytes] = []
        self.events = 0
        self._bytes = 0

    def is_known(self) -> bool:
        """Does the broker know this producer, so that it takes messages in their order only?"""
        if not self.events and time.monotonic() - self._moved_at > FORGOTTEN_AFTER_S:
            self._is_known = False
        return self._is_known

    def is_full(self) -> bool:
        if self.events and not self._is_known:
            return True
        return self.events >= IN_FLIGHT_EVENTS_MAX or self._bytes >= IN_FLIGHT_BYTES_MAX

    def waiting_s(self) -> float:
        """For how long nothing was acknowledged although something is on its way."""
        return time.monotonic() - self._moved_at if self.events else 0.0

    def send(self, entry: Entry) -> None:
        """Of the first entry of all only the first event, until the broker knows this producer; the caller
        sends no other one before."""
        if not self.events:
            self._moved_at = time.monotonic()
        self._entries.append(entry)
        self.events += _messages(entry)
        self._bytes += len(entry.raw)
        bodies = [event.to_json() for event in entry.events] or [wrap(self._partition, entry)]
        if max(map(len, bodies)) > MESSAGE_BYTES_MAX - _OVERHEAD_BYTES:
            raise self._too_large(entry)
        if self._is_known:
            self._produce(bodies)
        else:
            self._produce(bodies[:1])
            self._held_back = bodies[1:]

    def _produce(self, bodies: Sequence[bytes]) -> None:
        for body in bodies:
            while True:
                try:
                    self._producer.produce(
                        self._topic, body, partition=self._partition, on_delivery=self._delivered
                    )
                    break
                except BufferError:
                    self.poll(0.1)
                except KafkaException as error:
                    self.flush()
                    self._raise(self._failure or error.args[0])

    def poll(self, wait_s: float) -> None:
        """Serve acknowledgements. KafkaUnavailable where one says no, PartitionStopped where Kafka will
        never take it."""
        try:
            self._producer.poll(wait_s)
        except KafkaException as error:  # this producer is at its end; the reason follows
            self.flush()
            self._failure = self._failure or error.args[0]
        if self._failure is not None:
            self._raise(self._failure)
        if self._is_known and self._held_back:
            bodies, self._held_back = self._held_back, []
            self._produce(bodies)

    def _raise(self, failure: KafkaCode) -> NoReturn:
        refused = self._first_unacknowledged()
        if refused and failure.code() == KafkaCode.MSG_SIZE_TOO_LARGE:
            raise self._too_large(refused)
        what = f"outbox entry {refused.epoch}-{refused.seq} or later" if refused else "the outbox"
        raise KafkaUnavailable(
            f"partition {self._partition}: Kafka did not take an event of {what}: {failure.str()}"
        )

    def _first_unacknowledged(self) -> Entry | None:
        """Kafka takes messages in order: the one that it refused is in here."""
        count = self._acknowledged
        for entry in self._entries:
            count -= _messages(entry)
            if count < 0:
                return entry
        return None

    def _too_large(self, entry: Entry) -> PartitionStopped:
        return PartitionStopped(
            f"partition {self._partition}: an event of outbox entry {entry.epoch}-{entry.seq} is too large"
            f" for topic {self._topic}, so nothing more is sent; let the topic take {MESSAGE_BYTES_MAX} bytes"
            f" (kafka-configs.sh --alter --topic {self._topic} --add-config"
            f" max.message.bytes={MESSAGE_BYTES_MAX}), or let the persister read the outbox directly"
            " (docs/operations.md, 'From Kafka to direct reading and back')"
        )

    def flush(self) -> None:
        """Wait for what is on its way, 5 s at most."""
        with suppress(KafkaException):
            self._producer.flush(DRAIN_S)

    def take_acknowledged(self) -> list[Entry]:
        """The entries of which Kafka has every event, in order; they are forgotten here."""
        done: list[Entry] = []
        while self._entries and self._acknowledged >= _messages(self._entries[0]):
            entry = self._entries.popleft()
            self._acknowledged -= _messages(entry)
            self.events -= _messages(entry)
            self._bytes -= len(entry.raw)
            done.append(entry)
        return done

    def close(self) -> None:
        """Drop what is still queued: it is in the outbox."""
        with suppress(KafkaException):
            self._producer.purge()
            self._producer.flush(DRAIN_S)

    def _delivered(self, error: KafkaCode | None, message: Any) -> None:
        if error is not None:
            self._failure = self._failure or error
        elif self._failure is None:  # what Kafka takes after a refusal stands for nothing before it
            self._is_known = True
            self._acknowledged += 1
            self._moved_at = time.monotonic()


def _messages(entry: Entry) -> int:
    """One an event; one for an entry that can't be read."""
    return len(entry.events) or 1
