"""Reservations past their deadline, on a closed partition, in a full store: what HTTP answers."""

from __future__ import annotations

import httpx
import pytest
from redis import Redis
from running import NO_POSTGRES, Receive, check_problem, in_process
from test_http_reservations import post, reserve, take

from api.servers import RedisServer
from engine import keys
from engine.settings import Settings

pytestmark = pytest.mark.anyio


def overdue(redis: Redis, name: str = "r1") -> None:
    """Move the clock that a partition keeps past every deadline a test makes."""
    ms = int(redis.time()[0]) * 1000 + 40 * 3_600_000
    redis.hset(keys.head(0), "last_ms", ms)


async def test_past_its_deadline_a_hold_is_expired_swept_or_not(
    client: httpx.AsyncClient, receive: Receive, redis: Redis
) -> None:
    """reserve, confirm and extend are 409, release is 200 (the units are back already)."""
    await receive("tea", 3)
    await reserve(client)
    overdue(redis)
    assert (await client.get("/v1/reservations/r1")).json()["status"] == "expired"
    check_problem(await post(client, "/r1/confirm"), 409, "reservation_expired")
    check_problem(await take(client, "confirm", 1, "p"), 409, "reservation_expired")
    check_problem(await take(client, "release", 1, "p"), 409, "reservation_expired")
    check_problem(await post(client, "/r1/extend", ttl_seconds=60), 409, "reservation_expired")
    released = await post(client, "/r1/release")
    assert (released.status_code, released.json()["status"]) == (200, "expired")
    again = check_problem(await reserve(client), 409, "reservation_expired")
    assert again["reservation"]["status"] == "expired"
    assert "all 3 units expired" in again["detail"] and "new reservation_id" in again["detail"]
    assert (await reserve(client, "r2")).status_code == 201


async def test_a_closed_partition_is_503_everywhere_and_nothing_is_granted(
    client: httpx.AsyncClient, receive: Receive, redis: Redis
) -> None:
    await receive("tea", 10)
    await reserve(client)
    redis.hset(keys.head(0), "run_id", "another")
    for answer in [
        await reserve(client, "r2"),
        await client.get("/v1/reservations/r1"),
        await post(client, "/r1/confirm"),
        await post(client, "/r1/release"),
        await post(client, "/r1/extend", ttl_seconds=9999),
        await client.get("/v1/stock/tea"),
        await client.get("/health/ready"),
    ]:
        check_problem(answer, 503, "partition_closed")
    assert redis.exists(keys.reservation(0, "r2")) == 0


async def test_a_full_store_refuses_reserve_and_still_gives_back(
    client: httpx.AsyncClient, receive: Receive, redis: Redis
) -> None:
    await receive("tea", 10)
    await reserve(client, "r1")
    await reserve(client, "r2")
    redis.config_set("maxmemory", 1)
    check_problem(await reserve(client, "r3"), 503, "store_full")
    known = await reserve(client, "r1")
    assert (known.status_code, known.headers["idempotent-replayed"]) == (200, "true")
    check_problem(await post(client, "/r1/extend", ttl_seconds=9999), 503, "store_full")
    assert (await client.get("/v1/stock/tea")).json()["held"] == 6
    assert (await post(client, "/r1/confirm")).status_code == 200
    assert (await post(client, "/r2/release")).status_code == 200
    redis.config_set("maxmemory", 2**30)
    assert (await client.get("/v1/stock/tea")).json()["available"] == 7


async def test_a_reserve_that_ends_unknown_tells_the_id_to_ask_again_with(
    client: httpx.AsyncClient, receive: Receive, redis: Redis, redis_server: RedisServer
) -> None:
    """Given no id from the client, when Redis says nothing, then the id that was made holds once."""
    await receive("tea", 10)
    body = {"order_id": "o1", "lines": [{"sku": "tea", "quantity": 2}]}
    operations = [{"op": "reserve", **body}, {"op": "reserve", "reservation_id": "own", **body}]
    impatient = Settings(redis_url=redis_server.url, postgres_url=NO_POSTGRES)
    async with in_process(impatient) as other:
        redis.client_pause(1_700, all=True)
        problem = check_problem(await other.post("/v1/reservations", json=body), 503, "unavailable")
        answer = await other.post("/v1/batch", json={"operations": operations})
        results = answer.json()["results"]
        redis.client_unpause()

    made = [problem["reservation_id"], results[0]["reservation_id"]]
    assert problem["reservation_id"] in problem["detail"]
    assert made[1] in results[0]["detail"]
    assert results[1]["reservation_id"] == "own"
    assert [result["code"] for result in results] == ["unavailable"] * 2
    for name in [*made, *made, "own"]:
        again = await client.post("/v1/reservations", json={"reservation_id": name, **body})
        assert again.status_code in (200, 201)
        assert again.json()["reservation_id"] == name
    assert (await client.get("/v1/stock/tea")).json()["held"] == 6
