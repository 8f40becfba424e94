"""What became of the units of a reservation: ``3 of 4 units were confirmed, 1 was released``."""

from __future__ import annotations

from engine.model import Reservation
from engine.statuses import State


def counts_of(r: Reservation) -> str:
    """How many units were confirmed, released, expired or are still held, as far as there are such."""
    total = sum([line.quantity for line in r.lines])
    confirmed = sum([line.confirmed for line in r.lines])
    released = sum([line.released for line in r.lines])
    rest = total - confirmed - released
    counted = [
        (confirmed, "was confirmed", "were confirmed"),
        (released, "was released", "were released"),
        (rest, "is still held", "are still held")
        if r.status is State.HELD
        else (rest, "expired", "expired"),
    ]
    told = [(count, one if count == 1 else many) for count, one, many in counted if count]
    if not told:
        return ""
    count, what = told[0]
    if count == total:
        return f"its 1 unit {what}" if total == 1 else f"all {total} units {what}"
    others = [f", {count} {what}" for count, what in told[1:]]
    return f"{count} of {total} units {what}" + "".join(others)
