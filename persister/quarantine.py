"""The quarantine: what could not be read, byte for byte, until somebody discards it.

Rows are only ever inserted. A thing is the same one where its place and its bytes are the same; it is
kept once, however often it is met.
"""

from __future__ import annotations

from datetime import datetime

import msgspec
import psycopg

from engine.errors import LedgerError
from engine.events import Event
from persister.database import QUERIES, Connection
from persister.ledger import Position
from persister.messages import read_message, read_storable
from persister.outbox import UNREADABLE, plain
from persister.sources import Unreadable


class Kept(msgspec.Struct, frozen=True):
    """A thing in quarantine as the persister needs it; ``seq`` is the ledger's position it was met at,
    ``discarded_by`` is None while it is open."""

    quarantine_id: int
    seq: int
    discarded_by: str | None
    reason: str | None

    @property
    def word(self) -> str:
        """Who discarded it, and why."""
        return f"quarantine {self.quarantine_id} discarded by {self.discarded_by}: {self.reason}"


class Item(msgspec.Struct, frozen=True):
    """A thing in quarantine for a person.

    ``epoch`` and ``seq`` are the ledger's position it was met at. ``state``: open, discarded, or passed
    (the ledger has gone past it without: a program could read it, or it is no longer there).
    ``stopped_here``: the partition stands at it now.
    """

    quarantine_id: int
    partition: int
    source: str
    topic_id: str
    place: str
    raw: bytes
    why: str
    epoch: int
    seq: int
    last_seq: int | None
    first_seen_at: datetime
    state: str
    stopped_here: bool
    discarded_by: str | None
    reason: str | None
    discarded_at: datetime | None

    @property
    def where(self) -> str:
        if self.source == "kafka":
            return f"offset {self.place} of topic {self.topic_id}"
        return f"outbox entry {self.place}"

    @property
    def stands_for(self) -> str:
        """Which events are missing if it is discarded, as far as can be told."""
        first = self.seq + 1
        if self.last_seq is None:
            return f"event {first}, or none"
        if self.last_seq <= first:
            return f"event {self.last_seq}"
        return f"events {first} to {self.last_seq}"

    def read(self) -> list[Event]:
        """Its events, where this program can read it; ValueError says why not."""
        try:
            if self.source == "kafka":
                return read_message(self.partition, self.raw)
            return read_storable(self.partition, self.place, self.raw)
        except UNREADABLE as error:
            raise ValueError(plain(str(error) or repr(error))) from None


def keep(connection: Connection, partition: int, thing: Unreadable, at: Position) -> Kept:
    """The row of a thing, inserted where it is met for the first time; committed."""
    values = {
        "partition": partition,
        "source": thing.source,
        "topic_id": thing.topic_id,
        "place": thing.place,
        "raw": thing.raw,
    }
    with connection.transaction():
        row = connection.execute(QUERIES["quarantined"], values).fetchone()
        if row is None:
            more = {"why": thing.why, "epoch": at.epoch, "seq": at.seq}
            last_seq = {"last_seq": thing.last_seq or None}
            connection.execute(QUERIES["keep_quarantined"], values | more | last_seq)
            row = connection.execute(QUERIES["quarantined"], values).fetchone()
    if row is None:
        raise LedgerError(f"partition {partition}: {thing.what}, and it can't be kept either")
    return Kept(*row)


def items(connection: Connection, quarantine_id: int | None = None) -> list[Item]:
    """All that was ever kept, oldest first; or the one of an id. LedgerError where the ledger has no
    quarantine yet."""
    try:
        with connection.transaction():
            rows = connection.execute(QUERIES["quarantine"], {"quarantine_id": quarantine_id})
            return [Item(*row) for row in rows]
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn):
        raise LedgerError(
            "the ledger has no quarantine yet: start a persister of this version, or run"
            " 'holdfast db init'"
        ) from None


def item(connection: Connection, quarantine_id: int) -> Item:
    """The one of an id; LedgerError where there is none."""
    found = items(connection, quarantine_id)
    if not found:
        raise LedgerError(
            f"there is no quarantine {quarantine_id}; 'holdfast quarantine list --all' shows what there is"
        )
    return found[0]


def discard(connection: Connection, quarantine_id: int, *, by: str, reason: str) -> Item:
    """Let the persister pass it over; as it was before. Who and why are kept for good.

    LedgerError where it is not open, or where its partition does not stand at it.
    """
    with connection.transaction():
        found = item(connection, quarantine_id)
        if found.state == "open":
            # The persister can't move on meanwhile.
            connection.execute(QUERIES["lock_position"], {"partition": found.partition})
            found = item(connection, quarantine_id)
        if found.state == "discarded":
            raise LedgerError(
                f"quarantine {quarantine_id} was discarded already, by {found.discarded_by}:"
                f" {found.reason}"
            )
        if found.state == "passed":
            raise LedgerError(
                f"quarantine {quarantine_id} is not open: the ledger has gone past it"
            )
        if not found.stopped_here:
            raise LedgerError(
                f"partition {found.partition} is not stopped at quarantine {quarantine_id} now; only"
                " what the persister stands at can be discarded (see 'holdfast quarantine list' and"
                " its log)"
            )
        connection.execute(
            QUERIES["discard_quarantined"],
            {"quarantine_id": quarantine_id, "by": by, "reason": reason},
        )
    return found
