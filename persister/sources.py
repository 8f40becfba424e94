"""Where the persister reads events from, in order and without a gap, as long as they are there."""

from __future__ import annotations

from contextlib import suppress
from typing import Protocol

import msgspec
from redis import Redis

from engine.acknowledged import Place
from engine.errors import PartitionStopped, StoreError
from engine.events import Event
from engine.partitions import read_head, read_server
from engine.scripts import Scripts
from engine.settings import Settings
from persister.ledger import KafkaMark, Position
from persister.messages import check_storable
from persister.outbox import Entry, Outbox, plain


class Unreadable(msgspec.Struct, frozen=True, kw_only=True):
    """What stands where an event should and can't be read.

    ``place``: its offset in Kafka, or the id of its outbox entry. ``epoch`` and ``last_seq`` are of the
    last event it stands for where that is known, else 0: then it stands for one, or for none.
    """

    source: str
    topic_id: str = ""
    place: str
    raw: bytes
    why: str
    epoch: int = 0
    last_seq: int = 0

    @property
    def what(self) -> str:
        """What it is and why it can't be read, for a person."""
        if self.source == "kafka":
            return f"the message at offset {self.place} is no event ({self.why})"
        return f"outbox entry {self.place} can't be read ({self.why})"


class Batch(msgspec.Struct, frozen=True):
    """Events, where in Kafka the next one stands if they came from there, and what can't be read right
    behind them; it comes again with every ``read`` until it is passed over."""

    events: list[Event]
    mark: KafkaMark | None = None
    unreadable: Unreadable | None = None


class Source(Protocol):
    """Events of one partition."""

    def begin(self, position: Position) -> None:
        """Called again and again while at work, first before anything is read. PartitionStopped
        where this source can't go on from there."""

    def fence(self) -> None:
        """From now on nothing is added to it by whoever moved events before an opening that follows."""

    def is_drained(self, position: Position) -> bool:
        """Has all that was shipped so far been read, where the ledger is at ``position``?"""

    def read(self, after: Position, wait_ms: int) -> Batch:
        """Events after a position, in order; none where none came within ``wait_ms``."""

    def pass_over(self, unreadable: Unreadable) -> None:
        """Read on behind what the last ``read`` could not read."""

    def is_at_end(self) -> bool:
        """Has all been read, or passed over, that Redis had decided before this was called?"""

    def lacks_end(self, position: Position) -> bool:
        """Is there nothing after ``position`` to be read, and yet more that was acknowledged? For a moment
        that may be so of what comes in the next one."""

    def committed(self, position: Position, known_s: float) -> None:
        """The ledger has all up to here, and has answered since ``known_s`` (monotonic): the source may
        forget what it has had for a while by then. Whoever was frozen since can't know whether the ledger
        has fallen back."""


def why_not_directly(redis: Redis, outbox: Outbox, partition: int, position: Position) -> str:
    """Why a ledger at ``position`` can't go on from this outbox: what a relay took away from it may be in
    Kafka only. '' where nothing is."""
    head = read_head(redis, partition)
    if head.trimmer == OutboxSource.role:
        return ""
    begins = outbox.begins_after((position.epoch, position.seq))
    missing = range(position.seq + 1, head.position[1] + 1 if begins is None else begins)
    if missing:
        return f"events {missing[0]:,} to {missing[-1]:,} are in Kafka only"
    if head.trimmer and not head.is_open_on(read_server(redis)):
        # Its own head does not tell what it has lost. Had all been in the ledger at an orderly end, head
        # would name the persister (hand_over).
        return (
            "its events went through Kafka, that was not ended in order, and Redis was restarted or"
            " promoted since: whether it has lost some that are in Kafka only can't be told without Kafka"
        )
    return ""


def hand_over(
    redis: Redis, scripts: Scripts, settings: Settings, partition: int, position: Position
) -> None:
    """At the orderly end of reading from Kafka: have head say, where it is so, that the ledger has all that
    a relay took away. Direct reading can begin there, also after a restart of Redis."""
    source = OutboxSource(redis, scripts, settings, partition)
    # Refused: a relay is at work or has moved more since, or the partition was never opened.
    with suppress(StoreError, PartitionStopped):
        source.begin(position)
    with suppress(StoreError):
        source.give_back()


class OutboxSource:
    """Reads the outbox in Redis itself, from the ledger's position on, and acknowledges what that has
    committed."""

    role = "persister"

    def __init__(self, redis: Redis, scripts: Scripts, settings: Settings, partition: int) -> None:
        self._redis = redis
        self._partition = partition
        self._outbox = Outbox(redis, scripts, partition, self.role, settings=settings)
        self._has_begun = False
        self._behind: Place = (0, 0)  # the last entry that was passed over
        self._after: Place = (0, 0)  # where it was read from the last time

    def begin(self, position: Position) -> None:
        self._become_trimmer(position)
        if not self._has_begun:
            self._outbox.go_on(has=(position.epoch, position.seq))
            self._has_begun = True

    def _become_trimmer(self, position: Position) -> None:
        # Whoever has the ledger's lease has replaced the persister before it.
        trimmer = self._outbox.keep(takes=not self._has_begun)
        if trimmer == self.role:
            return
        self._has_begun = False
        # The relay took away what Kafka has: that must be in the ledger, or it would be a gap.
        why_not = self._why_not(position)
        if why_not:
            raise PartitionStopped(
                f"partition {self._partition}: {why_not}; run the persister with HOLDFAST_KAFKA_BOOTSTRAP"
                " until the ledger has all, stop the relay, then that persister, and read the outbox"
                " directly (docs/operations.md, 'From Kafka to direct reading and back')"
            )
        self._outbox.become_trimmer()

    def fence(self) -> None:
        """Nothing to do: the outbox is written by scripts only, and they look at head themselves."""

    def give_back(self) -> None:
        """Let the next process begin at once."""
        self._outbox.give_back()

    def is_drained(self, position: Position) -> bool:
        """False where events may be in Kafka only: nobody can tell here whether Redis is behind those."""
        return not self._why_not(position)

    def read(self, after: Position, wait_ms: int) -> Batch:
        """About 5,000 events at most (whole entries), up to one that can't be read."""
        events: list[Event] = []
        self._after = max((after.epoch, after.seq), self._behind)
        for entry in self._outbox.read(self._after, wait_ms):
            why = entry.error or _misfit(entry)
            if why:
                return Batch(events, unreadable=_unreadable(entry, why))
            events += entry.events
        return Batch(events)

    def pass_over(self, unreadable: Unreadable) -> None:
        self._behind = (unreadable.epoch, unreadable.last_seq)

    def is_at_end(self) -> bool:
        return not self._outbox.read(max(self._after, self._behind), 0)

    def lacks_end(self, position: Position) -> bool:
        """Never: what is acknowledged here the ledger had before."""
        return False

    def committed(self, position: Position, known_s: float) -> None:
        self._outbox.acknowledge(position.epoch, position.seq, known_s=known_s)

    def _why_not(self, position: Position) -> str:
        return why_not_directly(self._redis, self._outbox, self._partition, position)


def _misfit(entry: Entry) -> str:
    """Why the ledger can't keep what was read; '' where it can."""
    try:
        check_storable(entry.events)
    except ValueError as error:
        return plain(str(error))
    return ""


def _unreadable(entry: Entry, why: str) -> Unreadable:
    return Unreadable(
        source="outbox",
        place=f"{entry.epoch}-{entry.seq}",
        raw=entry.raw,
        why=why,
        epoch=entry.epoch,
        last_seq=entry.seq,
    )
