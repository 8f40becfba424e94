"""A Redis that is not the one the ledger was written from, or that somebody changed by hand."""

from __future__ import annotations

import httpx
import psycopg
import pytest
from redis import Redis
from running import (
    check_problem,
    eventually,
    in_process,
    is_open,
    on_one_redis,
    persisting,
    stopped,
    wait_for_ledger,
)

from engine import keys
from engine.errors import LedgerError
from engine.settings import Settings
from persister import database

pytestmark = [pytest.mark.anyio, on_one_redis]
MOVE = {"type": "receive", "sku": "tea", "location": "A", "quantity": 5}


async def receive(client: httpx.AsyncClient, movement_id: str) -> int:
    answer = await client.post("/v1/movements", json={"movement_id": movement_id, **MOVE})
    return answer.status_code


async def test_given_a_ledger_that_is_ahead_when_redis_is_open_then_it_is_closed_and_not_trimmed(
    settings: Settings, redis: Redis
) -> None:
    """As after a failback to a server that never restarted, or with one of the URLs wrong."""
    async with in_process(settings) as client:
        with persisting(settings):
            assert await receive(client, "m1") == 201
            wait_for_ledger(settings)
        assert await receive(client, "m2") == 201
        with psycopg.connect(settings.postgres_url, autocommit=True) as ledger:
            ledger.execute("UPDATE positions SET seq = 9")
        with persisting(settings, until_open=False):
            eventually("it is said", lambda: stopped(settings))
            assert "behind the ledger's 1-9" in stopped(settings)
            assert not is_open(settings.redis_url)
            assert redis.xlen(keys.outbox(0)) == 2, "m1 is kept, m2 waits"
            assert await receive(client, "m3") == 503
            partition = (await client.get("/v1/status")).json()["partitions"][0]
            assert (partition["open"], partition["ledger"]["behind_events"]) == (False, -7)
            with psycopg.connect(settings.postgres_url, autocommit=True) as ledger:
                ledger.execute("UPDATE positions SET seq = 1")
            eventually("it goes on by itself", lambda: is_open(settings.redis_url))
            wait_for_ledger(settings)
            assert stopped(settings) == ""
        assert await receive(client, "m4") == 201


async def test_given_a_head_that_is_no_number_then_it_is_closed_and_said(
    settings: Settings, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    async with in_process(settings) as client:
        with persisting(settings):
            redis.hset(keys.head(0), "epoch", "abc")
            check_problem(await client.get("/health/ready"), 503, "partition_closed")
            status = await client.get("/v1/status")
            assert (status.status_code, status.json()["partitions"][0]["open"]) == (200, False)
            eventually("it is said", lambda: "head is 'abc', not a number" in caplog.text)
            redis.hset(keys.head(0), "epoch", 1)
            eventually("it goes on", lambda: is_open(settings.redis_url))
            assert await receive(client, "m1") == 201


async def test_given_a_clock_far_ahead_then_status_and_persister_say_so(
    settings: Settings, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    async with in_process(settings) as client:
        with persisting(settings):
            seconds, _ = redis.time()
            redis.hset(keys.head(0), "last_ms", (seconds + 3600) * 1000)
            status = (await client.get("/v1/status")).json()["partitions"][0]
            assert 3_500_000 < status["clock_ahead_ms"] <= 3_600_000
            eventually("it is said", lambda: "s ahead of the server's" in caplog.text)


async def test_given_a_database_that_is_not_utf8_then_it_is_refused_in_one_line(
    settings: Settings,
) -> None:
    base = settings.postgres_url.rsplit("/", 1)[0]
    with psycopg.connect(settings.postgres_url, autocommit=True) as admin:
        admin.execute("DROP DATABASE IF EXISTS latin WITH (FORCE)")
        admin.execute("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    with (
        database.connect(f"{base}/latin") as connection,
        pytest.raises(LedgerError, match="encoding is LATIN1; it must be UTF8"),
    ):
        database.migrate(connection)


async def test_given_another_client_encoding_in_the_environment_then_every_text_is_kept(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "latin1")
    async with in_process(settings) as client:
        with persisting(settings):
            await receive(client, "m1")
            order = {"order_id": "café 🍵", "lines": [{"sku": "tea", "quantity": 1}]}
            assert (await client.post("/v1/reservations", json=order)).status_code == 201
            wait_for_ledger(settings)
        found = (await client.get("/v1/movements", params={"order_id": "café 🍵"})).json()
        assert [m["order_id"] for m in found["movements"]] == ["café 🍵"]
