"""Reserve, confirm, release, extend and read: commands to bytes, answers to outcomes.

The bytes of a command stand at the head of its script in ``lua/``, those of a kept reservation in
``lua/lib/reservation.lua``.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from typing import Any

import msgspec

from engine.model import (
    LINES_MAX,
    QUANTITY_MAX,
    TTL_MS_MAX,
    Confirm,
    Extend,
    GetReservation,
    Line,
    Outcome,
    Release,
    Reservation,
    ReservationLine,
    Reserve,
    Shortage,
)
from engine.statuses import State, Status

log = logging.getLogger("holdfast.engine")

_encode = msgspec.msgpack.Encoder().encode
STATES = (State.HELD, State.CONFIRMED, State.RELEASED, State.EXPIRED)


class Body(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What never changes about a reservation. ``lines`` is flat: sku, location, quantity, …"""

    order_id: str
    customer_id: str
    fingerprint: str
    lines: list[str | int]

    def triples(self) -> list[tuple[str, str, int]]:
        """The lines as (sku, location, quantity)."""
        flat: list[Any] = self.lines
        return list(zip(flat[::3], flat[1::3], flat[2::3], strict=True))


class Record(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A reservation as Redis keeps it. ``parts`` is flat (confirmed, released, …), a pair a line."""

    state: int
    created_ms: int
    deadline_ms: int
    seq: int
    parts: list[int] | None
    body: Body


_CHECKSUM_BYTES = 8
_decode_record = msgspec.msgpack.Decoder(Record).decode


def read_record(value: bytes) -> Record:
    """The kept bytes of a reservation, whose checksum the script has compared;
    msgspec.MsgspecError where they can't be read."""
    return _decode_record(b"\x96" + value[:-_CHECKSUM_BYTES])


def add_up(lines: Sequence[Line]) -> tuple[Line, ...]:
    """Lines of the same sku and location added up, in the order of their first mention."""
    if len(lines) == 1:
        return tuple(lines)
    sums: dict[tuple[str, str | None], Line] = {}
    for line in lines:
        first = sums.setdefault((line.sku, line.location), line)
        if first is not line:
            total = first.quantity + line.quantity
            sums[line.sku, line.location] = Line(line.sku, total, line.location, first.candidates)
    return tuple(sums.values())


def fingerprint(*content: object) -> str:
    """What makes two commands the same: 96 bits of BLAKE2b over their content."""
    return hashlib.blake2b(_encode(content), digest_size=12).hexdigest()


def flat(lines: Sequence[Line]) -> list[str | int]:
    """Lines as the scripts take them: sku, location or '', quantity, …; ValueError out of range."""
    out: list[str | int] = []
    for line in lines:
        if not 1 <= line.quantity <= QUANTITY_MAX:
            raise ValueError(
                f"quantity of {line.sku} is {line.quantity}; it must be 1 to {QUANTITY_MAX}"
            )
        out += (line.sku, line.location or "", line.quantity)
    return out


def as_string(data: bytes) -> msgspec.Raw:
    """Bytes as a msgpack string: Redis' Lua library knows no msgpack binary."""
    return msgspec.Raw(b"\xdb" + len(data).to_bytes(4, "big") + data)


def _check_ttl(ttl_ms: int) -> int:
    if not 1 <= ttl_ms <= TTL_MS_MAX:
        raise ValueError(f"ttl_ms is {ttl_ms}; it must be 1 to {TTL_MS_MAX}")
    return ttl_ms


def encode_reserve(command: Reserve) -> object:
    lines = add_up(command.lines)
    if not 1 <= len(lines) <= LINES_MAX:
        raise ValueError(f"a reservation has {len(lines)} lines; it must have 1 to {LINES_MAX}")
    order_id, customer_id = command.order_id, command.customer_id or ""
    triples = flat(lines)
    in_order = triples if len(lines) == 1 else flat(sorted(lines, key=_line_key))
    body = (order_id, customer_id, fingerprint(order_id, customer_id, in_order), triples)
    wire = (
        command.reservation_id,
        _check_ttl(command.ttl_ms),
        triples,
        as_string(_encode(body)),
    )
    for line in lines:
        if line.candidates:
            return (*wire, [line.candidates for line in lines])
    return wire


def encode_part(command: Confirm | Release) -> object:
    if not command.lines:
        return (command.reservation_id, command.request_id or "", "", ())
    if not command.request_id:
        raise ValueError("a part needs a request_id, so that a retry can't take it twice")
    wanted = flat(sorted(add_up(command.lines), key=_line_key))
    return (command.reservation_id, command.request_id, fingerprint(wanted), wanted)


def _line_key(line: Line) -> tuple[str, str, int]:
    return line.sku, line.location or "", line.quantity


def encode_extend(command: Extend) -> object:
    return (command.reservation_id, _check_ttl(command.ttl_ms))


def encode_read(command: GetReservation) -> object:
    return (command.reservation_id,)


def _view(reservation_id: str, value: bytes, now_ms: int) -> Reservation:
    record = read_record(value)
    state = STATES[record.state]
    if state is State.HELD and record.deadline_ms <= now_ms:
        state = State.EXPIRED
    lines = []
    parts = record.parts
    for i, (sku, location, quantity) in enumerate(record.body.triples()):
        if parts is None:
            confirmed = quantity if state is State.CONFIRMED else 0
            released = quantity if state is State.RELEASED else 0
        else:
            confirmed, released = parts[2 * i], parts[2 * i + 1]
        lines.append(ReservationLine(sku, location, quantity, confirmed, released))
    return Reservation(
        reservation_id=reservation_id,
        order_id=record.body.order_id,
        customer_id=record.body.customer_id or None,
        status=state,
        lines=tuple(lines),
        created_ms=record.created_ms,
        expires_ms=record.deadline_ms,
    )


def _with_view(status: Status, reservation_id: str, value: bytes, now_ms: int) -> Outcome:
    try:
        reservation = _view(reservation_id, value, now_ms)
    except (msgspec.MsgspecError, IndexError, ValueError) as error:
        log.error("reservation %s can't be read: %s", reservation_id, error)
        return Outcome(status=status)
    return Outcome(status=status, reservation=reservation)


_RESERVED_ROUNDING_MS = 100


def decode_reserve(command: Reserve, answer: Any, now_ms: int) -> Outcome:
    if answer == b"reserved":
        deadline_ms = -(-(now_ms + command.ttl_ms) // _RESERVED_ROUNDING_MS) * _RESERVED_ROUNDING_MS
        lines = add_up(command.lines)
        return Outcome(
            status=Status.RESERVED,
            reservation=Reservation(
                reservation_id=command.reservation_id,
                order_id=command.order_id,
                customer_id=command.customer_id,
                status=State.HELD,
                lines=tuple(
                    [ReservationLine(x.sku, x.location or "", x.quantity, 0, 0) for x in lines]
                ),
                created_ms=now_ms,
                expires_ms=deadline_ms,
            ),
        )
    status = Status(answer[0].decode())
    if status is Status.INSUFFICIENT_STOCK:
        return Outcome(
            status=status,
            shortages=tuple(
                Shortage(sku.decode(), location.decode() or None, requested, available)
                for sku, location, requested, available in answer[1]
            ),
        )
    if status is Status.UNKNOWN_SKU:
        return Outcome(status=status, detail=f"no movement has ever named sku {answer[1].decode()}")
    if status is Status.RESERVATION_MISMATCH:
        return Outcome(status=status)
    outcome = _with_view(status, command.reservation_id, answer[1], now_ms)
    if status is Status.ALREADY_RESERVED:
        return msgspec.structs.replace(outcome, replayed=True)
    return outcome


def decode_change(command: Confirm | Release | Extend, answer: Any, now_ms: int) -> Outcome:
    status = Status(answer[0].decode())
    if status is Status.EXCEEDS_RESERVATION:
        return Outcome(
            status=status, detail=f"{answer[2]} of sku {answer[1].decode()} are left to take"
        )
    if status is Status.INVALID_REQUEST:
        sku = answer[1].decode()
        return Outcome(
            status=status, detail=f"sku {sku} is held at several locations; name one of them"
        )
    if len(answer) == 1:
        return Outcome(status=status)
    outcome = _with_view(status, command.reservation_id, answer[1], now_ms)
    if len(answer) > 2:
        return msgspec.structs.replace(outcome, replayed=True)
    return outcome


def decode_read(command: GetReservation, answer: Any, now_ms: int) -> Outcome:
    if answer is None:
        return Outcome(status=Status.UNKNOWN_RESERVATION)
    outcome = _with_view(Status.FOUND, command.reservation_id, answer, now_ms)
    return outcome if outcome.reservation else Outcome(status=Status.UNKNOWN_RESERVATION)
