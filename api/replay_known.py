"""What of a plan was played before, by the ledger: Redis forgets ids after a day, the ledger never does.

The ledger must have all that Redis has decided (:func:`events_behind`). Two replays at once are told apart
by Redis, by the same ids.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import msgspec
from redis import Redis

from api.order_ids import Ids
from api.orders import Movement, Plan, Sale
from api.replay_summary import Changed, Known
from engine.partitions import read_head
from persister.database import QUERIES, Connection

_SLICE = 2_000
_DIFFERENCES_SHOWN = 3
_LEDGER_PATIENCE_S = 60.0


class _Sold(msgspec.Struct):
    """What the ledger has as paid for under a reservation's id: units by sku and location."""

    customer_id: str | None
    units: dict[tuple[str, str], int]


class _Moved(msgspec.Struct, frozen=True):
    """A movement of the ledger, told as a difference where the file hasn't got it."""

    type: str
    sku: str
    location: str
    quantity: int


def what_is_new(plan: Plan, connection: Connection) -> tuple[Plan, Known]:
    """The plan without what the ledger has, and what that is.

    An order of which anything that was played isn't in the file like that any more is left out whole,
    and told. Lines that came to a cancellation, a write-off or found stock are new ones.
    """
    orders: dict[str, list[Sale | Movement]] = defaultdict(list)
    for unit in plan.units:
        orders[unit.order_id if isinstance(unit, Sale) else unit.reference].append(unit)
    ids = Ids(plan.namespace)
    reservations = {order: ids.reservation(ids.invoice(order)) for order in orders}
    sold = _sold(connection, list(reservations.values()))
    moved = _moved(connection, list(orders), ids)
    opened = _opened(connection, [each.sku for each in plan.openings], plan.location)
    connection.commit()
    changed: list[Changed] = []
    passed_over: set[str] = set()
    sales = others = 0
    for order, units in orders.items():
        before, movements = sold.get(reservations[order]), moved.get(order, {})
        if differences := list(_differences(units, before, movements, plan.location)):
            more = len(differences) - _DIFFERENCES_SHOWN
            told = "; ".join(differences[:_DIFFERENCES_SHOWN])
            changed.append(Changed(order, told + (f"; {more} more" if more > 0 else "")))
            passed_over.update([_id(unit) for unit in units])
            continue
        others += len(movements)
        passed_over |= movements.keys()
        if before:
            sales += 1
            passed_over.add(reservations[order])
    openings = tuple([each for each in plan.openings if each.sku not in opened])
    others += len(plan.openings) - len(openings)
    rest = tuple([unit for unit in plan.units if _id(unit) not in passed_over])
    return (
        msgspec.structs.replace(plan, openings=openings, units=rest),
        Known(sales, others, tuple(changed)),
    )


def _id(unit: Sale | Movement) -> str:
    return unit.reservation_id if isinstance(unit, Sale) else unit.movement_id


def _differences(
    units: Sequence[Sale | Movement],
    before: _Sold | None,
    movements: dict[str, _Moved],
    location: str,
) -> Iterator[str]:
    """What of an order was played otherwise than the file says now."""
    sale = next((unit for unit in units if isinstance(unit, Sale)), None)
    if before:
        now = {(sku, location): units for sku, units in sale.lines.items()} if sale else {}
        for place in sorted(before.units.keys() | now.keys()):
            had, has = before.units.get(place, 0), now.get(place, 0)
            if had != has:
                yield f"{place[0]} at {place[1]}: {had:,} were sold, the file says {has:,}"
        if sale and sale.customer_id != before.customer_id:
            yield f"customer {before.customer_id}, the file says {sale.customer_id}"
    there = {unit.movement_id for unit in units if isinstance(unit, Movement)}
    for movement_id, was in movements.items():
        if movement_id not in there or was.location != location:
            yield (
                f"{was.type} of {was.quantity:,} {was.sku} at {was.location}"
                " was played, the file hasn't it"
            )


def _sold(connection: Connection, ids: Sequence[str]) -> dict[str, _Sold]:
    found: dict[str, _Sold] = {}
    for first in range(0, len(ids), _SLICE):
        rows = connection.execute(QUERIES["confirmed_by"], {"ids": ids[first : first + _SLICE]})
        for reservation_id, sku, location, quantity, customer_id in rows:
            sale = found.setdefault(reservation_id, _Sold(customer_id, {}))
            sale.units[sku, location] = quantity
    return found


def _moved(connection: Connection, orders: Sequence[str], ids: Ids) -> dict[str, dict[str, _Moved]]:
    """By order and id; those of others that name the same reference are not in it."""
    found: dict[str, dict[str, _Moved]] = defaultdict(dict)
    rows = connection.execute(QUERIES["movements_of_references"], {"references": list(orders)})
    for movement_id, reference, *content in rows:
        if ids.is_movement(movement_id):
            found[reference][movement_id] = _Moved(*content)
    return found


def _opened(connection: Connection, skus: Sequence[str], location: str) -> set[str]:
    values = {"skus": list(skus), "location": location, "reference": "opening"}
    return {sku for (sku,) in connection.execute(QUERIES["received_as"], values)}


def events_behind(
    redis: Redis,
    connection: Connection,
    partitions: int,
    on_wait: Callable[[int], None],
    patience_s: float = _LEDGER_PATIENCE_S,
) -> tuple[int, str]:
    """Wait until the ledger has all that Redis had decided when this was called.

    How many events it is behind (0 unless it has stopped, or has come no nearer for ``patience_s``), and
    why it has stopped. ``on_wait`` is told while there are some.
    """
    wanted = {number: read_head(redis, number).position[1] for number in range(partitions)}
    nearest, moved_s = sum(wanted.values()) + 1, time.monotonic()
    while True:
        positions = {row[0]: row for row in connection.execute(QUERIES["positions"])}
        connection.commit()
        seqs = {number: positions[number][2] for number in wanted.keys() & positions.keys()}
        behind = sum(max(0, seq - seqs.get(number, 0)) for number, seq in wanted.items())
        stopped = next((positions[n][3] for n in seqs if positions[n][3]), None)
        if not behind or stopped or time.monotonic() - moved_s > patience_s:
            return behind, stopped or ""
        if behind < nearest:
            nearest, moved_s = behind, time.monotonic()
        on_wait(behind)
        time.sleep(0.1)
