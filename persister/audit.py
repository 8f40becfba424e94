"""Audit: does the ledger prove itself? Reads every event once, in order, in bounded memory.

Checked for each partition: the chain of hashes over the events, no gap in seq and no epoch that goes
back, each event's rows in ``movements`` (all of them, and no other), and that position, balances and
live reservations are what the events add up to. The first wrong row of each kind is named.
With ``since_ms`` only the events of that time and later are read, on from the hash of the one before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec

from engine.errors import LedgerError
from engine.events import Event, from_json
from persister.audit_since import begins_at, event_before
from persister.chain import CHAIN_START, chain
from persister.database import QUERIES, Connection
from persister.live import ENDING, Live, apply, from_row

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


class Anchor(msgspec.Struct, frozen=True):
    """The head of a partition's chain at some time. Kept elsewhere, it also proves that nobody has
    rewritten the ledger as a whole, hashes and all."""

    epoch: int
    seq: int
    hash: str


class Finding(msgspec.Struct, frozen=True):
    """The first row of its kind that is wrong, and how many more there are."""

    fault: Fault
    partition: int
    where: str
    detail: str


class AuditReport(msgspec.Struct, frozen=True, kw_only=True):
    """What an audit found. ``anchors``: the chain's head of each partition, for keeping elsewhere; the
    earlier one where that could not be checked. ``since_ms``: audited from that time on only, and
    ``unchecked`` says what that left out."""

    events: int
    findings: list[Finding]
    anchors: dict[int, Anchor]
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
    return AuditReport(
        events=sum(each.events for each in audits),
        findings=[finding for each in audits for finding in each.findings.values()],
        anchors={each.partition: each.next_anchor() for each in audits if each.head().seq},
        since_ms=since_ms,
        unchecked=[
            *([] if since_ms is None else [UNCHECKED]),
            *[each.unchecked_anchor for each in audits if each.unchecked_anchor],
        ],
    )


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
        self._balances: dict[tuple[str, str], list[int]] = {}
        self._live: dict[str, Live] = {}
        self._deadline_unknown: set[str] = set()

    def run(self, on_progress: Callable[[int], None]) -> None:
        if self._since_ms is not None:
            self._begin(self._since_ms)
        movements = _Movements(self._rows("audit_movements"))
        for epoch, seq, kind, at_ms, body, kept_hash in self._rows("audit_events"):
            self._check_event(epoch, seq, kind, at_ms, body, bytes(kept_hash), movements)
            self.events += 1
            if self.events % FETCH == 0:
                on_progress(self.events)
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
        if seq != self._seq + 1 or epoch < self._epoch:
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
        self._add(event)

    def _add(self, event: Event) -> None:
        for line in event.lines:
            total = self._balances.setdefault((line.sku, line.location), [0, 0, 0, 0])
            total[0] += line.on_hand_delta
            total[1] += line.held_delta
            total[2] += line.quarantined_delta
            total[3] = event.seq
        reservation_id = event.reservation_id
        if self._since_ms is not None and reservation_id and event.status not in ENDING:
            if event.type != "reserve" and reservation_id not in self._live:
                self._load_earlier(reservation_id)
            if event.type in ("reserve", "extend"):
                self._deadline_unknown.discard(reservation_id)
        apply(event, self._live)

    def _load_earlier(self, reservation_id: str) -> None:
        """What events before the part say of a reservation; an extend leaves no movement to find it by."""
        values = {**self._place(), "reservation_id": reservation_id}
        for (body,) in self._connection.execute(QUERIES["audit_earlier"], values):
            try:
                apply(from_json(body.encode()), self._live)
            except msgspec.MsgspecError:
                continue  # before the part: for an audit of the whole
        self._deadline_unknown.add(reservation_id)

    def _check_position(self) -> None:
        for epoch, seq, kept_hash in self._rows("audit_position"):
            kept = (epoch, seq, bytes(kept_hash or b"").hex())
            found = (self._epoch, self._seq, self.chained.hex())
            if kept != found and (self._seq or seq):
                self._find(Fault.WRONG_POSITION, "positions", f"it says {kept}, the events {found}")

    def _check_balances(self) -> None:
        expected = self._balances
        known = slice(0 if self._since_ms is None else 3, None)
        for sku, location, *numbers in self._rows("audit_balances"):
            total = expected.pop((sku, location), None)
            if total is None or total[known] != numbers[known]:
                detail = f"it says {numbers}, the events {total} (on_hand, held, quarantined, seq)"
                self._find(Fault.WRONG_BALANCE, f"balance of {sku} at {location}", detail)
        for sku, location in expected:
            detail = (
                "it is missing"
                if self._since_ms is None
                else "it is missing, or stands before the events"
            )
            self._find(Fault.WRONG_BALANCE, f"balance of {sku} at {location}", detail)

    def _check_live(self) -> None:
        expected = self._live
        for row in self._rows("audit_live"):
            kept = from_row(row)
            found = expected.pop(kept.reservation_id, None)
            if found is not None and kept.reservation_id in self._deadline_unknown:
                found.deadline_ms = kept.deadline_ms
            if kept != found:
                where = f"live reservation {kept.reservation_id}"
                self._find(
                    Fault.WRONG_LIVE_RESERVATION, where, f"it says {kept}, the events {found}"
                )
        for reservation_id in expected:
            where = f"live reservation {reservation_id}"
            detail = (
                "it is missing" if self._since_ms is None else "it is missing, or stands before"
            )
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


def read_anchors(path: Path) -> dict[int, Anchor]:
    """Anchors of an earlier audit; empty where there is no file. LedgerError where it can't be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[int, Anchor])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError) as error:
        raise LedgerError(f"the anchor file {path} can't be read: {error}") from None


def write_anchors(path: Path, anchors: Mapping[int, Anchor]) -> None:
    """Replace the file in one step."""
    new = path.with_name(path.name + ".new")
    new.write_bytes(msgspec.json.format(msgspec.json.encode(anchors)) + b"\n")
    new.replace(path)
