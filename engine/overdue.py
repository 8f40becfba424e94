"""Stock reads where the sweeper hangs: what is long overdue is taken back first, so that a read tells what a
reserve would find."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from engine import keys

log = logging.getLogger("holdfast.engine")

OVERDUE_MS = 1_000
LOOK_EVERY_S = 1.0
#: A read waits no longer for it than that: where Redis doesn't answer the read has to say so in time.
WAIT_MAX_S = 0.15


def overdue_ms(now_ms: int, oldest: list[tuple[bytes, float]]) -> int:
    """How long the oldest deadline has passed by the partition's clock, in ms; 0 where none has."""
    return max(0, now_ms - int(oldest[0][1])) if oldest else 0


def ask_oldest(pipe: Any, partition: int) -> None:
    """Ask for the oldest deadline there is."""
    pipe.zrangebyscore(keys.deadlines(partition), "-inf", "+inf", 0, 1, withscores=True)


class OverdueSweep:
    """Once a second, if somebody reads stock then: one step of ``sweep`` for each partition whose oldest
    deadline passed more than a second ago. Reads meanwhile wait for the same step."""

    def __init__(
        self, redis: Redis, sweep: Callable[[int], Awaitable[Any]], partitions: int
    ) -> None:
        self._redis = redis
        self._sweep = sweep
        self._partitions = range(partitions)
        self._look_at = 0.0
        self._looking: asyncio.Task[None] | None = None

    def is_due(self) -> bool:
        """Is it time to ``look`` before a stock read? Cheap, for every read asks."""
        return self._looking is not None or monotonic() >= self._look_at

    async def look(self) -> None:
        """Take back a step where it is overdue. Never raises for what Redis does."""
        if self._looking is None:
            self._looking = asyncio.get_running_loop().create_task(self._sweep_overdue())
        # Not cancelled with whoever waits: others may wait for it too.
        await asyncio.wait((self._looking,), timeout=WAIT_MAX_S)

    async def close(self) -> None:
        """Wait for a step that is under way."""
        if self._looking is not None:
            await asyncio.wait((self._looking,))

    async def _sweep_overdue(self) -> None:
        try:
            for partition in self._partitions:
                if await self._overdue_ms(partition) > OVERDUE_MS:
                    await self._sweep(partition)
        except (RedisError, OSError):
            pass  # the read itself will tell
        except Exception:
            log.exception("looking for overdue deadlines failed")
        finally:
            self._look_at = monotonic() + LOOK_EVERY_S
            self._looking = None

    async def _overdue_ms(self, partition: int) -> int:
        pipe = self._redis.pipeline(transaction=False)
        pipe.time()
        pipe.hget(keys.head(partition), "last_ms")
        ask_oldest(pipe, partition)
        (seconds, micros), last_ms, oldest = await pipe.execute()
        kept_ms = int(last_ms) if last_ms and last_ms.isdigit() else 0
        return overdue_ms(max(seconds * 1000 + micros // 1000, kept_ms), oldest)
