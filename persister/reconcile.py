"""Prove that Redis and the ledger agree, while traffic runs.

Every stock record carries the seq of the last event that touched it, and so does its balance in the
ledger. The same seq: the numbers must be equal. The ledger lower: wait until it has come to that seq.
The ledger higher: take off the movements above Redis's seq, then compare. So nothing is compared
"now" with "then", and no lock is taken anywhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum
from itertools import islice
from typing import Any, TypeVar

import msgspec
from redis import Redis

from engine import keys
from engine.errors import StoreError
from engine.partitions import read_head, read_server
from persister.database import QUERIES, Connection

SLICE = 500
WAIT_S = 60.0
POLL_S = 0.05


class Kind(StrEnum):
    """How Redis and the ledger differ."""

    COUNTER_DRIFT = "counter_drift"
    MISSING_IN_LEDGER = "missing_in_ledger"
    MISSING_IN_REDIS = "missing_in_redis"
    LEDGER_BEHIND = "ledger_behind"


class Counters(msgspec.Struct, frozen=True):
    """Units of a sku at a location, and the seq they stand at."""

    on_hand: int
    held: int
    quarantined: int
    seq: int

    @property
    def units(self) -> tuple[int, int, int]:
        return self.on_hand, self.held, self.quarantined


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    kind: Kind
    partition: int
    sku: str
    location: str
    redis: Counters | None
    ledger: Counters | None
    detail: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a run found: ``checked`` stock records, and each that differs."""

    checked: int
    differences: list[Difference]
    duration_ms: int

    @property
    def clean(self) -> bool:
        return not self.differences


_Name = tuple[str, str]

_T = TypeVar("_T")


