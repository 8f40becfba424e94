"""Events of the ledger put back into Redis, by lua/replay.lua: what healing and restoring share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import msgspec
from redis import Redis

from engine import keys
from engine.errors import LedgerError, StoreError
from engine.events import ADOPT, Event, from_json
from engine.queue import COMMANDS_MAX, LINES_MAX
from engine.reservations import STATES, as_string, tail_of
from engine.scripts import Scripts
from engine.settings import Settings
from persister.database import QUERIES, Connection
from persister.holes import Hole, spans

FETCH = 2_000
_encode = msgspec.msgpack.Encoder().encode
_Event = TypeVar("_Event")


def packed(event: Event, *, has_units: bool = False) -> tuple[object, ...]:
    """An event as lua/replay.lua takes it. ``has_units``: what it tells of units is there already."""
    lines: list[str | int] = []
    body: list[str | int] = []
    for line in event.lines:
        lines += (line.sku, line.location, line.quantity)
        body += (line.sku, line.location, line.quantity)
        deltas = (line.on_hand_delta, line.held_delta, line.quarantined_delta)
        lines += (0, 0, 0) if has_units else deltas
    name = event.reservation_id or event.movement_id or ""
    common = (event.type, event.epoch, event.seq, event.at_ms, name, lines)
    if event.type in ("reserve", ADOPT):
        order, customer = event.order_id or "", event.customer_id or ""
        tail = as_string(tail_of(order, customer, body, event.fingerprint or ""))
    if event.type == "reserve":
        return (*common, event.deadline_ms, tail)
    if event.type == "extend":
        return (*common, event.deadline_ms)
    state = -1 if event.status is None else STATES.index(event.status)
    if event.type == ADOPT:
        return (*common, state, event.deadline_ms, event.created_ms, tail, event.parts or ())
    if event.type == "repair":
        return (*common, state)
    if event.reservation_id is not None:
        return (*common, event.request_id or "", event.fingerprint or "", state)
    return (*common, event.fingerprint or "")


class Rebuild:
    """Brings one closed partition of ``redis`` to later events of the ledger.

    ``with_due``: holds are put on the lists of their deadlines too; without it the caller does that.
    ``holes``: of this partition. ``had``: the seq of the head it begins at where that is a Redis' own: one
    that had lived through the events of a hole has the units that the adoption of it tells. None where it
    begins with what the ledger had.
    """

    def __init__(
        self,
        redis: Redis,
        scripts: Scripts,
        partition: int,
        settings: Settings,
        *,
        with_due: bool,
        holes: Sequence[Hole] = (),
        had: int | None = None,
    ) -> None:
        self._redis = redis
        self._scripts = scripts
        self._keys = [
            keys.head(partition),
            keys.deadlines(partition),
            keys.outbox(partition),
        ]
        self._partition = partition
        self._options = (settings.retention_ms, settings.lifetime_max_ms, int(with_due))
        self._holes = holes
        self._spans = spans(holes)
        self._had = had
        self.damaged: set[str] = set()

    def replay(self, events: Iterable[Event], on_progress: Callable[[int], None]) -> int:
        """Apply events in order, the first one head's next; how many. Each call is atomic, so whoever
        is killed between two goes on from head. StoreError where the partition was opened or changed
        meanwhile."""
        count = 0
        for part in in_calls(events, lambda event: len(event.lines), _follows):
            wire = _encode([packed(event, has_units=self._has_units(event)) for event in part])
            hole = self._hole_before(part[0].seq)
            answer: Any = self._scripts.call_sync(
                self._redis, "replay", self._keys, [wire, *self._options, *hole]
            )
            if answer[0] != b"replayed":
                raise StoreError(
                    f"partition {self._partition}: its head is not at the event before"
                    f" {part[0].epoch}-{part[0].seq}, or it was opened: somebody else writes to this Redis"
                )
            self.damaged |= {key.decode(errors="replace") for key in answer[1]}
            count += len(part)
            on_progress(count)
        return count

    def _hole_before(self, seq: int) -> tuple[int | str, int | str]:
        for hole in self._holes:
            if hole.to_seq == seq - 1 and (self._had is None or self._had < hole.to_seq):
                return hole.from_seq, hole.to_seq
        return "", ""

    def _has_units(self, event: Event) -> bool:
        if event.type != ADOPT or self._had is None:
            return False
        span = max((each for each in self._spans if each.to_seq < event.seq), default=None)
        return span is not None and self._had >= span.to_seq


def in_calls(
    events: Iterable[_Event],
    lines_of: Callable[[_Event], int],
    follows: Callable[[_Event, _Event], bool] = lambda before, event: True,
) -> Iterator[list[_Event]]:
    """What goes into one script call each: 512 events, about 4,000 lines, as long as each follows."""
    part: list[_Event] = []
    lines = 0
    for event in events:
        count = lines_of(event)
        is_full = len(part) == COMMANDS_MAX or lines + count > LINES_MAX
        if part and (is_full or not follows(part[-1], event)):
            yield part
            part, lines = [], 0
        part.append(event)
        lines += count
    if part:
        yield part


def _follows(before: Event, event: Event) -> bool:
    """Not behind a hole?"""
    return event.seq == before.seq + 1


def events_from(connection: Connection, partition: int, epoch: int, seq: int) -> Iterator[Event]:
    """The ledger's events from a place on, in order, in bounded memory. LedgerError where one can't be
    read."""
    with connection.cursor(name=f"rebuild_{partition}") as cursor:
        cursor.itersize = FETCH
        values = {"partition": partition, "epoch": epoch, "seq": seq}
        cursor.execute(QUERIES["events_from"], values)
        for at_epoch, at_seq, body in cursor:
            try:
                yield from_json(body.encode())
            except msgspec.MsgspecError as error:
                raise LedgerError(
                    f"event {at_epoch}-{at_seq} of the ledger can't be read ({error}): run"
                    " 'holdfast audit'"
                ) from None
