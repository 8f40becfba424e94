"""How Redis and the partitions in it stand, for health, status and metrics.

Reading only, a few commands whatever there is in Redis: no scan, and of the outbox the first entry that is
not acknowledged and the first after the ledger's position.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from redis.asyncio import Redis

from engine import keys
from engine.events import read_entry
from engine.overdue import ask_oldest, overdue_ms
from engine.partitions import HEAD_FIELDS, Server, head_of, server_of
from engine.risks import risks_of

Place = tuple[int, int]
Entries = list[tuple[bytes, dict[bytes, bytes]]]
_COUNTERS = (
    *("written_bytes", "acknowledged_epoch", "acknowledged_seq", "acknowledged_bytes"),
    *("trimmed_seq", "trimmed_bytes"),
)


class Waiting(msgspec.Struct, frozen=True):
    """An event in the outbox, and for how long it has been there; ``age_ms`` is None where its entry
    can't be read."""

    seq: int
    age_ms: int | None


class PartitionState(msgspec.Struct, frozen=True, kw_only=True):
    """How a partition stands in Redis.

    ``clock_ahead_ms``: how far its clock, which never runs back, is ahead of the server's; while it is,
    no deadline passes. ``overdue_ms``: how long ago its oldest deadline passed by that clock, 0 where none
    has. ``outbox_events``, ``outbox_bytes``: what waits in the outbox, not yet acknowledged; the bytes
    are right again at the latest when all is (a trimmer that was killed doesn't know them).
    ``outbox_kept_events``, ``outbox_kept_bytes``: what is acknowledged and still there;
    ``outbox_entries``: entries of both. ``acknowledged``: the place up to which all is.
    ``trimmer``: who trims, ``relay`` or ``persister``; empty for nobody yet.
    """

    partition: int
    open: bool
    epoch: int
    seq: int
    clock_ahead_ms: int
    overdue_ms: int
    outbox_entries: int
    outbox_events: int
    outbox_bytes: int
    outbox_kept_events: int
    outbox_kept_bytes: int
    acknowledged: Place
    trimmer: str


class Outbox(msgspec.Struct, frozen=True):
    """The oldest event that waits in an outbox, and the oldest of those after a place; None where there is
    none."""

    oldest: Waiting | None
    oldest_after: Waiting | None


class RedisState(msgspec.Struct, frozen=True, kw_only=True):
    """The server and its partitions, read together; ``outboxes`` by partition. ``now_ms`` by the server's
    clock. ``durability`` as Engine.durability tells it, ``maxmemory_bytes`` 0 for no limit, ``risks`` as
    engine/risks.py tells them."""

    now_ms: int
    name: str
    version: str
    durability: str
    used_memory_bytes: int
    maxmemory_bytes: int
    maxmemory_policy: str
    risks: list[str]
    partitions: list[PartitionState]
    outboxes: dict[int, Outbox]


async def read_partitions(redis: Redis, partitions: int) -> list[PartitionState]:
    """How each partition stands. RedisError where Redis is away."""
    pipe = redis.pipeline(transaction=False)
    pipe.info("server")
    pipe.info("replication")
    _ask_partitions(pipe, partitions)
    server, replication, *replies = await pipe.execute()
    return _partitions(server_of({**server, **replication}), replies)


async def read_state(
    redis: Redis, partitions: int, durability: str, after: Mapping[int, Place]
) -> RedisState:
    """All of it; ``after`` is the ledger's (epoch, seq) by partition, where it is known. It has to be
    read before, or the ledger could seem to be ahead of Redis. RedisError where Redis is away."""
    pipe = redis.pipeline(transaction=False)
    pipe.info()
    _ask_partitions(pipe, partitions)
    info, *replies = await pipe.execute()
    states = _partitions(server_of(info), replies)
    now_ms = _now_ms(replies[0])
    places = {
        state.partition: (state.acknowledged, after.get(state.partition, (0, 0)))
        for state in states
    }
    outboxes = {
        partition: Outbox(*[_waiting(partition, *each, now_ms) for each in found])
        for partition, found in (await _read_outboxes(redis, places)).items()
    }
    return RedisState(
        now_ms=now_ms,
        name=info.get("server_name", "redis"),
        version=info.get("valkey_version", info["redis_version"]),
        durability=durability,
        used_memory_bytes=info["used_memory"],
        maxmemory_bytes=info["maxmemory"],
        maxmemory_policy=info.get("maxmemory_policy", "unknown"),
        risks=risks_of(info),
        partitions=states,
        outboxes=outboxes,
    )


