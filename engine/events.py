"""Events: from the compact bytes of an outbox entry to the public form, one JSON object each.

An event's identity is (partition, epoch, seq). Entries of the outbox are an internal matter between
``lua/lib/outbox.lua`` and this file; the JSON is what the ledger keeps and others read. It is written in
version 2, whose schema is open: types and members may be added. Version 1, which is closed, is still read.
"""

from __future__ import annotations

from typing import Any

import msgspec

from engine.model import MOVEMENT_TYPES
from engine.reservations import STATES, Record
from engine.statuses import State

VERSION = 2
READABLE_VERSIONS = (1, 2)
#: The type of an event that stands for one that couldn't be read and was discarded by somebody.
DISCARD = "discard"
#: The type of an event that takes over from Redis what the ledger has lost for good.
ADOPT = "adopt"
#: All that this program knows what to do with in the ledger.
TYPES = frozenset(
    {
        *("reserve", "extend", "confirm", "release", "expire"),
        *MOVEMENT_TYPES,
        *("repair", DISCARD, ADOPT),
    }
)


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


class Adopted(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="adopt"):
    """What a ledger takes over that had lost events: a reservation as it is (no id: stock); ``state`` -1
    where it is not known any more, ``parts`` as it is kept; ``hole`` the first and the last seq that are
    missing, empty but for the first event of an adoption; ``lines`` as in Moved."""

    seq: int
    at_ms: int
    reservation_id: str
    order_id: str
    customer_id: str
    created_ms: int
    deadline_ms: int
    fingerprint: str
    state: int
    parts: list[int]
    hole: list[int]
    reference: str
    reason: str
    lines: list[str | int]


Packed = Reserved | Extended | Taken | Moved | Repaired | Adopted
_decode_entry = msgspec.msgpack.Decoder(list[Packed]).decode


class EventLine(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """One line of an event and what it changed, in units."""

    sku: str
    location: str
    quantity: int
    on_hand_delta: int = 0
    held_delta: int = 0
    quarantined_delta: int = 0


class Hole(msgspec.Struct, frozen=True, gc=False, rename={"from_seq": "from", "to_seq": "to"}):
    """The first and the last seq of events that the ledger has lost for good."""

    from_seq: int
    to_seq: int


class Event(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    omit_defaults=True,
    gc=False,
    forbid_unknown_fields=True,
):
    """One state change with all its lines, in public form. Times in ms since 1970.

    ``type`` is the operation: reserve, extend, confirm, release, expire, repair, or a movement's type;
    discard stands for an event that couldn't be read: no lines, ``reason`` says who discarded it and why;
    adopt tells what the events of ``hole`` had changed, which the ledger has lost: a reservation as it is
    then (``parts``: what was confirmed and released of each line), or stock.
    ``status`` is the reservation's after a confirm, release, expire, repair or adopt: ``held`` while units
    are left; an adopt without one is of a reservation that nobody knows any more.
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
    created_ms: int | None = None
    deadline_ms: int | None = None
    status: State | None = None
    fingerprint: str | None = None
    request_id: str | None = None
    movement_id: str | None = None
    reference: str | None = None
    reason: str | None = None
    hole: Hole | None = None
    parts: tuple[int, ...] | None = None
    lines: tuple[EventLine, ...] = ()

    def to_json(self) -> bytes:
        """Canonical: the same event gives the same bytes, keys in the order of the fields."""
        return _event_to_json(self)

    def is_same_as(self, other: Event) -> bool:
        """Do both say the same, in whatever version?"""
        return self == other or (
            self.version != other.version
            and msgspec.structs.replace(self, version=other.version) == other
        )


class OpenEvent(Event, frozen=True, kw_only=True, gc=True, dict=True):
    """One with members that this program does not know. They are kept: its JSON is as it was read, but for
    white space between its tokens."""

    def to_json(self) -> bytes:
        body: bytes = self.__dict__["body"]
        return body

    def is_same_as(self, other: Event) -> bool:
        return self.to_json() == other.to_json()


_event_to_json = msgspec.json.Encoder().encode
_event_from_json = msgspec.json.Decoder(Event).decode
_MEMBERS = frozenset(Event.__struct_fields__)
_LINE_MEMBERS = frozenset(EventLine.__struct_fields__)
_COUNTER = "_delta"


def from_json(data: bytes) -> Event:
    """The event of a JSON text. msgspec.MsgspecError where it does not fit: a version, or a counter of
    stock, that this program does not know does not fit either."""
    try:
        return _event_from_json(data)
    except msgspec.ValidationError:
        found = msgspec.json.decode(data)
        if not isinstance(found, dict) or found.get("version") != VERSION:
            raise  # version 1 has no other members
        event = msgspec.convert(_known_members(found), OpenEvent)
        event.__dict__["body"] = msgspec.json.format(data, indent=-1)  # on one line
        return event


def _known_members(found: dict[str, Any]) -> dict[str, Any]:
    lines = found.get("lines", [])
    if not isinstance(lines, list) or not all(isinstance(line, dict) for line in lines):
        return found
    for line in lines:
        unknown = [name for name in line if name.endswith(_COUNTER) and name not in _LINE_MEMBERS]
        if unknown:
            raise msgspec.ValidationError(
                f"a line of {line.get('sku')} changes a counter that this program does not know:"
                f" {unknown[0]}"
            )
    known = {name: value for name, value in found.items() if name in _MEMBERS}
    known_lines = [{n: v for n, v in line.items() if n in _LINE_MEMBERS} for line in lines]
    return known | ({"lines": known_lines} if lines else {})


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
    if isinstance(packed, Adopted):
        return _adopted(packed, fields)
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


def _adopted(packed: Adopted, fields: dict[str, Any]) -> Event:
    is_reservation = bool(packed.reservation_id)
    return Event(
        type=ADOPT,
        reservation_id=packed.reservation_id or None,
        order_id=packed.order_id or None,
        customer_id=packed.customer_id or None,
        created_ms=packed.created_ms if is_reservation else None,
        deadline_ms=packed.deadline_ms if is_reservation else None,
        status=STATES[packed.state] if packed.state >= 0 else None,
        fingerprint=packed.fingerprint or None,
        reference=packed.reference or None,
        reason=packed.reason or None,
        hole=Hole(*packed.hole) if packed.hole else None,
        parts=tuple(packed.parts) or None,
        lines=_lines(packed.lines),
        **fields,
    )


def _lines(flat: list[Any]) -> tuple[EventLine, ...]:
    return tuple([EventLine(*flat[i : i + 6]) for i in range(0, len(flat), 6)])
