"""What became of reservations, as their events tell it, long after Redis has forgotten them."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from engine.events import ADOPT, Event
from engine.statuses import State
from persister.live import ENDING, Live, adopted, apply, change

Place = tuple[int, int, int]


class Life(msgspec.Struct):
    """A reservation from its reserve on, or from where a ledger took it over that had lost that; ``held``
    what it held, and what was taken of each line."""

    held: Live
    status: State = State.HELD


def lives(events: Iterable[Event]) -> dict[Place, Life]:
    """The lives in these events, by partition, epoch and seq of the event that began each.

    The events of a partition in order, those of a reservation all of them. An id that is used again once
    it is forgotten begins another life. One that ended where the ledger has lost events is left out.
    """
    found: dict[Place, Life] = {}
    current: dict[tuple[int, str], Life] = {}
    places: dict[tuple[int, str], Place] = {}
    for event in events:
        if event.reservation_id is None:
            continue
        key = (event.partition, event.reservation_id)
        place = (event.partition, event.epoch, event.seq)
        if event.type == ADOPT and key in current and _ended_unseen(current[key], event):
            del current[key], found[places[key]]
        if event.type == "reserve":
            begun: dict[str, Live] = {}
            apply(event, begun)
            current[key] = found[place] = Life(begun[event.reservation_id])
            places[key] = place
        elif key in current and current[key].status is State.HELD:
            _go_on(current[key], event)
        elif event.type == ADOPT and event.status is not None:
            current[key] = found[place] = Life(adopted(event), event.status)
            places[key] = place
    return found


def _ended_unseen(life: Life, event: Event) -> bool:
    """Has this life ended where the ledger lost events? No event tells how: Redis had forgotten it, or has
    another one under its id."""
    is_another = event.status is not None and event.created_ms != life.held.created_ms
    return life.status is State.HELD and (event.status is None or is_another)


def _go_on(life: Life, event: Event) -> None:
    if event.type == ADOPT and event.status is not None:
        life.held = adopted(event)
    if event.type in ("extend", "confirm", "release"):
        change(event, life.held)
    if event.status not in ENDING:
        return
    life.status = State(event.status or "")
    if event.type == "repair":  # it may have had no units to tell of
        for line in life.held.lines:
            line.released = line.quantity - line.confirmed
