"""The five reservation calls over HTTP: every status of design section 6 with its HTTP code."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from running import TIME, Receive, check_problem

pytestmark = pytest.mark.anyio

TEA = [{"sku": "tea", "quantity": 3, "location": "MAIN"}]


async def post(client: httpx.AsyncClient, path: str, **body: Any) -> httpx.Response:
    return await client.post(f"/v1/reservations{path}", json=body)


async def reserve(client: httpx.AsyncClient, name: str = "r1", **more: Any) -> httpx.Response:
    body: dict[str, Any] = {"reservation_id": name, "order_id": "o1", "lines": TEA}
    return await post(client, "", **body | more)


async def take(client: httpx.AsyncClient, call: str, quantity: int, name: str) -> httpx.Response:
    """A part of r1's tea."""
    lines = [{"sku": "tea", "quantity": quantity, "location": "MAIN"}]
    return await post(client, f"/r1/{call}", lines=lines, request_id=name)


async def test_a_reservation_answers_201_with_all_members(
    client: httpx.AsyncClient, receive: Receive
) -> None:
    await receive("tea", 10)
    answer = await reserve(client, customer_id="c1", ttl_seconds=60)
    assert answer.status_code == 201
    assert answer.headers["content-type"] == "application/json"
    assert "idempotent-replayed" not in answer.headers
    body = answer.json()
    times = body.pop("created_at"), body.pop("expires_at")
    assert all(TIME.fullmatch(time) for time in times)
    assert body == {
        "reservation_id": "r1",
        "order_id": "o1",
        "customer_id": "c1",
        "status": "held",
        "lines": [{"sku": "tea", "location": "MAIN", "quantity": 3, "confirmed": 0, "released": 0}],
    }
    assert (await client.get("/v1/reservations/r1")).json() == answer.json()


async def test_a_repeat_answers_200_with_the_same_one_and_says_so(
    client: httpx.AsyncClient, receive: Receive
) -> None:
    """ttl and the order of lines are not what makes two reserves the same."""
    await receive("tea", 10)
    await receive("mug", 10)
    lines = [{"sku": "mug", "quantity": 1, "location": "MAIN"}, *TEA]
    first = await reserve(client, lines=lines)
    split = [{**TEA[0], "quantity": 1}, {**TEA[0], "quantity": 2}, lines[0]]
    again = await reserve(client, lines=split, ttl_seconds=5)
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.headers["idempotent-replayed"] == "true"
    assert again.json() == first.json()
    assert (await client.get("/v1/stock/tea")).json()["held"] == 3


@pytest.mark.parametrize(
    "other", [{"order_id": "o2"}, {"customer_id": "c2"}, {"lines": [{**TEA[0], "quantity": 4}]},
              {"lines": [{"sku": "tea", "quantity": 3}]}]
)  # fmt: skip
async def test_the_same_id_with_other_content_is_422(
    client: httpx.AsyncClient, receive: Receive, other: dict[str, Any]
) -> None:
    await receive("tea", 10)
    await reserve(client)
    check_problem(await reserve(client, **other), 422, "reservation_mismatch")
    assert (await client.get("/v1/stock/tea")).json()["held"] == 3


@pytest.mark.parametrize("key", ["key-1", '"key-1"'])
async def test_an_idempotency_key_stands_in_for_the_id(
    client: httpx.AsyncClient, receive: Receive, key: str
) -> None:
    """With its quotes or without, it is the same reservation."""
    await receive("tea", 10)
    body = {"order_id": "o1", "lines": TEA}
    first = await client.post("/v1/reservations", json=body, headers={"Idempotency-Key": key})
    again = await client.post("/v1/reservations", json=body, headers={"Idempotency-Key": '"key-1"'})
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["reservation_id"] == "key-1"
    assert again.json() == first.json()


@pytest.mark.parametrize("key", ["", '""', '"', "a b", "-a", "a" * 65, "a/b", "ü"])
async def test_a_bad_idempotency_key_is_refused(
    client: httpx.AsyncClient, receive: Receive, key: str
) -> None:
    await receive("tea", 10)
    answer = await client.post(
        "/v1/reservations",
        json={"order_id": "o1", "lines": TEA},
        headers={"Idempotency-Key": key.encode("latin-1")},  # type: ignore[dict-item]
    )
    assert "Idempotency-Key" in check_problem(answer, 400, "invalid_request")["detail"]


