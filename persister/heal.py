"""Heal a Redis that has lost writes which were shipped, so that it can't sell those units again.

What is missing is in the ledger: the persister has drained Kafka before it judges. It is replayed event
by event into the closed partition, but only after it is shown that this Redis is an earlier state of this
very ledger, not another one, and none that went on by itself.
"""

from __future__ import annotations

import logging

from redis import Redis

from engine.acknowledged import acknowledged
from engine.errors import PartitionStopped
from engine.events import DISCARD, Event
from engine.partitions import Head, read_head
from engine.scripts import Scripts
from engine.settings import Settings
from persister.database import QUERIES, Connection
from persister.holes import holes_of, spans
from persister.ledger import Ledger, Position
from persister.outbox import Outbox
from persister.rebuild import Rebuild, events_from

log = logging.getLogger("holdfast.persister")

EVENTS_COMPARED = 5_000


def heal(
    redis: Redis,
    scripts: Scripts,
    ledger: Ledger,
    settings: Settings,
    *,
    head: Head,
    position: Position,
) -> Head:
    """Bring the closed partition from ``head`` to the ledger's ``position``; its head after it.

    1. Show that ``head`` stands at an event of the ledger, at its time.
    2. Show that what is still in the outbox is what the ledger has.
    3. Replay the ledger's events above head.

    Killed anywhere, it goes on from head the next time. PartitionStopped, and nothing changed, where
    this Redis is not shown to be an earlier state of the ledger.
    """
    connection, partition = ledger.connection, ledger.partition
    epoch, seq = head.position
    told = (
        f"partition {partition} stays closed: Redis is at {epoch}-{seq}, behind the ledger's"
        f" {position.epoch}-{position.seq}, and"
    )
    why = _why_not(connection, partition, head)
    connection.commit()
    if why:
        raise PartitionStopped(
            f"{told} {why}; see docs/operations.md, 'Redis is behind the ledger'"
        )
    check_outbox(redis, scripts, ledger, position)
    log.warning(
        "partition %s: Redis is at %s-%s, behind the ledger's %s-%s: healing it from the ledger",
        partition,
        epoch,
        seq,
        position.epoch,
        position.seq,
    )
    with connection.transaction():
        holes = holes_of(connection, partition)
        rebuild = Rebuild(redis, scripts, partition, settings, with_due=True, holes=holes, had=seq)
        missing = events_from(connection, partition, epoch, seq + 1)
        count = rebuild.replay(missing, lambda events: None)
    if rebuild.damaged:
        log.error("records that can't be read were passed over: %s", sorted(rebuild.damaged))
    log.warning("partition %s: healed, %s events were replayed", partition, f"{count:,}")
    return read_head(redis, partition)


def check_restored(head: Head, partition: int) -> None:
    """PartitionStopped where a restore into this Redis has not come to its end: no list of deadlines may
    be there yet, whatever its head says."""
    if head.restoring:
        raise PartitionStopped(
            f"partition {partition} stays closed: a restore into this Redis was not finished; empty it"
            " (redis-cli FLUSHDB) and run 'holdfast restore' again"
        )


def _why_not(connection: Connection, partition: int, head: Head) -> str:
    """Why this head is no earlier state of the ledger; '' where it is one."""
    epoch, seq = head.position
    if not head.epoch:
        return (
            "it has no head: it lost everything, or is not the Redis of this ledger; set the right"
            " HOLDFAST_REDIS_URL, or rebuild it with 'holdfast restore' (docs/operations.md,"
            " 'Redis is gone')"
        )
    for span in spans(holes_of(connection, partition)):
        if span.from_seq <= seq < span.to_seq:
            return (
                f"it stands within events {span.from_seq} to {span.to_seq}, which this ledger has lost: what"
                " it lacks nobody knows one by one; rebuild it with 'holdfast restore'"
                " (docs/operations.md, 'Redis is gone')"
            )
        if span.to_seq == seq and head.last_ms == str(span.at_ms):
            return ""  # as it was when it was taken over
    place = {"partition": partition, "epoch": epoch, "seq": seq}
    last = connection.execute(QUERIES["event_up_to"], place).fetchone() or (0, 0, 0, "")
    not_earlier = (
        "it is no earlier state of this ledger (docs/operations.md, 'Redis is behind the ledger')"
    )
    if last[1] != seq:
        return f"{not_earlier}: that has no event {epoch}-{seq}"
    last_ms = int(head.last_ms) if head.last_ms.isdecimal() else None
    # Head's clock is the last event's time, or that of an opening after it. Of a discarded event nobody
    # knows the time.
    is_told = last_ms is not None and last[3] != DISCARD
    if is_told and (last_ms < last[2] or (last_ms > last[2] and epoch == last[0])):
        return f"{not_earlier}: its clock is at {last_ms}, the ledger's event {epoch}-{seq} of {last[2]}"
    return ""


def check_outbox(redis: Redis, scripts: Scripts, ledger: Ledger, position: Position) -> None:
    """What is still in the outbox up to ``position`` is what the ledger has; PartitionStopped where it
    isn't: another Redis, or one that went on by itself after a copy of it had been taken.

    Of what is only kept there the newest 5,000 events or so are compared: two that parted once don't come
    together again.
    """
    outbox = Outbox(redis, scripts, ledger.partition, "persister")
    newest = outbox.back_from((position.epoch, position.seq), EVENTS_COMPARED)
    after = min(newest, acknowledged(redis, ledger.partition))
    while after[1] < position.seq and (entries := outbox.read(after, 0)):
        after = (entries[-1].epoch, entries[-1].seq)
        events: list[Event] = [event for entry in entries for event in entry.events]
        try:
            ledger.compare([event for event in events if event.seq <= position.seq])
        except PartitionStopped:
            raise PartitionStopped(
                f"partition {ledger.partition}: its outbox is not this ledger's, an event up to"
                f" {after[0]}-{after[1]} differs, so nothing is moved, and closed it stays closed;"
                " see docs/operations.md, 'Redis is behind the ledger'"
            ) from None
    ledger.connection.commit()
