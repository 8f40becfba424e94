"""How far a partition's outbox is acknowledged: up to there its events are safe elsewhere (Kafka has
committed them, or the ledger has), and some of them stay for a while. lua/lib/acknowledged.lua writes it."""

from __future__ import annotations

from typing import Any

from redis import Redis

from engine import keys

#: (epoch, seq) of an event.
Place = tuple[int, int]
_PLACE = (
    "acknowledged_epoch",
    "acknowledged_seq",
    "trimmed_seq",
    "acknowledged_bytes",
    "trimmed_bytes",
)


def acknowledged(redis: Redis, partition: int) -> Place:
    """The place (epoch, seq) up to which all in the outbox is safe elsewhere. Of an older head, which tells
    only what was trimmed, it is before the first entry."""
    return place_and_kept(redis, partition)[0]


def place_and_kept(redis: Redis, partition: int) -> tuple[Place, int]:
    """The place, and how many bytes of what is up to there are still in the outbox."""
    found: Any = redis.hmget(keys.head(partition), _PLACE)
    epoch, seq, trimmed, bytes_count, trimmed_bytes = [
        int(text) if text and text.isdigit() else 0 for text in found
    ]
    return (epoch, max(seq, trimmed)), max(0, bytes_count - trimmed_bytes)


def is_acknowledged(redis: Redis, partition: int) -> bool:
    """Is all that was in the outbox when this was called safe elsewhere?"""
    epoch, seq = acknowledged(redis, partition)
    return not redis.xrange(keys.outbox(partition), min=f"{epoch}-{seq + 1}", count=1)
