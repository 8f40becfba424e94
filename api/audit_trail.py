"""The audit trail, and how the API reads from the ledger."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any

import psycopg
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from api.asgi import Call
from api.problems import Problem, Reply, json_reply
from api.schema import rfc3339
from persister.database import QUERIES

LIMIT_MAX = 1_000
_FILTERS = ("sku", "location", "reservation_id", "order_id")
_PARAMETERS = frozenset({*_FILTERS, "cursor", "limit"})
_PLACE = ("partition", "epoch", "seq", "line")
_START = (-1, 0, 0, 0)
#: PostgreSQL is away, has no ledger yet, or `holdfast db init` has not let this login in.
_AWAY = (
    psycopg.OperationalError,
    PoolTimeout,
    psycopg.errors.UndefinedTable,
    psycopg.errors.InsufficientPrivilege,
)


def ledger_pool(url: str) -> AsyncConnectionPool[Any]:
    """Connections for reading, made when they are needed; opened by the lifespan."""
    return AsyncConnectionPool(
        url,
        min_size=0,
        max_size=4,
        timeout=2,
        open=False,
        # Plans are made for the values at hand: the filters differ too much for one plan.
        kwargs={
            "autocommit": True,
            "connect_timeout": 2,
            "client_encoding": "UTF8",
            "prepare_threshold": None,
            "row_factory": dict_row,
        },
    )


async def read_ledger(
    pool: AsyncConnectionPool[Any], query: str, values: dict[str, Any]
) -> list[dict[str, Any]]:
    """Rows of a named query. Problem 503 where PostgreSQL is away or has no ledger for us yet."""
    try:
        async with pool.connection() as connection:
            cursor = await connection.execute(QUERIES[query], values)
            rows: list[dict[str, Any]] = await cursor.fetchall()
            return rows
    except _AWAY as error:
        why = " ".join(str(error).split())
        raise Problem("unavailable", f"the ledger can't be read right now: {why}") from None


def _encode_cursor(row: dict[str, Any]) -> str:
    text = ".".join(str(row[name]) for name in _PLACE)
    return urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _decode_cursor(text: str) -> tuple[int, ...]:
    try:
        padded = text + "=" * (-len(text) % 4)
        place = tuple(int(part) for part in urlsafe_b64decode(padded).decode("ascii").split("."))
    except ValueError:
        place = ()
    if len(place) != len(_PLACE) or not all(0 <= part < 2**53 for part in place):
        raise Problem(
            "invalid_request", f"cursor: got {text[:80]!r}; send a next_cursor as it came"
        )
    return place


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 4 and 1 <= int(text) <= LIMIT_MAX):
        raise Problem("invalid_request", f"limit: got {text[:80]!r}; it must be 1 to {LIMIT_MAX}")
    return int(text)


async def get_movements(call: Call) -> Reply:
    """The audit trail, oldest first."""
    given: dict[str, str] = {}
    for name, value in call.query(_PARAMETERS):
        if name in given:
            raise Problem("invalid_request", f"{name}: named twice; name it once")
        given[name] = value
    for name in _FILTERS:
        if any(ord(character) < 32 for character in given.get(name, "")):
            raise Problem("invalid_request", f"{name}: holds a control character")
    limit = _limit(given.get("limit", "100"))
    after = _decode_cursor(given["cursor"]) if "cursor" in given else _START
    values = {name: given.get(name) for name in _FILTERS}
    place = dict(zip(_PLACE, after, strict=True))
    rows = await read_ledger(
        call.state.ledger, "audit_trail", {**values, **place, "limit": limit + 1}
    )
    for row in rows:
        row["occurred_at"] = rfc3339(round(row["occurred_at"].timestamp() * 1000))
    more = len(rows) > limit
    cursor = _encode_cursor(rows[limit - 1]) if more else None
    return json_reply(200, {"movements": rows[:limit], "next_cursor": cursor})
