"""The sieve between a source and the ledger: what can't be read stops the partition, or was discarded.

What was discarded is passed over, and the next event tells what it was. Its seq follows the position:
junk, nothing is missing. Otherwise each missing seq gets an event of type ``discard`` that says who and
why, so the chain goes on without a gap. Where nothing follows, head of Redis tells, once all that it
decided has been read.
"""

from __future__ import annotations

import logging

from redis import Redis

from engine.errors import PartitionStopped
from engine.events import DISCARD, VERSION, Event
from engine.partitions import read_head, read_server
from persister.ledger import Ledger, Position
from persister.quarantine import Kept, keep
from persister.sources import Batch, Source, Unreadable

log = logging.getLogger("holdfast.persister")


class Sieve:
    """A source without what was discarded, with ``discard`` events where that leaves seqs missing."""

    def __init__(self, source: Source, ledger: Ledger, redis: Redis) -> None:
        self._source = source
        self._ledger = ledger
        self._redis = redis
        self._passed: list[tuple[Kept, Unreadable]] = []
        self._word = ""
        self._is_clear = False

    def begin(self, position: Position) -> None:
        self._source.begin(position)

    def fence(self) -> None:
        self._source.fence()

    def is_drained(self, position: Position) -> bool:
        return self._source.is_drained(position)

    def committed(self, position: Position, known_s: float) -> None:
        self._source.committed(position, known_s)

    def lacks_end(self, position: Position) -> bool:
        """What was passed over there may be what is lacking; ``read`` finds that out."""
        return not self._passed and self._source.lacks_end(position)

    def pass_over(self, unreadable: Unreadable) -> None:
        self._source.pass_over(unreadable)

    def is_at_end(self) -> bool:
        return self._source.is_at_end()

    def read(self, after: Position, wait_ms: int) -> Batch:
        """Events after a position, without a gap as far as those discarded explain one.

        PartitionStopped, with its id, at what can't be read and is open.
        """
        while True:
            batch = self._source.read(after, wait_ms)
            if batch.events:
                return self._explained(after, batch)
            if batch.unreadable is None:
                break
            self._meet(after, batch.unreadable)
        if self._passed:
            return self._at_end(after, batch)
        if not self._is_clear and self._source.is_drained(after):
            self._ledger.leave_quarantine()
            self._is_clear = True
        return batch

    def _meet(self, after: Position, thing: Unreadable) -> None:
        partition = self._ledger.partition
        kept = keep(self._ledger.connection, partition, thing, after)
        if kept.discarded_by is None:
            number = kept.quarantine_id
            raise PartitionStopped(
                f"partition {partition}: {thing.what}; it is quarantine {number}, and nothing more is"
                " written until somebody has looked: 'holdfast quarantine list', then 'holdfast"
                f" quarantine retry {number}' or 'holdfast quarantine discard {number}'"
                " (docs/operations.md, 'A partition stopped')",
                number,
            )
        log.warning("partition %s: %s; passed over: %s", partition, thing.what, kept.word)
        self._source.pass_over(thing)
        # Where the ledger has gone past it since, what it stood for is settled.
        if kept.seq >= after.seq:
            self._passed.append((kept, thing))

    def _explained(self, after: Position, batch: Batch) -> Batch:
        """With an event for each that is missing before the first new one. The ledger stops at a gap
        that is larger than what was discarded."""
        new = next((event for event in batch.events if event.seq > after.seq), None)
        if not self._passed or new is None:
            return Batch(batch.events, batch.mark)
        made = self._discards(after, new.seq - 1, new.epoch, new.at_ms)
        self._passed = []
        return Batch([*made, *batch.events], batch.mark)

    def _at_end(self, after: Position, batch: Batch) -> Batch:
        """Nothing follows what was passed over: does Redis know of more events than the ledger?"""
        head = read_head(self._redis, self._ledger.partition)
        epoch, seq = head.position
        is_sure = head.is_open_on(read_server(self._redis)) and head.last_ms.isdecimal()
        if not is_sure or not self._source.is_at_end():
            self._wait("whether an event is missing there, the next one will tell")
            return batch
        if seq <= after.seq:
            self._passed = []
            self._ledger.leave_quarantine(batch.mark)
            return batch
        made = self._discards(after, seq, epoch, int(head.last_ms))
        if not made:
            self._wait(
                f"Redis is at {epoch}-{seq}, the ledger at {after.epoch}-{after.seq}, and nothing else"
                " was shipped: more is missing than was discarded"
            )
            return batch
        self._passed = []
        return Batch(made, batch.mark)

    def _wait(self, why: str) -> None:
        kept, _ = self._passed[-1]
        word = (
            f"partition {self._ledger.partition}: quarantine {kept.quarantine_id} is discarded and"
            f" passed over; {why}"
        )
        if word != self._word:
            log.warning("%s", word)
            self._ledger.stop(word, kept.quarantine_id)
            self._word = word

    def _discards(self, after: Position, up_to: int, epoch_max: int, at_ms: int) -> list[Event]:
        """An event for each seq after the position up to ``up_to``; none where those passed over can't
        stand for so many.

        What came twice was discarded twice, so they may stand for fewer than there are; then it can't
        be told which, and each event names all.
        """
        reach = after.seq
        owners: dict[int, tuple[str, int]] = {}
        for kept, thing in self._passed:
            first = reach + 1
            reach = max(reach, thing.last_seq) if thing.last_seq else first
            for seq in range(first, min(reach, up_to) + 1):
                owners[seq] = (kept.word, thing.epoch)
        if up_to > reach:
            return []
        all_of_them = "one of: " + "; ".join([kept.word for kept, _ in self._passed])
        made = []
        epoch = after.epoch
        for seq, (word, own_epoch) in owners.items():
            epoch = min(max(epoch, own_epoch) or epoch_max, epoch_max)
            made.append(
                Event(
                    version=VERSION,
                    partition=self._ledger.partition,
                    epoch=epoch,
                    seq=seq,
                    type=DISCARD,
                    at_ms=at_ms,
                    reason=word if up_to == reach else all_of_them,
                )
            )
        return made
