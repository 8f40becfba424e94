"""The live reservations of the ledger: the held ones with what is left of their lines.

Restore and reconciliation read them instead of the whole history. A reservation that begins and ends
within one batch never touches the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from engine.events import ADOPT, Event
from engine.statuses import State
from persister.database import QUERIES, Connection, copy_text


class LiveLine(msgspec.Struct, array_like=True):
    """A line of a live reservation, in units."""

    sku: str
    location: str
    quantity: int
    confirmed: int = 0
    released: int = 0


class Live(msgspec.Struct, kw_only=True):
    """A held reservation as the ledger knows it after its event ``seq``."""

    reservation_id: str
    order_id: str
    customer_id: str | None
    fingerprint: str
    created_ms: int
    deadline_ms: int
    seq: int
    lines: list[LiveLine]


_lines_to_json = msgspec.json.Encoder().encode
#: States a reservation doesn't come back from.
ENDING = frozenset({State.CONFIRMED, State.RELEASED, State.EXPIRED})


def apply(event: Event, live: dict[str, Live]) -> None:
    """Bring ``live`` from before an event to after it.

    An event on a reservation that isn't in ``live`` is passed over: audit names what is missing.
    """
    reservation_id = event.reservation_id
    if reservation_id is None:
        return
    if event.type == ADOPT:
        live.pop(reservation_id, None)
        if event.status is State.HELD:
            live[reservation_id] = begun(event)
    elif event.type == "reserve":
        live[reservation_id] = begun(event)
    elif event.status in ENDING:
        live.pop(reservation_id, None)
    elif reservation_id in live:
        change(event, live[reservation_id])


def begun(event: Event) -> Live:
    """The reservation as a reserve or adopt event tells it; by an adopt event it may have ended."""
    return Live(
        reservation_id=event.reservation_id or "",
        order_id=event.order_id or "",
        customer_id=event.customer_id,
        fingerprint=event.fingerprint or "",
        created_ms=event.created_ms or event.at_ms,
        deadline_ms=event.deadline_ms or 0,
        seq=event.seq,
        lines=_lines_of(event),
    )


def _lines_of(event: Event) -> list[LiveLine]:
    if event.parts:
        taken = zip(event.lines, event.parts[::2], event.parts[1::2], strict=True)
        return [LiveLine(line.sku, line.location, line.quantity, *parts) for line, *parts in taken]
    lines = [LiveLine(line.sku, line.location, line.quantity) for line in event.lines]
    for line in lines if event.status in ENDING else ():
        line.confirmed = line.quantity * (event.status is State.CONFIRMED)
        line.released = line.quantity * (event.status is State.RELEASED)
    return lines


def change(event: Event, held: Live) -> None:
    """An extend, a repair, or a part of a reservation that stays held."""
    held.seq = event.seq
    if event.type == "repair":
        return  # Redis was given back what stands here
    if event.type == "extend":
        held.deadline_ms = event.deadline_ms or held.deadline_ms
        return
    at = {(line.sku, line.location): line for line in held.lines}
    for taken in event.lines:
        line = at.get((taken.sku, taken.location))
        if line is None:
            continue
        if event.type == "confirm":  # else a release: an expire always ends it
            line.confirmed += taken.quantity
        else:
            line.released += taken.quantity


def keep_live(connection: Connection, partition: int, events: Sequence[Event]) -> None:
    """Bring the table from before these events to after them, in the transaction that runs."""
    # By the first event of each: one that ends here and whose id begins again stands in the table, too.
    first = {event.reservation_id: event.type for event in reversed(events)}
    touched = {each for each, kind in first.items() if each and kind != "reserve"}
    staying = {
        event.reservation_id
        for event in events
        if event.reservation_id in touched and event.status not in ENDING
    }
    live = {held.reservation_id: held for held in _fetch(connection, partition, staying)}
    for event in events:
        apply(event, live)
    if touched:
        connection.execute(
            QUERIES["delete_live"], {"partition": partition, "ids": sorted(map(str, touched))}
        )
    if live:
        with connection.cursor() as cursor, cursor.copy(QUERIES["copy_live"]) as copy:
            copy.write("".join([_row(partition, held) for held in live.values()]))


def _fetch(connection: Connection, partition: int, ids: Iterable[str | None]) -> list[Live]:
    wanted = sorted(map(str, ids))
    if not wanted:
        return []
    rows = connection.execute(QUERIES["live_of"], {"partition": partition, "ids": wanted})
    return [from_row(row) for row in rows]


def from_row(row: tuple[Any, ...]) -> Live:
    """A row of the queries ``live_of`` and ``all_live``."""
    names = ("reservation_id", "order_id", "customer_id", "fingerprint", "created_ms")
    fields = dict(zip((*names, "deadline_ms", "seq", "lines"), row, strict=True))
    return msgspec.convert(fields, Live)


def _row(partition: int, held: Live) -> str:
    fields = (held.reservation_id, held.order_id, held.customer_id, held.fingerprint)
    texts = "\t".join([copy_text(field) for field in fields])
    lines = copy_text(_lines_to_json(held.lines).decode())
    return f"{partition}\t{texts}\t{held.created_ms}\t{held.deadline_ms}\t{held.seq}\t{lines}\n"
