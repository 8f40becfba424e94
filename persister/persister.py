"""The persister: opens its partition, moves events from their source into the ledger.

One process a partition works at a time (a lease in PostgreSQL); a second one waits. It may be killed
anywhere: what was committed is recognised, what wasn't is read again.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import closing, suppress

import psycopg
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from engine.addresses import why
from engine.errors import HoldfastError, PartitionStopped
from engine.partitions import Head, read_head, read_server
from engine.scripts import Scripts
from engine.settings import Settings
from persister import database
from persister.heal import check_outbox
from persister.kafka_source import KafkaSource
from persister.ledger import Gap, KafkaMark, Ledger, Position
from persister.opening import Opener
from persister.openings_ahead import OpeningsAhead
from persister.ownership import OtherLedger, OtherWriter, Ownership
from persister.sieve import Sieve
from persister.sources import OutboxSource, Source, hand_over

log = logging.getLogger("holdfast.persister")

READ_WAIT_MS = 100
CHECK_OPEN_S = 0.5
CHECK_CLOSED_S = 0.1
CLOCK_AHEAD_MAX_S = 5.0
PAUSE_S = 0.5
#: What Kafka has acknowledged and still does not show after so long it has lost.
SHOWS_WITHIN_S = 5.0
DRAIN_S = 5.0
REPEAT_WORD_S = 60.0


def connect_redis(url: str) -> Redis:
    """A synchronous client that repeats nothing by itself."""
    return Redis.from_url(
        url,
        protocol=2,
        retry=Retry(NoBackoff(), 0),
        socket_connect_timeout=2,
        socket_timeout=10,
    )


class Persister:
    """The loop of one partition. ``run`` returns once ``stop`` was called."""

    def __init__(self, settings: Settings, partition: int = 0) -> None:
        self._settings = settings
        self._partition = partition
        self._stopping = threading.Event()
        self._last_word = ("", 0.0)
        self._ahead = OpeningsAhead()
        # Where all that there is was looked through because of a gap.
        self._looked_at: Position | None = None
        # Where, and since when, the source lacks an end.
        self._lacking: tuple[Position, float] | None = None

    def stop(self) -> None:
        """Ask ``run`` to end: it moves what is in the outbox, 5 s at most, and returns."""
        self._stopping.set()

    def run(self) -> None:
        """Work until stopped. What breaks on the way is said and tried again."""
        while not self._stopping.is_set():
            try:
                self._work()
            except (PartitionStopped, OtherLedger, OtherWriter) as error:
                self._say(str(error), logging.CRITICAL)
            except (HoldfastError, RedisError, OSError) as error:
                self._say(why(error), logging.WARNING)
            except psycopg.Error as error:
                self._say(f"PostgreSQL: {why(error)}", logging.WARNING)
            except Exception as error:  # whatever it is: the ledger must go on once it is gone
                self._say(f"unexpected: {error!r}", logging.CRITICAL)
            self._stopping.wait(PAUSE_S)

    def _work(self) -> None:
        with database.connect(self._settings.postgres_url) as connection:
            for name in database.migrate(connection):
                log.info("applied migration %s", name)
            ledger = Ledger(connection, self._partition)
            while not ledger.lease():
                self._say("another persister has this partition; waiting for it", logging.INFO)
                if self._stopping.wait(PAUSE_S):
                    return
            with connect_redis(self._settings.redis_url) as redis:
                try:
                    self._move(ledger, redis)
                except PartitionStopped as error:
                    ledger.stop(str(error), error.quarantine_id)
                    raise
                except OtherLedger as error:
                    ledger.stop(str(error))
                    raise

    def _move(self, ledger: Ledger, redis: Redis) -> None:
        ledger.holes.check_not_adopting()
        scripts = Scripts.for_server(redis.info("server"))
        if not self._settings.kafka_bootstrap:
            source = OutboxSource(redis, scripts, self._settings, self._partition)
            self._move_from(Sieve(source, ledger, redis), ledger, redis, scripts)
            return
        mark = ledger.kafka_mark()
        try:
            drained_at = self._move_from_kafka(mark, ledger, redis, scripts)
        except Gap as error:
            # Kafka may have lost its end, and the relay have gone on from there.
            if self._looked_at == ledger.position():
                raise
            if self._read_kept(ledger, redis, scripts):
                return
            self._looked_at = ledger.position()
            if mark is None:
                raise
            log.warning("%s: looking for it from the first message of the topic on", error)
            drained_at = self._move_from_kafka(None, ledger, redis, scripts)
        if drained_at is not None:
            hand_over(redis, scripts, self._settings, self._partition, drained_at)

    def _read_kept(self, ledger: Ledger, redis: Redis, scripts: Scripts) -> bool:
        """Write into the ledger what the outbox has after its position; false where it lacks that, too. What
        a closed partition has was not judged yet."""
        head = read_head(redis, self._partition)
        if not head.is_open_on(read_server(redis)):
            return False
        ownership = Ownership(redis, scripts, ledger.connection, self._partition)
        source = OutboxSource(redis, scripts, self._settings, self._partition)
        first = last = ledger.position()
        try:
            while last < Position(*head.position) and not self._stopping.is_set():
                ownership.keep()
                events = source.read(last, 0).events
                if not events:
                    break
                last = ledger.write(events)
        except Gap:
            pass
        finally:
            ownership.give_back()
        if last > first:
            log.warning(
                "partition %s: Kafka has lost events that the ledger had not yet; %s to %s are read from what"
                " the outbox keeps",
                *(self._partition, first.seq + 1, last.seq),
            )
        return last > first

    def _move_from_kafka(
        self, mark: KafkaMark | None, ledger: Ledger, redis: Redis, scripts: Scripts
    ) -> Position | None:
        with closing(KafkaSource(self._settings, redis, self._partition, mark)) as kafka:
            if not self._ahead.look(kafka, lambda: not self._stopping.is_set()):
                return None
            ledger.openings.foresee(self._ahead.first_seqs)
            return self._move_from(Sieve(kafka, ledger, redis), ledger, redis, scripts)

    def _move_from(
        self, source: Source, ledger: Ledger, redis: Redis, scripts: Scripts
    ) -> Position | None:
        """Until told to stop; the position then, None where more was shipped than could be read in time."""
        opener = Opener(redis, scripts, self._settings, ledger, source)
        try:
            return self._move_while_open(opener, source, ledger, redis, scripts)
        finally:
            with suppress(HoldfastError, RedisError, psycopg.Error):
                opener.give_back()

    def _move_while_open(
        self, opener: Opener, source: Source, ledger: Ledger, redis: Redis, scripts: Scripts
    ) -> Position | None:
        position = ledger.position()
        check_at = drain_until = 0.0
        while True:
            mono_s = time.monotonic()
            if self._stopping.is_set():
                drain_until = drain_until or mono_s + DRAIN_S
                if mono_s > drain_until:
                    return None
            if mono_s >= check_at:
                # Before anything is read or trimmed: is this the Redis of this ledger?
                head = opener.look(position)
                if head is not None:
                    self._warn_of_clock(redis, head)
                if check_at == 0.0:
                    check_outbox(redis, scripts, ledger, position)
                source.begin(position)
                if check_at == 0.0:
                    opener.claim()
                    ledger.go_on()
                else:
                    ledger.position()  # fails where the session is gone: the ledger may have fallen back
                source.committed(position, mono_s)
                if head is not None:
                    self._check_end(source, position, mono_s)
                check_at = mono_s + (CHECK_CLOSED_S if head is None else CHECK_OPEN_S)
            batch = source.read(position, READ_WAIT_MS)
            if batch.events:
                position = ledger.write(batch.events, batch.mark)
                source.committed(position, mono_s)
            elif self._stopping.is_set() and source.is_drained(position):
                return position

    def _check_end(self, source: Source, position: Position, mono_s: float) -> None:
        """Gap where the source has lost what was acknowledged: no next event may come for long that would
        show it, and meanwhile the outbox still keeps what is missing."""
        if self._lacking is not None and self._lacking[0] != position:
            self._lacking = None
        if not source.lacks_end(position):
            return
        if self._lacking is None:
            self._lacking = (position, mono_s)
        elif mono_s - self._lacking[1] > SHOWS_WITHIN_S:
            raise Gap(
                f"partition {self._partition}: Kafka has acknowledged more than event"
                f" {position.epoch}-{position.seq} and has nothing after it; what follows is missing, so"
                " nothing more is written until somebody has looked (docs/operations.md, 'A partition"
                " stopped')"
            )

    def _warn_of_clock(self, redis: Redis, head: Head) -> None:
        seconds, _ = redis.time()
        ahead_s = int(head.last_ms or 0) / 1000 - seconds
        if ahead_s > CLOCK_AHEAD_MAX_S:
            self._say(
                f"partition {self._partition}: its clock is {ahead_s:.0f} s ahead of the server's,"
                " and no deadline passes until that has caught up; see docs/operations.md,"
                " 'The clock is ahead'",
                logging.CRITICAL,
            )

    def _say(self, text: str, level: int) -> None:
        """Log, but the same word at most once a minute."""
        last, said_at = self._last_word
        mono_s = time.monotonic()
        if text != last or mono_s - said_at > REPEAT_WORD_S:
            log.log(level, "%s", text)
            self._last_word = (text, mono_s)
