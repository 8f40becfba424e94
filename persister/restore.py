"""Rebuild an empty Redis from the ledger: stock, live reservations with their deadlines, and what a
repeated call is to be answered as long as that is remembered.

Not the whole history is replayed, but what ended so lately that a retry may still come. Before that the
ledger's balances, less what the replayed events will add to them, are the stock to begin with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import msgspec
from redis import Redis

from engine import keys
from engine.addresses import without_password
from engine.errors import LedgerError, StoreError
from engine.model import TTL_MS_MAX
from engine.partitions import Opening, open_partition, read_head, read_server
from engine.scripts import Scripts
from engine.settings import Settings
from persister import database
from persister.audit_since import begins_at, event_before
from persister.database import QUERIES, Connection
from persister.holes import holes_of
from persister.kafka_source import KafkaSource
from persister.ledger import Ledger, Position
from persister.openings_ahead import OpeningsAhead
from persister.ownership import Claim, Ownership
from persister.persister import connect_redis
from persister.rebuild import Rebuild, events_from
from persister.sieve import Sieve

DRAIN_PATIENCE_S = 600.0
SLICE = 1_000
Progress = Callable[[str, int, int], None]


class Restored(msgspec.Struct, frozen=True, kw_only=True):
    """What was rebuilt: records, events that were replayed, and the epoch that was opened.
    ``without_kafka``: the ledger was fed through Kafka before, and no broker was given that may have more."""

    stock_records: int
    live_reservations: int
    events_replayed: int
    epoch: int
    seq: int
    without_kafka: bool
    duration_ms: int


def restore(
    settings: Settings,
    into: str,
    partition: int = 0,
    *,
    on_progress: Progress = lambda what, done, total: None,
) -> Restored:
    """Rebuild the partition in the empty Redis ``into`` and open it with a new epoch.

    1. Take the ledger's lease: no persister writes meanwhile.
    2. Write what Kafka still has into the ledger.
    3. Begin with the stock of before the first event that is still remembered.
    4. Replay the events from there on; then the lists of deadlines.
    5. Compare with the ledger's balances and live reservations, open.

    StoreError where ``into`` is not empty, LedgerError where the ledger can't be used, has no event, or
    a persister is at work on it. Killed on the way it leaves a Redis that nothing opens; empty that
    (FLUSHDB) and begin again.
    """
    started = time.monotonic()
    with (
        database.connect(settings.postgres_url) as connection,
        connect_redis(into) as redis,
    ):
        _check_empty(redis, into)
        database.migrate(connection)
        connection.commit()
        ledger = Ledger(connection, partition)
        ledger.wait_for_lease(
            "stop it, restore, and start it with the HOLDFAST_REDIS_URL of the restored Redis"
        )
        without_kafka = not settings.kafka_bootstrap and ledger.kafka_mark() is not None
        if settings.kafka_bootstrap:
            _drain(ledger, redis, settings, on_progress)
        position = ledger.position()
        if position.seq == 0:
            raise LedgerError("the ledger has no event; there is nothing to restore")
        work = _Restore(redis, connection, partition, settings, position, on_progress)
        with connection.transaction():
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            counts = work.run()
        if ledger.holes.adoption() is not None:
            ledger.holes.end()  # the Redis that it was taken over from is not the one any more
        epoch = work.open(ledger)
    return Restored(
        **counts,
        epoch=epoch,
        seq=position.seq,
        without_kafka=without_kafka,
        duration_ms=int((time.monotonic() - started) * 1000),
    )


def _check_empty(redis: Redis, into: str) -> None:
    count = redis.dbsize()
    if count:
        raise StoreError(
            f"{without_password(into)} is not empty: it has {count:,} keys; nothing was changed. Name"
            " another one, or empty it (redis-cli FLUSHDB) if what is there is of no use, such as a"
            " restore that was not finished"
        )


def _drain(ledger: Ledger, redis: Redis, settings: Settings, on_progress: Progress) -> None:
    """Write into the ledger what Kafka has and it has not."""
    kafka = KafkaSource(settings, redis, ledger.partition, ledger.kafka_mark())
    kafka.fence()
    try:
        ahead = OpeningsAhead()
        ahead.look(kafka)
        ledger.openings.foresee(ahead.first_seqs)
        source = Sieve(kafka, ledger, redis)
        position, count = ledger.position(), 0
        give_up_at = time.monotonic() + DRAIN_PATIENCE_S
        while not source.is_drained(position):
            batch = source.read(position, 100)
            if batch.events:
                position = ledger.write(batch.events, batch.mark)
                count += len(batch.events)
                on_progress("events from Kafka", count, 0)
            elif time.monotonic() > give_up_at:
                raise LedgerError("Kafka has more events and does not give them; try again later")
    finally:
        kafka.close()


class _Restore:
    """One restore under way, within one snapshot of the ledger."""

    def __init__(
        self,
        redis: Redis,
        connection: Connection,
        partition: int,
        settings: Settings,
        position: Position,
        on_progress: Progress,
    ) -> None:
        self._redis = redis
        self._connection = connection
        self._partition = partition
        self._settings = settings
        self._position = position
        self._on_progress = on_progress
        self._scripts = Scripts.for_server(redis.info("server"))

    def run(self) -> dict[str, int]:
        begins = self._begins()
        before = event_before(self._connection, self._partition, begins)
        epoch, seq = before[:2] if before else (0, 0)
        # Until the end nobody takes this for a Redis that only has to be healed.
        head: Any = {
            "epoch": epoch,
            "seq": seq,
            "run_id": "",
            "restoring": 1,
        }
        self._redis.hset(keys.head(self._partition), mapping=head)
        records = self._write_stock(begins)
        events = self._replay(begins, self._position.seq - seq)
        live = self._write_deadlines()
        self._check_stock()
        return {
            "stock_records": records,
            "live_reservations": live,
            "events_replayed": events,
        }

    def open(self, ledger: Ledger) -> int:
        """Into a new epoch, which is answered."""
        p = self._partition
        self._redis.hdel(keys.head(p), "restoring")
        judged, server = read_head(self._redis, p), read_server(self._redis)
        epoch = ledger.openings.note(
            above=judged.position[0], first_seq=judged.position[1] + 1, run_id=server.run_id
        )
        opening = open_partition(
            self._redis,
            self._scripts,
            p,
            judged=judged,
            server=server,
            epoch=epoch,
            trimmer="relay" if self._settings.kafka_bootstrap else "persister",
        )
        if opening is not Opening.OPENED:
            raise StoreError(f"partition {p} was changed while it was restored ({opening})")
        ledger.openings.use(epoch)
        ownership = Ownership(self._redis, self._scripts, self._connection, p)
        ownership.keep(Claim.FREE)
        ownership.give_back()
        return epoch

    def _begins(self) -> tuple[int, int]:
        """The place of the first event to replay: whatever is still remembered began there or later.

        The answer of a part is kept for twice the retention after the latest end of its reservation.
        A reservation that ended since, or is live, and began earlier still takes the place back to it.
        """
        settings, connection = self._settings, self._connection
        seconds, _ = self._redis.time()
        (_, _, last_ms, _) = self._row(
            "event_up_to", epoch=self._position.epoch, seq=self._position.seq
        )
        now_ms = max(int(seconds) * 1000, last_ms)  # a partition's clock never runs back
        lasts_ms = max(TTL_MS_MAX, settings.lifetime_max_ms)
        since_ms = now_ms - 2 * settings.retention_ms - lasts_ms
        (oldest_live,) = self._row("oldest_live")
        since_ms = min(since_ms, oldest_live or since_ms)
        begins = begins_at(connection, self._partition, since_ms)
        earlier = self._row("restore_earlier", epoch=begins[0], seq=begins[1])
        return (earlier[0], earlier[1]) if earlier else begins

    def _row(self, query: str, **values: Any) -> tuple[Any, ...]:
        found = self._connection.execute(QUERIES[query], {"partition": self._partition, **values})
        return found.fetchone() or ()

    def _rows(self, query: str, **values: Any) -> Iterator[list[tuple[Any, ...]]]:
        """Rows of a query in slices, in bounded memory."""
        with self._connection.cursor(name=query) as cursor:
            cursor.itersize = SLICE
            cursor.execute(QUERIES[query], {"partition": self._partition, **values})
            while rows := list(islice(cursor, SLICE)):
                yield rows

    def _write_stock(self, begins: tuple[int, int]) -> int:
        """Stock records as they were before the first event to replay."""
        p, count = self._partition, 0
        for rows in self._rows("restore_stock", epoch=begins[0], seq=begins[1]):
            pipe = self._redis.pipeline(transaction=False)
            for sku, location, on_hand, held, quarantined, seq in rows:
                record: Any = {
                    "safety_stock": 0,
                    "reorder_point": 0,
                    "on_hand": on_hand,
                    "held": held,
                    "quarantined": quarantined,
                    "seq": seq,
                }
                pipe.hset(keys.stock(p, sku, location), mapping=record)
                pipe.sadd(keys.locations(p, sku), location)
            pipe.execute()
            count += len(rows)
            self._on_progress("stock records", count, 0)
        return count

    def _replay(self, begins: tuple[int, int], total: int) -> int:
        rebuild = Rebuild(
            self._redis,
            self._scripts,
            self._partition,
            self._settings,
            with_due=False,
            holes=holes_of(self._connection, self._partition),
        )
        return rebuild.replay(
            events_from(self._connection, self._partition, *begins),
            lambda count: self._on_progress("events", count, total),
        )

    def _write_deadlines(self) -> int:
        """Live reservations on the lists of their deadlines. LedgerError where one did not come back."""
        p, count = self._partition, 0
        for rows in self._rows("live_deadlines"):
            pipe = self._redis.pipeline(transaction=False)
            for reservation_id, deadline_ms in rows:
                pipe.exists(keys.reservation(p, reservation_id))
                pipe.rpush(keys.due(p, deadline_ms), reservation_id)
                pipe.zadd(keys.deadlines(p), {str(deadline_ms): deadline_ms})
            answers = pipe.execute()
            for (reservation_id, _), found in zip(rows, answers[::3], strict=True):
                if not found:
                    raise _disagree(
                        f"live reservation {reservation_id} is not what its events tell"
                    )
            count += len(rows)
            self._on_progress("live reservations", count, 0)
        return count

    def _check_stock(self) -> None:
        """LedgerError where a record is not the ledger's balance."""
        fields = ("on_hand", "held", "quarantined", "seq")
        for rows in self._rows("balances"):
            pipe = self._redis.pipeline(transaction=False)
            for sku, location, *_ in rows:
                pipe.hmget(keys.stock(self._partition, sku, location), fields)
            for (sku, location, *balance), answer in zip(rows, pipe.execute(), strict=True):
                found = [int(field) for field in answer]
                if found != balance:
                    raise _disagree(
                        f"{sku} at {location} became {found}, its balance is {balance}"
                        " (on_hand, held, quarantined, seq)"
                    )


def _disagree(what: str) -> LedgerError:
    return LedgerError(
        f"the ledger does not agree with itself: {what}. Nothing was opened; run 'holdfast audit', and"
        " empty the Redis (redis-cli FLUSHDB) before the next try"
    )
