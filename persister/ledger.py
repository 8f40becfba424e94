"""Write events into the ledger: each once, in order, or not at all."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from engine.errors import LedgerError, PartitionStopped
from engine.events import DISCARD, Event, from_json
from persister.chain import CHAIN_START, chain
from persister.database import QUERIES, Connection, copy_text, copy_time
from persister.holes import Holes
from persister.live import keep_live
from persister.openings import Openings

log = logging.getLogger("holdfast.ledger")

COPY_EVENTS = 250
LEASE_PATIENCE_S = 10.0


class Position(msgspec.Struct, frozen=True, order=True):
    """The last event of a partition the ledger has; (0, 0) before the first."""

    epoch: int
    seq: int


class KafkaMark(msgspec.Struct, frozen=True):
    """Where in a topic the first event stands that the ledger has not; ``topic_id`` tells the topic
    from another one that was made under its name later."""

    topic_id: str
    offset: int


class Gap(PartitionStopped):
    """An event does not follow the one before it, or one that there must be does not come."""


class Ledger:
    """The ledger of one partition, written by whoever holds its lease."""

    def __init__(self, connection: Connection, partition: int) -> None:
        self.connection = connection
        self.partition = partition
        self.openings = Openings(connection, partition)
        self.holes = Holes(connection, partition)

    def lease(self) -> bool:
        """Become the one writer of this partition; False where another process is. Held until the
        connection ends."""
        row = self.connection.execute(
            QUERIES["lock_partition"], {"partition": self.partition}
        ).fetchone()
        self.connection.commit()
        return bool(row and row[0])

    def wait_for_lease(self, what_to_do: str) -> None:
        """Become the one writer, also where a persister only waits for its Redis: it lets go of the lease
        between its tries. LedgerError after 10 s."""
        give_up_at = time.monotonic() + LEASE_PATIENCE_S
        while not self.lease():
            if time.monotonic() > give_up_at:
                raise LedgerError(f"a persister is at work on this ledger; {what_to_do}")
            time.sleep(0.02)

    def position(self) -> Position:
        """How far the ledger has come."""
        row = self.connection.execute(QUERIES["position"], {"partition": self.partition}).fetchone()
        self.connection.commit()
        return Position(row[0], row[1]) if row else Position(0, 0)

    def kafka_mark(self) -> KafkaMark | None:
        """Where to go on reading in Kafka; None where nothing was ever read from there."""
        row = self.connection.execute(
            QUERIES["kafka_mark"], {"partition": self.partition}
        ).fetchone()
        self.connection.commit()
        return KafkaMark(row[0], row[1]) if row else None

    def write(self, events: Sequence[Event], mark: KafkaMark | None = None) -> Position:
        """Write a batch in one transaction; the position after it.

        1. Lock and read the position.
        2. Drop what an opening made that had been replaced by then.
        3. Compare events at or below the position with what is kept under their identity, and drop
           them; likewise those that come twice within the batch.
        4. Check that the others follow the position without a gap.
        5. COPY events (each with the hash of the chain) and movements.
        6. Add to balances, keep live reservations along.
        7. Move the position, the head of the chain and ``mark``; note new openings; commit.

        PartitionStopped (and nothing written) where an event differs from the one kept under its
        seq, where a seq is missing, or where an epoch goes back within the batch.
        """
        connection, partition = self.connection, self.partition
        with connection.transaction():
            events = self._lawful(events)
            row = connection.execute(
                QUERIES["position_for_update"], {"partition": partition}
            ).fetchone()
            position = Position(row[0], row[1]) if row else Position(0, 0)
            chained = row[2] if row and row[2] else CHAIN_START
            known = [event for event in events if event.seq <= position.seq]
            if known:
                self.compare(known)
            fresh = _once([event for event in events if event.seq > position.seq])
            _check_order(position, fresh)
            if not fresh:
                return position
            chained = self._copy(fresh, chained)
            self._add_to_balances(fresh)
            keep_live(connection, partition, fresh)
            last = Position(fresh[-1].epoch, fresh[-1].seq)
            connection.execute(
                QUERIES["move_position"],
                {
                    "partition": partition,
                    "epoch": last.epoch,
                    "seq": last.seq,
                    "hash": chained,
                    "offset": mark.offset if mark else None,
                    "topic_id": mark.topic_id if mark else None,
                },
            )
            self.openings.note_begun(fresh)
        return last

    def _lawful(self, events: Sequence[Event]) -> Sequence[Event]:
        replaced = self.openings.replaced(events)
        if not replaced:
            return events
        first, last = replaced[0], replaced[-1]
        log.warning(
            "partition %s: %s events (%s-%s to %s-%s) were made by an opening that had been replaced:"
            " they don't enter (docs/operations.md, 'Events of an opening that was replaced')",
            self.partition,
            f"{len(replaced):,}",
            *(first.epoch, first.seq, last.epoch, last.seq),
        )
        dropped = {id(event) for event in replaced}
        return [event for event in events if id(event) not in dropped]

    def go_on(self) -> None:
        """Take back the word of ``stop``: its cause is gone. One about something in quarantine
        stands until ``leave_quarantine`` or the next event."""
        with self.connection.transaction():
            self.connection.execute(QUERIES["go_on"], {"partition": self.partition})

    def stop(self, why: str, quarantine_id: int | None = None) -> None:
        """Leave word in ``positions`` why this partition does not go on, and at what."""
        values = {"partition": self.partition, "why": why, "quarantine_id": quarantine_id}
        self.connection.rollback()  # what was read before it is of no use
        with self.connection.transaction():
            self.connection.execute(QUERIES["stop_partition"], values)

    def leave_quarantine(self, mark: KafkaMark | None = None) -> None:
        """Take back the word about something in quarantine: reading goes on behind it, at ``mark``."""
        values = {
            "partition": self.partition,
            "offset": mark.offset if mark else None,
            "topic_id": mark.topic_id if mark else None,
        }
        with self.connection.transaction():
            self.connection.execute(QUERIES["leave_quarantine"], values)

    def compare(self, events: Sequence[Event]) -> None:
        """PartitionStopped where one of these is not, to the letter, what is kept under its identity."""
        if not events:
            return
        places = [(event.epoch, event.seq) for event in events]
        first, last = min(places), max(places)
        kept = {
            (epoch, seq): body
            for epoch, seq, body in self.connection.execute(
                QUERIES["known_events"],
                {
                    "partition": self.partition,
                    "first_epoch": first[0],
                    "first": first[1],
                    "last_epoch": last[0],
                    "last": last[1],
                },
            )
        }
        for event in events:
            if _is_kept(event, kept.get((event.epoch, event.seq))):
                continue
            if not self._is_discarded(event.seq) and not self.holes.has(event.seq):
                raise _another(event)
            log.warning(
                "partition %s: event %s-%s came after all; it stays out",
                event.partition,
                event.epoch,
                event.seq,
            )

    def _is_discarded(self, seq: int) -> bool:
        """Whatever its epoch: a discard can only guess that."""
        values = {"partition": self.partition, "seq": seq}
        row = self.connection.execute(QUERIES["type_of"], values).fetchone()
        return row is not None and row[0] == DISCARD

    def _copy(self, events: Sequence[Event], chained: bytes) -> bytes:
        """Write events and movements; the new head of the chain."""
        with self.connection.cursor() as cursor:
            with cursor.copy(QUERIES["copy_events"]) as copy:
                for part in _parts(events):
                    rows = []
                    for event in part:
                        body = event.to_json()
                        chained = chain(chained, body)
                        rows.append(_event_row(event, body, chained))
                    copy.write("".join(rows))
            with cursor.copy(QUERIES["copy_movements"]) as copy:
                for part in _parts(events):
                    copy.write("".join([row for event in part for row in _movement_rows(event)]))
        return chained

    def _add_to_balances(self, events: Sequence[Event]) -> None:
        sums: dict[tuple[str, str], list[int]] = {}
        for event in events:
            for line in event.lines:
                total = sums.setdefault((line.sku, line.location), [0, 0, 0, 0])
                total[0] += line.on_hand_delta
                total[1] += line.held_delta
                total[2] += line.quarantined_delta
                total[3] = event.seq
        if not sums:
            return
        self.connection.execute(
            QUERIES["add_to_balances"],
            {
                "partition": self.partition,
                "skus": [sku for sku, _ in sums],
                "locations": [location for _, location in sums],
                "on_hand": [total[0] for total in sums.values()],
                "held": [total[1] for total in sums.values()],
                "quarantined": [total[2] for total in sums.values()],
                "seqs": [total[3] for total in sums.values()],
            },
        )


def _is_kept(event: Event, body: str | None) -> bool:
    """Is this what the ledger has? A relay of a newer version sends in its own what another one sent."""
    if body is None:
        return False
    data = body.encode()
    if data == event.to_json():
        return True
    try:
        return from_json(data).is_same_as(event)
    except msgspec.MsgspecError:
        return False


def _parts(events: Sequence[Event]) -> Iterator[Sequence[Event]]:
    """What is handed to COPY at a time: PostgreSQL takes in one part while the next is made."""
    for start in range(0, len(events), COPY_EVENTS):
        yield events[start : start + COPY_EVENTS]


def _another(event: Event) -> PartitionStopped:
    return PartitionStopped(
        f"partition {event.partition}: event {event.epoch}-{event.seq} differs from the one the ledger"
        " keeps under that seq; nothing more is written until somebody has looked"
        " (docs/operations.md, 'A partition stopped')"
    )


def _once(events: list[Event]) -> list[Event]:
    """Without those that come again (a relay that was killed sends twice). PartitionStopped where
    one comes again with other content."""
    if not events or events[-1].seq - events[0].seq + 1 == len(events):
        return events
    first: dict[int, Event] = {}
    for event in events:
        kept = first.setdefault(event.seq, event)
        if kept.type != DISCARD and not kept.is_same_as(event):
            raise _another(event)
    return list(first.values())


def _check_order(position: Position, events: Sequence[Event]) -> None:
    seq, epoch = position.seq, position.epoch
    for event in events:
        if event.seq != seq + 1 or event.epoch < epoch:
            raise Gap(
                f"partition {event.partition}: after event {epoch}-{seq} came"
                f" {event.epoch}-{event.seq}; what is between is missing, so nothing more is written"
                " until somebody has looked (docs/operations.md, 'A partition stopped')"
            )
        seq, epoch = event.seq, event.epoch


def _event_row(event: Event, body: bytes, chained: bytes) -> str:
    return (
        f"{event.partition}\t{event.epoch}\t{event.seq}\t{event.type}\t{copy_time(event.at_ms)}\t"
        f"{copy_text(body.decode())}\t\\\\x{chained.hex()}\n"
    )


def _movement_rows(event: Event) -> Iterable[str]:
    head = f"{event.partition}\t{event.epoch}\t{event.seq}\t"
    tail = "\t".join(
        [
            copy_text(event.reservation_id),
            copy_text(event.order_id),
            copy_text(event.customer_id),
            copy_text(event.reference),
            copy_text(event.reason),
            copy_time(event.at_ms),
        ]
    )
    for number, line in enumerate(event.lines, 1):
        yield (
            f"{head}{number}\t{event.type}\t{line.sku}\t{line.location}\t{line.quantity}\t"
            f"{line.on_hand_delta}\t{line.held_delta}\t{line.quarantined_delta}\t{tail}\n"
        )