async def test_without_any_id_each_call_is_a_reservation_of_its_own(
    client: httpx.AsyncClient, receive: Receive
) -> None:
    await receive("tea", 10)
    bodies = [(await post(client, "", order_id="o1", lines=TEA)).json() for _ in range(2)]
    assert bodies[0]["reservation_id"] != bodies[1]["reservation_id"]
    assert (await client.get("/v1/stock/tea")).json()["held"] == 6


async def test_too_little_stock_is_409_and_tells_every_short_line(
    client: httpx.AsyncClient, receive: Receive
) -> None:
    """Given two lines that are short and one that isn't, then nothing at all is held."""
    await receive("tea", 2)
    await receive("mug", 5)
    await receive("mug", 4, "SHOP")
    lines = [*TEA, {"sku": "mug", "quantity": 10}, {"sku": "mug", "quantity": 1, "location": "X"}]
    answer = await reserve(client, lines=lines)
    problem = check_problem(answer, 409, "insufficient_stock")
    assert sorted(problem["lines"], key=lambda line: line["requested"]) == [
        {"sku": "mug", "location": "X", "requested": 1, "available": 0},
        {"sku": "tea", "location": "MAIN", "requested": 3, "available": 2},
        {"sku": "mug", "location": None, "requested": 10, "available": 9},
    ]
    check_problem(await client.get("/v1/reservations/r1"), 404, "unknown_reservation")
    assert (await reserve(client, lines=[{"sku": "tea", "quantity": 2}])).status_code == 201


async def test_an_unknown_sku_is_404(client: httpx.AsyncClient) -> None:
    assert "tea" in check_problem(await reserve(client), 404, "unknown_sku")["detail"]


@pytest.mark.parametrize("call", ["", "/confirm", "/release", "/extend"])
async def test_an_unknown_reservation_is_404(client: httpx.AsyncClient, call: str) -> None:
    if call:
        answer = await post(
            client, f"/nobody{call}", **({"ttl_seconds": 1} if "ex" in call else {})
        )
    else:
        answer = await client.get("/v1/reservations/nobody")
    check_problem(answer, 404, "unknown_reservation")


async def test_a_line_without_location_is_filled_from_one_place_else_split(
    client: httpx.AsyncClient, receive: Receive
) -> None:
    await receive("tea", 5, "A")
    await receive("tea", 8, "B")
    one = await reserve(client, "one", lines=[{"sku": "tea", "quantity": 6}])
    split = await reserve(client, "split", lines=[{"sku": "tea", "quantity": 7}])
    assert [(at["location"], at["quantity"]) for at in one.json()["lines"]] == [("B", 6)]
    held = {at["location"]: at["quantity"] for at in split.json()["lines"]}
    assert held == {"A": 5, "B": 2}
    part = await post(
        client, "/split/confirm", lines=[{"sku": "tea", "quantity": 1}], request_id="p"
    )
    assert "tea" in check_problem(part, 400, "invalid_request")["detail"]


@pytest.mark.parametrize("body", [b"", b"{}", b' {"request_id":null}'])
@pytest.mark.parametrize(("call", "word"), [("confirm", "confirmed"), ("release", "released")])
async def test_confirm_and_release_take_all_that_is_left(
    client: httpx.AsyncClient, receive: Receive, call: str, word: str, body: bytes
) -> None:
    """A repeat answers 200 with what happened, the other operation 409, and nothing changes."""
    await receive("tea", 10)
    await reserve(client)
    headers = {"content-type": "application/json"} if body else {}
    answer = await client.post(f"/v1/reservations/r1/{call}", content=body, headers=headers)
    assert (answer.status_code, answer.json()["status"]) == (200, word)
    assert answer.json()["lines"][0][word] == 3
    again = await client.post(f"/v1/reservations/r1/{call}")
    assert (again.status_code, again.json()) == (200, answer.json())
    other = "release" if call == "confirm" else "confirm"
    check_problem(await post(client, f"/r1/{other}"), 409, f"already_{word}")
    check_problem(await take(client, call, 1, "late"), 409, f"already_{word}")
    check_problem(await post(client, "/r1/extend", ttl_seconds=60), 409, f"already_{word}")
    stock = (await client.get("/v1/stock/tea")).json()
    assert (stock["on_hand"], stock["held"]) == (7 if call == "confirm" else 10, 0)


