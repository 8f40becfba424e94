"""Events by hand, written into a ledger as the persister does, for tests of what is read from it."""

from __future__ import annotations

from typing import Any

from engine.events import Event, EventLine
from persister import database
from persister.ledger import Ledger

FIRST_MS = 1_800_000_000_000


def event(
    seq: int,
    type: str = "receive",
    *lines: tuple[str, str, int, int, int],
    partition: int = 0,
    epoch: int = 1,
    at_ms: int | None = None,
    **more: Any,
) -> Event:
    """A line: sku, location, quantity and the deltas of on_hand and held; one second a seq."""
    return Event(
        version=1,
        partition=partition,
        epoch=epoch,
        seq=seq,
        type=type,
        at_ms=FIRST_MS + seq * 1000 if at_ms is None else at_ms,
        lines=tuple(EventLine(*line, 0) for line in lines),
        **more,
    )


def receipt(seq: int, sku: str = "tea", at: str = "MAIN", **more: Any) -> Event:
    return event(seq, "receive", (sku, at, 5, 5, 0), movement_id=f"m{seq}", **more)


def write(url: str, *events: Event) -> None:
    """In one transaction a partition; the ledger is made where there is none."""
    with database.connect(url) as connection:
        database.migrate(connection)
        for partition in sorted({each.partition for each in events}):
            batch = [each for each in events if each.partition == partition]
            Ledger(connection, partition).write(batch)
