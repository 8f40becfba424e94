"""Commands that the engine takes and outcomes that it answers. Frozen; times in ms since 1970.

``gc=False``: none of them can be part of a cycle, and there are hundreds of thousands a second.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from engine.statuses import State, Status

QUANTITY_MAX = 1_000_000
MOVEMENT_QUANTITY_MAX = 1_000_000_000
LINES_MAX = 2_000
TTL_MS_MAX = 86_400_000
ID_CHARACTERS_MAX = 64
ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._~-]{0,63}\Z"
#: Texts: no control character, no lone surrogate, 1 to so many characters.
TEXT_PATTERN = r"^[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,128}\Z"
LONG_TEXT_PATTERN = r"^[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,1000}\Z"


class Line(msgspec.Struct, frozen=True, gc=False):
    """What is asked for: so many of a sku, at a location or (None) wherever it is.

    ``candidates`` are locations in order of preference, for a line without a location.
    """

    sku: str
    quantity: int
    location: str | None = None
    candidates: tuple[str, ...] = ()


class Reserve(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Hold all lines for ``ttl_ms``, or none."""

    reservation_id: str
    order_id: str
    lines: tuple[Line, ...]
    ttl_ms: int
    customer_id: str | None = None


class Confirm(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """The units leave the house: all that is left, or the part in ``lines`` (then a request_id too)."""

    reservation_id: str
    lines: tuple[Line, ...] = ()
    request_id: str | None = None


class Release(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """The units can be sold again: all that is left, or the part in ``lines`` (then a request_id too)."""

    reservation_id: str
    lines: tuple[Line, ...] = ()
    request_id: str | None = None


class Extend(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Move the deadline to now + ``ttl_ms``, never to an earlier one."""

    reservation_id: str
    ttl_ms: int


class Movement(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Change what is physically there. ``type`` is one of MOVEMENT_TYPES."""

    movement_id: str
    type: str
    sku: str
    location: str
    quantity: int
    to_location: str | None = None
    reference: str | None = None
    reason: str | None = None
    expected_on_hand: int | None = None
    restock: bool = False


class GetReservation(msgspec.Struct, frozen=True, gc=False):
    reservation_id: str


class GetStock(msgspec.Struct, frozen=True, gc=False):
    sku: str


Command: TypeAlias = Reserve | Confirm | Release | Extend | Movement | GetReservation | GetStock

MOVEMENT_TYPES = (
    "receive",
    "return",
    "damage",
    "transfer",
    "count",
    "inspect_pass",
    "inspect_fail",
)


class ReservationLine(msgspec.Struct, frozen=True, gc=False):
    sku: str
    location: str
    quantity: int
    confirmed: int
    released: int


class Reservation(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A reservation as whoever reads it is told: past its deadline ``expired``, swept or not."""

    reservation_id: str
    order_id: str
    customer_id: str | None
    status: State
    lines: tuple[ReservationLine, ...]
    created_ms: int
    expires_ms: int


class Shortage(msgspec.Struct, frozen=True, gc=False):
    """A line that can't be held. Without a location ``available`` is the sum over all of them."""

    sku: str
    location: str | None
    requested: int
    available: int


class StockRecord(msgspec.Struct, frozen=True, gc=False):
    """Stock of one sku at one location, in units."""

    location: str
    on_hand: int
    held: int
    quarantined: int
    safety_stock: int

    @property
    def available(self) -> int:
        return self.on_hand - self.held - self.quarantined - self.safety_stock


class Applied(msgspec.Struct, frozen=True, gc=False):
    """When and where in its partition a movement took effect, and the stock right after it."""

    at_ms: int
    epoch: int
    seq: int
    stock: StockRecord


class Outcome(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What became of a command. Fields that don't belong to the status are empty.

    ``replayed``: this is what happened the first time; nothing changed now. ``detail``: a sentence
    for a person where the status alone doesn't say enough. ``truncated``: reservation, shortages and stock
    were left out, because the outcomes of the call together have more lines than were asked for.
    """

    status: Status
    reservation: Reservation | None = None
    shortages: tuple[Shortage, ...] = ()
    stock: tuple[StockRecord, ...] = ()
    applied: Applied | None = None
    replayed: bool = False
    detail: str = ""
    truncated: bool = False
