"""Redis and the ledger side by side, as reconciliation and repair read them."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from redis import Redis

from engine import keys
from engine.errors import LedgerError, StoreError
from engine.partitions import read_head
from persister.database import QUERIES, Connection
from persister.differences import Counters
from persister.live import Live, from_row

Name = tuple[str, str]

SLICE = 500
POLL_S = 0.05
_FIELDS = ("on_hand", "held", "quarantined", "seq", "safety_stock")
_WHOLE = re.compile(rb"-?\d{1,15}\Z")


class Sides:
    """One partition on both sides. ``patience_s``: how long the ledger is still waited for, all in all."""

    def __init__(
        self, redis: Redis, connection: Connection, partition: int, patience_s: float
    ) -> None:
        self.redis = redis
        self.connection = connection
        self.partition = partition
        self.patience_s = patience_s

    def head_seq(self) -> int:
        """The seq of the last event decided."""
        return read_head(self.redis, self.partition).position[1]

    def rows(self, query: str, **values: Any) -> list[tuple[Any, ...]]:
        """Rows of a named query on this partition; ends no transaction."""
        parameters = {"partition": self.partition, **values}
        return self.connection.execute(QUERIES[query], parameters).fetchall()

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """What is read from the ledger within is of one moment."""
        self.connection.commit()
        with self.connection.transaction():
            self.connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            yield

    def ledger_seq(self) -> int:
        """How far the ledger has come, in the transaction that runs."""
        found = self.rows("position")
        return int(found[0][1]) if found else 0

    def check_goes_on(self) -> None:
        """LedgerError where the ledger has stopped: what is missing there won't come."""
        found = self.rows("stopped")
        self.connection.commit()
        if found and found[0][0]:
            raise LedgerError(
                f"the ledger has stopped, so there is nothing to compare until it goes on: {found[0][0]}"
            )

    def wait_for_ledger(self, seq: int) -> int:
        """Wait until the ledger has come to ``seq`` or the patience of this run is over; the seq it
        has reached. LedgerError where it has stopped before."""
        while True:
            reached = self.ledger_seq()
            self.connection.commit()
            if reached >= seq or self.patience_s <= 0:
                return reached
            self.check_goes_on()
            began = time.monotonic()
            time.sleep(POLL_S)
            self.patience_s -= time.monotonic() - began

    def counters(self, names: Sequence[Name]) -> tuple[int, dict[Name, Counters | None]]:
        """Stock records as Redis has them (None: missing or not readable), and the seq of head from
        before they were read: they have all events up to there."""
        pipe = self.redis.pipeline(transaction=False)
        pipe.hmget(keys.head(self.partition), ["seq"])
        for sku, location in names:
            pipe.hmget(keys.stock(self.partition, sku, location), _FIELDS)
        head, *answers = pipe.execute(raise_on_error=False)
        found = {name: _counters(answer) for name, answer in zip(names, answers, strict=True)}
        if isinstance(head, Exception) or not (head[0] or b"").isdigit():
            raise StoreError(f"head of partition {self.partition} can't be read; is it open?")
        return int(head[0]), found

    def balances(self, names: Sequence[Name]) -> dict[Name, Counters]:
        """What the ledger keeps as balances of these."""
        found = self.rows(
            "balances_of", skus=[n[0] for n in names], locations=[n[1] for n in names]
        )
        return {(row[0], row[1]): Counters(*row[2:]) for row in found}

    def movements_sum(self, name: Name, above: int = 0, up_to: int = 2**62) -> tuple[int, int, int]:
        """What the movements of a sku at a location add up to, between two seqs."""
        ((on_hand, held, quarantined),) = self.rows(
            "above_seq", sku=name[0], location=name[1], above=above, up_to=up_to
        )
        return on_hand, held, quarantined

    def scan(self, pattern: str) -> Iterator[list[bytes]]:
        """Names of keys, some hundred at a time; one may come twice."""
        cursor = 0
        while True:
            answer: Any = self.redis.scan(cursor, match=pattern, count=SLICE)
            cursor, names = answer
            yield names
            if cursor == 0:
                return

    def values(self, ids: Sequence[str]) -> list[bytes | Exception | None]:
        """Kept reservations; None where there is none, an exception where it is no string."""
        pipe = self.redis.pipeline(transaction=False)
        for reservation_id in ids:
            pipe.get(keys.reservation(self.partition, reservation_id))
        answers: list[Any] = pipe.execute(raise_on_error=False)
        return answers

    def live(self, ids: Sequence[str]) -> dict[str, Live]:
        """Live reservations of the ledger among these."""
        return {row[0]: from_row(row) for row in self.rows("live_of", ids=list(ids))}


def _counters(answer: Any) -> Counters | None:
    """Counters of an HMGET answer; None where a script could not read the record either."""
    if isinstance(answer, Exception):
        return None
    if not all(field is not None and _WHOLE.match(field) for field in answer):
        return None
    return Counters(*(int(field) for field in answer[:4]))
