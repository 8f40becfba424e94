"""Movements and stock reads: commands to bytes, answers to outcomes (see lua/move.lua, lua/stock.lua)."""

from __future__ import annotations

from typing import Any

import msgspec

from engine.model import (
    MOVEMENT_QUANTITY_MAX,
    MOVEMENT_TYPES,
    Applied,
    GetStock,
    Movement,
    Outcome,
    StockRecord,
)
from engine.reservations import Wire, fingerprint
from engine.statuses import Status

_decode_record = msgspec.msgpack.Decoder(tuple[str, int, int, int, int, int, int, int]).decode


def encode_movement(command: Movement) -> Wire:
    least = 0 if command.type == "count" else 1
    if command.type not in MOVEMENT_TYPES:
        raise ValueError(f"type is {command.type!r}; it must be one of {', '.join(MOVEMENT_TYPES)}")
    if not least <= command.quantity <= MOVEMENT_QUANTITY_MAX:
        raise ValueError(
            f"quantity is {command.quantity}; it must be {least} to {MOVEMENT_QUANTITY_MAX}"
        )
    if (command.type == "transfer") is not bool(command.to_location):
        raise ValueError("to_location: a transfer needs it, and nothing else takes it")
    content = (
        command.type,
        command.sku,
        command.location,
        command.quantity,
        command.to_location or "",
        command.reference or "",
        command.reason or "",
        -1 if command.expected_on_hand is None else command.expected_on_hand,
        int(command.restock),
    )
    return (command.movement_id, *content, fingerprint((content,)))


def decode_movement(command: Movement, answer: Any, now_ms: int) -> Outcome:
    status = Status(answer[0].decode())
    if status in (Status.APPLIED, Status.ALREADY_APPLIED):
        _, at_ms, epoch, seq, *numbers = _decode_record(answer[1])
        return Outcome(
            status=status,
            applied=Applied(at_ms, epoch, seq, StockRecord(command.location, *numbers)),
            replayed=status is Status.ALREADY_APPLIED,
        )
    return Outcome(status=status, detail=_why_refused(command, status, answer))


def _why_refused(command: Movement, status: Status, answer: Any) -> str:
    if status is Status.UNKNOWN_SKU:
        return f"no movement has ever named sku {command.sku}; receive it first"
    if status is Status.STALE_EXPECTATION:
        return f"on_hand is {answer[1]}, not {command.expected_on_hand}; look again and count anew"
    if status is Status.WOULD_BREAK_HOLDS and len(answer) == 2:
        return (
            f"the stock record of {command.sku} at {answer[1].decode()} can't be read, so nothing is moved "
            "there; 'holdfast reconcile --repair --by NAME' makes it anew"
        )
    if status is Status.WOULD_BREAK_HOLDS:
        on_hand, held, quarantined = answer[1:]
        return (
            f"{command.sku} at {command.location} has on_hand {on_hand}, of which {held} are held "
            f"and {quarantined} quarantined; the movement would leave fewer than that"
        )
    if status is Status.INVALID_REQUEST:
        return f"on_hand of {command.sku} would pass 1,000,000,000,000,000"
    return ""


def encode_read(command: GetStock) -> Wire:
    return (command.sku,)


def decode_read(command: GetStock, answer: Any, now_ms: int) -> Outcome:
    if not answer:
        return Outcome(status=Status.UNKNOWN_SKU)
    if type(answer) is bytes:
        return Outcome(status=Status.FOUND, stock=(_record(answer),))
    records = sorted(map(_record, answer), key=lambda record: record.location)
    return Outcome(status=Status.FOUND, stock=tuple(records))


def _record(kept: bytes) -> StockRecord:
    on_hand, held, quarantined, safety_stock, location = kept.split(b" ", 4)
    return StockRecord(
        location.decode(), int(on_hand), int(held), int(quarantined), int(safety_stock)
    )