async def _read_outboxes(
    redis: Redis, places: Mapping[int, tuple[Place, ...]]
) -> dict[int, list[tuple[Entries, Place]]]:
    """The first entry of each outbox after each of these places."""
    pipe = redis.pipeline(transaction=False)
    for partition, each in places.items():
        for epoch, seq in each:
            pipe.xrange(keys.outbox(partition), min=f"{epoch}-{seq + 1}", count=1)
    replies = iter(await pipe.execute())
    return {p: [(next(replies), place) for place in each] for p, each in places.items()}


def _ask_partitions(pipe: Any, partitions: int) -> None:
    pipe.time()
    for partition in range(partitions):
        pipe.hmget(keys.head(partition), *HEAD_FIELDS, *_COUNTERS)
        pipe.xlen(keys.outbox(partition))
        ask_oldest(pipe, partition)


#: So many of them a partition.
_REPLIES = 3


def _now_ms(time: tuple[int, int]) -> int:
    return time[0] * 1000 + time[1] // 1000


def _partitions(server: Server, replies: list[Any]) -> list[PartitionState]:
    """From what ``_ask_partitions`` asked."""
    now_ms = _now_ms(replies[0])
    states = []
    for partition, at in enumerate(range(1, len(replies), _REPLIES)):
        fields, entries, oldest = replies[at : at + _REPLIES]
        head = head_of(fields[: len(HEAD_FIELDS)])
        seq = _whole(head.seq)
        written, epoch, done_seq, done_bytes, trimmed_seq, trimmed = fields[len(HEAD_FIELDS) :]
        trimmed_seq, trimmed = _whole(trimmed_seq, seq), _whole(trimmed)
        # An older head tells only what was trimmed.
        done_seq, done_bytes = max(_whole(done_seq), trimmed_seq), max(_whole(done_bytes), trimmed)
        states.append(
            PartitionState(
                partition=partition,
                open=head.is_open_on(server),
                epoch=_whole(head.epoch),
                seq=seq,
                clock_ahead_ms=max(0, _whole(head.last_ms) - now_ms),
                overdue_ms=overdue_ms(max(now_ms, _whole(head.last_ms)), oldest),
                outbox_entries=entries,
                outbox_events=max(0, seq - done_seq),
                outbox_bytes=max(0, _whole(written) - done_bytes),
                outbox_kept_events=done_seq - trimmed_seq,
                outbox_kept_bytes=done_bytes - trimmed,
                acknowledged=(_whole(epoch), done_seq),
                trimmer=head.trimmer,
            )
        )
    return states


def _whole(text: bytes | str | None, otherwise: int = 0) -> int:
    digits = text.encode() if isinstance(text, str) else text or b""
    return int(digits) if digits.isdigit() else otherwise


def _waiting(partition: int, entries: Entries, after: Place, now_ms: int) -> Waiting | None:
    """The first event after a place in the first of these entries."""
    for entry_id, fields in entries:
        name = entry_id.decode()
        try:
            events = read_entry(partition, name, fields.get(b"events", b""))
        except (msgspec.MsgspecError, ValueError, KeyError, IndexError, TypeError):
            return Waiting(int(name.partition("-")[2]), None)
        for event in events:
            if event.seq > after[1]:
                return Waiting(event.seq, max(0, now_ms - event.at_ms))
    return None
