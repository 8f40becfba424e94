"""The sweeper: stock of overdue reservations comes back even when nobody asks for it.

Exactness does not depend on it: a reserve that falls short takes back what is due by itself, and
whoever reads a hold past its deadline is told that it expired.
"""

from __future__ import annotations

import asyncio
import logging

from redis.exceptions import RedisError

from engine.addresses import why
from engine.engine import Engine
from engine.repeats import Repeats

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
    repeats = Repeats(log)
    while not stopping.is_set():
        try:
            for partition in range(partitions):
                await _sweep(engine, partition)
        except (RedisError, OSError) as error:
            repeats.happened(type(error).__name__, f"could not sweep: {why(error)}")
        try:
            async with asyncio.timeout(interval_ms / 1000):
                await stopping.wait()
        except TimeoutError:
            continue
    repeats.close()
