"""A reply lost on its way: whether the command took effect is unknown, and that is what is answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest
from redis import Redis
from running import on_one_redis

from api.servers import RedisServer
from engine import keys
from engine.engine import Engine
from engine.model import Extend, Line, Movement, Reserve
from engine.settings import Settings

pytestmark = [pytest.mark.anyio, on_one_redis]


class Wire:
    """Hands bytes on between an engine and its Redis. ``at_cut``: the next reply of Redis is not handed
    on; this is done and the connection cut instead. ``is_mute``: no reply is handed on."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.at_cut: Callable[[], object] | None = None
        self.was_cut = asyncio.Event()
        self.is_mute = False
        self.was_reset = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_redis, to_redis = await asyncio.open_connection("127.0.0.1", self._port)
        back = asyncio.create_task(self._back(from_redis, writer))
        try:
            while data := await reader.read(65536):
                to_redis.write(data)
        except ConnectionResetError:
            self.was_reset.set()
        to_redis.close()
        await back

    async def _back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if self.is_mute:
                continue
            if self.at_cut:
                self.at_cut()
                self.at_cut = None
                self.was_cut.set()
                break
            writer.write(data)
        writer.close()


@asynccontextmanager
async def wired(server: RedisServer, **settings: int) -> AsyncIterator[tuple[Engine, Wire]]:
    wire = Wire(server.port)
    listener = await asyncio.start_server(wire.serve, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    engine = await Engine.start(Settings(redis_url=f"redis://127.0.0.1:{port}/0", **settings))
    try:
        yield engine, wire
    finally:
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
    async with wired(redis_server) as (wired_engine, wire):
        wire.at_cut = partial(redis.hset, keys.head(0), "run_id", "")
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
    async with wired(redis_server) as (wired_engine, wire):
        wire.at_cut = partial(redis.hset, keys.head(0), "run_id", "")
        asked = asyncio.ensure_future(wired_engine.call(reserve))
        await wire.was_cut.wait()
        redis.hset(keys.head(0), "run_id", run_id)
        assert (await asked).status == "already_reserved"
    assert redis.hget(keys.stock(0, "tea", "A"), "held") == b"7"


async def test_given_a_receive_that_filled_the_outbox_then_asked_again_it_is_told_as_applied(
    engine: Engine, redis: Redis, redis_server: RedisServer
) -> None:
    receive = Movement(movement_id="m", type="receive", sku="tea", location="A", quantity=9)
    async with wired(redis_server, outbox_max_events=1) as (wired_engine, wire):
        wire.at_cut = object
        assert (await wired_engine.call(receive)).status == "already_applied"
        assert redis.hget(keys.stock(0, "tea", "A"), "on_hand") == b"9"


async def test_given_a_reserve_that_filled_redis_then_asked_again_it_is_told_as_reserved(
    engine: Engine, redis: Redis, redis_server: RedisServer
) -> None:
    """What isn't kept could still be on its way: of that the outcome is unknown."""
    receive = Movement(movement_id="m", type="receive", sku="tea", location="A", quantity=9)
    await engine.call(receive)
    held, short = (
        Reserve(reservation_id=name, order_id="o", lines=(Line("tea", quantity),), ttl_ms=60_000)
        for name, quantity in (("r", 7), ("s", 8))
    )
    async with wired(redis_server) as (wired_engine, wire):
        wire.at_cut = partial(redis.config_set, "maxmemory", 1)
        outcomes = await wired_engine.call_all([held, short])
        assert [each.status for each in outcomes] == ["already_reserved", "unavailable"]
        again = await wired_engine.call_all([held, short])
        assert [each.status for each in again] == ["already_reserved", "store_full"]
    assert redis.hget(keys.stock(0, "tea", "A"), "held") == b"7"


async def test_given_an_extend_up_to_its_limit_then_unavailable_not_nothing_changed(
    engine: Engine, redis: Redis, redis_server: RedisServer
) -> None:
    receive = Movement(movement_id="m", type="receive", sku="tea", location="A", quantity=9)
    reserve = Reserve(reservation_id="r", order_id="o", lines=(Line("tea", 7),), ttl_ms=1_000)
    extend = Extend(reservation_id="r", ttl_ms=55_000)
    await engine.call_all([receive, reserve])

    def let_ten_seconds_pass() -> None:
        redis.hset(keys.head(0), "last_ms", int(redis.hget(keys.head(0), "last_ms") or 0) + 10_000)

    async with wired(redis_server, lifetime_max_ms=60_000) as (wired_engine, wire):
        wire.at_cut = let_ten_seconds_pass
        assert (await wired_engine.call(extend)).status == "unavailable"
        assert (await wired_engine.call(extend)).status == "lifetime_exceeded"


async def test_whoever_gives_up_leaves_nothing_behind_that_the_kernel_would_deliver_later(
    engine: Engine, redis_server: RedisServer
) -> None:
    receive = Movement(movement_id="m", type="receive", sku="tea", location="A", quantity=9)
    async with wired(redis_server, unavailable_after_ms=200) as (wired_engine, wire):
        wire.is_mute = True
        assert (await wired_engine.call(receive)).status == "unavailable"
        async with asyncio.timeout(5):
            await wire.was_reset.wait()
