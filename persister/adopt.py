"""Go on where the ledger is behind for good, or was moved: this Redis is the one of this ledger from now on,
and what the ledger has lost is taken over from it.

The ledger was moved to another PostgreSQL, or came back from a dump there: head of Redis is to name it. It
came back older than what Kafka and the outbox still have, or events were lost on the way: those are missing
for good. What they were is noted as a hole; what they had changed is told by ``adopt`` events.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

import msgspec
from redis import Redis
from redis.exceptions import RedisError

from engine.errors import HoldfastError, LedgerError, PartitionStopped
from engine.events import Event
from engine.partitions import Head, close_partition, outbox_epoch, read_head, read_server
from engine.scripts import Scripts
from engine.settings import Settings
from persister import database
from persister.database import QUERIES
from persister.heal import check_outbox, heal
from persister.holes import Adoption, Hole
from persister.kafka_source import KafkaSource
from persister.ledger import Ledger
from persister.opening import Opener
from persister.outbox import EVENTS_A_READ, LINES_A_READ, Outbox
from persister.ownership import Claim, Ownership, owner_of
from persister.persister import connect_redis
from persister.quarantine import keep
from persister.readable import Readable
from persister.sources import OutboxSource, Source, Unreadable, why_not_directly
from persister.take_over import TakeOver

OPEN_WITHIN_S = 600.0
_POLL_S = 0.1
Progress = Callable[[str, int], None]


class Adopted(msgspec.Struct, frozen=True, kw_only=True):
    """Whose the Redis was by its head ('' for nobody's), whose it is; ``changed`` is false where that is the
    same, or where it was only asked for.

    ``missing``: what can't be read anywhere any more, by partition's seqs; ``holes``: what was noted of it,
    ``reservations`` and ``stock_records`` how many were told, ``unreadable`` the records of Redis that could
    not be, ``epoch`` what was opened then (0: nothing had to be). ``goes_on``: an adoption that was begun
    before. ``from_outbox``: nothing is missing, but only the outbox has some that Kafka lacks.
    """

    former: str
    ledger: str
    changed: bool
    missing: list[range] = []
    holes: list[Hole] = []
    reservations: int = 0
    stock_records: int = 0
    unreadable: list[str] = []
    epoch: int = 0
    goes_on: bool = False
    from_outbox: bool = False


def adopt(
    settings: Settings,
    *,
    by: str,
    reason: str,
    dry_run: bool = False,
    without_kafka: bool = False,
    partition: int = 0,
    on_progress: Progress = lambda what, count: None,
) -> Adopted:
    """Have head of this Redis name this ledger; take over what is missing; note who said so and why.

    1. Take the ledger's lease: no persister writes meanwhile.
    2. Look what Kafka (from its first message) and the outbox have of the events after the ledger's.
       Where nothing is missing there, the persister can read it: only the name is changed. (But for a
       closed partition, of which only the outbox has some: the persister doesn't believe that one.)
    3. Close the partition; nobody opens it until the adoption is finished.
    4. Write all that can be read into the ledger, note as a hole what is missing between.
    5. Tell by ``adopt`` events where Redis differs from the ledger then.
    6. Open it.

    Killed anywhere, the next call goes on where it was. LedgerError, and nothing changed, where a persister
    is at work on this ledger, where Redis was never opened, or where Kafka may have more and is not given;
    PartitionStopped where the outbox is not this ledger's; OtherWriter where the persister of another ledger,
    or of a copy of this one, has written from this Redis within the last 10 s.
    """
    with (
        database.connect(settings.postgres_url) as connection,
        connect_redis(settings.redis_url) as redis,
    ):
        database.migrate(connection)
        connection.commit()
        ledger = Ledger(connection, partition)
        ledger.wait_for_lease("stop it, adopt, and start it again")
        scripts = Scripts.for_server(redis.info("server"))
        head = read_head(redis, partition)
        if not head.epoch:
            raise LedgerError(
                f"partition {partition} of this Redis was never opened; there is nothing to adopt. A ledger"
                " with events is put into an empty Redis by 'holdfast restore'"
            )
        ownership = Ownership(redis, scripts, connection, partition)
        former = owner_of(redis, partition)
        position = ledger.position()
        check_outbox(redis, scripts, ledger, position)
        begun = ledger.holes.adoption()
        _check_kafka(settings, ledger, head, without_kafka)
        readable = Readable(settings, redis, scripts, ledger, lambda thing: None)
        readable.foresee()
        missing: list[range] = []
        from_outbox = False
        if begun is None:
            missing, lacks = readable.look(position)
            if not missing and not head.is_open_on(read_server(redis)):
                outbox = Outbox(redis, scripts, partition, OutboxSource.role)
                goes_direct = not settings.kafka_bootstrap
                why_not = goes_direct and why_not_directly(redis, outbox, partition, position)
                from_outbox = bool(lacks or why_not)
        changes = former != ownership.ledger
        told = Adopted(
            former=former,
            ledger=ownership.ledger,
            changed=False,
            missing=missing,
            goes_on=begun is not None,
            from_outbox=from_outbox,
        )
        if dry_run or not (changes or missing or from_outbox or begun):
            return told
        ownership.keep(Claim.ANY)
        try:
            with connection.transaction():
                values = {
                    "partition": partition,
                    "former": former,
                    "ledger": ownership.ledger,
                    "epoch": head.position[0],
                    "seq": head.position[1],
                    "by": by,
                    "reason": reason,
                }
                row = connection.execute(QUERIES["note_adoption"], values).fetchone()
                assert row is not None
                if missing or from_outbox:
                    begun = Adoption(row[0], by, reason)
                    ledger.holes.begin(begun.adoption_id)
            told = msgspec.structs.replace(told, changed=changes)
            if begun is None:
                return told
            work = _Work(settings, redis, scripts, ledger, ownership, begun, on_progress)
            return work.run(told)
        finally:
            with suppress(HoldfastError, RedisError):
                ownership.give_back()


def _check_kafka(settings: Settings, ledger: Ledger, head: Head, without_kafka: bool) -> None:
    used = ledger.kafka_mark() is not None or head.trimmer == "relay"
    if used and not settings.kafka_bootstrap and not without_kafka:
        raise LedgerError(
            f"events of partition {ledger.partition} went through Kafka, which may have what is missing: set"
            " HOLDFAST_KAFKA_BOOTSTRAP; or, where Kafka and all that it had are gone for good, say so by"
            " --without-kafka"
        )


class _Work:
    """An adoption of what is missing, by whoever has the lease."""

    def __init__(
        self,
        settings: Settings,
        redis: Redis,
        scripts: Scripts,
        ledger: Ledger,
        ownership: Ownership,
        adoption: Adoption,
        on_progress: Progress,
    ) -> None:
        self._settings = settings
        self._redis = redis
        self._scripts = scripts
        self._ledger = ledger
        self._ownership = ownership
        self._adoption = adoption
        self._on_progress = on_progress
        self._holes: list[Hole] = []

    def run(self, told: Adopted) -> Adopted:
        head = self._close()
        self._read(head)
        head = self._heal(head)
        over = self._take_over(head)
        self._ledger.holes.end()
        epoch = self._open()
        return msgspec.structs.replace(
            told,
            holes=self._holes,
            reservations=over.reservations,
            stock_records=over.stock_records,
            unreadable=sorted(over.unreadable),
            epoch=epoch,
        )

    def _head(self) -> Head:
        return read_head(self._redis, self._ledger.partition)

    def _close(self) -> Head:
        """From here on nothing is decided, and no relay begins to read."""
        partition = self._ledger.partition
        head = self._head()
        if head.is_open_on(read_server(self._redis)):
            close_partition(self._redis, self._scripts, partition, judged=head)
        return self._head()

    def _read(self, head: Head) -> None:
        """All that can be read goes into the ledger, with a hole where something is missing."""
        ledger = self._ledger
        position = ledger.position()
        readable = Readable(self._settings, self._redis, self._scripts, ledger, self._quarantine)
        part: list[Event] = []
        lines = count = 0
        seq = position.seq
        for event in readable.events(position, fenced=True):
            is_full = len(part) >= EVENTS_A_READ or lines >= LINES_A_READ
            if part and (is_full or event.seq > seq + 1):
                ledger.write(part)
                count += len(part)
                part, lines = [], 0
                self._go_on("events that could be read", count)
            if event.seq > seq + 1:
                self._note_hole(head, event.seq - 1)
            part.append(event)
            lines += len(event.lines)
            seq = event.seq
        if part:
            ledger.write(part)
        if seq < head.position[1]:
            self._note_hole(head, head.position[1])

    def _note_hole(self, head: Head, to_seq: int) -> None:
        at_ms = int(head.last_ms) if head.last_ms.isdecimal() else 0
        self._holes.append(self._ledger.holes.note(self._adoption, to_seq, at_ms))

    def _quarantine(self, thing: Unreadable) -> None:
        """Nothing is thrown away: it may be told by hand what it was."""
        ledger = self._ledger
        keep(ledger.connection, ledger.partition, thing, ledger.position())

    def _heal(self, head: Head) -> Head:
        """Kafka, or an earlier call, may have brought the ledger further than this Redis is."""
        position = self._ledger.position()
        if head.position[1] >= position.seq:
            return head
        return heal(
            self._redis,
            self._scripts,
            self._ledger,
            self._settings,
            head=head,
            position=position,
        )

    def _take_over(self, head: Head) -> TakeOver:
        partition = self._ledger.partition
        # Not noted for this process of Redis: that the partition was open on it is not shown by this.
        opening = self._ledger.openings.note(
            above=max(head.position[0], outbox_epoch(self._redis, partition)),
            first_seq=head.position[1] + 1,
            run_id="",
        )
        over = TakeOver(
            self._redis,
            self._scripts,
            self._ledger,
            self._adoption,
            opening,
            lambda count: self._go_on("reservations and stock records compared", count),
        )
        over.run()
        return over

    def _open(self) -> int:
        """As a persister does, with all that it looks at before."""
        settings, redis, partition = self._settings, self._redis, self._ledger.partition
        if not settings.kafka_bootstrap:
            outbox = Outbox(redis, self._scripts, partition, OutboxSource.role)
            outbox.keep(takes=True)
            outbox.become_trimmer()  # what a relay took away was read, or is told by now
            return self._open_from(OutboxSource(redis, self._scripts, settings, partition))
        source = KafkaSource(settings, redis, partition, self._ledger.kafka_mark())
        try:
            return self._open_from(source)
        finally:
            source.close()

    def _open_from(self, source: Source) -> int:
        opener = Opener(self._redis, self._scripts, self._settings, self._ledger, source)
        try:
            return self._open_by(opener, source)
        finally:
            with suppress(HoldfastError, RedisError):
                opener.give_back()

    def _open_by(self, opener: Opener, source: Source) -> int:
        give_up_at = time.monotonic() + OPEN_WITHIN_S
        while time.monotonic() < give_up_at:
            position = self._ledger.position()
            head = opener.look(position)
            if head is not None:
                return head.position[0]
            batch = source.read(position, 0)
            if batch.events:
                self._ledger.write(batch.events, batch.mark)
            elif batch.unreadable is not None:
                source.pass_over(batch.unreadable)
            else:
                time.sleep(_POLL_S)
        raise PartitionStopped(
            f"partition {self._ledger.partition}: all is taken over, but it could not be opened within"
            f" {OPEN_WITHIN_S:.0f} s; start the persister, which opens it or says why not"
        )

    def _go_on(self, what: str, count: int) -> None:
        self._ownership.keep()
        self._on_progress(what, count)
