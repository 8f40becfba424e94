"""Reserve, confirm, release, extend and read: commands to bytes, answers to outcomes.

The bytes of a command stand at the head of its script in ``lua/``, those of a kept reservation in
``lua/lib/reservation.lua``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from hashlib import sha1
from itertools import chain
from typing import Any, TypeAlias

import msgspec

from engine.counts import counts_of
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
_SEAL_HEAD = b"\xb8"  # a msgpack string of 24 bytes
STATES = (State.HELD, State.CONFIRMED, State.RELEASED, State.EXPIRED)


#: What a command is to its script: its values, the id first.
Wire: TypeAlias = tuple[Any, ...]


class Body(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What never changes about a reservation. ``lines`` is flat: sku, location, quantity, …;
    ``named`` the fingerprint where it isn't the seal (``tail_of``), else ''."""

    order_id: str
    customer_id: str
    named: str
    lines: list[str | int]

    def triples(self) -> list[tuple[str, str, int]]:
        """The lines as (sku, location, quantity)."""
        flat: list[Any] = self.lines
        return list(zip(flat[::3], flat[1::3], flat[2::3], strict=True))


class Record(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A reservation as Redis keeps it. ``parts`` is flat (confirmed, released, …), a pair a line;
    ``check`` and ``seal`` are checksums that the scripts compare (lua/lib/reservation.lua)."""

    state: int
    created_ms: int
    deadline_ms: int
    seq: int
    parts: list[int] | None
    check: int
    seal: str
    body: Body

    @property
    def fingerprint(self) -> str:
        """What makes two reserves the same."""
        return self.body.named or self.seal


_decode_record = msgspec.msgpack.Decoder(Record).decode


def read_record(value: bytes) -> Record:
    """The kept bytes of a reservation, whose checksums the script has compared;
    msgspec.MsgspecError where they can't be read."""
    return _decode_record(b"\x98" + value)


def is_whole(value: bytes, record: Record) -> bool:
    """Are the checksums of these kept bytes right, as the scripts see it?"""
    seal = _SEAL_HEAD + record.seal.encode()
    data = value[value.index(seal) + len(seal) :]
    numbers = (record.state, record.created_ms, record.deadline_ms, record.seq)
    return record.check == check_of(*numbers, record.parts) and record.seal == seal_of(data)


def check_of(
    state: int, created_ms: int, deadline_ms: int, seq: int, parts: Sequence[int] | None
) -> int:
    """The checksum of what changes about a reservation."""
    sums = [(10 + i) * taken for i, taken in enumerate(parts or (), 1)]
    return (state + 3 * created_ms + 5 * deadline_ms + 7 * seq + sum(sums)) % 65_521


def seal_of(body: bytes) -> str:
    """The checksum of what doesn't: 96 bits of SHA-1, which Redis' Lua has."""
    return sha1(body).hexdigest()[:24]


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


_Flat: TypeAlias = list[str | int]


def fingerprint(content: Sequence[object]) -> str:
    """What makes two commands the same: a checksum of their content."""
    return seal_of(_encode(content))


def flat(lines: Sequence[Line]) -> _Flat:
    """Lines as the scripts take them: sku, location or '', quantity, …; ValueError out of range."""
    out: _Flat = []
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


def tail_of(order_id: str, customer_id: str, lines: Sequence[str | int], named: str = "") -> bytes:
    """The bytes of a body with its seal before it: what the scripts carry along unread. ``named``
    is its fingerprint, by default that of these very lines.

    A fingerprint is the seal of the body with the lines as asked for, sorted, and no fingerprint in it.
    So most bodies need none: theirs is their seal. A body whose lines are in another order, or were
    chosen by sourcing, carries it.
    """
    data = _encode((order_id, customer_id, "", lines))
    seal = seal_of(data)
    if named and named != seal:
        data = _encode((order_id, customer_id, named, lines))
        seal = seal_of(data)
    return _SEAL_HEAD + seal.encode() + data


def _check_ttl(ttl_ms: int) -> int:
    if not 1 <= ttl_ms <= TTL_MS_MAX:
        raise ValueError(f"ttl_ms is {ttl_ms}; it must be 1 to {TTL_MS_MAX}")
    return ttl_ms


def encode_reserve(command: Reserve) -> Wire:
    order_id, customer_id = command.order_id, command.customer_id or ""
    lines, candidates, named = command.lines, 0, ""
    if len(lines) != 1 or lines[0].candidates:
        lines, candidates, named = _cart(order_id, customer_id, lines)
    triples = flat(lines)
    tail = tail_of(order_id, customer_id, triples, named)
    ttl_ms = _check_ttl(command.ttl_ms)
    return (command.reservation_id, ttl_ms, len(tail), candidates, len(triples), *triples, tail)


def pack_reserves(wires: Sequence[Wire]) -> tuple[bytes, bytes]:
    """The arguments of a call: values, and apart from them the tails, which a refusal never looks at."""
    values = chain.from_iterable([wire[:-1] for wire in wires])
    return _encode(list(values)), b"".join([wire[-1] for wire in wires])


def _cart(
    order_id: str, customer_id: str, asked: tuple[Line, ...]
) -> tuple[tuple[Line, ...], Any, str]:
    """Its lines added up, their candidates (0: none), and the fingerprint: '' where that is the seal."""
    lines = add_up(asked)
    if not 1 <= len(lines) <= LINES_MAX:
        raise ValueError(f"a reservation has {len(lines)} lines; it must have 1 to {LINES_MAX}")
    in_order = tuple(sorted(lines, key=_line_key))
    named = ""
    if in_order != lines:
        named = fingerprint((order_id, customer_id, "", flat(in_order)))
    candidates = [line.candidates for line in lines]
    return lines, candidates if any(candidates) else 0, named


def encode_part(command: Confirm | Release) -> Wire:
    if not command.lines:
        return (command.reservation_id, command.request_id or "", "", 0)
    if not command.request_id:
        raise ValueError("a part needs a request_id, so that a retry can't take it twice")
    wanted = flat(sorted(add_up(command.lines), key=_line_key))
    return (command.reservation_id, command.request_id, fingerprint((wanted,)), wanted)


def _line_key(line: Line) -> tuple[str, str, int]:
    return line.sku, line.location or "", line.quantity


def encode_extend(command: Extend) -> Wire:
    return (command.reservation_id, _check_ttl(command.ttl_ms))


def encode_read(command: GetReservation) -> Wire:
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
    detail = _counted(status, reservation) if status in _ENDED else ""
    return Outcome(status=status, reservation=reservation, detail=detail)


_ENDED = frozenset({Status.ALREADY_CONFIRMED, Status.ALREADY_RELEASED, Status.RESERVATION_EXPIRED})


def _counted(status: Status, reservation: Reservation) -> str:
    """What a call on a reservation that has ended is told, also where it ended in a mixture."""
    passed = "its deadline has passed: " if status is Status.RESERVATION_EXPIRED else ""
    return passed + counts_of(reservation)


_ROUNDED_TO_MS = 100


def decode_reserve(command: Reserve, answer: Any, now_ms: int) -> Outcome:
    if answer == 1:
        lines = command.lines if len(command.lines) == 1 else add_up(command.lines)
        reservation = Reservation(
            reservation_id=command.reservation_id,
            order_id=command.order_id,
            customer_id=command.customer_id,
            status=State.HELD,
            lines=tuple(
                [ReservationLine(x.sku, x.location or "", x.quantity, 0, 0) for x in lines]
            ),
            created_ms=now_ms,
            expires_ms=-(-(now_ms + command.ttl_ms) // _ROUNDED_TO_MS) * _ROUNDED_TO_MS,
        )
        return Outcome(status=Status.RESERVED, reservation=reservation)
    if type(answer) is int:
        line = command.lines[0] if len(command.lines) == 1 else add_up(command.lines)[0]
        shortage = Shortage(line.sku, line.location, line.quantity, -answer)
        return Outcome(status=Status.INSUFFICIENT_STOCK, shortages=(shortage,))
    status = Status(answer[0].decode())
    if status is Status.INSUFFICIENT_STOCK:
        short = answer[1]
        return Outcome(
            status=status,
            shortages=tuple(
                [
                    Shortage(sku.decode(), location.decode() or None, requested, available)
                    for sku, location, requested, available in zip(
                        short[::4], short[1::4], short[2::4], short[3::4], strict=True
                    )
                ]
            ),
        )
    if status is Status.UNKNOWN_SKU:
        return Outcome(status=status, detail=f"no movement has ever named sku {answer[1].decode()}")
    if len(answer) == 1:
        return Outcome(status=status)
    outcome = _with_view(status, command.reservation_id, answer[1], now_ms)
    if status is Status.ALREADY_RESERVED:
        return msgspec.structs.replace(outcome, replayed=True)
    if outcome.detail:
        anew = f"{outcome.detail}; to reserve again choose a new reservation_id"
        return msgspec.structs.replace(outcome, detail=anew)
    return outcome


def decode_change(command: Confirm | Release | Extend, answer: Any, now_ms: int) -> Outcome:
    if type(answer) is bytes:
        status = Status.CONFIRMED if type(command) is Confirm else Status.RELEASED
        return _with_view(status, command.reservation_id, answer, now_ms)
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
    if len(answer) > 2:
        # As it was then: held means that its deadline had not passed.
        outcome = _with_view(status, command.reservation_id, answer[1], now_ms=0)
        return msgspec.structs.replace(outcome, replayed=True)
    return _with_view(status, command.reservation_id, answer[1], now_ms)


def decode_read(command: GetReservation, answer: Any, now_ms: int) -> Outcome:
    if answer is None:
        return Outcome(status=Status.UNKNOWN_RESERVATION)
    outcome = _with_view(Status.FOUND, command.reservation_id, answer, now_ms)
    return outcome if outcome.reservation else Outcome(status=Status.UNKNOWN_RESERVATION)
