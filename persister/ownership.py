"""Whose Redis is this? No ledger but its own, and no copy of that, may move, open or heal anything there.

Head names the ledger: an id of its own, PostgreSQL's system identifier and the database's oid, so a dump
put into another database is another ledger. An exact copy of the whole server has the same three; so whoever
writes the ledger also beats in head, and the writer of a copy is refused while that beat is young.
"""

from __future__ import annotations

import os
import time
import uuid
from enum import StrEnum
from typing import Any

import psycopg
from redis import Redis

from engine import keys
from engine.errors import LedgerError, StoreError
from engine.scripts import Scripts
from persister.database import QUERIES, Connection

BEAT_S = 2.0


class Claim(StrEnum):
    """May this ledger be noted in head: not yet; where none is noted; in place of another one?"""

    NONE = "0"
    FREE = "1"
    ANY = "2"


class OtherLedger(LedgerError):
    """This Redis belongs to another ledger."""


class OtherWriter(StoreError):
    """Another process writes a ledger from this Redis now."""


def identity_of(connection: Connection) -> str:
    """What tells the ledger behind this connection from every other one."""
    row = connection.execute(QUERIES["ledger_identity"]).fetchone()
    connection.commit()
    assert row is not None
    return str(row[0])


def owner_of(redis: Redis, partition: int) -> str:
    """The ledger that head names; '' for none."""
    return _field(redis, partition, "ledger")


def check_owner(redis: Redis, connection: Connection, partition: int) -> None:
    """OtherLedger where head of this Redis names another ledger. Nothing is written."""
    kept = owner_of(redis, partition)
    if not kept:
        return
    try:
        ours = identity_of(connection)
    except psycopg.errors.UndefinedTable:
        connection.rollback()
        ours = "without a name, of an older version"
    if kept != ours:
        raise _other(partition, kept, ours)


def _field(redis: Redis, partition: int, name: str) -> str:
    found: Any = redis.hget(keys.head(partition), name)
    return found.decode() if found else ""


def _other(partition: int, kept: str, ours: str) -> OtherLedger:
    return OtherLedger(
        f"partition {partition}: this Redis belongs to ledger {kept}, and HOLDFAST_POSTGRES_URL is ledger"
        f" {ours}, another one or a copy; nothing was moved. Set the right URLs; or, where the other one is"
        " gone for good, run 'holdfast ledger adopt' (docs/operations.md, 'The ledger was replaced')"
    )


class Ownership:
    """Of one partition, for whoever has its lease in PostgreSQL."""

    def __init__(
        self, redis: Redis, scripts: Scripts, connection: Connection, partition: int
    ) -> None:
        self._redis = redis
        self._scripts = scripts
        self._connection = connection
        self._partition = partition
        self._name = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.ledger = identity_of(connection)
        self._count = 0
        self._known: tuple[str, ...] = self._read()
        self._next_s = 0.0

    def keep(self, claim: Claim = Claim.NONE) -> None:
        """Beat, at most every 2 s but for a claim. OtherLedger or OtherWriter where this Redis is not ours to
        change; nothing was changed then."""
        mono_s = time.monotonic()
        if mono_s < self._next_s and claim is Claim.NONE:
            return
        # The one in head stays known until it is seen that another one took its place.
        in_head = _field(self._redis, self._partition, "beat")
        previous = in_head if in_head in self._known else "".join(self._known[:1])
        self._count += 1
        beat = f"{self._name}-{self._count}"
        values = {"partition": self._partition, "beat": beat, "previous": previous}
        with self._connection.transaction():
            self._connection.execute(QUERIES["note_beat"], values)
        self._known = (beat, previous)
        self._call(beat, claim)
        self._next_s = mono_s + BEAT_S

    def give_back(self) -> None:
        """Let whoever comes next begin at once."""
        self._call("", Claim.NONE)

    def _read(self) -> tuple[str, ...]:
        values = {"partition": self._partition}
        row = self._connection.execute(QUERIES["beats"], values).fetchone()
        self._connection.commit()
        return (row[0], row[1]) if row else ()

    def _call(self, beat: str, claim: Claim) -> Any:
        p = self._partition
        known = " ".join(["", *self._known, ""])
        answer: Any = self._scripts.call_sync(
            self._redis,
            "beat",
            [keys.head(p), keys.deadlines(p), keys.outbox(p)],
            [self.ledger, beat, known, claim.value],
        )
        if answer[0] == b"other_ledger":
            raise _other(p, answer[1].decode(), self.ledger)
        if answer[0] == b"beating":
            raise OtherWriter(
                f"partition {p}: persister {answer[1].decode()} writes a ledger from this Redis, the last"
                f" time {answer[2] / 1000:.1f} s ago, and has no lease in this PostgreSQL: it works on a copy"
                " of this ledger, or this is the copy; waiting (docs/operations.md, 'The ledger was"
                " replaced')"
            )
        return answer
