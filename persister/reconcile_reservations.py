"""Live reservations of the ledger against the held ones in Redis, each at its own seq.

Most are the same on both sides at the first look. The others may be on their way from one side to the
other, so they are judged only after: read Redis, wait until the ledger has come as far, read the ledger
in one snapshot, read Redis again. What is unchanged then was so at that snapshot, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from engine import keys
from engine.events import from_json
from engine.reservations import STATES, Record, is_whole, read_record
from engine.statuses import State
from persister.differences import Difference, Hold, Kind
from persister.live import Live, LiveLine, apply
from persister.sides import SLICE, Sides

_AUDIT = "the ledger's side, no event mends it: run 'holdfast audit'"
ROUNDS_MAX = 100
_Value = bytes | Exception | None
_Held = dict[tuple[str, str], int]


def readable(value: _Value) -> Record | None:
    """The record of kept bytes, if a script could read them: its checksums are right."""
    if not isinstance(value, bytes):
        return None
    try:
        record = read_record(value)
        known = is_whole(value, record) and 0 <= record.state < len(STATES)
        return record if known and hold_of_record(record) else None
    except (msgspec.MsgspecError, ValueError, IndexError, TypeError):
        return None


def hold_of_record(record: Record) -> Hold:
    """A reservation of Redis as it is told."""
    parts = record.parts or [0] * (2 * len(record.body.triples()))
    lines = [
        (sku, location, quantity - parts[2 * i] - parts[2 * i + 1])
        for i, (sku, location, quantity) in enumerate(record.body.triples())
    ]
    return Hold(STATES[record.state], record.seq, record.deadline_ms, tuple(lines))


def left_of(line: LiveLine) -> int:
    """What is left of a line of a live reservation, in units."""
    return line.quantity - line.confirmed - line.released


def hold_of_live(live: Live) -> Hold:
    """A live reservation of the ledger as it is told."""
    lines = tuple((line.sku, line.location, left_of(line)) for line in live.lines)
    return Hold(State.HELD, live.seq, live.deadline_ms, lines)


def parts_of(live: Live) -> list[int] | None:
    """What was taken of each line, as Redis keeps it; None while nothing was."""
    flat = [taken for line in live.lines for taken in (line.confirmed, line.released)]
    return flat if any(flat) else None


def lines_of(live: Live) -> list[str | int]:
    """The lines as Redis keeps them."""
    return [part for line in live.lines for part in (line.sku, line.location, line.quantity)]


def _other(record: Record, live: Live) -> list[str]:
    """What is not the same in a held record and a live reservation of the same seq."""
    body = record.body
    parts = record.parts if any(record.parts or ()) else None
    pairs = {
        "lines": (body.lines, lines_of(live)),
        "what was taken": (parts, parts_of(live)),
        "deadline": (record.deadline_ms, live.deadline_ms),
        "creation": (record.created_ms, live.created_ms),
        "order": (body.order_id, live.order_id),
        "customer": (body.customer_id, live.customer_id or ""),
        "fingerprint": (record.fingerprint, live.fingerprint),
    }
    return [name for name, (redis, ledger) in pairs.items() if redis != ledger]


def agrees(value: _Value, live: Live | None) -> bool:
    """Is this all right as it is, whatever is on its way?"""
    record = readable(value)
    if record is None:
        return value is None and live is None
    if live is None:
        return STATES[record.state] is not State.HELD
    same = STATES[record.state] is State.HELD and record.seq == live.seq
    return same and not _other(record, live)


class ReservationRun:
    """The comparison of all reservations of a partition."""

    def __init__(self, sides: Sides) -> None:
        self._sides = sides
        self._suspicious: dict[str, None] = {}
        self._behind: list[str] = []
        self._behind_count = 0
        self._found: dict[str, Difference] = {}  # SCAN may name a key twice
        self.checked = 0

    @property
    def differences(self) -> list[Difference]:
        found = list(self._found.values())
        if self._behind_count:
            detail = (
                f"the ledger did not come as far as Redis, or it never stood still, and so with"
                f" {self._behind_count - 1} others"
            )
            found.append(
                Difference(
                    kind=Kind.LEDGER_BEHIND,
                    partition=self._sides.partition,
                    reservation_id=self._behind[0],
                    detail=detail,
                )
            )
        return found

    def run(self, on_progress: Callable[[int], None]) -> None:
        """Those the ledger has live, then those that Redis has held."""
        after = ""
        while rows := self._sides.rows("live_slice", after=after, limit=SLICE):
            self._sides.connection.commit()
            after = rows[-1][0]
            self._compare([row[0] for row in rows])
            self.checked += len(rows)
            on_progress(self.checked)
        self._sides.connection.commit()
        prefix = keys.reservation(self._sides.partition, "")
        for found in self._sides.scan(prefix + "*"):
            self._compare([key.decode(errors="replace").removeprefix(prefix) for key in found])
        self._look_at_suspicious()

    def _compare(self, ids: Sequence[str]) -> None:
        """Compare these; what does not agree at the first look is looked at closely."""
        if not ids:
            return
        values = dict(zip(ids, self._sides.values(ids), strict=True))
        live = self._sides.live(list(values))
        self._sides.connection.commit()
        wrong = [i for i, value in values.items() if not agrees(value, live.get(i))]
        self._suspicious |= dict.fromkeys(i for i in wrong if i not in self._found)
        if len(self._suspicious) >= SLICE:
            self._look_at_suspicious()

    def _look_at_suspicious(self) -> None:
        """Many at once: each look waits for the ledger."""
        ids, self._suspicious = list(self._suspicious), {}
        self._look_closely(ids)

    def _look_closely(self, ids: list[str]) -> None:
        sides = self._sides
        for round_ in range(ROUNDS_MAX):
            if not ids:
                return
            before = sides.head_seq()
            first = dict(zip(ids, sides.values(ids), strict=True))
            head_seq = sides.head_seq()
            sides.wait_for_ledger(head_seq)
            with sides.snapshot():
                reached = sides.ledger_seq()
                live = sides.live(ids)
                again = dict(zip(ids, sides.values(ids), strict=True))
                later = []
                for each in ids:
                    value, held = first[each], live.get(each)
                    if agrees(value, held):
                        continue
                    if _stands(value, again[each], held, before, head_seq, reached):
                        self._judge(each, value, held)
                    else:
                        later.append(each)
            if sides.patience_s <= 0 or round_ == ROUNDS_MAX - 1:
                self._behind = self._behind or later[:1]
                self._behind_count += len(later)
                return
            ids = later

    def _judge(self, reservation_id: str, value: _Value, live: Live | None) -> None:
        record = readable(value)
        why, kind, mendable = "", Kind.COUNTER_DRIFT, True
        if record is None and live is None:
            kind, mendable = Kind.ORPHAN_RESERVATION, False
            why = "its value can't be read, and the ledger has no such live reservation"
        elif record is None:
            kind = Kind.MISSING_IN_REDIS
            why = "no such key in Redis" if value is None else "its value in Redis can't be read"
        elif live is None:
            kind = Kind.ORPHAN_RESERVATION
            why = f"held in Redis since seq {record.seq}; the ledger has come further, and has no such"
        elif live.seq > record.seq:
            why = f"Redis has it as of seq {record.seq}, the ledger of {live.seq}"
        elif record.state or live.seq < record.seq:
            kind, mendable = Kind.MISSING_IN_LEDGER, False
            why = (
                f"{STATES[record.state]} in Redis at seq {record.seq}; the ledger has gone past it"
                " without that event"
            )
        else:
            why = f"at seq {record.seq} these differ: {', '.join(_other(record, live))}"
        if record is not None or live is not None:
            wrong = self._wrong_row(reservation_id, live, kind)
            why, mendable = wrong or why, mendable and not wrong
        self._found[reservation_id] = Difference(
            kind=kind,
            partition=self._sides.partition,
            reservation_id=reservation_id,
            redis=hold_of_record(record) if record else None,
            ledger=hold_of_live(live) if live else None,
            detail=why,
            repairable=mendable,
        )

    def _wrong_row(self, reservation_id: str, live: Live | None, kind: Kind) -> str:
        """Is it the ledger's own fault? What to say then."""
        rows = self._sides.rows("held_by", ids=[reservation_id])
        held: _Held = {(sku, location): units for _, sku, location, units in rows}
        kept = _held_of(live.lines if live else ())
        if held != kept:
            return f"its row among the live ones holds {_text(kept)}, its movements {_text(held)}: {_AUDIT}"
        if live is not None and kind in (Kind.COUNTER_DRIFT, Kind.MISSING_IN_LEDGER):
            told: dict[str, Live] = {}
            for (body,) in self._sides.rows("events_of_reservation", reservation_id=reservation_id):
                apply(from_json(body.encode()), told)
            if told.get(reservation_id) != live:
                return f"its row among the live ones is not what its events tell: {_AUDIT}"
        return ""


def _stands(
    value: _Value, again: _Value, live: Live | None, before: int, head_seq: int, reached: int
) -> bool:
    """Can this be judged by what was read?

    ``before`` and ``head_seq`` are head's seq before and after Redis was read the first time,
    ``reached`` the ledger's in the snapshot between that and the second time.
    """
    record = readable(value)
    if record is not None:
        return value == again and record.seq <= reached
    unchanged = value == again if isinstance(value, bytes) else type(value) is type(again)
    # Gone: ended, and forgotten after retention? Not if its last event is from before the first look
    # and the ledger, come further than that, still has it live.
    return unchanged and reached >= head_seq and (live is None or live.seq <= before)


def _held_of(lines: Iterable[LiveLine]) -> _Held:
    held: _Held = {}
    for line in lines:
        at = (line.sku, line.location)
        held[at] = held.get(at, 0) + left_of(line)
    return {at: units for at, units in held.items() if units}


def _text(held: _Held) -> str:
    told = [f"{units} of {sku} at {location}" for (sku, location), units in sorted(held.items())]
    return ", ".join(told[:3]) + (" …" if len(told) > 3 else "") if told else "nothing"
