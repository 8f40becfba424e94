"""Handlers of version 1: a call becomes a command, its outcome a reply."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec
from redis.exceptions import RedisError

from api import plain, schema
from api.asgi import Call, Handler, Unreadable, decode, decode_json
from api.problems import HTTP_STATUS, PROBLEMS, Problem, Reply, json_reply, refuse
from engine.addresses import why
from engine.engine import Engine
from engine.model import (
    ID_CHARACTERS_MAX,
    ID_PATTERN,
    Command,
    Confirm,
    Extend,
    GetReservation,
    GetStock,
    Movement,
    Outcome,
    Release,
    Reserve,
)
from engine.statuses import Status

_ID = re.compile(ID_PATTERN)
_REPLAYED = (b"idempotent-replayed", b"true")
STOCK_SKUS_MAX = 2_000
#: Lines of reservations and refusals, or stock records, in one answer: 88 KB could ask for 282 MB.
ANSWER_LINES_MAX = 20_000

_reserve_in = msgspec.json.Decoder(schema.ReserveIn)
_part_in = msgspec.json.Decoder(schema.PartIn)
_extend_in = msgspec.json.Decoder(schema.ExtendIn)
_movement_in = msgspec.json.Decoder(schema.MovementIn)
_batch_in = msgspec.json.Decoder(schema.BatchIn)
_loose_batch_in = msgspec.json.Decoder(schema.LooseBatchIn)
_op_in = msgspec.json.Decoder(schema.Op)


def engine_of(call: Call) -> Engine:
    """The engine. Problem 503 while this process has not reached Redis yet."""
    engine: Engine | None = call.state.engine
    if engine is None:
        raise Problem("unavailable", "Redis has not been reached yet; nothing was changed")
    return engine


def _path_id(call: Call, name: str) -> str:
    value = call.path(name)
    if not _ID.match(value):
        raise Problem(
            "invalid_request", f"{name}: got {value[:80]!r}; it must match {ID_PATTERN[:-2]}$"
        )
    return value


_KEY_HEADER = b"idempotency-key"


def _idempotency_key(call: Call) -> str | None:
    """The key with its quotes or without. Problem 400 for one that can't be an id, or for several."""
    headers = [
        value.decode("latin-1") for name, value in call.scope["headers"] if name == _KEY_HEADER
    ]
    if not headers:
        return None
    keys = {_unquoted(header) for header in headers}
    key = keys.pop()
    if keys or not _ID.match(key):
        raise Problem(
            "invalid_request",
            f"Idempotency-Key: got {', '.join(headers)[:80]!r}; it must be one that matches"
            f" {ID_PATTERN[:-2]}$",
        )
    return key


def _unquoted(header: str) -> str:
    return header[1:-1] if len(header) > 1 and header[0] == header[-1] == '"' else header


def _check_key_fits(key: str | None, operations: int) -> None:
    """Problem 400 where key and place are too long for an id."""
    most = ID_CHARACTERS_MAX - len(f".{operations - 1}")
    if key is not None and len(key) > most:
        raise Problem(
            "invalid_request",
            f"Idempotency-Key: got {len(key)} characters; beside {operations} operations it may have"
            f" {most}, since each is given <key>.<place> as its id",
        )


def keyless(handler: Handler) -> Handler:
    """A handler that refuses an Idempotency-Key, since nothing could come of it: none is ever ignored."""

    async def checked(call: Call) -> Reply:
        if call.header(_KEY_HEADER) is not None:
            raise Problem(
                "invalid_request",
                "Idempotency-Key: this call takes none; it can be repeated without one",
            )
        return await handler(call)

    return checked


_OPERATIONS: dict[type, str] = {
    Reserve: "reserve",
    Confirm: "confirm",
    Release: "release",
    Extend: "extend",
    Movement: "movement",
    GetReservation: "reservation",
    GetStock: "stock",
}


