"""What became of reservations, as their events tell it, long after Redis has forgotten them."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from engine.events import ADOPT, Event
from engine.statuses import State
from persister.live import ENDING, Live, begun, change

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
    latest: dict[tuple[int, str], Place] = {}
    for event in events:
        if event.reservation_id is None:
            continue
        key = (event.partition, event.reservation_id)
        life = found.get(latest[key]) if key in latest else None
        if life is not None and event.type == ADOPT and _ended_unseen(life, event):
            life = None
            del found[latest[key]]
        if life is not None and life.status is State.HELD and event.type != "reserve":
            _go_on(life, event)
        elif event.type == "reserve" or (event.type == ADOPT and event.status is not None):
            latest[key] = (event.partition, event.epoch, event.seq)
            found[latest[key]] = Life(begun(event), event.status or State.HELD)
    return found


def _ended_unseen(life: Life, event: Event) -> bool:
    """Has this life ended where the ledger lost events? No event tells how: Redis had forgotten it, or has
    another one under its id."""
    is_another = event.status is not None and event.created_ms != life.held.created_ms
    return life.status is State.HELD and (event.status is None or is_another)


def _go_on(life: Life, event: Event) -> None:
    if event.type == ADOPT and event.status is not None:
        life.held = begun(event)
    if event.type in ("extend", "confirm", "release"):
        change(event, life.held)
    if event.status not in ENDING:
        return
    life.status = State(event.status or "")
    if event.type == "repair":  # it may have had no units to tell of
        for line in life.held.lines:
            line.released = line.quantity - line.confirmed
