"""Prove that Redis and the ledger agree, while traffic runs; name each difference by its kind.

Three comparisons, none of which needs a lock or a snapshot over keys: each stock record with its balance
(persister/reconcile_stock.py), the ledger's held with its own live reservations, and each live
reservation with Redis (persister/reconcile_reservations.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

from redis import Redis

from engine.errors import StoreError
from engine.partitions import read_head, read_server
from persister.database import Connection
from persister.differences import Counters, Difference, Hold, Kind, Report
from persister.holes import holes_of
from persister.ownership import check_owner
from persister.reconcile_reservations import ReservationRun
from persister.reconcile_stock import StockRun, leaked_in_ledger
from persister.sides import Sides

__all__ = ["WAIT_S", "Counters", "Difference", "Hold", "Kind", "Report", "reconcile"]

WAIT_S = 60.0


def reconcile(
    redis: Redis,
    connection: Connection,
    partition: int = 0,
    *,
    wait_s: float = WAIT_S,
    on_progress: Callable[[int], None] = lambda checked: None,
) -> Report:
    """Compare every stock record and every live reservation of a partition, in slices of 500.

    Waits for the ledger ``wait_s`` at most, all in all. StoreError where the partition is closed (what
    is in Redis then need not be true), LedgerError at once where the ledger has stopped, or where this
    Redis belongs to another one. The driver's errors where Redis or PostgreSQL can't be asked.
    """
    if not read_head(redis, partition).is_open_on(read_server(redis)):
        raise StoreError(f"partition {partition} is closed; reconcile once it is open again")
    check_owner(redis, connection, partition)
    started_at = datetime.now(UTC)
    started = time.monotonic()
    sides = Sides(redis, connection, partition, wait_s)
    sides.check_goes_on()
    stock = StockRun(sides)
    stock.run(on_progress)
    reservations = ReservationRun(sides)
    reservations.run(lambda compared: on_progress(stock.checked + compared))
    explained = {(d.sku, d.location) for d in stock.differences}
    for difference in reservations.differences:
        for side in (difference.redis, difference.ledger):
            if isinstance(side, Hold):
                explained |= {(sku, location) for sku, location, _ in side.lines}
    leaked = leaked_in_ledger(sides, explained)
    holes = holes_of(connection, partition)
    connection.commit()
    return Report(
        checked=stock.checked,
        reservations_checked=reservations.checked,
        differences=sorted(
            [*stock.differences, *leaked, *reservations.differences],
            key=lambda d: (d.sku, d.location, d.reservation_id or ""),
        ),
        holes=holes,
        started_at=started_at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        duration_ms=int((time.monotonic() - started) * 1000),
    )