def _http_operation(command: Command) -> str:
    """The row of HTTP_STATUS for a command."""
    name = _OPERATIONS[type(command)]
    if isinstance(command, (Confirm, Release)) and command.lines:
        return f"{name} part"
    return name


def reply_of(command: Command, outcome: Outcome) -> Reply:
    """The reply to a command on a reservation, or to a movement."""
    status = HTTP_STATUS[_http_operation(command)][outcome.status]
    if status < 300:
        if isinstance(command, Movement):
            content: Any = schema.movement_out(command, outcome)
        elif outcome.reservation is not None:
            content = schema.reservation_out(outcome.reservation)
        else:
            return refuse("internal_error", "the reservation's record can't be read")
        return json_reply(status, content, *((_REPLAYED,) if outcome.replayed else ()))
    members: dict[str, Any] = {}
    detail = outcome.detail
    if isinstance(command, Reserve) and outcome.status is Status.UNAVAILABLE:
        members["reservation_id"] = command.reservation_id
        detail = _ask_again(command)
    if outcome.shortages:
        members["lines"] = outcome.shortages
    if outcome.reservation is not None:
        members["reservation"] = schema.reservation_out(outcome.reservation)
    return refuse(outcome.status, detail, status=status, **members)


def _ask_again(command: Reserve) -> str:
    """How to learn an outcome that is unknown: the id may be one that we made."""
    return (
        f"the outcome is unknown: reserve again with reservation_id {command.reservation_id},"
        " which can't hold twice"
    )


async def _decide(call: Call, command: Command) -> Reply:
    return reply_of(command, await engine_of(call).call(command))


def _command_of(
    call: Call,
    decoder: msgspec.json.Decoder[schema.ReserveIn] | msgspec.json.Decoder[schema.MovementIn],
) -> Command:
    """The command of a body; an Idempotency-Key stands in for its id. Problem 400 for a misfit."""
    body: schema.ReserveIn | schema.MovementIn = decode_json(call, decoder)
    try:
        return body.command(_idempotency_key(call))
    except schema.Misfit as misfit:
        raise Problem("invalid_request", str(misfit)) from None


async def reserve(call: Call) -> Reply:
    return await _decide(call, _command_of(call, _reserve_in))


async def get_reservation(call: Call) -> Reply:
    return await _decide(call, GetReservation(_path_id(call, "reservation_id")))


def _part(call: Call) -> dict[str, Any]:
    body = decode_json(call, _part_in) if call.body else schema.PartIn()
    try:
        lines, request_id = body.part(_idempotency_key(call))
    except schema.Misfit as misfit:
        raise Problem("invalid_request", str(misfit)) from None
    reservation_id = _path_id(call, "reservation_id")
    return {"reservation_id": reservation_id, "lines": lines, "request_id": request_id}


async def confirm(call: Call) -> Reply:
    return await _decide(call, Confirm(**_part(call)))


async def release(call: Call) -> Reply:
    return await _decide(call, Release(**_part(call)))


async def extend(call: Call) -> Reply:
    body: schema.ExtendIn = decode_json(call, _extend_in)
    reservation_id = _path_id(call, "reservation_id")
    return await _decide(
        call, Extend(reservation_id=reservation_id, ttl_ms=body.ttl_seconds * 1000)
    )


async def move(call: Call) -> Reply:
    return await _decide(call, _command_of(call, _movement_in))


async def batch(call: Call) -> Reply:
    """Each operation is decided by itself; a misfit one is told in its own result."""
    results, commands, places = _batch_commands(call)
    outcomes = await engine_of(call).call_all(commands, lines_max=ANSWER_LINES_MAX)
    for place, command, outcome in zip(places, commands, outcomes, strict=True):
        results[place] = _result(command, outcome)
    return json_reply(200, {"results": results})


