"""A reply lost on its way: whether the command took effect is unknown, and that is what is answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from redis import Redis
from running import on_one_redis

from api.servers import RedisServer
from engine import keys
from engine.engine import Engine
from engine.model import Line, Movement, Reserve
from engine.partitions import close_partition
from engine.settings import Settings

pytestmark = [pytest.mark.anyio, on_one_redis]


class Wire:
    """Hands bytes on between an engine and its Redis. ``cut_next``: the next reply of Redis is not
    handed on; its partition is closed and the connection cut instead."""

    def __init__(self, redis: Redis, port: int) -> None:
        self._redis = redis
        self._port = port
        self.cut_next = False
        self.was_cut = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_redis, to_redis = await asyncio.open_connection("127.0.0.1", self._port)
        back = asyncio.create_task(self._back(from_redis, writer))
        while data := await reader.read(65536):
            to_redis.write(data)
        to_redis.close()
        await back

    async def _back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if self.cut_next:
                self.cut_next = False
                close_partition(self._redis, 0)
                self.was_cut.set()
                break
            writer.write(data)
        writer.close()


@asynccontextmanager
async def wired(redis: Redis, server: RedisServer) -> AsyncIterator[tuple[Engine, Wire]]:
    wire = Wire(redis, server.port)
    listener = await asyncio.start_server(wire.serve, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    engine = await Engine.start(Settings(redis_url=f"redis://127.0.0.1:{port}/0"))
    yield engine, wire
    await engine.close()
    listener.close()


async def test_given_a_lost_reply_and_a_partition_closed_since_then_unavailable_not_nothing_changed(
    engine: Engine, redis: Redis, redis_server: RedisServer
) -> None:
    """``partition_closed`` tells the client that nothing was changed; here 7 units are held."""
    await engine.call(
        Movement(movement_id="m", type="receive", sku="tea", location="A", quantity=9)
    )
    reserve = Reserve(reservation_id="r", order_id="o", lines=(Line("tea", 7),), ttl_ms=60_000)
    async with wired(redis, redis_server) as (wired_engine, wire):
        wire.cut_next = True
        assert (await wired_engine.call(reserve)).status == "unavailable"
        assert redis.hget(keys.stock(0, "tea", "A"), "held") == b"7"
        assert (await wired_engine.call(reserve)).status == "partition_closed"


async def test_given_a_lost_reply_then_the_engine_asks_again_by_itself(
    engine: Engine, redis: Redis, redis_server: RedisServer
) -> None:
    await engine.call(
        Movement(movement_id="m", type="receive", sku="tea", location="A", quantity=9)
    )
    run_id = redis.hget(keys.head(0), "run_id")
    reserve = Reserve(reservation_id="r", order_id="o", lines=(Line("tea", 7),), ttl_ms=60_000)
    async with wired(redis, redis_server) as (wired_engine, wire):
        wire.cut_next = True
        asked = asyncio.ensure_future(wired_engine.call(reserve))
        await wire.was_cut.wait()
        redis.hset(keys.head(0), "run_id", run_id)
        assert (await asked).status == "already_reserved"
    assert redis.hget(keys.stock(0, "tea", "A"), "held") == b"7"
