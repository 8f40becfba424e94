"""Does a partition sell: what would a reserve be told now? The one judgement behind ``/v1/status``, the gauge
``holdfast_selling``, its alarm and ``holdfast check``."""

from __future__ import annotations

from typing import Any

import msgspec
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from engine.addresses import why
from engine.statuses import Status


class Refusal(msgspec.Struct, frozen=True):
    """What every reserve is told: the status, and in words what Redis said or what is full."""

    code: Status
    detail: str


DETAILS = {
    Status.PARTITION_CLOSED: "the partition is closed until the persister has checked and opened it",
    Status.STORE_FULL: "Redis has no memory left for new holds (maxmemory)",
    Status.BACKLOG_FULL: "the outbox holds as many events or bytes as it may",
}


def status_for_all(reply: Any) -> Status | None:
    """The status that a script's reply means for every command of its call; None where it decided."""
    if reply == b"partition_closed":
        return Status.PARTITION_CLOSED
    if reply == b"backlog_full":
        return Status.BACKLOG_FULL
    # Redis 6.2 wraps the refusal of a command inside a script into an error of the script.
    if isinstance(reply, OutOfMemoryError) or (
        isinstance(reply, RedisError) and "OOM command not allowed" in str(reply)
    ):
        return Status.STORE_FULL
    return Status.UNAVAILABLE if isinstance(reply, RedisError) else None


def refusal_of(reply: Any, timeout_ms: int) -> Refusal | None:
    """Why a reserve that was replied this (an exception, where there was no reply) isn't decided."""
    if isinstance(reply, RedisTimeoutError | TimeoutError):
        return Refusal(Status.UNAVAILABLE, f"Redis gave no answer within {timeout_ms} ms")
    if isinstance(reply, OSError | RedisConnectionError):
        return Refusal(Status.UNAVAILABLE, f"Redis can't be asked: {why(reply)}")
    status = status_for_all(reply)
    if status is None:
        return None
    return Refusal(status, DETAILS.get(status) or f"Redis refuses to write: {why(reply)}")