async def test_parts_are_taken_one_by_one_and_the_last_names_the_state(
    client: httpx.AsyncClient, receive: Receive
) -> None:
    await receive("tea", 10)
    await reserve(client)
    first = await take(client, "confirm", 2, "p1")
    assert (first.status_code, first.json()["status"]) == (200, "held")
    line = first.json()["lines"][0]
    assert (line["quantity"], line["confirmed"], line["released"]) == (3, 2, 0)
    check_problem(await take(client, "release", 2, "p2"), 409, "exceeds_reservation")
    last = await take(client, "release", 1, "p2")  # a refusal isn't kept
    assert last.json()["status"] == "released"
    line = last.json()["lines"][0]
    assert (line["quantity"], line["confirmed"], line["released"]) == (3, 2, 1)


async def test_a_part_needs_a_request_id_and_it_is_taken_once(
    client: httpx.AsyncClient, receive: Receive
) -> None:
    """A known request id answers its first success, whatever happened since."""
    await receive("tea", 10)
    await reserve(client)
    refused = await post(client, "/r1/confirm", lines=[{**TEA[0], "quantity": 1}])
    assert "request_id" in check_problem(refused, 400, "invalid_request")["detail"]
    first = await take(client, "confirm", 1, "p1")
    await post(client, "/r1/release")
    again = await take(client, "confirm", 1, "p1")
    assert (again.status_code, again.json()) == (200, first.json())
    assert again.headers["idempotent-replayed"] == "true"
    check_problem(await take(client, "confirm", 2, "p1"), 422, "request_mismatch")
    check_problem(await take(client, "release", 1, "p1"), 422, "request_mismatch")
    whole = await client.post("/v1/reservations/r1/confirm", headers={"Idempotency-Key": "p1"})
    check_problem(whole, 422, "request_mismatch")
    assert (await client.get("/v1/stock/tea")).json()["on_hand"] == 9


async def test_an_idempotency_key_stands_in_for_the_request_id(
    client: httpx.AsyncClient, receive: Receive
) -> None:
    await receive("tea", 10)
    await reserve(client)
    answers = [
        await client.post(
            "/v1/reservations/r1/confirm",
            json={"lines": [{"sku": "tea", "quantity": 1}]},
            headers={"Idempotency-Key": key},
        )
        for key in ('"k"', "k", "k2")
    ]
    assert [answer.json()["lines"][0]["confirmed"] for answer in answers] == [1, 1, 2]


async def test_a_part_of_what_was_not_reserved_is_refused(
    client: httpx.AsyncClient, receive: Receive
) -> None:
    await receive("tea", 10)
    await receive("mug", 10)
    await reserve(client)
    lines = [{"sku": "mug", "quantity": 1, "location": "MAIN"}]
    answer = await post(client, "/r1/confirm", lines=lines, request_id="p")
    check_problem(answer, 409, "exceeds_reservation")


async def test_extend_goes_later_never_earlier_and_not_past_the_lifetime(
    client: httpx.AsyncClient, receive: Receive
) -> None:
    await receive("tea", 10)
    first = (await reserve(client, ttl_seconds=600)).json()
    later = await post(client, "/r1/extend", ttl_seconds=1200)
    assert later.status_code == 200
    assert later.json()["expires_at"] > first["expires_at"]
    earlier = await post(client, "/r1/extend", ttl_seconds=1)
    assert (earlier.status_code, earlier.json()) == (200, later.json())
    check_problem(await post(client, "/r1/extend", ttl_seconds=14_401), 409, "lifetime_exceeded")
    assert (await client.get("/v1/reservations/r1")).json() == later.json()
