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
        same = self.run_id == server.run_id and self.replid in ("", server.replid)
        return numbers and same


class Server(msgspec.Struct, frozen=True):
    """A server's identity: ``run_id`` of the process, ``replid`` of the line of replication that its
    data are from (another one after every promotion, also of a process that was never restarted)."""

    run_id: str
    replid: str


def server_of(info: dict[str, Any]) -> Server:
    """The identity in an ``INFO`` that has the sections server and replication."""
    return Server(str(info["run_id"]), str(info["master_replid"]))


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


def close_partition(redis: Redis, partition: int) -> None:
    """Close it: no script writes anything until it is opened anew."""
    redis.hset(keys.head(partition), "run_id", "")


class Opening(StrEnum):
    """What became of an attempt to open."""

    OPENED = "opened"
    CHANGED = "changed"
    OUTBOX_AHEAD = "outbox_ahead"


def open_partition(
    redis: Redis, scripts: Scripts, partition: int, *, judged: Head, server: Server, trimmer: str
) -> Opening:
    """Open the partition into epoch + 1 if head and server still are what was judged. ``trimmer`` trims
    the outbox where head names nobody yet."""
    answer = scripts.call_sync(
        redis,
        "open",
        [keys.head(partition), keys.deadlines(partition), keys.outbox(partition)],
        [judged.epoch, judged.seq, judged.run_id, server.run_id, server.replid, trimmer],
    )
    return Opening(answer[0].decode())
