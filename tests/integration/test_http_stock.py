"""Stock reads, and movements of every type with each of their statuses."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from running import TIME, Receive, check_problem

pytestmark = pytest.mark.anyio

RESTOCK = {"disposition": "restock"}


async def move(
    client: httpx.AsyncClient, name: str, kind: str, quantity: int, sku: str = "tea", **more: Any
) -> httpx.Response:
    body = {"movement_id": name, "type": kind, "sku": sku, "location": "MAIN", "quantity": quantity}
    return await client.post("/v1/movements", json=body | more)


async def units(client: httpx.AsyncClient, sku: str = "tea") -> tuple[int, ...]:
    """on_hand, held, quarantined, available."""
    stock = (await client.get(f"/v1/stock/{sku}")).json()
    return tuple(stock[name] for name in ("on_hand", "held", "quarantined", "available"))


async def hold(client: httpx.AsyncClient, quantity: int) -> None:
    lines = [{"sku": "tea", "quantity": quantity, "location": "MAIN"}]
    body = {"reservation_id": "r1", "order_id": "o1", "lines": lines}
    assert (await client.post("/v1/reservations", json=body)).status_code == 201


async def test_stock_of_a_sku_is_the_sum_and_each_location(
    client: httpx.AsyncClient, receive: Receive
) -> None:
    await receive("tea", 10)
    await receive("tea", 5, "ANNEX")
    await move(client, "m1", "return", 2)
    await hold(client, 3)
    main = {"on_hand": 12, "held": 3, "quarantined": 2, "safety_stock": 0, "available": 7}
    annex = {"on_hand": 5, "held": 0, "quarantined": 0, "safety_stock": 0, "available": 5}
    answer = await client.get("/v1/stock/tea")
    assert answer.status_code == 200
    assert answer.json() == {
        "sku": "tea",
        **{name: main[name] + annex[name] for name in main},
        "locations": [{"location": "ANNEX", **annex}, {"location": "MAIN", **main}],
    }
    check_problem(await client.get("/v1/stock/mug"), 404, "unknown_sku")
    several = (await client.get("/v1/stock?sku=mug&sku=tea&sku=mug")).json()
    assert several == {"stock": [answer.json()], "unknown": ["mug"]}


async def test_two_thousand_skus_can_be_read_at_once(
    client: httpx.AsyncClient, receive: Receive
) -> None:
    await receive("s1999", 1)
    query = "&".join(f"sku=s{n}" for n in range(2000))
    answer = (await client.get(f"/v1/stock?{query}")).json()
    assert [stock["sku"] for stock in answer["stock"]] == ["s1999"]
    assert answer["unknown"] == [f"s{n}" for n in range(1999)]


@pytest.mark.parametrize(
    ("kind", "more", "after"),
    [
        ("receive", {}, (14, 0, 2, 12)),
        ("return", {}, (14, 0, 6, 8)),
        ("return", RESTOCK, (14, 0, 2, 12)),
        ("return", {"disposition": "quarantine"}, (14, 0, 6, 8)),
        ("damage", {}, (6, 0, 2, 4)),
        ("count", {}, (4, 0, 2, 2)),
        ("count", {"expected_on_hand": 10}, (4, 0, 2, 2)),
    ],
)
async def test_a_movement_of_each_type_does_its_arithmetic_once(
    client: httpx.AsyncClient, kind: str, more: dict[str, Any], after: tuple[int, ...]
) -> None:
    """Given 8 for sale and 2 in quarantine, 4 units are moved, told twice."""
    await move(client, "m0", "receive", 8)
    await move(client, "m1", "return", 2)
    assert await units(client) == (10, 0, 2, 8)
    first = await move(client, "m2", kind, 4, reference="ref 1", reason="why not", **more)
    assert first.status_code == 201
    body = first.json()
    assert TIME.fullmatch(body["occurred_at"])
    wanted = {"movement_id": "m2", "type": kind, "sku": "tea", "location": "MAIN", "quantity": 4,
              "reference": "ref 1", "reason": "why not"}  # fmt: skip
    assert wanted.items() <= body.items()
    assert await units(client) == after
    again = await move(client, "m2", kind, 4, reference="ref 1", reason="why not", **more)
    assert (again.status_code, again.headers["idempotent-replayed"]) == (200, "true")
    assert again.json() == body
    assert await units(client) == after
    other = await move(client, "m2", kind, 5, reference="ref 1", reason="why not", **more)
    check_problem(other, 422, "request_mismatch")


@pytest.mark.parametrize("key", ["k1", '"k1"'])
async def test_an_idempotency_key_stands_in_for_the_movement_id(
    client: httpx.AsyncClient, key: str
) -> None:
    body = {"type": "receive", "sku": "tea", "location": "MAIN", "quantity": 4}
    check_problem(await client.post("/v1/movements", json=body), 400, "invalid_request")
    headers = {"Idempotency-Key": key}
    first = await client.post("/v1/movements", json=body, headers=headers)
    assert (first.status_code, first.json()["movement_id"]) == (201, "k1")
    again = await client.post("/v1/movements", json=body | {"movement_id": "k1"})
    assert again.status_code == 200


@pytest.mark.parametrize(("kind", "status"), [("receive", 201), ("return", 201), ("count", 201)])
async def test_receive_return_and_count_create_the_record(
    client: httpx.AsyncClient, kind: str, status: int
) -> None:
    assert (await move(client, "m1", kind, 4)).status_code == status
    assert (await units(client))[0] == 4


async def test_the_others_need_a_record(client: httpx.AsyncClient) -> None:
    check_problem(await move(client, "m1", "damage", 1), 404, "unknown_sku")
    check_problem(await client.get("/v1/stock/tea"), 404, "unknown_sku")


async def test_held_and_quarantined_units_can_not_be_moved_away(
    client: httpx.AsyncClient, receive: Receive
) -> None:
    """A refusal changes nothing and is not kept under its id."""
    await receive("tea", 10)
    await move(client, "m1", "return", 2)
    await hold(client, 3)
    detail = check_problem(await move(client, "m2", "damage", 8), 409, "would_break_holds")
    assert "3" in detail["detail"]
    check_problem(await move(client, "m3", "count", 4), 409, "would_break_holds")
    assert await units(client) == (12, 3, 2, 7)
    assert (await move(client, "m2", "damage", 7)).status_code == 201
    assert await units(client) == (5, 3, 2, 0)
    assert (await move(client, "m4", "count", 5)).status_code == 201


async def test_a_count_is_refused_where_on_hand_is_not_what_was_expected(
    client: httpx.AsyncClient, receive: Receive
) -> None:
    await receive("tea", 10)
    stale = await move(client, "m1", "count", 4, expected_on_hand=9)
    assert "10" in check_problem(stale, 409, "stale_expectation")["detail"]
    assert (await move(client, "m1", "count", 0, expected_on_hand=10)).status_code == 201
    assert await units(client) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("kind", "quantity", "more"),
    [
        ("receive", 0, {}),
        ("receive", 1_000_000_001, {}),
        ("count", -1, {}),
        ("count", 1_000_000_001, {}),
        ("steal", 1, {}),
        ("transfer", 1, {}),
        ("transfer", 1, {"to_location": "MAIN"}),
        ("receive", 1, {"to_location": "ANNEX"}),
        ("receive", 1, {"disposition": "restock"}),
        ("return", 1, {"disposition": "burn"}),
        ("receive", 1, {"expected_on_hand": 1}),
        ("count", 1, {"expected_on_hand": -1}),
    ],
)
async def test_a_movement_that_does_not_fit_is_400(
    client: httpx.AsyncClient, receive: Receive, kind: str, quantity: int, more: dict[str, Any]
) -> None:
    await receive("tea", 10)
    answer = await move(client, "m1", kind, quantity, **more)
    check_problem(answer, 400, "invalid_request")
    assert await units(client) == (10, 0, 0, 10)


async def test_the_largest_quantities_are_exact(client: httpx.AsyncClient) -> None:
    for n in range(3):
        assert (await move(client, f"m{n}", "receive", 1_000_000_000)).status_code == 201
    assert await units(client) == (3_000_000_000, 0, 0, 3_000_000_000)
