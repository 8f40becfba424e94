"""Request bodies as types, and how they become commands and answers."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from secrets import token_hex
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from engine.model import (
    ID_PATTERN,
    LINES_MAX,
    LONG_TEXT_PATTERN,
    MOVEMENT_QUANTITY_MAX,
    QUANTITY_MAX,
    TEXT_PATTERN,
    Confirm,
    Extend,
    Line,
    Movement,
    Outcome,
    Release,
    Reservation,
    ReservationLine,
    Reserve,
    StockRecord,
)
from engine.reservations import add_up
from engine.statuses import State

Id = Annotated[str, Meta(pattern=ID_PATTERN)]
Text = Annotated[str, Meta(pattern=TEXT_PATTERN)]
LongText = Annotated[str, Meta(pattern=LONG_TEXT_PATTERN)]
Quantity = Annotated[int, Meta(ge=1, le=QUANTITY_MAX)]
TtlSeconds = Annotated[int, Meta(ge=1, le=86_400)]
MovementType = Literal[
    "receive", "return", "damage", "transfer", "count", "inspect_pass", "inspect_fail"
]
OPERATIONS_MAX = 2_000
TTL_SECONDS = 900


class Misfit(ValueError):
    """Values that fit one by one but not together; the text names the field."""


def _id(field: str, own: str | None, key: str | None) -> str | None:
    """The id of a body, or the Idempotency-Key that stands in for it. Misfit for two different ones."""
    if own is not None and key is not None and own != key:
        raise Misfit(
            f"{field}: got {own!r} beside the Idempotency-Key {key!r}; send only one of them"
        )
    return key if own is None else own


class LineIn(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    sku: Id
    quantity: Quantity
    location: Id | None = None


LinesIn = Annotated[list[LineIn], Meta(min_length=1, max_length=LINES_MAX)]


def _lines(lines: list[LineIn]) -> tuple[Line, ...]:
    if len(lines) == 1:
        only = lines[0]
        return (Line(only.sku, only.quantity, only.location),)
    summed = add_up([Line(line.sku, line.quantity, line.location) for line in lines])
    for line in summed:
        if line.quantity > QUANTITY_MAX:
            raise Misfit(
                f"lines: quantities of sku {line.sku} add up to {line.quantity};"
                f" a line may have {QUANTITY_MAX} at most"
            )
    return summed


class ReserveIn(msgspec.Struct, forbid_unknown_fields=True, gc=False, kw_only=True):
    order_id: Text
    lines: LinesIn
    reservation_id: Id | None = None
    customer_id: Text | None = None
    ttl_seconds: TtlSeconds | None = None

    def command(self, key: str | None = None) -> Reserve:
        return Reserve(
            reservation_id=_id("reservation_id", self.reservation_id, key) or token_hex(12),
            order_id=self.order_id,
            lines=_lines(self.lines),
            ttl_ms=(self.ttl_seconds or TTL_SECONDS) * 1000,
            customer_id=self.customer_id,
        )


class PartIn(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """Body of confirm and release: without lines all that is left. ``null`` is no way to say that."""

    lines: LinesIn | msgspec.UnsetType = msgspec.UNSET
    request_id: Id | None = None

    def part(self, key: str | None) -> tuple[tuple[Line, ...], str | None]:
        request_id = _id("request_id", self.request_id, key)
        lines = self.lines
        if lines is msgspec.UNSET:
            return (), request_id
        if request_id is None:
            raise Misfit(
                "request_id: a part needs one (or an Idempotency-Key), so that a retry after a"
                " lost reply can't take it twice"
            )
        return _lines(lines), request_id


class ExtendIn(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    ttl_seconds: TtlSeconds


class MovementIn(msgspec.Struct, forbid_unknown_fields=True, gc=False, kw_only=True):
    type: MovementType
    sku: Id
    location: Id
    quantity: Annotated[int, Meta(ge=0, le=MOVEMENT_QUANTITY_MAX)]
    movement_id: Id | None = None
    to_location: Id | None = None
    reference: Text | None = None
    reason: LongText | None = None
    expected_on_hand: Annotated[int, Meta(ge=0, le=10**15)] | None = None
    disposition: Literal["restock", "quarantine"] | None = None

    def command(self, key: str | None = None) -> Movement:
        movement_id = _id("movement_id", self.movement_id, key)
        if movement_id is None:
            raise Misfit("movement_id: missing, and no Idempotency-Key stands in for it")
        if self.quantity == 0 and self.type != "count":
            raise Misfit("quantity: got 0; it must be 1 or more (0 is for a count only)")
        if (self.to_location is not None) != (self.type == "transfer"):
            raise Misfit("to_location: a transfer needs it, and nothing else takes it")
        if self.to_location == self.location:
            raise Misfit(f"to_location: got {self.location!r}, which is the location itself")
        if self.expected_on_hand is not None and self.type != "count":
            raise Misfit("expected_on_hand: only a count takes it")
        if self.disposition is not None and self.type != "return":
            raise Misfit("disposition: only a return takes it")
        return Movement(
            movement_id=movement_id,
            type=self.type,
            sku=self.sku,
            location=self.location,
            quantity=self.quantity,
            to_location=self.to_location,
            reference=self.reference,
            reason=self.reason,
            expected_on_hand=self.expected_on_hand,
            restock=self.disposition == "restock",
        )


# In a batch ``key`` is for those without an id of their own.


class ReserveOp(ReserveIn, tag="reserve", tag_field="op", gc=False):
    def command(self, key: str | None = None) -> Reserve:
        return super().command(None if self.reservation_id else key)


class ConfirmOp(PartIn, tag="confirm", tag_field="op", gc=False, kw_only=True):
    reservation_id: Id

    def command(self, key: str | None = None) -> Confirm:
        lines, request_id = self.part(None if self.request_id else key)
        return Confirm(reservation_id=self.reservation_id, lines=lines, request_id=request_id)


class ReleaseOp(PartIn, tag="release", tag_field="op", gc=False, kw_only=True):
    reservation_id: Id

    def command(self, key: str | None = None) -> Release:
        lines, request_id = self.part(None if self.request_id else key)
        return Release(reservation_id=self.reservation_id, lines=lines, request_id=request_id)


class ExtendOp(ExtendIn, tag="extend", tag_field="op", gc=False, kw_only=True):
    reservation_id: Id

    def command(self, key: str | None = None) -> Extend:
        return Extend(reservation_id=self.reservation_id, ttl_ms=self.ttl_seconds * 1000)


class MovementOp(MovementIn, tag="movement", tag_field="op", gc=False):
    def command(self, key: str | None = None) -> Movement:
        return super().command(None if self.movement_id else key)


Op = ReserveOp | ConfirmOp | ReleaseOp | ExtendOp | MovementOp


class BatchIn(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    operations: Annotated[list[Op], Meta(min_length=1, max_length=OPERATIONS_MAX)]


class LooseBatchIn(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A batch with a misfit among its operations: each is then decoded by itself."""

    operations: Annotated[list[msgspec.Raw], Meta(min_length=1, max_length=OPERATIONS_MAX)]


