"""``GET /v1/movements``: the audit trail, from the ledger."""

from __future__ import annotations

from typing import Any

from api.asgi import Call
from api.cursors import (
    Places,
    advance,
    as_arrays,
    begin,
    encode_places,
    limit_of,
    parameters,
    places_of,
    since_of,
)
from api.ledger_reader import Connection, fetch
from api.problems import Problem, Reply, json_reply
from api.schema import rfc3339
from engine.events import TYPES

_FILTERS = ("sku", "location", "type", "reservation_id", "order_id")


async def get_movements(call: Call) -> Reply:
    """The audit trail, oldest first. Its cursor never ends: an empty page means caught up."""
    given = parameters(call, (*_FILTERS, "since"))
    limit, places, since = limit_of(given), places_of(given), since_of(given)
    filters = {name: given.get(name) for name in _FILTERS}
    if filters["type"] is not None and filters["type"] not in TYPES:
        raise Problem(
            "invalid_request",
            f"type: got {filters['type'][:80]!r}; it must be one of {', '.join(sorted(TYPES))}",
        )
    asked = any(value is not None for value in filters.values())
    query = "movements_matching" if asked else "movements_after"

    async def read(connection: Connection) -> tuple[Places, list[dict[str, Any]]]:
        begun = await begin(connection, places, since)
        values = {**filters, **as_arrays(begun), "since": since, "limit": limit}
        return begun, await fetch(connection, query, values)

    begun, rows = await call.state.ledger.within(call, read)
    cursor = encode_places(advance(begun, rows))
    for row in rows:
        row["occurred_at"] = rfc3339(round(row["occurred_at"].timestamp() * 1000))
    return json_reply(200, {"movements": rows, "next_cursor": cursor})
