"""Tell the ledger, by ``adopt`` events, what Redis has and the events that it has lost had told.

The partition is closed and everything else is read, so both sides stand still. Each slice is told, then
written into the ledger, before the next one is looked at: whoever is killed begins anew and finds what is
left. Redis keeps its units; where a seq differs alone, that is told, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
from redis import Redis

from engine import keys
from engine.errors import StoreError
from engine.partitions import read_head
from engine.reservations import STATES, Record
from engine.scripts import Scripts
from engine.statuses import State
from persister.differences import Counters
from persister.holes import Adoption
from persister.ledger import Ledger
from persister.live import Live
from persister.readable import read_outbox
from persister.rebuild import in_calls
from persister.reconcile_reservations import agrees, left_of, lines_of, parts_of, readable
from persister.sides import SLICE, Name, Sides

EVENT_LINES_MAX = 2_000
_QUANTITY_MAX = 1_000_000_000
_encode = msgspec.msgpack.Encoder().encode
_Told = list[Any]


class TakeOver:
    """Of one partition. ``opening``: the epoch that was noted for these events. ``on_slice`` is called
    again and again, with how many reservations and stock records were looked at."""

    def __init__(
        self,
        redis: Redis,
        scripts: Scripts,
        ledger: Ledger,
        adoption: Adoption,
        opening: int,
        on_slice: Callable[[int], None],
    ) -> None:
        self._redis = redis
        self._scripts = scripts
        self._ledger = ledger
        self._adoption = adoption
        self._opening = opening
        self._on_slice = on_slice
        self._sides = Sides(redis, ledger.connection, ledger.partition, 0)
        self._hole = ledger.holes.to_tell(adoption)
        self._looked_at = 0
        self.reservations = 0
        self.stock_records = 0
        self.unreadable: set[str] = set()

    def run(self) -> None:
        """Reservations first: what their lines tell of held is no difference of stock any more."""
        for ids in self._ids():
            self._reservations(ids)
        for names in self._names():
            self._stock(names)
        if self._hole:  # what is missing had changed nothing that is still to be seen
            self._tell([self._event(())])

    def _ids(self) -> Iterator[list[str]]:
        after = ""
        while rows := self._sides.rows("live_slice", after=after, limit=SLICE):
            after = rows[-1][0]
            yield [row[0] for row in rows]
        prefix = keys.reservation(self._ledger.partition, "")
        for found in self._sides.scan(prefix + "*"):
            yield [key.decode(errors="replace").removeprefix(prefix) for key in found]

    def _names(self) -> Iterator[list[Name]]:
        for found in self._sides.scan(keys.stock_pattern(self._ledger.partition)):
            names = []
            for key in found:
                try:
                    names.append(keys.stock_name(key.decode()))
                except ValueError:
                    self.unreadable.add(key.decode(errors="replace"))
            yield names
        last: Name = ("", "")
        while rows := self._sides.rows("all_balances", sku=last[0], location=last[1], limit=SLICE):
            last = (rows[-1][0], rows[-1][1])
            yield list(rows)

    def _reservations(self, ids: Sequence[str]) -> None:
        values = dict(zip(ids, self._sides.values(ids), strict=True))
        live = self._sides.live(list(values))
        events = []
        for each, value in values.items():
            held = live.get(each)
            if agrees(value, held):
                continue
            record = readable(value)
            if record is None and value is not None:
                self.unreadable.add(each)
            else:
                events.append(self._reservation(each, record, held))
        self.reservations += len(events)
        self._tell(events)
        self._look(len(values))

    def _reservation(self, reservation_id: str, record: Record | None, live: Live | None) -> _Told:
        left = {(line.sku, line.location): left_of(line) for line in live.lines} if live else {}
        lines: list[str | int] = []
        for sku, location, quantity, stays in _lines(record, live):
            lines += (sku, location, quantity, 0, stays - left.get((sku, location), 0), 0)
        if record is not None:
            body = record.body
            texts = (body.order_id, body.customer_id)
            times = (record.created_ms, record.deadline_ms)
            what = (record.fingerprint, record.state, record.parts or [])
        else:
            assert live is not None
            texts = (live.order_id, live.customer_id or "")
            times = (live.created_ms, live.deadline_ms)
            what = (live.fingerprint, -1, parts_of(live) or [])
        return self._event(lines, (reservation_id, *texts, *times, *what))

    def _stock(self, names: Sequence[Name]) -> None:
        _, in_redis = self._sides.counters(names)
        in_ledger = self._sides.balances(names)
        self._ledger.connection.commit()
        lines: list[str | int] = []
        for name, redis in in_redis.items():
            kept = in_ledger.get(name)
            if redis is None and self._redis.exists(keys.stock(self._ledger.partition, *name)):
                self.unreadable.add(f"{name[0]} at {name[1]}")
                continue
            drift = _drift(redis, kept)
            if drift is not None:
                lines += (*name, min(max(map(abs, drift)), _QUANTITY_MAX), *drift)
        count = len(lines) // 6
        self.stock_records += count
        step = EVENT_LINES_MAX * 6
        self._tell([self._event(lines[i : i + step]) for i in range(0, len(lines), step)])
        self._look(len(names))

    def _look(self, count: int) -> None:
        self._ledger.connection.commit()
        self._looked_at += count
        self._on_slice(self._looked_at)

    def _event(
        self, lines: Sequence[str | int], what: Sequence[Any] = ("", "", "", 0, 0, "", -1, [])
    ) -> _Told:
        """As lua/adopt.lua takes it. The first one tells the hole, by whom, and why."""
        hole, self._hole = self._hole, []
        adoption = self._adoption
        reason = f"adopted by {adoption.by}: {adoption.reason}" if hole else ""
        return [*what, hole, f"adoption-{adoption.adoption_id}", reason, list(lines)]

    def _tell(self, events: Sequence[_Told]) -> None:
        """Into the outbox, a bounded script call at a time, and on into the ledger."""
        partition = self._ledger.partition
        for part in in_calls(events, lambda event: len(event[-1]) // 6):
            head = read_head(self._redis, partition)
            answer: Any = self._scripts.call_sync(
                self._redis,
                "adopt",
                [keys.head(partition), keys.deadlines(partition), keys.outbox(partition)],
                [_encode(part), head.epoch, head.seq, self._opening],
            )
            if answer[0] != b"told":
                raise StoreError(
                    f"partition {partition}: it was opened or changed meanwhile; run 'holdfast ledger"
                    " adopt' again once nobody else writes to this Redis"
                )
            read_outbox(self._redis, self._scripts, self._ledger, self._ledger.position())


def _lines(record: Record | None, live: Live | None) -> Iterator[tuple[str, str, int, int]]:
    """Sku, location, quantity of each line, and what of it stays held."""
    if record is None:
        flat = lines_of(live) if live else []
        for i in range(0, len(flat), 3):
            yield str(flat[i]), str(flat[i + 1]), int(flat[i + 2]), 0
        return
    is_held = STATES[record.state] is State.HELD
    parts = record.parts or [0] * (2 * len(record.body.triples()))
    for i, (sku, location, quantity) in enumerate(record.body.triples()):
        yield sku, location, quantity, (quantity - parts[2 * i] - parts[2 * i + 1]) * is_held


def _drift(redis: Counters | None, ledger: Counters | None) -> tuple[int, int, int] | None:
    """Redis minus ledger; None where there is nothing to tell."""
    mine = redis or Counters(0, 0, 0, 0)
    kept = ledger or Counters(0, 0, 0, -1)
    if redis is not None and mine == kept:
        return None
    return (
        mine.on_hand - kept.on_hand,
        mine.held - kept.held,
        mine.quarantined - kept.quarantined,
    )
