"""``GET /v1/reservations`` of an order or a customer: as each reads by its id, but of all time."""

from __future__ import annotations

import random
from typing import Any

import httpx
import pytest
from ledger_kit import FIRST_MS, event, write
from redis import Redis
from running import NO_POSTGRES, check_problem, in_process, on_one_redis, wait_for_ledger

from api import reservation_list
from engine import keys
from engine.settings import Settings
from persister import database
from persister.persister import connect_redis
from persister.runs import run

pytestmark = pytest.mark.anyio


async def listed(client: httpx.AsyncClient, **query: Any) -> list[dict[str, Any]]:
    """All pages."""
    found: list[dict[str, Any]] = []
    while True:
        answer = await client.get("/v1/reservations", params=query)
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert isinstance(body["next_cursor"], str)
        if not body["reservations"]:
            return found
        found += body["reservations"]
        assert len(found) < 1_000, "the pages never end"
        query["cursor"] = body["next_cursor"]


async def act(client: httpx.AsyncClient, *operations: dict[str, Any]) -> None:
    answer = await client.post("/v1/batch", json={"operations": operations})
    assert not [r for r in answer.json()["results"] if "detail" in r], answer.text


RECEIVE = {"op": "movement", "movement_id": "m", "type": "receive", "sku": "tea", "location": "A",
           "quantity": 1000}  # fmt: skip


def line(quantity: int, sku: str = "tea") -> dict[str, Any]:
    return {"sku": sku, "location": "A", "quantity": quantity}


@on_one_redis
async def test_each_reads_as_by_its_id_in_the_order_they_were_made(
    audited: httpx.AsyncClient, settings: Settings
) -> None:
    chance = random.Random(seed := random.randrange(10**6))
    print("seed", seed)
    await act(audited, RECEIVE, RECEIVE | {"movement_id": "m2", "sku": "mug"})
    ids = [f"r{n}" for n in range(40)]
    for name in ids:
        at = {"reservation_id": name}
        made = {"op": "reserve", **at, "order_id": "o1", "customer_id": chance.choice(["c1", "c2"])}
        await act(audited, made | {"lines": [line(3), line(2, "mug")]})
        part = {**at, "lines": [line(1)], "request_id": "p"}
        for step in chance.choice(
            [
                [],
                [{"op": "confirm", **at}],
                [{"op": "release", **at}],
                [{"op": "extend", **at, "ttl_seconds": 3600}, {"op": "confirm", **part}],
                [{"op": "confirm", **part}, {"op": "release", **at}],
                [{"op": "release", **part}, {"op": "extend", **at, "ttl_seconds": 5000}],
                [{"op": "release", **part}, {"op": "confirm", **at}],
            ]
        ):
            await act(audited, step)
    wait_for_ledger(settings)
    expected = [(await audited.get(f"/v1/reservations/{name}")).json() for name in ids]
    assert await listed(audited, order_id="o1") == expected
    for limit in (1, 7, 40):
        for customer in ("c1", "c2"):
            for status in (None, "held", "confirmed", "released", "expired"):
                query = {"customer_id": customer, "limit": limit}
                found = await listed(audited, **query | ({"status": status} if status else {}))
                assert found == [
                    each
                    for each in expected
                    if each["customer_id"] == customer and status in (None, each["status"])
                ]
    assert await listed(audited, order_id="o1", customer_id="nobody") == []


@on_one_redis
async def test_one_that_redis_has_forgotten_is_told_and_its_id_used_again_is_another(
    audited: httpx.AsyncClient, settings: Settings, redis: Redis
) -> None:
    first = {"op": "reserve", "reservation_id": "r", "order_id": "o1", "customer_id": "c"}
    await act(audited, RECEIVE, first | {"lines": [line(5)]}, {"op": "extend", "reservation_id": "r",
              "ttl_seconds": 7200}, {"op": "confirm", "reservation_id": "r"})  # fmt: skip
    before = (await audited.get("/v1/reservations/r")).json()
    redis.delete(keys.reservation(0, "r"))
    await act(audited, first | {"order_id": "o2", "lines": [line(1)]})
    wait_for_ledger(settings)
    assert await listed(audited, order_id="o1") == [before]
    assert [each["order_id"] for each in await listed(audited, customer_id="c")] == ["o1", "o2"]
    assert [each["status"] for each in await listed(audited, customer_id="c")] == [
        "confirmed",
        "held",
    ]


