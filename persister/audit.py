"""Audit: does the ledger prove itself? Reads every event once, in order.

Checked for each partition: the chain of hashes over the events, no gap in seq and no epoch that goes
back, each event's rows in ``movements`` (all of them, and no other), and that position, balances and
live reservations are what the events add up to; and that the triggers that refuse changes are there and
on. The first wrong row of each kind is named. What the events add up to is kept on disk
(persister/audit_totals.py), so memory grows neither with the history nor with what is held.
With ``since_ms`` only the events of that time and later are read, on from the hash of the one before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from typing import Any

import msgspec

from engine.events import Event, from_json
from persister.anchors import Anchor as Anchor
from persister.audit_since import begins_at, event_before
from persister.audit_tables import unprotected
from persister.audit_totals import Totals, side_by_side
from persister.chain import CHAIN_START, chain
from persister.database import QUERIES, Connection
from persister.holes import Hole, all_holes, hole_of
from persister.live import from_row

FETCH = 2_000
#: What a part of the history can't tell.
UNCHECKED = (
    "the events before that time, the totals of balances, and deadlines that were last extended before"
    " it: they need the whole history"
)


class Fault(StrEnum):
    """What can be wrong with a ledger."""

    UNREADABLE_EVENT = "unreadable_event"
    WRONG_IDENTITY = "wrong_identity"
    BROKEN_CHAIN = "broken_chain"
    GAP = "gap"
    WRONG_MOVEMENTS = "wrong_movements"
    WRONG_POSITION = "wrong_position"
    WRONG_BALANCE = "wrong_balance"
    WRONG_LIVE_RESERVATION = "wrong_live_reservation"
    WRONG_ANCHOR = "wrong_anchor"
    WRONG_HOLE = "wrong_hole"
    UNPROTECTED_TABLE = "unprotected_table"


class Finding(msgspec.Struct, frozen=True):
    """The first row of its kind that is wrong in a partition; of a table as a whole ``partition`` is
    None."""

    fault: Fault
    partition: int | None
    where: str
    detail: str


class Standing(msgspec.Struct, frozen=True):
    """How far the ledger of a partition has come by its position; ``stopped`` says why it does not go on."""

    epoch: int
    seq: int
    stopped: str | None


class AuditReport(msgspec.Struct, frozen=True, kw_only=True):
    """What an audit found. ``anchors``: the chain's head of each partition, for keeping elsewhere; the
    earlier one where that could not be checked. ``positions``: how far each partition has come, and
    whether it goes on, which is no finding. ``holes``: what is missing for good and was adopted: none
    either. ``since_ms``: audited from that time on only, and ``unchecked`` says what that left out."""

    events: int
    findings: list[Finding]
    anchors: dict[int, Anchor]
    positions: dict[int, Standing] = {}
    holes: list[Hole] = []
    since_ms: int | None = None
    unchecked: list[str] = []

    @property
    def clean(self) -> bool:
        return not self.findings


def audit(
    connection: Connection,
    *,
    anchors: Mapping[int, Anchor] | None = None,
    since_ms: int | None = None,
    on_progress: Callable[[int], None] = lambda events: None,
) -> AuditReport:
    """Audit every partition in one snapshot, and against ``anchors`` of an earlier time. With
    ``since_ms`` (ms since 1970) only the events from that time on, and what is kept along of them.

    psycopg's errors where it could not run.
    """
    earlier = anchors or {}
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        partitions = [row[0] for row in connection.execute(QUERIES["audit_partitions"])]
        partitions = sorted({*partitions, *earlier})
        audits = [_PartitionAudit(connection, p, earlier.get(p), since_ms) for p in partitions]
        for each in audits:
            each.run(on_progress)
        weak = unprotected(connection)
        holes = _known_holes(connection)
    return AuditReport(
        events=sum(each.events for each in audits),
        findings=[
            *[Finding(Fault.UNPROTECTED_TABLE, None, table, detail) for table, detail in weak],
            *[finding for each in audits for finding in each.findings.values()],
        ],
        anchors={each.partition: each.next_anchor() for each in audits if each.head().seq},
        positions={each.partition: each.standing for each in audits if each.standing},
        holes=holes,
        since_ms=since_ms,
        unchecked=[
            *([] if since_ms is None else [UNCHECKED]),
            *[each.unchecked_anchor for each in audits if each.unchecked_anchor],
        ],
    )


def _known_holes(connection: Connection) -> list[Hole]:
    try:
        return all_holes(connection)
    except msgspec.MsgspecError:
        return []  # the partition's own audit tells


class _PartitionAudit:
    """The audit of one partition, inside one snapshot."""

    def __init__(
        self, connection: Connection, partition: int, anchor: Anchor | None, since_ms: int | None
    ) -> None:
        self._connection = connection
        self._since_ms = since_ms
        self._begins = (0, 0)
        self.unchecked_anchor = ""
        self._anchor = anchor
        self._anchored = False
        self.partition = partition
        self.events = 0
        self.findings: dict[Fault, Finding] = {}
        self.chained = CHAIN_START
        self._epoch = self._seq = 0
        self.standing: Standing | None = None
        self._holes: list[tuple[Any, ...]] = []
        self._totals = Totals(None if since_ms is None else self._earlier)

    def run(self, on_progress: Callable[[int], None]) -> None:
        with self._totals:
            self._run(on_progress)

    def _run(self, on_progress: Callable[[int], None]) -> None:
        if self._since_ms is not None:
            self._begin(self._since_ms)
        self._holes = list(self._rows("audit_holes"))
        movements = _Movements(self._rows("audit_movements"))
        for epoch, seq, kind, at_ms, body, kept_hash in self._rows("audit_events"):
            self._check_event(epoch, seq, kind, at_ms, body, bytes(kept_hash), movements)
            self.events += 1
            if self.events % FETCH == 0:
                on_progress(self.events)
        self._pass_holes(None)
        left = movements.left()
        if left:
            self._find(Fault.WRONG_MOVEMENTS, f"{left[0]}-{left[1]}", "a movement without an event")
        self._check_anchor()
        self._check_position()
        self._check_balances()
        self._check_live()

    def _begin(self, since_ms: int) -> None:
        """Take up the chain after the last event before ``since_ms``."""
        self._begins = begins_at(self._connection, self.partition, since_ms)
        before = event_before(self._connection, self.partition, self._begins)
        if before is None:
            return
        self._epoch, self._seq, self.chained = before
        anchor = self._anchor
        if anchor is not None and anchor.seq == self._seq:
            self._check_anchor()
        elif anchor is not None and anchor.seq < self._seq:
            self._anchored = True
            self.unchecked_anchor = (
                f"the anchor of partition {self.partition}: its event {anchor.epoch}-{anchor.seq} is"
                " before that time; it is kept as it is"
            )

    def head(self) -> Anchor:
        return Anchor(self._epoch, self._seq, self.chained.hex())

    def next_anchor(self) -> Anchor:
        """The head, or the earlier anchor where nothing shows that the head follows it."""
        return self._anchor if self._anchor and self.unchecked_anchor else self.head()

    def _check_anchor(self) -> None:
        """At the anchor's event, or at the end where that was never reached."""
        anchor = self._anchor
        if anchor is None or self._anchored:
            return
        self._anchored = True
        if self.head() != anchor:
            where = f"event {anchor.epoch}-{anchor.seq}"
            detail = f"the anchor says {anchor.hash}, the ledger has {self.head()}"
            self._find(Fault.WRONG_ANCHOR, where, detail)

    def _rows(self, query: str) -> Iterator[tuple[Any, ...]]:
        with self._connection.cursor(name=f"{query}_{self.partition}") as cursor:
            cursor.itersize = FETCH
            cursor.execute(QUERIES[query], self._place())
            yield from cursor

    def _place(self) -> dict[str, Any]:
        epoch, seq = self._begins
        return {"partition": self.partition, "epoch": epoch, "seq": seq}

    def _find(self, fault: Fault, where: str, detail: str) -> None:
        """Keep the first of each kind."""
        self.findings.setdefault(fault, Finding(fault, self.partition, where, detail))

    def _check_event(
        self,
        epoch: int,
        seq: int,
        kind: str,
        at_ms: int,
        body: str,
        kept_hash: bytes,
        movements: _Movements,
    ) -> None:
        where = f"event {epoch}-{seq}"
        self._pass_holes(seq)
        # Rows come in the order of epoch and seq, so an epoch that goes back is a seq that jumps.
        if seq != self._seq + 1:
            self._find(Fault.GAP, where, f"the event before it is {self._epoch}-{self._seq}")
        self._epoch, self._seq = epoch, seq
        if chain(self.chained, body.encode()) != kept_hash:
            self._find(
                Fault.BROKEN_CHAIN, where, "its hash is not that of its body and the hash before"
            )
        # On from what is kept, so that one changed row is found as one.
        self.chained = kept_hash
        if self._anchor is not None and seq == self._anchor.seq:
            self._check_anchor()
        rows = movements.of(epoch, seq)
        try:
            event = from_json(body.encode())
        except msgspec.MsgspecError as error:
            self._find(Fault.UNREADABLE_EVENT, where, str(error))
            return
        identity = (event.partition, event.epoch, event.seq, event.type, event.at_ms)
        if identity != (self.partition, epoch, seq, kind, at_ms):
            self._find(Fault.WRONG_IDENTITY, where, f"its body tells of {identity}")
        expected = list(_expected_movements(event))
        if rows != expected:
            self._find(Fault.WRONG_MOVEMENTS, where, f"its lines are {expected}, the rows {rows}")
        self._totals.add(event)

    def _pass_holes(self, next_seq: int | None) -> None:
        """Go on behind the holes that begin here: up to the next event, or at the end."""
        while self._holes and (next_seq is None or self._holes[0][0] < next_seq):
            from_seq, to_seq, adoption_id, body, kept_hash = self._holes.pop(0)
            where = f"hole {from_seq} to {to_seq}"
            if from_seq != self._seq + 1:
                detail = f"the event before it is {self._epoch}-{self._seq}"
                self._find(Fault.WRONG_HOLE, where, detail)
            if chain(self.chained, body.encode()) != bytes(kept_hash):
                detail = "its hash is not that of its body and the hash before"
                self._find(Fault.BROKEN_CHAIN, where, detail)
            told = (self.partition, from_seq, to_seq, adoption_id)
            try:
                hole = hole_of(body)
                said = (hole.partition, hole.from_seq, hole.to_seq, hole.adoption_id)
            except msgspec.MsgspecError as error:
                self._find(Fault.WRONG_HOLE, where, str(error))
            else:
                if said != told:
                    self._find(Fault.WRONG_HOLE, where, f"its body tells of {said}")
            self._seq, self.chained = to_seq, bytes(kept_hash)
            if self._anchor is not None and to_seq == self._anchor.seq:
                self._check_anchor()

    def _earlier(self, reservation_id: str) -> Iterator[Event]:
        """What events before the part say of a reservation; an extend leaves no movement to find it by."""
        values = {**self._place(), "reservation_id": reservation_id}
        for (body,) in self._connection.execute(QUERIES["audit_earlier"], values):
            try:
                yield from_json(body.encode())
            except msgspec.MsgspecError:
                continue  # before the part: for an audit of the whole

    def _check_position(self) -> None:
        found = (self._epoch, self._seq, self.chained.hex())
        for epoch, seq, kept_hash, stopped in self._rows("audit_position"):
            self.standing = Standing(epoch, seq, stopped)
            kept = (epoch, seq, bytes(kept_hash or b"").hex())
            if kept != found and (self._seq or seq):
                self._find(Fault.WRONG_POSITION, "positions", f"it says {kept}, the events {found}")
        if self.standing is None and self._seq:
            self._find(Fault.WRONG_POSITION, "positions", f"it is missing; the events say {found}")

    def _missing(self, else_where: str) -> str:
        return "it is missing" if self._since_ms is None else f"it is missing, or {else_where}"

    def _check_balances(self) -> None:
        known = slice(0 if self._since_ms is None else 3, None)
        kept = (((row[0], row[1]), list(row[2:])) for row in self._rows("audit_balances"))
        for (sku, location), numbers, total in side_by_side(kept, self._totals.balances()):
            where = f"balance of {sku} at {location}"
            if numbers is None:
                self._find(Fault.WRONG_BALANCE, where, self._missing("stands before the events"))
            elif total is None or total[known] != numbers[known]:
                detail = f"it says {numbers}, the events {total} (on_hand, held, quarantined, seq)"
                self._find(Fault.WRONG_BALANCE, where, detail)

    def _check_live(self) -> None:
        kept = ((row[0], from_row(row)) for row in self._rows("audit_live"))
        for reservation_id, row, expected in side_by_side(kept, self._totals.live()):
            where = f"live reservation {reservation_id}"
            if row is None:
                self._find(Fault.WRONG_LIVE_RESERVATION, where, self._missing("stands before"))
                continue
            found = expected and expected.found
            if expected and expected.deadline_unknown:
                expected.found.deadline_ms = row.deadline_ms
            if row != found:
                detail = f"it says {row}, the events {found}"
                self._find(Fault.WRONG_LIVE_RESERVATION, where, detail)
        for (reservation_id,) in self._rows("audit_stale_live"):
            where = f"live reservation {reservation_id}"
            self._find(Fault.WRONG_LIVE_RESERVATION, where, "it stands before its last event")


def _expected_movements(event: Event) -> Iterator[tuple[Any, ...]]:
    for number, line in enumerate(event.lines, 1):
        yield (
            number,
            event.type,
            line.sku,
            line.location,
            line.quantity,
            line.on_hand_delta,
            line.held_delta,
            line.quarantined_delta,
            event.reservation_id,
            event.order_id,
            event.customer_id,
            event.reference,
            event.reason,
            event.at_ms,
        )


class _Movements:
    """Rows of ``movements`` in order of their events, handed out event by event."""

    def __init__(self, rows: Iterator[tuple[Any, ...]]) -> None:
        self._rows = rows
        self._next = next(rows, None)

    def of(self, epoch: int, seq: int) -> list[tuple[Any, ...]]:
        """The lines of an event, with those of events that aren't there (before it) among them."""
        found = []
        while self._next is not None and self._next[:2] <= (epoch, seq):
            found.append(self._next[2:])
            self._next = next(self._rows, None)
        return found

    def left(self) -> tuple[Any, ...] | None:
        """The first row after the last event."""
        return self._next
