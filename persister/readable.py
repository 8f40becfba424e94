"""What Kafka and the outbox still have of the events after a place, in order, and what is missing there."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import NamedTuple

from redis import Redis

from engine.events import Event
from engine.partitions import read_head
from engine.scripts import Scripts
from engine.settings import Settings
from persister.kafka_source import KafkaSource
from persister.ledger import Ledger, Position
from persister.openings_ahead import OpeningsAhead
from persister.outbox import Outbox
from persister.sources import OutboxSource, Unreadable

_Unreadables = Callable[[Unreadable], None]


class Found(NamedTuple):
    """Seqs that can't be read anywhere, and those that Kafka lacks before others that it has: whoever reads
    from there stands at them."""

    missing: list[range]
    of_kafka: list[range]


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

    def foresee(self) -> None:
        """Tell the ledger's openings which others made what Kafka has."""
        if self._settings.kafka_bootstrap:
            partition = self._ledger.partition
            with closing(KafkaSource(self._settings, self._redis, partition, None)) as source:
                ahead = OpeningsAhead()
                ahead.look(source)
            self._ledger.openings.foresee(ahead.first_seqs)

    def events(self, after: Position, *, fenced: bool) -> Iterator[Event]:
        """Each event after a place once, as its opening was allowed to make it. ``fenced``: have no relay
        that began before add any to Kafka meanwhile."""
        kafka = self._lawful(self._kafka(fenced=fenced), after)
        return _merged(self._lawful(self._outbox(after), after), kafka, after)

    def look(self, after: Position) -> Found:
        """What is there up to head's seq. While a relay moves an event from here to there it may seem to be
        missing, but not twice."""
        found = self._look(after)
        if not found.missing or not self._settings.kafka_bootstrap:
            return found
        again = self._look(after)
        return Found(_in_both(found.missing, again.missing), again.of_kafka)

    def _look(self, after: Position) -> Found:
        head_seq = read_head(self._redis, self._ledger.partition).position[1]
        of_all, of_kafka = _Gaps(after.seq), _Gaps(after.seq)
        kafka = of_kafka.noted(self._lawful(self._kafka(fenced=False), after))
        for _ in of_all.noted(_merged(self._lawful(self._outbox(after), after), kafka, after)):
            pass
        of_all.up_to(head_seq)
        return Found(of_all.missing, of_kafka.missing)

    def _lawful(self, events: Iterable[Event], after: Position) -> Iterator[Event]:
        """Those above the place, each seq once. First without those of openings that were replaced: one of
        them must not hide the lawful one of its seq."""
        seq = after.seq
        for event in events:
            if event.seq > seq and not self._ledger.openings.replaced([event]):
                seq = event.seq
                yield event

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

    def _kafka(self, *, fenced: bool) -> Iterator[Event]:
        if not self._settings.kafka_bootstrap:
            return
        partition = self._ledger.partition
        with closing(KafkaSource(self._settings, self._redis, partition, None)) as source:
            if fenced:
                source.fence()
            for events in source.rest(self._on_unreadable):
                yield from events


class _Gaps:
    """Notes which seqs are missing after ``seq`` between the events that pass."""

    def __init__(self, seq: int) -> None:
        self._seq = seq
        self.missing: list[range] = []

    def noted(self, events: Iterable[Event]) -> Iterator[Event]:
        for event in events:
            self.up_to(event.seq - 1)
            self._seq = event.seq
            yield event

    def up_to(self, seq: int) -> None:
        """There should have been all up to here."""
        if seq > self._seq:
            self.missing.append(range(self._seq + 1, seq + 1))


def _in_both(some: list[range], others: list[range]) -> list[range]:
    """What of the ones is in the others, too; each rising."""
    found = []
    left = deque(others)
    for each in some:
        while left and left[0].stop <= each.start:
            left.popleft()
        for other in left:
            if other.start >= each.stop:
                break
            found.append(range(max(each.start, other.start), min(each.stop, other.stop)))
    return found


def _merged(some: Iterable[Event], others: Iterable[Event], after: Position) -> Iterator[Event]:
    """By seq, each once."""
    seq = after.seq
    for event in heapq.merge(some, others, key=lambda event: event.seq):
        if event.seq > seq:
            seq = event.seq
            yield event


def read_outbox(redis: Redis, scripts: Scripts, ledger: Ledger, position: Position) -> Position:
    """Write into the ledger what its partition's outbox has after the position; the position then."""
    outbox = Outbox(redis, scripts, ledger.partition, OutboxSource.role)
    after = (position.epoch, position.seq)
    while entries := outbox.read(after, 0):
        after = (entries[-1].epoch, entries[-1].seq)  # what nobody can take may stand in between
        position = ledger.write([event for entry in entries for event in entry.events])
    return position
