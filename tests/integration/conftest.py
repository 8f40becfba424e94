"""The application in this process, on real servers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from kit import PATIENT_MS
from redis import Redis
from running import (
    NO_POSTGRES,
    Receive,
    in_process,
    open_by_hand,
    persisting,
    serving,
    until_ready,
)
from wire_kit import Shop

from api.servers import RedisServer, choose_redis
from engine.settings import Settings


@pytest.fixture
async def client(redis: Redis, redis_server: RedisServer) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application on an empty, open partition; no ledger behind it."""
    open_by_hand(redis_server.url)
    settings = Settings(
        redis_url=redis_server.url, postgres_url=NO_POSTGRES, unavailable_after_ms=PATIENT_MS
    )
    async with in_process(settings) as client:
        yield client


@pytest.fixture
def settings(redis: Redis, redis_server: RedisServer, postgres_url: str) -> Settings:
    """Settings of an empty Redis and an empty database."""
    return Settings(redis_url=redis_server.url, postgres_url=postgres_url)


@pytest.fixture
async def audited(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application with a persister behind it."""
    with persisting(settings):
        async with in_process(settings) as client:
            await until_ready(client)
            yield client


@pytest.fixture
def one_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """An own, empty Redis of the kind the stack would choose, fsync at every write."""
    server = RedisServer(choose_redis(), tmp_path_factory.mktemp("one-redis"), appendfsync="always")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def wire_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings of an own Redis, opened, for tests of what is said over HTTP; no ledger behind it."""
    server = RedisServer(choose_redis(), tmp_path_factory.mktemp("wire"), appendfsync="no")
    server.start()
    open_by_hand(server.url)
    yield Settings(redis_url=server.url, postgres_url=NO_POSTGRES)
    server.stop()


@pytest.fixture(scope="module")
def shop(wire_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A running service with stock."""
    log = tmp_path_factory.mktemp("serve") / "serve.log"
    with serving(wire_settings, log) as service, Shop(service) as shop:
        yield shop


@pytest.fixture
def one(one_redis: RedisServer, postgres_url: str) -> Settings:
    """Settings of an own Redis and an empty database."""
    return Settings(redis_url=one_redis.url, postgres_url=postgres_url)


@pytest.fixture
def receive(client: httpx.AsyncClient) -> Receive:
    """Put stock in: ``await receive("tea", 10)``."""

    async def receive(sku: str, quantity: int, location: str = "MAIN") -> None:
        answer = await client.post(
            "/v1/movements",
            json={
                "movement_id": f"in-{sku}-{location}",
                "type": "receive",
                "sku": sku,
                "location": location,
                "quantity": quantity,
            },
        )
        assert answer.status_code == 201, answer.text

    return receive
