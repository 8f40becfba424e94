"""A sweeper that hangs is seen, and a stock read tells what a reserve would find all the same."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from kit import Partition, reserve
from metrics_kit import look
from redis import Redis
from running import on_one_redis

from engine import keys
from engine.engine import EXPIRE_ENTRIES_MAX, Engine
from engine.model import GetStock
from engine.settings import Settings

pytestmark = pytest.mark.anyio


@pytest.fixture
async def engine(redis: Redis, redis_server) -> Engine:
    """On a partition with 1,000 units of tea; nobody sweeps."""
    Partition(redis).receive("tea", 1_000)
    engine = await Engine.start(Settings(redis_url=redis_server.url))
    yield engine
    await engine.close()


def make_overdue(redis: Redis, count: int, by_ms: int) -> None:
    """So many holds of one unit whose deadline passed so long ago."""
    shop = Partition.of(redis)
    names = [f"r{number}" for number in range(count)]
    shop.send(*[reserve(name, "tea", ttl_ms=600_000) for name in names[:500]])
    for name in names[500:]:
        shop.hold(name, "tea", ttl_ms=600_000)
    shop.set_clock(shop.make_due(names[-1]) + by_ms)


async def held(engine: Engine) -> int:
    outcome = await engine.call(GetStock("tea"))
    return sum(record.held for record in outcome.stock)


async def test_a_read_that_meets_deadlines_overdue_by_more_than_a_second_takes_them_back_first(
    engine: Engine, redis: Redis
) -> None:
    make_overdue(redis, 3, 5_000)
    assert await held(engine) == 0
    Partition.of(redis).check_held()


async def test_one_of_many_skus_too(engine: Engine, redis: Redis) -> None:
    make_overdue(redis, 3, 5_000)
    outcomes = await engine.call_all([GetStock("other"), GetStock("tea")])
    assert outcomes[1].stock[0].held == 0


async def test_what_is_overdue_for_less_is_left_to_the_sweeper(
    engine: Engine, redis: Redis
) -> None:
    make_overdue(redis, 3, 900)
    assert await held(engine) == 3


@on_one_redis
async def test_a_read_takes_back_one_step_at_most_and_only_once_a_second(
    engine: Engine, redis: Redis
) -> None:
    make_overdue(redis, EXPIRE_ENTRIES_MAX + 7, 5_000)
    reads = await asyncio.gather(*[held(engine) for _ in range(20)])
    assert set(reads) == {7}, "those that come meanwhile wait for the same step"
    assert await held(engine) == 7


@on_one_redis
async def test_a_closed_partition_or_a_junk_clock_hinders_no_read(
    engine: Engine, redis: Redis
) -> None:
    make_overdue(redis, 1, 5_000)
    redis.hset(keys.head(0), "last_ms", "junk")
    assert await held(engine) in (0, 1)
    redis.hset(keys.head(0), "run_id", "another")
    assert (await engine.call(GetStock("tea"))).status == "partition_closed"


async def test_status_and_gauge_tell_how_long_the_oldest_deadline_is_overdue(
    client: httpx.AsyncClient, redis: Redis
) -> None:
    Partition.of(redis).receive("tea", 1_000)
    found, partition = await look(client)
    assert (found["holdfast_overdue_seconds"], partition["overdue_seconds"]) == (0, 0)
    Partition.of(redis).hold("later", "tea")
    found, partition = await look(client)
    assert (found["holdfast_overdue_seconds"], partition["overdue_seconds"]) == (0, 0)
    make_overdue(redis, 1, 7_000)
    found, partition = await look(client)
    assert 7 <= found["holdfast_overdue_seconds"] == partition["overdue_seconds"] < 7 + 1
