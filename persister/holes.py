"""Holes: events that the ledger has lost for good, noted once and told for ever.

A hole stands in the chain of hashes at its place, like an event. What its events had changed is told by the
``adopt`` events of its adoption, so sums stay sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from engine.errors import PartitionStopped
from persister.chain import CHAIN_START, chain
from persister.database import QUERIES, Connection


class Hole(msgspec.Struct, frozen=True, kw_only=True):
    """Events ``from_seq`` to ``to_seq`` of a partition are missing. ``epoch``: of the event before them.
    ``at_ms``: the partition's clock when that was noted, ms since 1970."""

    partition: int
    from_seq: int
    to_seq: int
    epoch: int
    adoption_id: int
    by: str
    reason: str
    at_ms: int

    def to_json(self) -> bytes:
        """Canonical: what the chain of hashes covers."""
        return _encode(self)


class Span(msgspec.Struct, frozen=True, order=True):
    """From the first to the last event that is missing in one adoption; ``at_ms`` of the last hole."""

    from_seq: int
    to_seq: int
    at_ms: int


class Adoption(msgspec.Struct, frozen=True):
    """What the ledger has lost is being taken over from Redis: who says so, and why."""

    adoption_id: int
    by: str
    reason: str


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Hole).decode


def hole_of(body: str) -> Hole:
    """A hole of its kept text. msgspec.MsgspecError where it can't be read."""
    return _decode(body.encode())


def holes_of(connection: Connection, partition: int, seq: int = 0) -> list[Hole]:
    """The holes of a partition in order, but for those that end before ``seq``."""
    rows = connection.execute(QUERIES["holes"], {"partition": partition, "seq": seq})
    return [hole_of(row[3]) for row in rows]


def all_holes(connection: Connection) -> list[Hole]:
    """Every hole of the ledger, by partition and in order."""
    return [hole_of(body) for _, body in connection.execute(QUERIES["all_holes"])]


def spans(holes: Sequence[Hole]) -> list[Span]:
    """One for each adoption, in order."""
    found: dict[int, Any] = {}
    for hole in holes:
        first = found.get(hole.adoption_id)
        begins = first.from_seq if first else hole.from_seq
        found[hole.adoption_id] = Span(begins, hole.to_seq, hole.at_ms)
    return list(found.values())


def tell(hole: Hole) -> str:
    """For a person."""
    first, last = hole.from_seq, hole.to_seq
    events = f"event {first} is" if first == last else f"events {first:,} to {last:,} are"
    return (
        f"partition {hole.partition}: {events} missing for good; what they had changed was adopted by"
        f" {hole.by}: {hole.reason}"
    )


class Holes:
    """Those of one partition, and the adoption that makes them, for whoever has its lease."""

    def __init__(self, connection: Connection, partition: int) -> None:
        self._connection = connection
        self._partition = partition

    def adoption(self) -> Adoption | None:
        """The one that was begun and is not finished."""
        row = self._row("adopting")
        return Adoption(*row) if row else None

    def check_not_adopting(self) -> None:
        """PartitionStopped where an adoption is not finished: balances and live reservations are true only
        then."""
        adoption = self.adoption()
        if adoption is not None:
            raise PartitionStopped(
                f"partition {self._partition} stays closed: 'holdfast ledger adopt' by {adoption.by} was not"
                " finished; run it again, it goes on where it was"
            )

    def begin(self, adoption_id: int) -> None:
        """In the transaction that runs."""
        values = {"partition": self._partition, "adoption_id": adoption_id}
        self._connection.execute(QUERIES["begin_adoption"], values)

    def end(self) -> None:
        """All is taken over; what had stopped the partition is settled by that, too."""
        with self._connection.transaction():
            self._connection.execute(QUERIES["end_adoption"], {"partition": self._partition})

    def note(self, adoption: Adoption, to_seq: int, at_ms: int) -> Hole:
        """The events after the position up to ``to_seq`` are lost for good: the position moves behind them,
        the chain goes on from there; committed."""
        connection, partition = self._connection, self._partition
        with connection.transaction():
            epoch, seq, kept = connection.execute(
                QUERIES["position_for_update"], {"partition": partition}
            ).fetchone() or (0, 0, None)
            hole = Hole(
                partition=partition,
                from_seq=seq + 1,
                to_seq=to_seq,
                epoch=epoch,
                adoption_id=adoption.adoption_id,
                by=adoption.by,
                reason=adoption.reason,
                at_ms=at_ms,
            )
            body = hole.to_json()
            chained = chain(kept or CHAIN_START, body)
            place = {"partition": partition, "from": hole.from_seq, "to": to_seq}
            content = {"adoption_id": hole.adoption_id, "body": body.decode(), "hash": chained}
            connection.execute(QUERIES["note_hole"], place | content)
            at = {"partition": partition, "epoch": epoch, "seq": to_seq, "hash": chained}
            connection.execute(QUERIES["move_position"], at | {"offset": None, "topic_id": None})
        return hole

    def to_tell(self, adoption: Adoption) -> list[int]:
        """The first and the last seq that no adopt event of it has told of; empty for none."""
        row = self._row("hole_to_tell", adoption_id=adoption.adoption_id)
        return [row[0], row[1]] if row and row[0] else []

    def has(self, seq: int) -> bool:
        """Was this event given up as lost? What it changed is in an adopt event."""
        values = {"partition": self._partition, "seq": seq}
        row = self._connection.execute(QUERIES["holes"], values).fetchone()
        return row is not None and row[0] <= seq

    def _row(self, query: str, **values: int) -> tuple[Any, ...] | None:
        values["partition"] = self._partition
        row = self._connection.execute(QUERIES[query], values).fetchone()
        self._connection.commit()
        return row