def _batch_commands(call: Call) -> tuple[list[dict[str, Any]], list[Command], Sequence[int]]:
    key = _idempotency_key(call)
    usual = plain.read_commands(call.body, key)
    if usual is not None:
        _check_key_fits(key, len(usual))
        return [{}] * len(usual), usual, range(len(usual))
    try:
        operations: list[Any] = decode(_batch_in, call.body).operations
    except Unreadable:
        operations = decode_json(call, _loose_batch_in).operations
    _check_key_fits(key, len(operations))
    results: list[dict[str, Any]] = [{}] * len(operations)
    commands: list[Command] = []
    places: list[int] = []
    for place, operation in enumerate(operations):
        try:
            if isinstance(operation, msgspec.Raw):
                operation = decode(_op_in, operation)
            commands.append(operation.command(None if key is None else f"{key}.{place}"))
            places.append(place)
        except (Unreadable, schema.Misfit) as error:
            results[place] = {"code": "invalid_request", "detail": str(error)}
    return results, commands, places


def _result(command: Command, outcome: Outcome) -> dict[str, Any]:
    result: dict[str, Any] = {"code": outcome.status}
    if outcome.reservation is not None:
        result["reservation"] = schema.reservation_out(outcome.reservation)
    elif outcome.shortages:
        result["lines"] = outcome.shortages
    elif outcome.applied is not None and isinstance(command, Movement):
        result["movement"] = schema.movement_out(command, outcome)
    if outcome.truncated:
        result["truncated"] = True
    if isinstance(command, Reserve) and outcome.status is Status.UNAVAILABLE:
        result["reservation_id"] = command.reservation_id
        result["detail"] = _ask_again(command)
    elif outcome.detail:
        result["detail"] = outcome.detail
    elif outcome.reservation is None and outcome.status in PROBLEMS:
        result["detail"] = PROBLEMS[outcome.status][2]
    return result


async def get_stock(call: Call) -> Reply:
    sku = _path_id(call, "sku")
    command = GetStock(sku)
    outcome = await engine_of(call).call(command)
    if outcome.stock:
        return json_reply(200, schema.stock_out(sku, outcome.stock))
    return reply_of(command, outcome)


async def get_stocks(call: Call) -> Reply:
    skus = list(dict.fromkeys(sku for _, sku in call.query(frozenset({"sku"}))))
    if not 1 <= len(skus) <= STOCK_SKUS_MAX:
        raise Problem(
            "invalid_request",
            f"sku: named {len(skus)} times; name 1 to {STOCK_SKUS_MAX}: ?sku=a&sku=b",
        )
    for sku in skus:
        if not _ID.match(sku):
            raise Problem(
                "invalid_request", f"sku: got {sku[:80]!r}; it must match {ID_PATTERN[:-2]}$"
            )
    commands = [GetStock(sku) for sku in skus]
    outcomes = await engine_of(call).call_all(commands, lines_max=ANSWER_LINES_MAX)
    if any(outcome.truncated for outcome in outcomes):
        raise Problem(
            "invalid_request",
            f"sku: these have more than {ANSWER_LINES_MAX} stock records together; name fewer",
        )
    known, unknown = [], []
    for sku, outcome in zip(skus, outcomes, strict=True):
        if outcome.stock:
            known.append(schema.stock_out(sku, outcome.stock))
        elif HTTP_STATUS["stock"][outcome.status] == 404:
            unknown.append(sku)
        else:
            return reply_of(GetStock(sku), outcome)
    return json_reply(200, {"stock": known, "unknown": unknown})


async def live(call: Call) -> Reply:
    """This process runs."""
    return json_reply(200, {"status": "live"})


async def ready(call: Call) -> Reply:
    """200 only while Redis answers and every partition is open."""
    try:
        states = await engine_of(call).states()
    except (RedisError, OSError) as error:
        raise Problem("unavailable", f"Redis did not answer: {why(error)}") from None
    closed = [state.partition for state in states if not state.open]
    if closed:
        return refuse("partition_closed", f"closed partitions: {closed}", partitions=closed)
    return json_reply(200, {"status": "ready"})
