"""The connection of the engine's script calls: order, errors, loss, giving up, TLS."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from kit import reserve
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError
from running import eventually, on_one_redis, open_by_hand

from api.ports import free_port
from api.servers import RedisServer
from engine.engine import Engine, connect
from engine.errors import StoreError
from engine.link import Link
from engine.settings import Settings

pytestmark = pytest.mark.anyio


@pytest.fixture
async def link(redis: Redis, redis_server: RedisServer) -> AsyncIterator[Link]:
    client = connect(redis_server.url, 800)
    link = Link(client.connection_pool)
    yield link
    await link.close()
    await client.aclose()


def links_of(redis: Redis) -> list[dict[str, Any]]:
    """The connections that a server has, but for the one that asks."""
    own = redis.client_id()
    return [each for each in redis.client_list() if int(each["id"]) != own]


async def test_replies_come_to_their_calls_in_order_whatever_their_sizes(link: Link) -> None:
    sizes = [0, 1, 70_000, 3, 1_000_000, 2]
    calls = [[("ECHO", b"x" * size), ("ECHO", str(size)), ("TIME",)] for size in sizes]
    replies = await asyncio.gather(*[link.call(commands) for commands in calls])
    assert [(len(own[0]), own[1]) for own in replies] == [(n, str(n).encode()) for n in sizes]


async def test_an_error_is_a_value_with_redis_pys_name_and_ends_nothing(link: Link) -> None:
    replies = await link.call([("EVALSHA", "0" * 40, 0), ("NONSENSE",), ("ECHO", 7)])
    assert isinstance(replies[0], NoScriptError)
    assert isinstance(replies[1], ResponseError)
    assert replies[2] == b"7"


async def test_a_lost_connection_is_told_to_all_who_wait_and_another_opened(
    link: Link, redis: Redis
) -> None:
    await link.call([("ECHO", 1)])
    (before,) = links_of(redis)
    waiting = [asyncio.create_task(link.call([("BLPOP", "hf:no", 0)])) for _ in range(3)]
    await asyncio.sleep(0.05)
    redis.client_kill_filter(_id=before["id"])
    for outcome in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(outcome, RedisConnectionError)
    assert await link.call([("ECHO", 2)]) == [b"2"]
    (after,) = links_of(redis)
    assert after["id"] != before["id"]


async def test_whoever_gives_up_gets_nobody_elses_reply(link: Link, redis: Redis) -> None:
    before = await link.call([("CLIENT", "ID")])
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await link.call([("BLPOP", "hf:no", 0)])
    redis.lpush("hf:no", "late")
    assert await link.call([("ECHO", "mine")]) == [b"mine"]
    assert await link.call([("CLIENT", "ID")]) != before, "what is still to come there is not ours"
    assert len(links_of(redis)) == 1, "the connection that was given up is closed"


async def test_a_server_that_is_away_is_told_and_used_when_it_is_back(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    server = RedisServer(redis_server.binary, tmp_path)
    server.start()
    client = connect(server.url, 800)
    link = Link(client.connection_pool)
    try:
        await link.open()
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises((RedisConnectionError, OSError)):
            await link.call([("ECHO", 1)])
        with pytest.raises((RedisConnectionError, OSError)):
            await link.call([("ECHO", 1)])
        server.stop()
        server.start()
        assert await link.call([("ECHO", 2)]) == [b"2"]
    finally:
        await link.close()
        await client.aclose()
        server.stop()


async def test_concurrent_calls_open_one_connection_and_closing_ends_it(
    link: Link, redis: Redis
) -> None:
    assert links_of(redis) == []
    await asyncio.gather(*[link.call([("ECHO", i)]) for i in range(50)])
    assert len(links_of(redis)) == 1
    await link.close()
    eventually("the server knows that it is closed", lambda: links_of(redis) == [])


async def test_an_engine_that_gets_one_connection_too_few_keeps_none(
    redis: Redis, redis_server: RedisServer
) -> None:
    before = redis.config_get("maxclients")["maxclients"]
    redis.config_set("maxclients", 3)  # ours, redis-py's and one call's
    try:
        with pytest.raises(StoreError, match="be used"):
            await Engine.start(Settings(redis_url=redis_server.url))
        eventually("all are closed", lambda: links_of(redis) == [], within_s=5)
    finally:
        redis.config_set("maxclients", before)
        for left in links_of(redis):  # else the loop would wait for it for ever
            redis.client_kill_filter(_id=left["id"])
        await asyncio.sleep(0.05)


@pytest.fixture
def tls_url(redis: Redis, redis_server: RedisServer, tmp_path: Path) -> Iterator[str]:
    key, certificate, port = tmp_path / "key.pem", tmp_path / "certificate.pem", free_port()
    words = (
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=x -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run(
        ["openssl", *words.split(), "-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
    )
    settings = {
        "tls-cert-file": certificate,
        "tls-key-file": key,
        "tls-ca-cert-file": certificate,
        "tls-auth-clients": "no",
        "tls-port": port,
    }
    values = [str(word) for pair in settings.items() for word in pair]
    redis.execute_command("CONFIG", "SET", *values)
    open_by_hand(redis_server.url)
    yield f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificate}"
    redis.config_set("tls-port", 0)


@on_one_redis
async def test_the_engine_works_over_tls(tls_url: str) -> None:
    engine = await Engine.start(Settings(redis_url=tls_url))
    statuses = {(await engine.call(reserve(f"r{i}", "A"))).status for i in range(3)}
    many = await engine.call_all([reserve(f"s{i}", "A") for i in range(2_000)])
    await engine.close()
    assert statuses | {each.status for each in many} == {"unknown_sku"}


@on_one_redis
async def test_giving_up_works_over_tls(tls_url: str, redis: Redis) -> None:
    client = connect(tls_url, 800)
    link = Link(client.connection_pool)
    await link.open()  # which takes long on a busy machine, and isn't what is given up here
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await link.call([("BLPOP", "hf:no", 0)])
    assert await link.call([("ECHO", "mine")]) == [b"mine"]
    assert len(links_of(redis)) == 1, "the connection that was given up is closed"
    await link.close()
    await client.aclose()
