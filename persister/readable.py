"""What Kafka and the outbox still have of the events after a place, in order, and what is missing there."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable, Iterator

from redis import Redis

from engine.errors import LedgerError
from engine.events import Event
from engine.partitions import read_head
from engine.scripts import Scripts
from engine.settings import Settings
from persister.kafka_source import KafkaSource
from persister.ledger import Ledger, Position
from persister.outbox import Outbox
from persister.sources import OutboxSource, Unreadable

PATIENCE_S = 600.0
_Unreadables = Callable[[Unreadable], None]


class Readable:
    """The sources of one partition. ``on_unreadable`` is told what stands there and is no event."""

    def __init__(
        self,
        settings: Settings,
        redis: Redis,
        scripts: Scripts,
        ledger: Ledger,
        on_unreadable: _Unreadables,
    ) -> None:
        self._settings = settings
        self._redis = redis
        self._scripts = scripts
        self._ledger = ledger
        self._on_unreadable = on_unreadable
        self.partition = ledger.partition

    def events(self, after: Position, *, fenced: bool) -> Iterator[Event]:
        """Each event after a place once, as its opening was allowed to make it. ``fenced``: have no relay
        that began before add any to Kafka meanwhile."""
        sources = [self._outbox(after)]
        if self._settings.kafka_bootstrap:
            sources.append(self._kafka(fenced))
        yield from self._merged(after, *sources)

    def kafka_has_a_gap(self, after: Position) -> bool:
        """Does Kafka lack events before others that it has? Whoever reads from there stands at it."""
        if not self._settings.kafka_bootstrap:
            return False
        seqs = [event.seq for event in self._merged(after, self._kafka(fenced=False))]
        return bool(seqs) and seqs[-1] - after.seq > len(seqs)

    def _merged(self, after: Position, *events: Iterable[Event]) -> Iterator[Event]:
        # An event of an opening that was replaced must not hide the lawful one of its seq.
        sources = [_rising(self._lawful(each), after.seq) for each in events]
        last = after.seq
        for event in heapq.merge(*sources, key=lambda event: event.seq):
            if event.seq > last:
                last = event.seq
                yield event

    def _lawful(self, events: Iterable[Event]) -> Iterator[Event]:
        return (event for event in events if not self._ledger.openings.replaced([event]))

    def missing(self, after: Position) -> list[range]:
        """The seqs up to head's that can't be read anywhere. While a relay moves events from here to
        there one may seem to be: what isn't missing at a second look is not."""
        found = self._look(after)
        if found and self._settings.kafka_bootstrap:
            again = self._look(after)
            found = [each for each in found if each in again] or again
        return found

    def _look(self, after: Position) -> list[range]:
        head_seq = read_head(self._redis, self._ledger.partition).position[1]
        found = []
        last = after.seq
        for event in self.events(after, fenced=False):
            if event.seq > last + 1:
                found.append(range(last + 1, event.seq))
            last = event.seq
        if last < head_seq:
            found.append(range(last + 1, head_seq + 1))
        return found

    def _outbox(self, after: Position) -> Iterator[Event]:
        source = OutboxSource(self._redis, self._scripts, self._settings, self._ledger.partition)
        place = after
        while True:
            batch = source.read(place, 0)
            yield from batch.events
            if batch.events:
                place = Position(batch.events[-1].epoch, batch.events[-1].seq)
            if batch.unreadable is not None:
                self._on_unreadable(batch.unreadable)
                source.pass_over(batch.unreadable)
            elif not batch.events:
                return

    def _kafka(self, fenced: bool) -> Iterator[Event]:
        partition = self._ledger.partition
        source = KafkaSource(self._settings, self._redis, partition, None)
        try:
            if fenced:
                source.fence()
            give_up_at = time.monotonic() + PATIENCE_S
            while not source.is_drained(Position(0, 0)):
                batch = source.read(Position(0, 0), 100)
                yield from batch.events
                if batch.unreadable is not None:
                    self._on_unreadable(batch.unreadable)
                    source.pass_over(batch.unreadable)
                if batch.events:
                    give_up_at = time.monotonic() + PATIENCE_S
                elif time.monotonic() > give_up_at:
                    raise LedgerError(
                        "Kafka has more events and does not give them; try again later"
                    )
        finally:
            source.close()


def _rising(events: Iterable[Event], after: int) -> Iterator[Event]:
    """Those above the place, without those that come again."""
    for event in events:
        if event.seq > after:
            after = event.seq
            yield event


def read_outbox(redis: Redis, scripts: Scripts, ledger: Ledger, position: Position) -> Position:
    """Write into the ledger what its partition's outbox has after the position; the position then."""
    outbox = Outbox(redis, scripts, ledger.partition, OutboxSource.role)
    after = (position.epoch, position.seq)
    while entries := outbox.read(after, 0):
        after = (entries[-1].epoch, entries[-1].seq)  # what nobody can take may stand in between
        position = ledger.write([event for entry in entries for event in entry.events])
    return position
