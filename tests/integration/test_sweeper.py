"""The sweeper's loop on a real Redis: what is due comes back call by call, and nothing stops it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from kit import EXPIRED, Partition, reserve
from redis import Redis
from running import eventually

from engine import keys
from engine.engine import Engine
from engine.expiry import sweep_until

pytestmark = pytest.mark.anyio
TEN_MINUTES_MS = 600_000


@asynccontextmanager
async def sweeping(engine: Engine, interval_ms: int) -> AsyncIterator[asyncio.Task[None]]:
    stopping = asyncio.Event()
    task = asyncio.create_task(sweep_until(stopping, engine, interval_ms, 1))
    try:
        yield task
    finally:
        stopping.set()
        await task


async def until(check: Callable[[], bool]) -> None:
    await asyncio.to_thread(eventually, "it is so", check)


def script_calls(redis: Redis) -> int:
    calls: int = redis.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"]
    return calls


@pytest.fixture
def p(redis: Redis, engine: Engine) -> Partition:
    """1,200 of A are held until one deadline. ``engine`` works on the same partition."""
    p = Partition(redis)
    p.receive("A", 1_200)
    for first in range(0, 1_200, 400):
        p.send(*[reserve(f"r{i}", "A", ttl_ms=60_000) for i in range(first, first + 400)])
    return p


async def test_given_more_due_than_a_call_takes_then_the_next_call_follows_at_once(
    p: Partition, engine: Engine
) -> None:
    p.make_all_due()
    async with sweeping(engine, TEN_MINUTES_MS):
        await until(lambda: p.stock("A")["held"] == 0)
    assert p.redis.zcard(keys.deadlines(0)) == 0
    p.check()


async def test_given_a_closed_partition_then_it_goes_on_once_that_is_open(
    p: Partition, engine: Engine
) -> None:
    p.make_all_due()
    run_id = p.redis.hget(keys.head(0), "run_id")
    p.redis.hset(keys.head(0), "run_id", "")
    p.redis.config_resetstat()
    async with sweeping(engine, 10) as task:
        await until(lambda: script_calls(p.redis) > 3)
        assert (p.stock("A")["held"], task.done()) == (1_200, False)
        p.redis.hset(keys.head(0), "run_id", run_id)
        await until(lambda: p.stock("A")["held"] == 0)
    assert p.record("r0").state == EXPIRED
