"""Events: from the compact bytes of an outbox entry to the public form, one JSON object each.

An event's identity is (partition, epoch, seq). Entries of the outbox are an internal matter between
``lua/lib/outbox.lua`` and this file; the JSON (version 1) is what the ledger keeps and others read.
"""

from __future__ import annotations

from typing import Any

import msgspec

from engine.reservations import STATES, Record
from engine.statuses import State

VERSION = 1
#: The type of an event that stands for one that couldn't be read and was discarded by somebody.
DISCARD = "discard"


class Reserved(Record, frozen=True, array_like=True, gc=False, tag="reserve"):
    """The reservation as it is kept, and its id."""

    reservation_id: str

    @property
    def at_ms(self) -> int:
        return self.created_ms


class Extended(Record, frozen=True, array_like=True, gc=False, tag="extend"):
    """The reservation as it is kept after it, and its id."""

    at_ms: int
    reservation_id: str


class Taken(Record, frozen=True, array_like=True, gc=False, tag="take"):
    """Confirm, release or expire: the reservation as it is kept after it; ``taken`` a quantity a line,
    None for all of every line; ``part_fingerprint`` is that of a part, else ''."""

    operation: str
    at_ms: int
    reservation_id: str
    request_id: str
    part_fingerprint: str
    taken: list[int] | None


class Moved(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="move"):
    """A movement; ``lines`` flat: sku, location, quantity and the deltas of on_hand, held,
    quarantined, …"""

    kind: str
    seq: int
    at_ms: int
    movement_id: str
    fingerprint: str
    reference: str
    reason: str
    lines: list[str | int]


class Repaired(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="repair"):
    """What reconciliation mended; ``state`` the reservation's after it, -1 where it is about stock;
    ``lines`` as in Moved. Those of a drift tell what was found and what takes it back: they add up to
    0."""

    seq: int
    at_ms: int
    reservation_id: str
    order_id: str
    customer_id: str
    state: int
    reason: str
    lines: list[str | int]


Packed = Reserved | Extended | Taken | Moved | Repaired
_decode_entry = msgspec.msgpack.Decoder(list[Packed]).decode


class EventLine(msgspec.Struct, frozen=True, gc=False):
    """One line of an event and what it changed, in units."""

    sku: str
    location: str
    quantity: int
    on_hand_delta: int
    held_delta: int
    quarantined_delta: int


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One state change with all its lines, in public form. Times in ms since 1970.

    ``type`` is the operation: reserve, extend, confirm, release, expire, repair, or a movement's type;
    discard stands for an event that couldn't be read: no lines, ``reason`` says who discarded it and why.
    ``status`` is the reservation's after a confirm, release, expire or repair: ``held`` while units are
    left.
    """

    version: int
    partition: int
    epoch: int
    seq: int
    type: str
    at_ms: int
    reservation_id: str | None = None
    order_id: str | None = None
    customer_id: str | None = None
    deadline_ms: int | None = None
    status: State | None = None
    fingerprint: str | None = None
    request_id: str | None = None
    movement_id: str | None = None
    reference: str | None = None
    reason: str | None = None
    lines: tuple[EventLine, ...] = ()

    def to_json(self) -> bytes:
        """Canonical: the same event gives the same bytes, keys in the order of the fields."""
        return _event_to_json(self)


_event_to_json = msgspec.json.Encoder().encode
_event_from_json = msgspec.json.Decoder(Event).decode


def from_json(data: bytes) -> Event:
    """The event of a JSON text; msgspec.MsgspecError where it does not fit."""
    return _event_from_json(data)


def read_entry(partition: int, entry_id: str, data: bytes) -> list[Event]:
    """The events of one outbox entry, in order. ValueError where entry and id don't fit together,
    msgspec.MsgspecError where the bytes can't be read."""
    epoch, last_seq = (int(part) for part in entry_id.split("-"))
    events = [_public(partition, epoch, packed) for packed in _decode_entry(data)]
    first_seq = last_seq - len(events) + 1
    if not events or [event.seq for event in events] != list(range(first_seq, last_seq + 1)):
        raise ValueError(
            f"outbox entry {entry_id} holds seq {[event.seq for event in events]}; they must be"
            f" consecutive, one at least, and end in {last_seq}"
        )
    return events


def _public(partition: int, epoch: int, packed: Packed) -> Event:
    fields: dict[str, Any] = {
        "version": VERSION,
        "partition": partition,
        "epoch": epoch,
        "seq": packed.seq,
        "at_ms": packed.at_ms,
    }
    if isinstance(packed, Moved):
        return Event(
            type=packed.kind,
            movement_id=packed.movement_id,
            fingerprint=packed.fingerprint,
            reference=packed.reference or None,
            reason=packed.reason or None,
            lines=_lines(packed.lines),
            **fields,
        )
    if isinstance(packed, Repaired):
        return Event(
            type="repair",
            reservation_id=packed.reservation_id or None,
            order_id=packed.order_id or None,
            customer_id=packed.customer_id or None,
            status=STATES[packed.state] if packed.state >= 0 else None,
            reason=packed.reason,
            lines=_lines(packed.lines),
            **fields,
        )
    body = packed.body
    fields |= {
        "reservation_id": packed.reservation_id,
        "order_id": body.order_id,
        "customer_id": body.customer_id or None,
    }
    if isinstance(packed, Reserved):
        return Event(
            type="reserve",
            deadline_ms=packed.deadline_ms,
            fingerprint=packed.fingerprint,
            lines=tuple([EventLine(s, at, q, 0, q, 0) for s, at, q in body.triples()]),
            **fields,
        )
    if isinstance(packed, Extended):
        return Event(type="extend", deadline_ms=packed.deadline_ms, **fields)
    taken = packed.taken or [quantity for _, _, quantity in body.triples()]
    leaves = packed.operation == "confirm"
    return Event(
        type=packed.operation,
        status=STATES[packed.state],
        request_id=packed.request_id or None,
        fingerprint=packed.part_fingerprint or None,
        lines=tuple(
            [
                EventLine(sku, location, quantity, -quantity if leaves else 0, -quantity, 0)
                for (sku, location, _), quantity in zip(body.triples(), taken, strict=True)
                if quantity
            ]
        ),
        **fields,
    )


def _lines(flat: list[Any]) -> tuple[EventLine, ...]:
    return tuple([EventLine(*flat[i : i + 6]) for i in range(0, len(flat), 6)])
