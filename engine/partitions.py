"""Which partition a sku lives in, and how a partition is opened.

A partition is closed whenever the identity in its head is not that of the server it is on: after a
restart, a failover, or before it was ever opened. Every script checks that itself, so no connection,
however old, can write to a partition that nobody opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any
from zlib import crc32

import msgspec
from redis import Redis

from engine import keys
from engine.errors import StoreError
from engine.scripts import Scripts


def partition_of(sku: str, partitions: int) -> int:
    """The one partition a sku lives in."""
    return crc32(sku.encode()) % partitions


class Head(msgspec.Struct, frozen=True):
    """``hf:{p}:head`` as it was read: exact texts, since opening compares them to the letter.

    ``restoring``: '1' while a restore has not finished, else empty."""

    epoch: str
    seq: str
    run_id: str
    trimmer: str
    replid: str = ""
    last_ms: str = ""
    restoring: str = ""

    @property
    def position(self) -> tuple[int, int]:
        """(epoch, seq) of the last event; (0, 0) where there is no head. StoreError where they are
        no numbers."""
        return _number("epoch", self.epoch), _number("seq", self.seq)

    def is_open_on(self, server: Server) -> bool:
        """Was it opened on this server, and is it readable? As lua/lib/open.lua sees it."""
        numbers = self.epoch.isdecimal() and self.seq.isdecimal()
        return numbers and self.run_id == server.run_id and server.has_data_of(self.replid)


class Server(msgspec.Struct, frozen=True):
    """A server's identity: ``run_id`` of the process, ``replid`` of the line of replication that its
    data are from (another one after every promotion, also of a process that was never restarted).
    ``is_own_line``: it is a master that never had another one's data, as far as it knows."""

    run_id: str
    replid: str
    is_own_line: bool

    def has_data_of(self, replid: str) -> bool:
        """Are its data still those that it had with that replid ('' for not noted)? A master takes a new
        id, too, when its first replica attaches or the last one has been gone for long."""
        return replid in ("", self.replid) or self.is_own_line


def server_of(info: dict[str, Any]) -> Server:
    """The identity in an ``INFO`` that has the sections server and replication."""
    is_own_line = info["role"] == "master" and set(str(info["master_replid2"])) == {"0"}
    return Server(str(info["run_id"]), str(info["master_replid"]), is_own_line)


def read_server(redis: Redis) -> Server:
    """The identity of the running server."""
    return server_of({**redis.info("server"), **redis.info("replication")})


HEAD_FIELDS = ("epoch", "seq", "run_id", "trimmer", "replid", "last_ms", "restoring")


def head_of(fields: Sequence[bytes | str | None]) -> Head:
    """A head from the values of HEAD_FIELDS."""
    return Head(*[f.decode() if isinstance(f, bytes) else f or "" for f in fields])


def read_head(redis: Redis, partition: int) -> Head:
    """The head of a partition; its texts are empty where there is none."""
    return head_of(redis.hmget(keys.head(partition), HEAD_FIELDS))


def _number(name: str, text: str) -> int:
    if text and not text.isdecimal():
        raise StoreError(
            f"{name} of a partition's head is {text!r}, not a number: somebody changed it by hand;"
            " put back what the ledger's positions say (docs/operations.md, 'A head that can't be read')"
        )
    return int(text or 0)


def close_partition(redis: Redis, scripts: Scripts, partition: int, *, judged: Head) -> None:
    """Close it: no script writes anything until it is opened anew. Nothing is changed where that was
    done since it was judged."""
    scripts.call_sync(
        redis,
        "close",
        [keys.head(partition), keys.deadlines(partition), keys.outbox(partition)],
        [judged.epoch, judged.run_id],
    )


class Opening(StrEnum):
    """What became of an attempt to open."""

    OPENED = "opened"
    CHANGED = "changed"
    OUTBOX_AHEAD = "outbox_ahead"


def outbox_epoch(redis: Redis, partition: int) -> int:
    """The highest epoch that the outbox has ever had an entry of; 0 for none."""
    if not redis.exists(keys.outbox(partition)):
        return 0
    info: Any = redis.xinfo_stream(keys.outbox(partition))
    return int(info["last-generated-id"].split(b"-")[0])


def has_entries_of(redis: Redis, partition: int, epoch: int) -> bool:
    """Is there an entry of that epoch in the outbox?"""
    found: Any = redis.xrange(keys.outbox(partition), min=f"{epoch}-0", max=f"{epoch}", count=1)
    return bool(found)


def open_partition(
    redis: Redis,
    scripts: Scripts,
    partition: int,
    *,
    judged: Head,
    server: Server,
    epoch: int,
    trimmer: str,
) -> Opening:
    """Open the partition into ``epoch``, above the judged one, if head and server still are what was
    judged. ``trimmer`` trims the outbox where head names nobody yet."""
    answer = scripts.call_sync(
        redis,
        "open",
        [keys.head(partition), keys.deadlines(partition), keys.outbox(partition)],
        [
            *(judged.epoch, judged.seq, judged.run_id),
            *(server.run_id, server.replid),
            *(epoch, trimmer),
        ],
    )
    return Opening(answer[0].decode())
