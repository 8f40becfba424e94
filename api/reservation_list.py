"""``GET /v1/reservations``: those of an order or a customer, from the ledger."""

from __future__ import annotations

from typing import Any

from api.asgi import Call
from api.cursors import (
    Places,
    advance,
    as_arrays,
    encode_places,
    limit_of,
    parameters,
    places_of,
)
from api.ledger_reader import Connection, fetch
from api.problems import Problem, Reply, json_reply
from api.schema import ReservationOut, reservation_out
from engine.events import from_json
from engine.model import Reservation, ReservationLine
from engine.statuses import State
from persister.lives import Life, Place, lives

#: A page ends behind the reservation that makes it so long, whatever its limit.
LINES_A_PAGE = 20_000
_SLICE = 25


async def get_reservations(call: Call) -> Reply:
    """In the order in which they were made; as ``GET /v1/reservations/{id}`` reads each, but of all time."""
    given = parameters(call, ("order_id", "customer_id", "status"))
    if "order_id" not in given and "customer_id" not in given:
        raise Problem("invalid_request", "name an order_id or a customer_id")
    if "status" in given and given["status"] not in set(State):
        raise Problem(
            "invalid_request",
            f"status: got {given['status'][:80]!r}; it must be one of {', '.join(State)}",
        )
    page = _Page(limit_of(given), given.get("status"), places_of(given))
    asked = {name: given.get(name) for name in ("order_id", "customer_id")}

    async def read(connection: Connection) -> None:
        await page.fill(connection, asked)

    await call.state.ledger.within(call, read)
    return json_reply(
        200, {"reservations": page.reservations, "next_cursor": encode_places(page.places)}
    )


class _Page:
    """A page that is being filled; ``places`` where it ends."""

    def __init__(self, limit: int, status: str | None, places: Places) -> None:
        self._limit = limit
        self._status = status
        self._lines = 0
        self.places = places
        self.reservations: list[ReservationOut] = []

    async def fill(self, connection: Connection, asked: dict[str, str | None]) -> None:
        """Until it is full or there are no more."""
        while True:
            values = {**asked, **as_arrays(self.places), "limit": self._limit}
            begun = await fetch(connection, "reservations_begun", values)
            for first in range(0, len(begun), _SLICE):
                if await self._add(connection, begun[first : first + _SLICE]):
                    return
            if len(begun) < self._limit:
                return

    async def _add(self, connection: Connection, begun: list[dict[str, Any]]) -> bool:
        """Add those that began with these rows; True once the page is full."""
        ids = [row["reservation_id"] for row in begun]
        events = await fetch(connection, "events_of_reservations", {"ids": ids})
        found = lives(from_json(row["body"].encode()) for row in events)
        for row in begun:
            self.places = advance(self.places, [row])
            place: Place = (row["partition"], row["epoch"], row["seq"])
            life = found.get(place)
            if life is None:
                continue  # it began earlier, or no event stands for the row: 'holdfast audit' tells
            told = _told(life, events[0]["now_ms"])
            if self._status is not None and told.status != self._status:
                continue
            self.reservations.append(reservation_out(told))
            self._lines += len(told.lines)
            if len(self.reservations) == self._limit or self._lines >= LINES_A_PAGE:
                return True
        return False


def _told(life: Life, now_ms: int) -> Reservation:
    held, status = life.held, life.status
    if status is State.HELD and held.deadline_ms <= now_ms:
        status = State.EXPIRED
    return Reservation(
        reservation_id=held.reservation_id,
        order_id=held.order_id,
        customer_id=held.customer_id,
        status=status,
        lines=tuple(
            [
                ReservationLine(
                    line.sku, line.location, line.quantity, line.confirmed, line.released
                )
                for line in held.lines
            ]
        ),
        created_ms=held.created_ms,
        expires_ms=held.deadline_ms,
    )