def _slices(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    iterator = iter(items)
    while part := list(islice(iterator, size)):
        yield part


def reconcile(
    redis: Redis,
    connection: Connection,
    partition: int = 0,
    *,
    wait_s: float = WAIT_S,
    on_progress: Callable[[int], None] = lambda checked: None,
) -> Report:
    """Compare every stock record of a partition with the ledger, in slices of 500.

    StoreError where the partition is closed (what is in Redis then need not be true). The driver's
    errors where Redis or PostgreSQL can't be asked.
    """
    if not read_head(redis, partition).is_open_on(read_server(redis)):
        raise StoreError(f"partition {partition} is closed; reconcile once it is open again")
    started = time.monotonic()
    run = _Run(redis, connection, partition, started + wait_s)
    for key_slice in _slices(
        redis.scan_iter(match=keys.stock_pattern(partition), count=SLICE), SLICE
    ):
        run.compare(run.names_of(key_slice))
        on_progress(run.checked)
    run.find_missing_in_redis()
    return Report(
        checked=run.checked,
        differences=sorted(run.differences, key=lambda d: (d.sku, d.location)),
        duration_ms=int((time.monotonic() - started) * 1000),
    )


class _Run:
    """One reconciliation under way."""

    def __init__(
        self, redis: Redis, connection: Connection, partition: int, give_up_at: float
    ) -> None:
        self._redis = redis
        self._connection = connection
        self._partition = partition
        self._give_up_at = give_up_at
        self._seen: set[_Name] = set()  # SCAN may name a key twice
        self.checked = 0
        self.differences: list[Difference] = []

    def compare(self, names: Sequence[_Name]) -> None:
        """Compare the stock records of these skus and locations."""
        fresh = [name for name in dict.fromkeys(names) if name not in self._seen]
        self._seen.update(fresh)
        in_redis = self._read_redis(fresh)
        highest = max((c.seq for c in in_redis.values() if c), default=0)
        reached = self._wait_for_ledger(highest)
        # One snapshot for the balances and the movements above a seq.
        with self._connection.transaction():
            self._connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            in_ledger = self._read_ledger(fresh)
            for name in fresh:
                self._judge(name, in_redis[name], in_ledger.get(name), reached)
        self.checked += len(fresh)

    def names_of(self, stock_keys: Sequence[bytes]) -> list[_Name]:
        """Skus and locations of stock keys; a key that no script would make is a difference."""
        names = []
        for key in stock_keys:
            try:
                names.append(keys.stock_name(key.decode()))
            except ValueError:
                name = (key.decode(errors="replace"), "")
                why = "no script makes a key of that name; somebody else writes to this Redis"
                self._differ(Kind.MISSING_IN_LEDGER, name, None, None, why)
        return names

    def find_missing_in_redis(self) -> None:
        """Balances whose stock record isn't there: no script ever deletes one."""
        last: _Name = ("", "")
        while True:
            rows = self._connection.execute(
                QUERIES["all_balances"],
                {
                    "partition": self._partition,
                    "sku": last[0],
                    "location": last[1],
                    "limit": SLICE,
                },
            ).fetchall()
            self._connection.commit()
            if not rows:
                return
            last = rows[-1]
            unseen = [name for name in rows if name not in self._seen]
            if unseen:
                self.compare(unseen)

    def _read_redis(self, names: Sequence[_Name]) -> dict[_Name, Counters | None]:
        pipe = self._redis.pipeline(transaction=False)
        for sku, location in names:
            pipe.hmget(
                keys.stock(self._partition, sku, location),
                ["on_hand", "held", "quarantined", "seq"],
            )
        answers: list[Any] = pipe.execute(raise_on_error=False)
        return {name: _counters(answer) for name, answer in zip(names, answers, strict=True)}

    def _read_ledger(self, names: Sequence[_Name]) -> dict[_Name, Counters]:
        rows = self._connection.execute(
            QUERIES["balances_of"],
            {
                "partition": self._partition,
                "skus": [sku for sku, _ in names],
                "locations": [location for _, location in names],
            },
        )
        return {(row[0], row[1]): Counters(*row[2:]) for row in rows}

    def _wait_for_ledger(self, seq: int) -> int:
        """Wait until the ledger has come to ``seq``, 60 s a run at most; the seq it has reached."""
        while True:
            row = self._connection.execute(
                QUERIES["position"], {"partition": self._partition}
            ).fetchone()
            self._connection.commit()
            reached = row[1] if row else 0
            if reached >= seq or time.monotonic() >= self._give_up_at:
                return int(reached)
            time.sleep(POLL_S)

    def _judge(
        self, name: _Name, redis: Counters | None, ledger: Counters | None, reached: int
    ) -> None:
        if redis is None:
            if ledger is None:
                self._differ(Kind.COUNTER_DRIFT, name, redis, ledger, "the record can't be read")
            else:
                self._differ(Kind.MISSING_IN_REDIS, name, redis, ledger, "no readable record")
            return
        if reached < redis.seq:
            why = f"the ledger has come to seq {reached} only"
            self._differ(Kind.LEDGER_BEHIND, name, redis, ledger, why)
        elif ledger is None or ledger.seq < redis.seq:
            why = f"the ledger has no event {redis.seq} for it"
            self._differ(Kind.MISSING_IN_LEDGER, name, redis, ledger, why)
        else:
            then = self._at_seq(name, ledger, redis.seq)
            if then.units != redis.units:
                why = f"at seq {redis.seq} the ledger has {then.units}, Redis {redis.units}"
                self._differ(Kind.COUNTER_DRIFT, name, redis, ledger, why)

    def _at_seq(self, name: _Name, ledger: Counters, seq: int) -> Counters:
        """The ledger's counters as they were at an earlier seq."""
        if ledger.seq == seq:
            return ledger
        row = self._connection.execute(
            QUERIES["above_seq"],
            {
                "partition": self._partition,
                "sku": name[0],
                "location": name[1],
                "above": seq,
                "up_to": ledger.seq,
            },
        ).fetchone()
        on_hand, held, quarantined = row or (0, 0, 0)
        return Counters(
            ledger.on_hand - on_hand, ledger.held - held, ledger.quarantined - quarantined, seq
        )

    def _differ(
        self,
        kind: Kind,
        name: _Name,
        redis: Counters | None,
        ledger: Counters | None,
        detail: str,
    ) -> None:
        self.differences.append(
            Difference(
                kind=kind,
                partition=self._partition,
                sku=name[0],
                location=name[1],
                redis=redis,
                ledger=ledger,
                detail=detail,
            )
        )


def _counters(answer: Any) -> Counters | None:
    """Counters of an HMGET answer; None where the record is missing or can't be read."""
    if isinstance(answer, Exception):
        return None
    try:
        return Counters(*(int(field) for field in answer))
    except (TypeError, ValueError):
        return None