@lru_cache(maxsize=4096)
def rfc3339(ms: int) -> str:
    """A moment in ms since 1970 as RFC 3339 in UTC, with milliseconds."""
    moment = datetime.fromtimestamp(ms // 1000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{ms % 1000:03}Z"


class ReservationOut(msgspec.Struct, frozen=True, gc=False):
    """A reservation as JSON; its lines are the engine's own."""

    reservation_id: str
    order_id: str
    customer_id: str | None
    status: State
    lines: tuple[ReservationLine, ...]
    created_at: str
    expires_at: str


def reservation_out(r: Reservation) -> ReservationOut:
    return ReservationOut(
        r.reservation_id,
        r.order_id,
        r.customer_id,
        r.status,
        r.lines,
        rfc3339(r.created_ms),
        rfc3339(r.expires_ms),
    )


def _record_out(record: StockRecord) -> dict[str, Any]:
    return {
        "location": record.location,
        "on_hand": record.on_hand,
        "held": record.held,
        "quarantined": record.quarantined,
        "safety_stock": record.safety_stock,
        "available": record.available,
    }


def stock_out(sku: str, records: tuple[StockRecord, ...]) -> dict[str, Any]:
    """Stock of a sku: the sums, and each location."""
    return {
        "sku": sku,
        "on_hand": sum(r.on_hand for r in records),
        "held": sum(r.held for r in records),
        "quarantined": sum(r.quarantined for r in records),
        "safety_stock": sum(r.safety_stock for r in records),
        "available": sum(r.available for r in records),
        "locations": [_record_out(r) for r in records],
    }


def movement_out(command: Movement, outcome: Outcome) -> dict[str, Any]:
    """A movement as it was applied, with the stock of its location right after it."""
    applied = outcome.applied
    if applied is None:
        return {}
    return {
        "movement_id": command.movement_id,
        "type": command.type,
        "sku": command.sku,
        "location": command.location,
        "quantity": command.quantity,
        "to_location": command.to_location,
        "reference": command.reference,
        "reason": command.reason,
        "occurred_at": rfc3339(applied.at_ms),
        "stock": _record_out(applied.stock),
    }
