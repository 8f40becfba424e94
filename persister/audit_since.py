"""Where the part of a ledger begins that ``holdfast audit --since`` reads."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

from persister.database import QUERIES, Connection

Place = tuple[int, int]


def begins_at(connection: Connection, partition: int, since_ms: int) -> Place:
    """(epoch, seq) from which on a partition's events are of ``since_ms`` (ms since 1970) or later; a
    place above its last event where none is.

    A binary search over the primary key, since times never run back within a partition: the scripts
    keep ``last_ms`` for that. Where an operator took ``last_ms`` away (docs/operations.md, 'The clock
    is ahead') or somebody changed times before the part, the event at the place is still of that time
    or later and the one before it earlier, but events before both can be later too.
    """

    def first(query: str, **values: int) -> tuple[Any, ...] | None:
        return connection.execute(QUERIES[query], {"partition": partition, **values}).fetchone()

    def last_ms_up_to(epoch: int) -> int:
        row = first("audit_last_up_to", epoch=epoch)
        return int(row[2]) if row else -1

    def first_ms_from(seq: int) -> int:
        row = first("audit_first_from", epoch=epoch, seq=seq)
        return int(row[1]) if row else since_ms

    oldest, newest = first("audit_oldest"), first("audit_last_up_to", epoch=2**63 - 1)
    if oldest is None or newest is None:
        return 0, 0
    epochs = range(oldest[0], newest[0])
    epoch = oldest[0] + bisect_left(epochs, since_ms, key=last_ms_up_to)
    last = first("audit_last_up_to", epoch=epoch) or newest
    seq = bisect_left(range(last[1] + 1), since_ms, key=first_ms_from)
    event = first("audit_first_from", epoch=epoch, seq=seq)
    return epoch, event[0] if event else seq


def event_before(
    connection: Connection, partition: int, place: Place
) -> tuple[int, int, bytes] | None:
    """Epoch, seq and kept hash of the last event below a place; None where there is none."""
    row = connection.execute(
        QUERIES["audit_before"], {"partition": partition, "epoch": place[0], "seq": place[1]}
    ).fetchone()
    return (row[0], row[1], bytes(row[2])) if row else None
