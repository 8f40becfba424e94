"""The header Idempotency-Key: it stands in for an id, or is refused; it is never ignored."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from running import Receive, check_problem, on_one_redis

pytestmark = [pytest.mark.anyio, on_one_redis]

LINES = [{"sku": "tea", "quantity": 2, "location": "MAIN"}]
RESERVE = {"op": "reserve", "order_id": "o1", "lines": LINES}
RECEIVE = {"op": "movement", "type": "receive", "sku": "tea", "location": "MAIN", "quantity": 5}


def keyed(*keys: str) -> list[tuple[str, str]]:
    return [("Idempotency-Key", key) for key in keys]


async def batch(client: httpx.AsyncClient, key: str | None, *operations: Any) -> httpx.Response:
    headers = keyed(key) if key is not None else None
    return await client.post("/v1/batch", json={"operations": operations}, headers=headers)


async def results(client: httpx.AsyncClient, key: str, *operations: Any) -> list[dict[str, Any]]:
    answer = await batch(client, key, *operations)
    assert answer.status_code == 200, answer.text
    told: list[dict[str, Any]] = answer.json()["results"]
    return told


@pytest.mark.parametrize("key", ["cart-7", '"cart-7"'])
async def test_in_a_batch_each_reserve_without_an_id_gets_key_and_place(
    client: httpx.AsyncClient, receive: Receive, key: str
) -> None:
    """Given the same batch again, then nothing is held twice. (The quick way of api/plain.py.)"""
    await receive("tea", 100)
    operations = [RESERVE, {**RESERVE, "reservation_id": "own"}, RESERVE]
    first = await results(client, key, *operations)
    again = await results(client, key, *operations)
    names = [result["reservation"]["reservation_id"] for result in first]
    assert names == ["cart-7.0", "own", "cart-7.2"]
    assert [result["code"] for result in first] == ["reserved"] * 3
    assert [result["code"] for result in again] == ["already_reserved"] * 3
    assert [r["reservation"] for r in again] == [r["reservation"] for r in first]
    assert (await client.get("/v1/stock/tea")).json()["held"] == 6


async def test_in_a_batch_it_stands_in_for_movement_ids_and_request_ids_too(
    client: httpx.AsyncClient, receive: Receive
) -> None:
    """Given parts and movements without ids (the strict way), then a repeat takes nothing twice."""
    await receive("tea", 100)
    part = {"lines": [{"sku": "tea", "quantity": 1}]}
    operations = [
        RESERVE,
        RECEIVE,
        {"op": "confirm", "reservation_id": "k.0", **part},
        {"op": "extend", "reservation_id": "k.0", "ttl_seconds": 1000},
        {"op": "release", "reservation_id": "k.0", **part},
        {**RECEIVE, "movement_id": "m"},
        {"op": "fly"},
        RESERVE,
    ]
    first = await results(client, "k", *operations)
    again = await results(client, "k", *operations)
    codes = [
        "reserved", "applied", "confirmed", "extended", "released", "applied", "invalid_request",
        "reserved",
    ]  # fmt: skip
    assert [result["code"] for result in first] == codes
    codes[0], codes[1], codes[5], codes[7] = (
        "already_released", "already_applied", "already_applied", "already_reserved",
    )  # fmt: skip
    codes[3] = "already_released"
    assert [result["code"] for result in again] == codes
    assert first[1]["movement"]["movement_id"] == "k.1"
    assert first[5]["movement"]["movement_id"] == "m"
    assert again[2]["reservation"] == first[2]["reservation"]
    stock = (await client.get("/v1/stock/tea")).json()
    assert (stock["on_hand"], stock["held"]) == (100 + 10 - 1, 2)


async def test_in_a_batch_whole_confirms_and_releases_stay_what_they_are(
    client: httpx.AsyncClient, receive: Receive
) -> None:
    await receive("tea", 100)
    operations = [RESERVE, RESERVE, {"op": "confirm", "reservation_id": "k.0"},
                  {"op": "release", "reservation_id": "k.1"}]  # fmt: skip
    await results(client, "k", *operations)
    again = await results(client, "k", *operations)
    assert [result["code"] for result in again] == [
        "already_reserved", "already_released", "already_confirmed", "already_released",
    ]  # fmt: skip
    assert (await client.get("/v1/stock/tea")).json()["on_hand"] == 98


@pytest.mark.parametrize("more", [[], [{**RECEIVE, "movement_id": "m"}]])
async def test_a_key_too_long_for_a_place_is_400_and_nothing_is_done(
    client: httpx.AsyncClient, receive: Receive, more: list[Any]
) -> None:
    """64 characters with the dot and the last place; by the quick way and by the strict one."""
    await receive("tea", 100)
    operations = [RESERVE] * (11 - len(more)) + more
    problem = check_problem(await batch(client, "k" * 62, *operations), 400, "invalid_request")
    assert "Idempotency-Key" in problem["detail"] and "61" in problem["detail"]
    assert (await client.get("/v1/stock/tea")).json()["held"] == 0
    assert (await batch(client, "k" * 61, *operations)).status_code == 200
    assert (await batch(client, "k" * 62, RESERVE)).status_code == 200


@pytest.mark.parametrize("key", ["", "a b", "-a", "a" * 65])
async def test_a_bad_key_of_a_batch_is_400(client: httpx.AsyncClient, key: str) -> None:
    problem = check_problem(await batch(client, key, RESERVE), 400, "invalid_request")
    assert "Idempotency-Key" in problem["detail"]


CALLS = [
    ("/v1/reservations", {"order_id": "o1", "lines": LINES}, "reservation_id"),
    ("/v1/reservations/r1/confirm", {"lines": LINES}, "request_id"),
    ("/v1/reservations/r1/release", {"lines": LINES}, "request_id"),
    ("/v1/reservations/r1/confirm", {}, "request_id"),
    (
        "/v1/movements",
        {key: value for key, value in RECEIVE.items() if key != "op"},
        "movement_id",
    ),
]


@pytest.mark.parametrize(("path", "body", "field"), CALLS)
async def test_beside_another_id_in_the_body_it_is_400_and_nothing_is_done(
    client: httpx.AsyncClient, receive: Receive, path: str, body: dict[str, Any], field: str
) -> None:
    await receive("tea", 10)
    made = await client.post(
        "/v1/reservations", json={"reservation_id": "r1", "order_id": "o", "lines": LINES}
    )
    assert made.status_code == 201
    before = (await client.get("/v1/stock/tea")).json()
    answer = await client.post(path, json={**body, field: "own"}, headers=keyed("key"))
    detail = check_problem(answer, 400, "invalid_request")["detail"]
    assert field in detail and "'own'" in detail and "'key'" in detail
    assert (await client.get("/v1/stock/tea")).json() == before
    same = await client.post(path, json={**body, field: "own"}, headers=keyed('"own"'))
    assert same.status_code in (200, 201)


async def test_two_keys_are_400_unless_they_are_the_same(
    client: httpx.AsyncClient, receive: Receive
) -> None:
    await receive("tea", 10)
    body = {"order_id": "o1", "lines": LINES}
    two = await client.post("/v1/reservations", json=body, headers=keyed("a", "b"))
    assert "Idempotency-Key" in check_problem(two, 400, "invalid_request")["detail"]
    assert (await client.get("/v1/stock/tea")).json()["held"] == 0
    twice = await client.post("/v1/reservations", json=body, headers=keyed("a", '"a"'))
    assert (twice.status_code, twice.json()["reservation_id"]) == (201, "a")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/reservations/r1/extend", {"ttl_seconds": 60}),
        ("POST", "/v1/reconciliations", None),
        ("GET", "/v1/reconciliations/latest", None),
        ("GET", "/v1/reservations/r1", None),
        ("GET", "/v1/stock/tea", None),
        ("GET", "/v1/stock?sku=tea", None),
        ("GET", "/v1/movements", None),
        ("GET", "/v1/status", None),
    ],
)
async def test_where_it_has_no_meaning_it_is_refused_not_ignored(
    client: httpx.AsyncClient, receive: Receive, method: str, path: str, body: Any
) -> None:
    await receive("tea", 10)
    made = await client.post(
        "/v1/reservations", json={"reservation_id": "r1", "order_id": "o", "lines": LINES}
    )
    answer = await client.request(method, path, json=body, headers=keyed("k"))
    assert "Idempotency-Key" in check_problem(answer, 400, "invalid_request")["detail"]
    assert (await client.get("/v1/reservations/r1")).json() == made.json()