async def test_past_its_deadline_it_reads_expired_swept_or_not(postgres_url: str) -> None:
    """Given deadlines long past by PostgreSQL's clock, and one that is not."""
    r = {"order_id": "o", "customer_id": "c", "fingerprint": "f"}
    past = {"at_ms": 1_000_000_000_000}
    due = {"deadline_ms": 1_000_000_060_000, **r, **past}
    write(
        postgres_url,
        event(1, "reserve", ("tea", "A", 3, 0, 3), reservation_id="swept", **due),
        event(2, "reserve", ("tea", "A", 3, 0, 3), reservation_id="not", **due),
        event(3, "confirm", ("tea", "A", 1, -1, -1), reservation_id="not", status="held", **r, **past),
        event(4, "expire", ("tea", "A", 3, 0, -3), reservation_id="swept", status="expired", **r, **past),
        event(5, "reserve", ("tea", "A", 3, 0, 3), reservation_id="held", deadline_ms=FIRST_MS * 2, **r),
    )  # fmt: skip
    settings = Settings(redis_url="redis://127.0.0.1:1/0", postgres_url=postgres_url)
    async with in_process(settings) as client:
        found = {each["reservation_id"]: each for each in await listed(client, order_id="o")}
        assert [
            each["reservation_id"]
            for each in await listed(client, customer_id="c", status="expired")
        ] == ["swept", "not"]
    assert {name: each["status"] for name, each in found.items()} == {
        "swept": "expired", "not": "expired", "held": "held",
    }  # fmt: skip
    assert [
        (each["confirmed"], each["released"])
        for name in ("swept", "not")
        for each in found[name]["lines"]
    ] == [(0, 0), (1, 0)]


@on_one_redis
async def test_one_that_a_repair_has_ended_reads_as_released(
    audited: httpx.AsyncClient, settings: Settings, redis: Redis
) -> None:
    reserve = {"op": "reserve", "reservation_id": "r", "order_id": "o", "lines": [line(5)]}
    part = {"op": "confirm", "reservation_id": "r", "lines": [line(2)], "request_id": "p"}
    await act(audited, RECEIVE, reserve)
    await act(audited, part)
    wait_for_ledger(settings)
    redis.delete(keys.reservation(0, "r"))
    with database.connect(settings.postgres_url) as c, connect_redis(settings.redis_url) as client:
        run(client, c, trigger="test", repair_by="Ada", retention_ms=60_000)
    wait_for_ledger(settings)
    (found,) = await listed(audited, order_id="o")
    assert found == (await audited.get("/v1/reservations/r")).json()
    assert (found["status"], found["lines"][0]["confirmed"], found["lines"][0]["released"]) == (
        "released",
        2,
        3,
    )


async def test_a_page_is_bounded_by_its_lines(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At least one a page, and none is lost."""
    monkeypatch.setattr(reservation_list, "LINES_A_PAGE", 50)
    write(
        postgres_url,
        *[event(seq, "reserve", *[(f"s{n}", "A", 1, 0, 1) for n in range(40 * (seq % 3 + 1))],
                reservation_id=f"r{seq}", order_id="o", fingerprint="f", deadline_ms=FIRST_MS)
          for seq in range(1, 8)],
    )  # fmt: skip
    settings = Settings(redis_url="redis://127.0.0.1:1/0", postgres_url=postgres_url)
    async with in_process(settings) as client:
        first = (await client.get("/v1/reservations", params={"order_id": "o"})).json()
        assert [each["reservation_id"] for each in first["reservations"]] == ["r1"]
        found = await listed(client, order_id="o")
    assert [each["reservation_id"] for each in found] == [f"r{n}" for n in range(1, 8)]
    assert [len(each["lines"]) for each in found] == [40 * (n % 3 + 1) for n in range(1, 8)]


@pytest.mark.parametrize(
    "query",
    [{}, {"status": "held"}, {"order_id": "o", "status": "sold"}, {"order_id": "o", "status": ""},
     {"order_id": "o", "limit": "0"}, {"order_id": "o", "cursor": "x"}, {"order_id": "a\0"},
     {"order_id": "o", "sku": "tea"}, {"order_id": "o", "since": "2026-11-01"}],
    ids=str,
)  # fmt: skip
async def test_what_does_not_fit_is_400(query: dict[str, str]) -> None:
    async with in_process(
        Settings(redis_url="redis://127.0.0.1:1/0", postgres_url=NO_POSTGRES)
    ) as client:
        check_problem(await client.get("/v1/reservations", params=query), 400, "invalid_request")
