"""The relay: moves the outbox to Kafka, and acknowledges only what Kafka has committed.

It may be killed anywhere: what was committed and not yet acknowledged is sent again, and the ledger
recognises it. Twice is allowed, never is not.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from redis import Redis
from redis.exceptions import RedisError

from engine.addresses import why
from engine.errors import HoldfastError, PartitionStopped, StoreError
from engine.partitions import Head, Server, read_head, read_server
from engine.scripts import Scripts
from engine.settings import Settings
from persister.kafka import ensure_topic
from persister.messages import WRAPPED_BYTES_MAX, wrap
from persister.outbox import Entry, LeaseTaken, Outbox, name_holder
from persister.persister import connect_redis
from persister.shipment import Replaced, Shipment

log = logging.getLogger("holdfast.relay")

READ_WAIT_MS = 50
CHECK_S = 0.5
PAUSE_S = 0.5
STOPPED_PAUSE_S = 5.0
DRAIN_S = 5.0
REPEAT_WORD_S = 60.0
SILENT_S = 5.0


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
            except (LeaseTaken, Replaced) as error:
                self._say(str(error), logging.INFO)
            except (HoldfastError, RedisError, OSError) as error:
                self._say(why(error), logging.WARNING)
            except Exception as error:  # whatever it is: events must go on once it is gone
                self._say(f"unexpected: {error!r}", logging.CRITICAL)
            self._stopping.wait(pause_s)

    def _work(self) -> None:
        with connect_redis(self._settings.redis_url) as redis:
            scripts = Scripts.for_server(redis.info("server"))
            outbox = Outbox(redis, scripts, self._partition, "relay", self._holder, self._settings)
            if outbox.keep() != "relay":
                # All that the persister has not written yet is still in the outbox: nothing to drain.
                outbox.become_trimmer()
            if read_head(redis, self._partition).is_open_on(read_server(redis)):
                outbox.go_on()
                outbox.keep()  # a full Redis lets go of what is only kept, while Kafka is away, too
            ensure_topic(self._settings)
            # From here on nothing that an earlier relay still has can enter the topic, and what is read
            # from the outbox is read after that.
            shipment = Shipment(self._settings, self._partition)
            try:
                self._move(redis, outbox, shipment)
            finally:
                shipment.close()
                with suppress(RedisError, StoreError):
                    outbox.give_back()

    def _move(self, redis: Redis, outbox: Outbox, shipment: Shipment) -> None:
        """1. Read entries after the last one that was acknowledged.
        2. Send their events, in order, in one transaction.
        3. Commit it: all of it stands in Kafka then, or nobody ever reads any of it.
        4. Acknowledge it: the outbox is trimmed of it in a while.
        """
        after = (0, 0)
        check_at = drain_until = 0.0
        opening: str | None = None
        begun_on: Server | None = None
        while True:
            mono_s = time.monotonic()
            if self._stopping.is_set():
                drain_until = drain_until or mono_s + DRAIN_S
            if mono_s >= check_at:
                server, head = self._look(redis, outbox)
                # Closed: this Redis may be an older one, or another; its persister will tell.
                is_open = head.is_open_on(server)
                if is_open and opening is None:
                    begun_on, opening, after = server, head.epoch, outbox.go_on()
                if opening is not None and (server, head.epoch) != (begun_on, opening):
                    raise StoreError(
                        f"partition {self._partition}: Redis was restarted, or opened anew; beginning at"
                        " the first event that was not acknowledged"
                    )
                check_at = mono_s + CHECK_S
            entries = outbox.read(after, READ_WAIT_MS) if is_open else []
            if after < self._slowly_to:
                del entries[1:]
            if entries:
                self._send(entries, outbox, shipment, opening or "", drain_until)
                after = (entries[-1].epoch, entries[-1].seq)
            elif drain_until:
                return
            elif not is_open:
                self._stopping.wait(READ_WAIT_MS / 1000)
            if drain_until and mono_s > drain_until:
                return

    def _look(self, redis: Redis, outbox: Outbox) -> tuple[Server, Head]:
        """Renew the lease, and look where the partition stands."""
        if outbox.keep() != "relay":
            raise LeaseTaken(f"partition {self._partition}: a persister reads its outbox")
        return read_server(redis), read_head(redis, self._partition)

    def _send(
        self,
        entries: list[Entry],
        outbox: Outbox,
        shipment: Shipment,
        opening: str,
        drain_until: float,
    ) -> None:
        try:
            for entry in entries:
                if entry.error:
                    self._hand_on(entry)
            shipment.send(entries, self._patience(outbox, drain_until))
        except PartitionStopped:
            # What is before it is moved entry by entry, so that it needn't be sent again and again.
            self._slowly_to = max(self._slowly_to, (entries[-1].epoch, entries[-1].seq))
            if len(entries) == 1:
                raise
            raise StoreError(
                f"partition {self._partition}: one of the outbox entries up to"
                f" {entries[-1].epoch}-{entries[-1].seq} can't be sent; now they are sent one by one"
            ) from None
        last = entries[-1]
        outbox.acknowledge(last.epoch, last.seq, opening)

    def _patience(self, outbox: Outbox, drain_until: float) -> Callable[[float], bool]:
        """While Kafka has not committed after so many seconds: keep the lease; go on waiting?"""

        def wait_on(waited_s: float) -> bool:
            outbox.keep()
            if waited_s > SILENT_S:
                self._say(
                    f"partition {self._partition}: Kafka has acknowledged nothing for a while; the outbox"
                    " grows (docs/operations.md, 'Kafka is away')",
                    logging.WARNING,
                )
            stop_at = drain_until or (time.monotonic() + DRAIN_S if self._stopping.is_set() else 0)
            return not stop_at or time.monotonic() < stop_at

        return wait_on

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

    def _say(self, text: str, level: int) -> None:
        """Log, but the same word at most once a minute."""
        last, said_at = self._last_word
        mono_s = time.monotonic()
        if text != last or mono_s - said_at > REPEAT_WORD_S:
            log.log(level, "%s", text)
            self._last_word = (text, mono_s)
