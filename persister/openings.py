"""The openings of a partition: which epoch holds from which seq on, as PostgreSQL has noted it.

Whoever opens a partition is given its epoch here, and the epoch is noted before it is used: so none is
given twice, whatever Redis loses afterwards. What an opening that was replaced still produces (a relay
that was frozen, a master that was cut off) is told by it: a lower epoch at or above the first seq of a
later opening.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from engine.events import DISCARD, Event
from persister.database import QUERIES, Connection


class Opening(msgspec.Struct, frozen=True):
    """``run_id`` of the Redis process that it was noted for. ``is_used``: the partition was open in it. One
    that was noted only has made no event, as far as is known, and replaces nothing."""

    epoch: int
    first_seq: int
    run_id: str
    is_used: bool


class Openings:
    """Those of one partition, for whoever has its lease: nobody else changes them meanwhile."""

    def __init__(self, connection: Connection, partition: int) -> None:
        self._connection = connection
        self._partition = partition
        self._all: list[Opening] | None = None

    def last_epoch(self) -> int:
        """The highest that was ever in use; 0 for none."""
        return max([each.epoch for each in self._known() if each.is_used], default=0)

    def unused(self) -> list[int]:
        """Epochs that were noted and are not known to have been in use."""
        return [each.epoch for each in self._known() if not each.is_used]

    def was_on(self, run_id: str) -> bool:
        """Was it ever open on that process of Redis?"""
        return any(each.run_id == run_id and each.is_used for each in self._known())

    def note(self, *, above: int, first_seq: int, run_id: str) -> int:
        """A new epoch, higher than ``above`` and than all that were ever given, for an opening on the server
        with that ``run_id``; committed."""
        with self._connection.transaction():
            row = self._connection.execute(
                QUERIES["note_opening"],
                {
                    "partition": self._partition,
                    "above": above,
                    "first_seq": first_seq,
                    "run_id": run_id,
                },
            ).fetchone()
        self._all = None
        assert row is not None
        return int(row[0])

    def use(self, epoch: int) -> None:
        """The partition is open in this epoch: from its first seq on it replaces those before it."""
        if any(each.epoch == epoch and not each.is_used for each in self._known()):
            values = {"partition": self._partition, "epoch": epoch}
            with self._connection.transaction():
                self._connection.execute(QUERIES["use_opening"], values)
            self._all = None

    def replaced(self, events: Sequence[Event]) -> list[Event]:
        """Those of them that an opening made which had been replaced by then. (A ``discard`` is made by the
        ledger itself.)"""
        last = self._last()
        if last is None:
            return []
        epoch, first_seq = last.epoch, last.first_seq
        others = [event for event in events if event.epoch < epoch or event.seq < first_seq]
        return [event for event in others if event.type != DISCARD and self._is_replaced(event)]

    def begun_by(self, events: Sequence[Event]) -> list[int]:
        """Epochs of these events that were noted and are not known to be in use yet."""
        last = self.last_epoch()
        if not events or max(events[0].epoch, events[-1].epoch) <= last:
            return []
        noted = {each.epoch for each in self._known() if not each.is_used and each.epoch > last}
        return sorted(noted & {event.epoch for event in events})

    def _is_replaced(self, event: Event) -> bool:
        held = unused = 0
        for each in self._known():
            if each.is_used and each.first_seq <= event.seq:
                held = max(held, each.epoch)
            if each.epoch == event.epoch and not each.is_used:
                unused = each.epoch
        return event.epoch < held or 0 < unused < self.last_epoch()

    def _last(self) -> Opening | None:
        used = [each for each in self._known() if each.is_used]
        return max(used, key=lambda each: each.epoch, default=None)

    def _known(self) -> list[Opening]:
        if self._all is None:
            with self._connection.transaction():
                rows = self._connection.execute(QUERIES["openings"], {"partition": self._partition})
                self._all = [Opening(*row) for row in rows]
        return self._all
