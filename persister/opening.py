"""Open a partition: whoever moves its events judges it first, again and again while at work.

Redis is behind where the epoch or the seq of its head is lower than the ledger's position: it has lost
writes that were shipped, and could sell those units again. Then it is closed, also where it was open (a
server can become a replica and be promoted again without a restart), and healed.
"""

from __future__ import annotations

import logging

from redis import Redis

from engine.errors import PartitionStopped
from engine.partitions import (
    Head,
    Opening,
    Server,
    close_partition,
    has_entries_of,
    open_partition,
    outbox_epoch,
    read_head,
    read_server,
)
from engine.scripts import Scripts
from engine.settings import Settings
from persister.append_only_file import AppendOnlyFile
from persister.heal import check_outbox, check_restored, heal
from persister.ledger import Ledger, Position
from persister.ownership import Claim, Ownership
from persister.sources import Source

log = logging.getLogger("holdfast.persister")


class Opener:
    """Of one partition, for whoever has its lease."""

    def __init__(
        self,
        redis: Redis,
        scripts: Scripts,
        settings: Settings,
        ledger: Ledger,
        source: Source,
    ) -> None:
        self._redis = redis
        self._scripts = scripts
        self._settings = settings
        self._ledger = ledger
        self._source = source
        self._partition = ledger.partition
        self._ownership = Ownership(redis, scripts, ledger.connection, ledger.partition)
        self._is_fenced = False
        self._file: tuple[str, AppendOnlyFile] | None = None

    def look(self, position: Position) -> Head | None:
        """Head of the open partition. Opens one that is new, not behind the ledger, or healed, once the
        ledger has all that was shipped; None where it has not yet.

        1. Is this the Redis of this ledger, and nobody else's now?
        2. Close it where it is behind the ledger, or open in an epoch that was replaced.
        3. Closed: have nobody who was there before add anything to what is read from now on.
        4. Wait until all of that is read.
        5. Heal it where it is behind; show that what is in its outbox is the ledger's.
        6. After a restart: have its append-only file written anew.
        7. Note the next epoch in the ledger, open into it, note that it is in use.

        PartitionStopped or LedgerError say where that can't be.
        """
        self._ownership.keep()
        server = read_server(self._redis)
        head = read_head(self._redis, self._partition)
        check_restored(head, self._partition)
        if head.is_open_on(server):
            if not self._is_overtaken(head, position):
                self._is_fenced = False
                self._ledger.openings.use(head.position[0])
                return head
            close_partition(self._redis, self._scripts, self._partition, judged=head)
            head = read_head(self._redis, self._partition)
        if not self._is_fenced:
            self._source.fence()
            self._is_fenced = True
        position = (
            self._ledger.position()
        )  # fails where the session, and the lease with it, is gone
        if not self._source.is_drained(position):
            return None
        epoch, seq = head.position
        if epoch < position.epoch or seq < position.seq:
            head = heal(
                self._redis,
                self._scripts,
                self._ledger,
                self._settings,
                head=head,
                position=position,
            )
        check_outbox(self._redis, self._scripts, self._ledger, position)
        self._use_what_is_in_the_outbox()
        # Where nothing was ever written there is nothing to be cut.
        is_new = head.epoch and not self._ledger.openings.was_on(server.run_id)
        if is_new and not self._file_of(server).is_sound():
            return None
        return self._open(head, server)

    def claim(self) -> None:
        """Have head name this ledger, where it names none: what is in its outbox was shown to be ours."""
        self._ownership.keep(Claim.FREE)

    def give_back(self) -> None:
        """Let whoever comes next begin at once."""
        self._ownership.give_back()

    def _file_of(self, server: Server) -> AppendOnlyFile:
        if self._file is None or self._file[0] != server.run_id:
            self._file = (server.run_id, AppendOnlyFile(self._redis))
        return self._file[1]

    def _use_what_is_in_the_outbox(self) -> None:
        """A ledger that fell back may have noted an epoch and not know that it was in use since. Its events
        wait in the outbox, and after the next opening they would be taken for those of one that never was."""
        for epoch in self._ledger.openings.unused():
            if has_entries_of(self._redis, self._partition, epoch):
                self._ledger.openings.use(epoch)

    def _is_overtaken(self, head: Head, position: Position) -> bool:
        epoch, seq = head.position
        return (
            epoch < position.epoch
            or seq < position.seq
            or epoch < self._ledger.openings.last_epoch()
        )

    def _open(self, head: Head, server: Server) -> Head | None:
        epoch, seq = head.position
        opening = self._ledger.openings.note(
            above=max(epoch, outbox_epoch(self._redis, self._partition)),
            first_seq=seq + 1,
            run_id=server.run_id,
        )
        became = open_partition(
            self._redis,
            self._scripts,
            self._partition,
            judged=head,
            server=server,
            epoch=opening,
            trimmer="relay" if self._settings.kafka_bootstrap else "persister",
        )
        if became is Opening.OUTBOX_AHEAD:
            raise PartitionStopped(
                f"partition {self._partition} stays closed: its outbox has an event above head's"
                f" {epoch}-{seq}; see docs/operations.md, 'A partition stopped'"
            )
        if became is not Opening.OPENED:
            return None
        self._ledger.openings.use(opening)
        self._ownership.keep(Claim.FREE)
        log.info("opened partition %s into epoch %s", self._partition, opening)
        return read_head(self._redis, self._partition)
