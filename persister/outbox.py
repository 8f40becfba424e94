"""The outbox as whoever moves it elsewhere sees it: read in order, kept by a lease, trimmed when safe.

Only one part trims an outbox, the persister (reading it directly) or the relay, and head says which.
"""

from __future__ import annotations

import os
import uuid
from typing import Any

import msgspec
from redis import Redis

from engine import keys
from engine.errors import StoreError
from engine.events import Event, read_entry
from engine.scripts import Scripts

EVENTS_A_READ = 5_000
LINES_A_READ = 50_000
#: An entry holds up to some thousand events, so this bounds the memory of one read.
ENTRIES_MAX = 500
LEASE_MS = 3_000
#: What reading bytes that somebody else has written can end in.
UNREADABLE = (msgspec.MsgspecError, ValueError, KeyError, IndexError, TypeError, RecursionError)


class Entry(msgspec.Struct, frozen=True):
    """One entry: the events of one script call. ``seq`` is the last one's; ``error`` says why it
    can't be read, and then there are no events."""

    epoch: int
    seq: int
    raw: bytes
    events: list[Event]
    error: str = ""


class LeaseTaken(StoreError):
    """Another process trims this outbox."""


def name_holder(role: str) -> str:
    """A name for the lease that nobody else has: '<role>:…'."""
    return f"{role}:{os.getpid()}-{uuid.uuid4().hex[:8]}"


class Outbox:
    """The outbox of one partition, for one process in one role ('persister' or 'relay').

    ``holder`` names it to others; given where something else already keeps a second one away, so that
    after a kill its next start needn't wait for its own lease.
    """

    def __init__(
        self, redis: Redis, scripts: Scripts, partition: int, role: str, holder: str = ""
    ) -> None:
        self._redis = redis
        self._scripts = scripts
        self._partition = partition
        self._role = role
        self._holder = holder or name_holder(role)
        self._key = keys.outbox(partition)
        self._entries = 100

    def read(self, after: tuple[int, int], wait_ms: int) -> list[Entry]:
        """Whole entries after (epoch, seq), about 5,000 events; empty where none came in time."""
        answer: Any = self._redis.xread(
            {self._key: f"{after[0]}-{after[1]}"}, count=self._entries, block=wait_ms or None
        )
        entries: list[Entry] = []
        events = lines = 0
        for entry_id, fields in answer[0][1] if answer else ():
            if events >= EVENTS_A_READ or lines >= LINES_A_READ:
                break
            entry = self._decode(entry_id.decode(), fields)
            entries.append(entry)
            events += len(entry.events)
            lines += sum([len(event.lines) for event in entry.events])
        if entries:
            each = max(1, events // len(entries))
            self._entries = max(1, min(ENTRIES_MAX, EVENTS_A_READ // each))
        return entries

    def first(self) -> Entry | None:
        """The oldest entry; None where the outbox is empty."""
        found: Any = self._redis.xrange(self._key, count=1)
        if not found:
            return None
        entry_id, fields = found[0]
        return self._decode(entry_id.decode(), fields)

    def trimmed_seq(self) -> int:
        """The last event that is no longer in the outbox."""
        found: Any = self._redis.hmget(keys.head(self._partition), "trimmed_seq")
        return int(found[0] or 0)

    def keep(self) -> str:
        """Take or renew the lease (3 s); the role that is the trimmer, '' for none yet.

        LeaseTaken where another process has it, StoreError where the partition was never opened.
        """
        return self._trim(LEASE_MS)

    def become_trimmer(self) -> None:
        """From now on head names this role. The caller has the lease, and has shown that what the
        former one took away is where it belongs."""
        self._trim(LEASE_MS, role=self._role)

    def trim(self, epoch: int, seq: int, bytes_count: int, opening: str = "") -> None:
        """Forget all up to (epoch, seq); ``bytes_count`` is what those entries held, ``opening`` the epoch
        that was open when they were read. LeaseTaken where another process has the lease, or head names
        another role; StoreError where another epoch is open since."""
        self._trim(LEASE_MS, "", str(epoch), seq, bytes_count, opening)

    def give_back(self) -> None:
        """Let the next process begin at once."""
        self._trim(0)

    def _trim(
        self,
        lease_ms: int,
        role: str = "",
        epoch: str = "",
        seq: int = 0,
        bytes_count: int = 0,
        opening: str = "",
    ) -> str:
        p = self._partition
        answer: Any = self._scripts.call_sync(
            self._redis,
            "trim",
            [keys.head(p), keys.deadlines(p), self._key],
            [self._holder, lease_ms, role, epoch, seq, bytes_count, opening],
        )
        word = answer[0]
        if word == b"kept":
            return str(answer[1].decode())
        if word == b"other_trimmer":
            raise LeaseTaken(
                f"partition {p}: the {answer[1].decode() or 'next one'} has taken over the outbox"
            )
        if word == b"opened_anew":
            raise StoreError(f"partition {p}: it was opened anew meanwhile; beginning anew")
        if word == b"no_head":
            raise StoreError(f"partition {p} was never opened; a persister opens it")
        raise LeaseTaken(
            f"partition {p}: {answer[1].decode()} trims the outbox (its lease ends in"
            f" {answer[2] / 1000:.0f} s); waiting for it"
        )

    def _decode(self, name: str, fields: dict[bytes, bytes]) -> Entry:
        epoch, _, seq = name.partition("-")
        place = int(epoch), int(seq)
        raw = fields.get(b"events")
        if raw is None:
            all_there_is = msgspec.msgpack.encode(list(fields.items()))
            return Entry(*place, all_there_is, [], "it has no field 'events'")
        try:
            return Entry(*place, raw, read_entry(self._partition, name, raw))
        except UNREADABLE as error:
            return Entry(*place, raw, [], plain(str(error) or repr(error)))


def plain(text: str) -> str:
    """A word about foreign bytes that any log, terminal and database can take: ASCII, 300 characters."""
    return text.encode("ascii", "backslashreplace").decode().translate(_CONTROL)[:300]


_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), 127)}
