"""The openings of a partition: which epoch holds from which seq on, as PostgreSQL has noted it.

Whoever opens a partition is given its epoch here, and the epoch is noted before it is used: so none is
given twice, whatever Redis loses afterwards. What an opening that was replaced still produces (a relay
that was frozen, a master that was cut off) is told by it: a lower epoch at or above the first seq of a
later opening.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
        self._all_with_ahead: list[Opening] | None = None
        self._ahead: dict[int, int] = {}

    def foresee(self, first_seqs: Mapping[int, int]) -> None:
        """Events of these epochs, from these seqs on, stand in what is still to be read: openings that
        replace others, too, whether this ledger was told of them or is older."""
        self._ahead = dict(first_seqs)
        self._forget()

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
        self._forget()
        assert row is not None
        return int(row[0])

    def use(self, epoch: int) -> None:
        """The partition is open in this epoch: from its first seq on it replaces those before it."""
        for each in self._known():
            if each.epoch == epoch and not each.is_used:
                self._use(epoch, each.first_seq)

    def note_begun(self, events: Sequence[Event]) -> None:
        """Note of the openings that made these events that they are in use; in the transaction that writes
        them. A ledger that came back from an older dump was told of none of them."""
        last = self.last_epoch()
        if not events or events[-1].epoch <= last:
            return
        made = [event for event in events if event.epoch > last and event.type != DISCARD]
        first_seqs = {event.epoch: event.seq for event in reversed(made)}
        for epoch, first_seq in first_seqs.items():
            self._use(epoch, min(first_seq, self._ahead.get(epoch, first_seq)))

    def replaced(self, events: Sequence[Event]) -> list[Event]:
        """Those of them that an opening made which had been replaced by then. (A ``discard`` is made by the
        ledger itself.)"""
        last = next((each for each in reversed(self._with_ahead()) if each.is_used), None)
        if last is None:
            return []
        epoch, first_seq = last.epoch, last.first_seq
        others = [event for event in events if event.epoch < epoch or event.seq < first_seq]
        return [event for event in others if event.type != DISCARD and self._is_replaced(event)]

    def _is_replaced(self, event: Event) -> bool:
        held = unused = 0
        for each in self._with_ahead():
            if each.is_used and each.first_seq <= event.seq:
                held = max(held, each.epoch)
            if each.epoch == event.epoch and not each.is_used:
                unused = each.epoch
        return event.epoch < held or 0 < unused < self.last_epoch()

    def _with_ahead(self) -> list[Opening]:
        """Those noted, and those that are in use by what is still to be read; the highest epoch last."""
        if self._all_with_ahead is None:
            last = self.last_epoch()
            noted = {each.epoch: each for each in self._known()}
            for epoch, first_seq in self._ahead.items():
                known = noted.get(epoch)
                if known is None:
                    noted[epoch] = Opening(epoch, first_seq, "", True)
                elif epoch > last:
                    noted[epoch] = msgspec.structs.replace(known, is_used=True)
            self._all_with_ahead = [noted[epoch] for epoch in sorted(noted)]
        return self._all_with_ahead

    def _use(self, epoch: int, first_seq: int) -> None:
        values = {"partition": self._partition, "epoch": epoch, "first_seq": first_seq}
        with self._connection.transaction():
            self._connection.execute(QUERIES["use_opening"], values)
        self._forget()

    def _forget(self) -> None:
        self._all = self._all_with_ahead = None

    def _known(self) -> list[Opening]:
        if self._all is None:
            with self._connection.transaction():
                rows = self._connection.execute(QUERIES["openings"], {"partition": self._partition})
                self._all = [Opening(*row) for row in rows]
        return self._all
