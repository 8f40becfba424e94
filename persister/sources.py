"""Where the persister reads events from, in order and without a gap, as long as they are there."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec
from redis import Redis

from engine import keys
from engine.errors import PartitionStopped
from engine.events import Event, read_entry
from persister.ledger import Position

EVENTS_A_BATCH = 5_000
LINES_A_BATCH = 50_000
#: An entry holds up to some thousand events, so this bounds the memory of one read.
ENTRIES_MAX = 500


class Source(Protocol):
    """Events of one partition."""

    def read(self, after: Position, wait_ms: int) -> list[Event]:
        """Events after a position, in order; empty where none came within ``wait_ms``."""

    def committed(self, position: Position) -> None:
        """The ledger has all up to here: the source may forget it."""


class OutboxSource:
    """Reads the outbox in Redis itself, and trims it up to what the ledger has committed."""

    trimmer = "persister"

    def __init__(self, redis: Redis, partition: int) -> None:
        self._redis = redis
        self._partition = partition
        self._key = keys.outbox(partition)
        self._entries = 100

    def read(self, after: Position, wait_ms: int) -> list[Event]:
        """About 5,000 events at most (whole entries). PartitionStopped where an entry can't be read."""
        answer: Any = self._redis.xread(
            {self._key: f"{after.epoch}-{after.seq}"}, count=self._entries, block=wait_ms
        )
        if not answer:
            return []
        entries = answer[0][1]
        events: list[Event] = []
        read = lines = 0
        for entry_id, fields in entries:
            if len(events) >= EVENTS_A_BATCH or lines >= LINES_A_BATCH:
                break
            read += 1
            name = entry_id.decode()
            try:
                entry = read_entry(self._partition, name, fields[b"events"])
            except (msgspec.MsgspecError, ValueError, KeyError, IndexError) as error:
                if events:
                    break  # what can be read goes to the ledger first; then this one stops it
                raise PartitionStopped(
                    f"partition {self._partition}: outbox entry {name} can't be read ({error});"
                    " nothing more is written until somebody has looked"
                    " (docs/operations.md, 'A partition stopped')"
                ) from None
            events += entry
            lines += sum([len(event.lines) for event in entry])
        each = max(1, len(events) // read)
        self._entries = max(1, min(ENTRIES_MAX, EVENTS_A_BATCH // each))
        return events

    def committed(self, position: Position) -> None:
        minid = f"{position.epoch}-{position.seq + 1}"
        self._redis.xtrim(self._key, minid=minid, approximate=False)
