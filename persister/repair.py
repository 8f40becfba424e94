"""Mend what a reconciliation found, by compensating events, never by a silent overwrite.

A drift is the same whatever happens meanwhile (both sides get the same deltas), so it can be taken off
while traffic runs. What depends on a value is written only while that is still as it was judged. What
is wrong with the ledger itself, or was written by somebody else, is not mended here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import msgspec
from redis import Redis

from engine import keys
from engine.errors import LedgerError, StoreError
from engine.reservations import as_string, tail_of
from engine.scripts import Scripts
from persister.database import QUERIES, Connection
from persister.differences import Difference, Hold, Kind, Repair
from persister.live import Live
from persister.reconcile_reservations import lines_of, parts_of, readable
from persister.reconcile_stock import StockRun
from persister.sides import Sides

COMMANDS_A_CALL = 20
_encode = msgspec.msgpack.Encoder().encode
Command = tuple[object, ...]


@contextmanager
def only_repair(connection: Connection, partition: int) -> Iterator[None]:
    """One repair at a time, reconciliation included: of two with the same drift each would take it
    off. LedgerError where another one is under way."""
    row = connection.execute(QUERIES["lock_repair"], {"partition": partition}).fetchone()
    connection.commit()
    if not (row and row[0]):
        raise LedgerError("another repair is under way; wait for its end and reconcile again")
    try:
        yield
    finally:
        if not connection.closed:
            connection.rollback()
            connection.execute(QUERIES["unlock_repair"], {"partition": partition})
            connection.commit()


def plan(difference: Difference) -> str:
    """What a repair would do about it, for a person."""
    if not difference.repairable:
        return "left as it is: " + difference.detail
    if difference.reservation_id is None:
        if difference.kind is Kind.MISSING_IN_REDIS:
            return "make the record anew and bring it to what the ledger has"
        on_hand, held, quarantined = (-each for each in difference.drift or (0, 0, 0))
        return f"change Redis by on_hand {on_hand:+}, held {held:+}, quarantined {quarantined:+}"
    return {
        Kind.MISSING_IN_REDIS: "end it as released and give its units back",
        Kind.ORPHAN_RESERVATION: "end it as released; it holds no units",
    }.get(difference.kind, "write it as the ledger has it")


def repair(
    redis: Redis,
    connection: Connection,
    partition: int,
    differences: Sequence[Difference],
    *,
    found_by: str,
    retention_ms: int,
    wait_s: float,
) -> list[Repair]:
    """Mend the repairable ones of these differences, within ``only_repair``; what became of each.

    1. Records that are missing or can't be read are made anew, of zeros.
    2. Once the ledger has those events, their drift is known: all drifts are taken off.
    3. Reservations are ended or restored.

    StoreError where the partition closes meanwhile; what is done by then is done and told by events.
    """
    sides = Sides(redis, connection, partition, wait_s)
    work = _Repair(sides, found_by, retention_ms)
    mendable = [d for d in differences if d.repairable]
    about_stock = [d for d in mendable if d.reservation_id is None]
    gone = [d for d in about_stock if d.drift is None]
    work.send([(d, ("create", d.sku, d.location)) for d in gone])
    sides.wait_for_ledger(sides.head_seq())
    again = StockRun(sides)
    again.compare([(d.sku, d.location) for d in gone])
    drifts = [d for d in (*about_stock, *again.differences) if d.repairable and d.drift]
    work.send([(d, ("correct", d.sku, d.location, *(d.drift or ()))) for d in drifts])
    of_reservations = [d for d in mendable if d.reservation_id is not None]
    for first in range(0, len(of_reservations), COMMANDS_A_CALL):
        work.mend_reservations(of_reservations[first : first + COMMANDS_A_CALL])
    left = [d for d in differences if not d.repairable]
    for difference in left:
        work.note(difference, plan(difference))
    sides.wait_for_ledger(sides.head_seq())
    return work.done


class _Repair:
    """One repair under way."""

    def __init__(self, sides: Sides, found_by: str, retention_ms: int) -> None:
        self._sides = sides
        self._found_by = found_by
        self._retention_ms = retention_ms
        self._scripts = Scripts.for_server(sides.redis.info("server"))
        self.done: list[Repair] = []

    def note(self, difference: Difference, outcome: str, event: str | None = None) -> None:
        self.done.append(
            Repair(
                kind=difference.kind,
                sku=difference.sku,
                location=difference.location,
                reservation_id=difference.reservation_id,
                outcome=outcome,
                event=event,
            )
        )

    def send(self, commands: Sequence[tuple[Difference, Command]]) -> None:
        """Call the script, with some commands at a time so that no sale waits long behind it."""
        p = self._sides.partition
        names = [keys.head(p), keys.deadlines(p), keys.outbox(p)]
        for first in range(0, len(commands), COMMANDS_A_CALL):
            part = commands[first : first + COMMANDS_A_CALL]
            wire = _encode([(f"{d.kind} found by {self._found_by}", *c) for d, c in part])
            answer = self._scripts.call_sync(
                self._sides.redis, "repair", names, [wire, self._retention_ms]
            )
            if answer == b"partition_closed":
                raise StoreError(
                    f"partition {p} was closed meanwhile; what was mended by then is told"
                )
            for (difference, command), (word, *identity) in zip(part, answer[1], strict=True):
                if word == b"repaired":
                    epoch, seq = identity
                    self.note(difference, _DONE[str(command[0])], f"{epoch}-{seq}")
                else:
                    self.note(
                        difference, "left as it is: it has changed meanwhile; reconcile again"
                    )

    def mend_reservations(self, differences: Sequence[Difference]) -> None:
        ids = [str(d.reservation_id) for d in differences]
        live = self._sides.live(ids)
        self._sides.connection.commit()
        values = self._sides.values(ids)
        commands: list[tuple[Difference, Command]] = []
        for difference, reservation_id, value in zip(differences, ids, values, strict=True):
            command = _command(difference, value, live.get(reservation_id))
            if command is None:
                self.note(difference, "left as it is: it has changed meanwhile; reconcile again")
            else:
                commands.append((difference, command))
        self.send(commands)


_DONE = {
    "create": "made the record anew, of zeros",
    "correct": "took the drift off",
    "give_back": "ended it as released, gave its units back",
    "restore": "wrote it as the ledger has it",
    "end": "ended it as released; it held no units",
}


def _command(
    difference: Difference, value: bytes | Exception | None, live: Live | None
) -> Command | None:
    """The script's command for a reservation; None where a side is no longer as it was judged."""
    record = readable(value)
    redis, ledger = difference.redis, difference.ledger
    judged = (
        redis.seq if isinstance(redis, Hold) else None,
        ledger.seq if isinstance(ledger, Hold) else None,
    )
    if judged != (record.seq if record else None, live.seq if live else None):
        return None
    as_judged = as_string(value) if isinstance(value, bytes) else None
    if live is None:
        return ("end", difference.reservation_id, as_judged)
    tail = as_string(
        tail_of(live.order_id, live.customer_id or "", lines_of(live), live.fingerprint)
    )
    whole = (difference.reservation_id, live.created_ms, live.deadline_ms, parts_of(live))
    if record is None:
        return ("give_back", *whole, tail)
    return ("restore", *whole, tail, as_judged)
