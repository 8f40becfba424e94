"""Answers of Redis that can't be used: nobody waits for ever, and nothing is claimed that isn't so."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from redis import Redis
from running import on_one_redis

from api.servers import RedisServer
from engine import keys
from engine.engine import Engine
from engine.model import GetStock, Line, Movement, Reserve
from engine.settings import Settings

pytestmark = [pytest.mark.anyio, on_one_redis]


def receive(movement_id: str, quantity: int = 5) -> Movement:
    return Movement(
        movement_id=movement_id, type="receive", sku="tea", location="A", quantity=quantity
    )


async def test_given_a_kept_movement_with_a_byte_too_many_then_its_neighbours_are_answered(
    engine: Engine, redis: Redis
) -> None:
    await engine.call(receive("m1"))
    redis.append(keys.movement_request(0, "m1"), b"x")
    async with asyncio.timeout(5):
        broken, good = await engine.call_all([receive("m1"), receive("m2")])
    assert (broken.status, good.status) == ("request_mismatch", "applied")


async def test_given_an_answer_that_can_not_be_decoded_then_unavailable_and_the_id_is_free_again(
    engine: Engine, redis: Redis
) -> None:
    await engine.call(receive("m1"))
    key = keys.movement_request(0, "m1")
    record = msgspec.msgpack.decode(redis.get(key))
    redis.set(key, msgspec.msgpack.encode([record[0], "then", *record[2:]]))
    async with asyncio.timeout(5):
        for _ in range(2):
            broken, good = await engine.call_all([receive("m1"), receive("m2")])
            assert broken.status == "unavailable"
    assert good.status == "already_applied"


async def test_given_scripts_flushed_and_no_right_to_load_then_unavailable_not_for_ever(
    redis: Redis, redis_server: RedisServer, engine: Engine
) -> None:
    redis.execute_command("ACL", "SETUSER", "limited", "reset", "on", ">x", "~*", "+@all")
    url = redis_server.url.replace("redis://", "redis://limited:x@")
    limited = await Engine.start(Settings(redis_url=url))
    try:
        redis.execute_command("ACL", "SETUSER", "limited", "-script")
        redis.script_flush()
        async with asyncio.timeout(5):
            assert (await limited.call(GetStock("tea"))).status == "unavailable"
    finally:
        await limited.close()
        redis.execute_command("ACL", "DELUSER", "limited")


async def test_given_a_hold_that_can_not_be_read_when_swept_then_it_is_said(
    engine: Engine, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    await engine.call(receive("m1"))
    lines = (Line("tea", 1),)
    outcome = await engine.call(
        Reserve(reservation_id="r1", order_id="o", lines=lines, ttl_ms=1_000)
    )
    assert outcome.reservation is not None
    redis.append(keys.reservation(0, "r1"), b"x")
    redis.hset(keys.head(0), "last_ms", outcome.reservation.expires_ms)
    swept = await engine.sweep(0)
    assert swept is not None
    assert (swept.looked_at, swept.expired) == (1, 0)
    assert keys.reservation(0, "r1") in caplog.text
