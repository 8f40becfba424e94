"""The outbox as whoever moves it elsewhere sees it: read in order, kept by a lease, acknowledged when safe.

Only one part trims an outbox, the persister (reading it directly) or the relay, and head says which. What is
acknowledged stays for a while (persister/kept.py).
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections import deque
from typing import Any

import msgspec
from redis import Redis

from engine import keys
from engine.acknowledged import Place, place_and_kept
from engine.errors import StoreError
from engine.events import Event, read_entry
from engine.scripts import Scripts
from engine.settings import Settings
from persister.kept import Kept

log = logging.getLogger("holdfast.outbox")

EVENTS_A_READ = 5_000
LINES_A_READ = 50_000
#: An entry holds up to some thousand events, so this bounds the memory of one read.
ENTRIES_MAX = 500
ENTRIES_BACK = 50
LEASE_MS = 3_000
#: With so much of its memory in use a server is full soon, and what is only kept must not be why it refuses.
FULL = 0.9
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

    ``holder`` names it to others. ``settings`` say how long what is acknowledged is kept.
    """

    def __init__(
        self,
        redis: Redis,
        scripts: Scripts,
        partition: int,
        role: str,
        holder: str = "",
        settings: Settings | None = None,
    ) -> None:
        settings = settings or Settings()
        self._redis = redis
        self._scripts = scripts
        self._partition = partition
        self._role = role
        self._holder = holder or name_holder(role)
        self._key = keys.outbox(partition)
        self._entries = 100
        # The bytes are for the server, which all partitions may share.
        self._kept = Kept(
            settings.outbox_keep_ms, settings.outbox_keep_bytes // settings.partitions
        )
        # Entries not yet acknowledged, and their bytes: of who acknowledges at all (``go_on``).
        self._read: deque[tuple[Place, int]] | None = None
        self._counted: Place = (0, 0)  # up to here head counts bytes as acknowledged
        self._opening = ""
        self._known_s: float | None = None

    def read(self, after: Place, wait_ms: int) -> list[Entry]:
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
            self._note(entry)
        if entries:
            each = max(1, events // len(entries))
            self._entries = max(1, min(ENTRIES_MAX, EVENTS_A_READ // each))
        return entries

    def _note(self, entry: Entry) -> None:
        place = (entry.epoch, entry.seq)
        if self._read is not None and (not self._read or place > self._read[-1][0]):
            self._read.append((place, len(entry.raw)))

    def begins_after(self, after: Place) -> int | None:
        """The seq of the first event in the outbox that is not at or below (epoch, seq), or of one before it
        in the same entry; None where there is none."""
        found: Any = self._redis.xrange(self._key, min=f"{after[0]}-{after[1] + 1}", count=1)
        if not found:
            return None
        entry = self._decode(found[0][0].decode(), found[0][1])
        if entry.events:
            return entry.events[0].seq
        before: Any = self._redis.xrevrange(self._key, max=f"{after[0]}-{after[1]}", count=1)
        at = int(before[0][0].split(b"-")[1]) if before else 0
        return max(at, self.trimmed_seq()) + 1

    def back_from(self, place: Place, events: int) -> Place:
        """A place about so many events before the last entry at or below ``place``, at least one entry."""
        above = f"{place[0]}-{place[1]}"
        last_seq = None
        while True:
            found: Any = self._redis.xrevrange(self._key, max=above, count=ENTRIES_BACK)
            for entry_id, _ in found:
                epoch, seq = [int(part) for part in entry_id.split(b"-")]
                if last_seq is None:
                    last_seq = seq
                elif last_seq - seq >= events:
                    return epoch, seq
            if not found:
                return 0, 0
            above = f"({epoch}-{seq}"

    def trimmed_seq(self) -> int:
        """The last event that is no longer in the outbox."""
        found: Any = self._redis.hmget(keys.head(self._partition), "trimmed_seq")
        return int(found[0] or 0)

    def keep(self, *, takes: bool = False) -> str:
        """Take or renew the lease (3 s), and take away what has been kept for long enough; the role that is
        the trimmer, '' for none yet.

        ``takes``: also from another process of this role, for who knows by other means that it has replaced
        that one. Else LeaseTaken; StoreError where the partition was never opened.
        """
        is_full = len(self._kept) > 0 and self._is_full()
        return self._trim(LEASE_MS, all_of_it=is_full, takes=takes)

    def become_trimmer(self) -> None:
        """From now on head names this role. The caller has the lease, and has shown that what the
        former one took away is where it belongs."""
        self._trim(LEASE_MS, role=self._role)

    def go_on(self, has: Place | None = None) -> Place:
        """Begin where a former process left off: the place (epoch, seq) up to which all is acknowledged. What
        it left of that counts as kept from now on. Whoever calls this is the trimmer.

        ``has``: the ledger has all up to there. Where that is less it fell back: then head says so, too, and
        nothing above it is taken away.
        """
        place, kept_bytes = place_and_kept(self._redis, self._partition)
        if has is not None and has < place:
            log.warning(
                "partition %s: all up to %s-%s was acknowledged, and the ledger is at %s-%s: it fell back,"
                " and catches up from what was kept",
                *(self._partition, *place, *has),
            )
            place = has
            self._trim(LEASE_MS, acknowledged=place, bytes_count="")
        self._counted, self._read = place, deque()
        mono_s = time.monotonic()
        self._kept.take_over(mono_s, all_of_it=True)  # counted anew
        if place > (0, 0):
            self._kept.add(mono_s, place, kept_bytes)
        return place

    def acknowledge(
        self, epoch: int, seq: int, opening: str = "", known_s: float | None = None
    ) -> None:
        """All up to (epoch, seq) is safe elsewhere, after ``go_on``; ``opening`` is the epoch that was open
        when it was read. ``known_s``: what was kept for long enough by then is taken away, now and until
        this is called again; by default by now. LeaseTaken where another process has had the lease
        since, or head names another role; StoreError where another epoch is open since."""
        place = (epoch, seq)
        self._opening, self._known_s = opening, known_s
        size = counted = 0
        while self._read and self._read[0][0] <= place:
            at, each = self._read.popleft()
            size += each
            counted += each if at > self._counted else 0
        self._counted = max(place, self._counted)
        self._kept.add(time.monotonic(), place, size)
        self._trim(LEASE_MS, acknowledged=place, bytes_count=counted)

    def give_back(self) -> None:
        """Let the next process begin at once."""
        self._trim(0)

    def _is_full(self) -> bool:
        info: Any = self._redis.info("memory")
        return bool(info["maxmemory"]) and info["used_memory"] >= info["maxmemory"] * FULL

    def _trim(
        self,
        lease_ms: int,
        role: str = "",
        *,
        acknowledged: Place | None = None,
        bytes_count: int | str = 0,
        all_of_it: bool = False,
        takes: bool = False,
    ) -> str:
        p = self._partition
        known_s = time.monotonic() if self._known_s is None else self._known_s
        to = self._kept.take_over(known_s, all_of_it=all_of_it)
        answer: Any = self._scripts.call_sync(
            self._redis,
            "trim",
            [keys.head(p), keys.deadlines(p), self._key],
            [
                *(self._holder, lease_ms, role),
                *(acknowledged or ("", 0)),
                *(bytes_count, self._opening),
                *(to or ("", 0)),
                *(self._kept.bytes_count, int(takes)),
            ],
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
