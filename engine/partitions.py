"""Which partition a sku lives in, and how a partition is opened.

A partition is closed whenever the run_id in its head is not that of the server it is on: after a
restart, a failover, or before it was ever opened. Every script checks that itself, so no connection,
however old, can write to a partition that nobody opened.
"""

from __future__ import annotations

from enum import StrEnum
from zlib import crc32

import msgspec
from redis import Redis

from engine import keys
from engine.scripts import Scripts


def partition_of(sku: str, partitions: int) -> int:
    """The one partition a sku lives in."""
    return crc32(sku.encode()) % partitions


class Head(msgspec.Struct, frozen=True):
    """``hf:{p}:head`` as it was read: exact texts, since opening compares them to the letter."""

    epoch: str
    seq: str
    run_id: str
    trimmer: str

    @property
    def position(self) -> tuple[int, int]:
        """(epoch, seq) of the last event; (0, 0) where there is no head."""
        return int(self.epoch or 0), int(self.seq or 0)


def text(field: bytes | str | None) -> str:
    """A field of a Redis hash as text; '' where it is missing."""
    return field.decode() if isinstance(field, bytes) else field or ""


def read_head(redis: Redis, partition: int) -> Head:
    """The head of a partition; its texts are empty where there is none."""
    fields = redis.hmget(keys.head(partition), ["epoch", "seq", "run_id", "trimmer"])
    return Head(*(text(field) for field in fields))


def server_run_id(redis: Redis) -> str:
    """The identity of the running server process; another one after every restart."""
    return str(redis.info("server")["run_id"])


class Opening(StrEnum):
    """What became of an attempt to open."""

    OPENED = "opened"
    CHANGED = "changed"
    OUTBOX_AHEAD = "outbox_ahead"


def open_partition(
    redis: Redis, scripts: Scripts, partition: int, *, judged: Head, server: str, trimmer: str
) -> Opening:
    """Open the partition into epoch + 1 if head and server still are what was judged."""
    answer = scripts.call_sync(
        redis,
        "open",
        [keys.head(partition), keys.deadlines(partition), keys.outbox(partition)],
        [judged.epoch, judged.seq, judged.run_id, server, trimmer],
    )
    return Opening(answer[0].decode())
