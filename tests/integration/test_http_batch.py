"""Many operations in one body: each decided by itself, answered in its place."""

from __future__ import annotations

from collections import Counter
from typing import Any

import httpx
import pytest
from running import Receive

pytestmark = pytest.mark.anyio


def reserve(name: str, quantity: int = 1, sku: str = "tea") -> dict[str, Any]:
    lines = [{"sku": sku, "quantity": quantity, "location": "MAIN"}]
    return {"op": "reserve", "reservation_id": name, "order_id": f"o-{name}", "lines": lines}


def move(name: str, kind: str = "receive", quantity: int = 10, **more: Any) -> dict[str, Any]:
    place = {"sku": "tea", "location": "MAIN", "quantity": quantity}
    return {"op": "movement", "movement_id": name, "type": kind, **place, **more}


def on(op: str, name: str, **more: Any) -> dict[str, Any]:
    return {"op": op, "reservation_id": name, **more}


async def batch(client: httpx.AsyncClient, *operations: Any) -> list[dict[str, Any]]:
    answer = await client.post("/v1/batch", json={"operations": operations})
    assert answer.status_code == 200, answer.text
    results: list[dict[str, Any]] = answer.json()["results"]
    assert len(results) == len(operations)
    return results


def codes(results: list[dict[str, Any]]) -> list[str]:
    return [result["code"] for result in results]


async def test_two_thousand_operations_are_answered_in_order(
    client: httpx.AsyncClient, receive: Receive
) -> None:
    """Given 1,500 units, 2,000 reserves of one: 1,500 get one, and every result is in its place."""
    await receive("tea", 1500)
    names = [f"r{n}" for n in range(2000)]
    results = await batch(client, *[reserve(name) for name in names])
    assert Counter(codes(results)) == {"reserved": 1500, "insufficient_stock": 500}
    for name, result in zip(names, results, strict=True):
        if result["code"] == "reserved":
            assert result["reservation"]["reservation_id"] == name
        else:
            short = {"sku": "tea", "location": "MAIN", "requested": 1, "available": 0}
            assert result["lines"] == [short]
    stock = (await client.get("/v1/stock/tea")).json()
    assert (stock["held"], stock["available"]) == (1500, 0)


@pytest.mark.parametrize("count", [0, 2001])
async def test_none_or_too_many_operations_are_400(client: httpx.AsyncClient, count: int) -> None:
    answer = await client.post(
        "/v1/batch", json={"operations": [reserve(f"r{n}") for n in range(count)]}
    )
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert "operations" in answer.json()["detail"]


async def test_misfits_are_told_in_their_place_and_stop_nobody(
    client: httpx.AsyncClient, receive: Receive
) -> None:
    await receive("tea", 10)
    misfits: list[Any] = [
        reserve("bad", -1), reserve("a b"), {"op": "fly"}, {}, None, 1, "x", [],
        on("confirm", "r1", lines=[{"sku": "tea", "quantity": 1}]), on("extend", "r1"),
        on("release", "r1", zzz=1), move("m", "receive", 0), move("m", "transfer"),
        {**reserve("r9"), "order_id": "\x00"}, {**reserve("r9"), "lines": []}, on("confirm", ""),
    ]  # fmt: skip
    results = await batch(client, reserve("r1"), *misfits, reserve("r2"))
    assert codes(results) == ["reserved", *["invalid_request"] * len(misfits), "reserved"]
    assert all(result["detail"] for result in results[1:-1])
    assert "quantity" in results[1]["detail"]
    assert (await client.get("/v1/stock/tea")).json()["held"] == 2


async def test_operations_on_one_id_take_effect_in_order(client: httpx.AsyncClient) -> None:
    """Whatever their kind; and what is received first can be sold by the next."""
    part = [{"sku": "tea", "quantity": 2}]
    results = await batch(
        client,
        on("confirm", "r1"),
        move("m1"),
        reserve("r1", 5),
        on("confirm", "r1", lines=part, request_id="p1"),
        on("extend", "r1", ttl_seconds=1800),
        on("release", "r1", lines=part, request_id="p2"),
        on("confirm", "r1", lines=part, request_id="p1"),
        on("confirm", "r1"),
        on("release", "r1"),
        reserve("r1", 5),
        reserve("r1", 4),
        move("m1"),
        move("m1", quantity=11),
    )
    assert codes(results) == [
        "unknown_reservation", "applied", "reserved", "confirmed", "extended", "released",
        "confirmed", "confirmed", "already_confirmed", "already_released", "reservation_mismatch",
        "already_applied", "request_mismatch",
    ]  # fmt: skip
    line = results[7]["reservation"]["lines"][0]
    assert (line["quantity"], line["confirmed"], line["released"]) == (5, 3, 2)
    assert results[6]["reservation"] == results[3]["reservation"]
    assert (await client.get("/v1/stock/tea")).json()["on_hand"] == 7


async def test_the_order_on_each_of_many_ids_is_kept(
    client: httpx.AsyncClient, receive: Receive
) -> None:
    """400 ids, five operations each, interleaved: every id sees its own in order."""
    await receive("tea", 400)
    names = [f"r{n}" for n in range(400)]
    rounds = [
        [on("release", name) for name in names],
        [reserve(name) for name in names],
        [on("extend", name, ttl_seconds=1800) for name in names],
        [on("confirm", name) for name in names],
        [on("release", name) for name in names],
    ]
    results = await batch(client, *[operation for round_ in rounds for operation in round_])
    expected = ["unknown_reservation", "reserved", "extended", "confirmed", "already_confirmed"]
    assert codes(results) == [code for code in expected for _ in names]
    assert (await client.get("/v1/stock/tea")).json()["on_hand"] == 0


async def test_each_operation_of_a_batch_can_be_sent_again(
    client: httpx.AsyncClient, receive: Receive
) -> None:
    await receive("tea", 10)
    operations = [reserve("r1"), reserve("r2"), on("confirm", "r1"), on("release", "r2")]
    first, again = await batch(client, *operations), await batch(client, *operations)
    assert codes(first) == ["reserved", "reserved", "confirmed", "released"]
    assert codes(again) == [
        "already_reserved", "already_released", "already_confirmed", "already_released",
    ]  # fmt: skip
    assert again[0]["reservation"]["status"] == "confirmed"
    assert (await client.get("/v1/stock/tea")).json()["on_hand"] == 9
