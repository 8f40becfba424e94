"""The sweeper: stock of overdue reservations comes back even when nobody asks for it.

Exactness does not depend on it: a reserve that falls short takes back what is due by itself, and
whoever reads a hold past its deadline is told that it expired.
"""

from __future__ import annotations

import asyncio
import logging

from redis.exceptions import RedisError

from engine.engine import Engine

log = logging.getLogger("holdfast.sweeper")


async def _sweep(engine: Engine, partition: int) -> None:
    more = True
    while more:
        swept = await engine.sweep(partition)
        more = swept is not None and swept.more


async def sweep_until(
    stopping: asyncio.Event, engine: Engine, interval_ms: int, partitions: int
) -> None:
    """Sweep every partition each ``interval_ms`` until ``stopping`` is set.

    A call takes back 500 entries at most, so that no sale waits long behind it; while more is due
    the next call follows at once.
    """
    said = ""
    while not stopping.is_set():
        try:
            for partition in range(partitions):
                await _sweep(engine, partition)
            said = ""
        except (RedisError, OSError) as error:
            if str(error) != said:
                said = str(error)
                log.warning("Redis did not answer: %s", said)
        try:
            async with asyncio.timeout(interval_ms / 1000):
                await stopping.wait()
        except TimeoutError:
            continue
