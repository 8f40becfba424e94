"""What the engine tells of its Redis: what an answer is worth there, and what may throw holds away."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kit import Partition
from redis import Redis

from api.servers import RedisServer
from engine import keys
from engine.engine import Engine
from engine.settings import Settings

pytestmark = pytest.mark.anyio


@pytest.fixture
def configured(redis: Redis) -> Iterator[Redis]:
    """A server whose settings a test may change."""
    names = ("maxmemory-policy", "appendonly", "appendfsync")
    before = {name: redis.config_get(name)[name] for name in names}
    yield redis
    for name, value in before.items():
        redis.config_set(name, value)


@pytest.mark.parametrize(
    ("policy", "is_told"),
    [
        ("noeviction", False),
        ("allkeys-lru", True),
        ("allkeys-random", True),
        ("volatile-ttl", True),
    ],
)
async def test_a_policy_that_may_throw_holds_away_is_told_at_the_start(
    configured: Redis,
    redis_server: RedisServer,
    caplog: pytest.LogCaptureFixture,
    policy: str,
    is_told: bool,
) -> None:
    configured.config_set("maxmemory-policy", policy)
    engine = await Engine.start(Settings(redis_url=redis_server.url))
    await engine.close()
    assert (f"maxmemory-policy of Redis is {policy}" in caplog.text) is is_told


@pytest.mark.parametrize(
    ("appendonly", "appendfsync", "worth"),
    [("no", "always", "none"), ("yes", "always", "always"), ("yes", "everysec", "everysec")],
)
async def test_durability_is_that_of_the_append_only_file_if_there_is_one(
    configured: Redis, engine: Engine, appendonly: str, appendfsync: str, worth: str
) -> None:
    configured.config_set("appendfsync", appendfsync)
    configured.config_set("appendonly", appendonly)
    assert await engine.durability() == worth
    assert (await engine.redis_state({})).durability == worth


async def test_given_a_head_that_does_not_say_what_was_trimmed_then_nothing_is_counted(
    redis: Redis, engine: Engine
) -> None:
    """As the scripts count: an older head knew nothing of it."""
    p = Partition(redis)
    for number in range(3):
        p.receive(f"S{number}", 1)
    assert (await engine.states())[0].outbox_events == 3
    redis.hset(keys.head(0), "trimmed_seq", 2)
    assert (await engine.states())[0].outbox_events == 1
    redis.hdel(keys.head(0), "trimmed_seq")
    (state,) = await engine.states()
    assert (state.outbox_events, state.outbox_entries, state.seq) == (0, 3, 3)
