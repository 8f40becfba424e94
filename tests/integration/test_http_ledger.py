"""What HTTP tells of the ledger: the audit trail, status and health."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from running import TIME, check_problem, in_process, open_by_hand, wait_for_ledger

from api.servers import RedisServer
from engine.settings import Settings

pytestmark = pytest.mark.anyio

MEMBERS = {
    "partition", "epoch", "seq", "line", "type", "sku", "location", "quantity", "on_hand_delta",
    "held_delta", "quarantined_delta", "reservation_id", "order_id", "reference", "reason",
    "occurred_at",
}  # fmt: skip


async def history(client: httpx.AsyncClient, settings: Settings) -> None:
    """Twelve events, of which one (extend) has no lines and one has two."""
    tea = {"sku": "tea", "quantity": 3, "location": "MAIN"}
    mug = {"sku": "mug", "quantity": 1, "location": "SHOP"}
    move = {"op": "movement", "sku": "tea", "location": "MAIN"}
    reserve = {"op": "reserve", "lines": [tea]}
    part = [{"sku": "tea", "quantity": 1}]
    operations = [
        move | {"movement_id": "m1", "type": "receive", "quantity": 20, "reference": "delivery 7"},
        move | {"movement_id": "m2", "type": "receive", "quantity": 5, "sku": "mug",
                "location": "SHOP"},
        reserve | {"reservation_id": "r1", "order_id": "o1", "lines": [tea, mug]},
        reserve | {"reservation_id": "r2", "order_id": "o\\2 ☕"},
        {"op": "extend", "reservation_id": "r1", "ttl_seconds": 1800},
        {"op": "confirm", "reservation_id": "r1", "lines": part, "request_id": "p1"},
        {"op": "release", "reservation_id": "r1"},
        {"op": "confirm", "reservation_id": "r2"},
        move | {"movement_id": "m3", "type": "return", "quantity": 2},
        move | {"movement_id": "m4", "type": "return", "quantity": 1, "disposition": "restock"},
        move | {"movement_id": "m5", "type": "damage", "quantity": 4, "reason": "wet\\ \\N \\n ü"},
        move | {"movement_id": "m6", "type": "count", "quantity": 10},
    ]  # fmt: skip
    for operation in operations:
        answer = await client.post("/v1/batch", json={"operations": [operation]})
        assert "detail" not in answer.json()["results"][0], answer.text
    wait_for_ledger(settings)


async def trail(client: httpx.AsyncClient, **query: Any) -> list[dict[str, Any]]:
    answer = await client.get("/v1/movements", params=query)
    assert answer.status_code == 200, answer.text
    assert isinstance(answer.json()["next_cursor"], str)
    movements: list[dict[str, Any]] = answer.json()["movements"]
    return movements


async def test_the_audit_trail_tells_every_movement_oldest_first(
    audited: httpx.AsyncClient, settings: Settings
) -> None:
    await history(audited, settings)
    found = await trail(audited)
    assert all(set(row) == MEMBERS for row in found)
    assert all(TIME.fullmatch(row["occurred_at"]) for row in found)
    places = [(row["partition"], row["epoch"], row["seq"], row["line"]) for row in found]
    assert places == sorted(places)
    assert {row["seq"] for row in found} == set(range(1, 13)) - {5}  # extend has no deltas
    deltas = [
        (row["type"], row["sku"], row["quantity"], row["on_hand_delta"], row["held_delta"],
         row["quarantined_delta"])
        for row in found
    ]  # fmt: skip
    assert deltas == [
        ("receive", "tea", 20, 20, 0, 0),
        ("receive", "mug", 5, 5, 0, 0),
        ("reserve", "tea", 3, 0, 3, 0),
        ("reserve", "mug", 1, 0, 1, 0),
        ("reserve", "tea", 3, 0, 3, 0),
        ("confirm", "tea", 1, -1, -1, 0),
        ("release", "tea", 2, 0, -2, 0),
        ("release", "mug", 1, 0, -1, 0),
        ("confirm", "tea", 3, -3, -3, 0),
        ("return", "tea", 2, 2, 0, 2),
        ("return", "tea", 1, 1, 0, 0),
        ("damage", "tea", 4, -4, 0, 0),
        ("count", "tea", 10, -5, 0, 0),
    ]
    assert found[0]["reference"] == "delivery 7"
    assert found[4]["order_id"] == "o\\2 ☕"
    assert found[-2]["reason"] == "wet\\ \\N \\n ü"
    stock = (await audited.get("/v1/stock/tea")).json()
    for name in ("on_hand", "held", "quarantined"):
        total = sum(row[f"{name}_delta"] for row in found if row["sku"] == "tea")
        assert stock[name] == total


async def test_each_filter_and_all_of_them_together(
    audited: httpx.AsyncClient, settings: Settings
) -> None:
    await history(audited, settings)
    everything = await trail(audited)
    for name, value in [("sku", "mug"), ("location", "SHOP"), ("reservation_id", "r1"),
                        ("order_id", "o1"), ("order_id", "o\\2 ☕")]:  # fmt: skip
        found = await trail(audited, **{name: value})
        assert found == [row for row in everything if row[name] == value]
        assert found
    both = await trail(audited, sku="mug", location="SHOP", reservation_id="r1", order_id="o1")
    assert [row["type"] for row in both] == ["reserve", "release"]
    for name in ("sku", "location", "reservation_id", "order_id"):
        assert await trail(audited, **{name: "nobody"}) == []
    assert await trail(audited, sku="mug' OR '1'='1") == []


@pytest.mark.parametrize("limit", [1, 2, 13])
async def test_pages_meet_without_gap_or_overlap(
    audited: httpx.AsyncClient, settings: Settings, limit: int
) -> None:
    """Also in the middle of an event's lines; the cursor is safe in a URL as it is."""
    await history(audited, settings)
    for filters in ("", "&sku=tea"):
        everything = (await audited.get(f"/v1/movements?limit=1000{filters}")).json()["movements"]
        found, cursor = [], ""
        while True:
            answer = await audited.get(f"/v1/movements?limit={limit}{filters}{cursor}")
            page = answer.json()
            assert len(page["movements"]) <= limit
            if not page["movements"]:
                break
            found += page["movements"]
            assert page["next_cursor"].replace("-", "").replace("_", "").isalnum()
            cursor = f"&cursor={page['next_cursor']}"
        assert found == everything


async def test_status_tells_how_all_parts_stand(
    audited: httpx.AsyncClient, settings: Settings, redis_server: RedisServer
) -> None:
    await history(audited, settings)
    status = (await audited.get("/v1/status")).json()
    assert status["redis"]["durability"] == redis_server.appendfsync
    assert status["redis"]["version"] == redis_server.binary.version_text
    assert status["ledger"] == "ok"
    (partition,) = status["partitions"]
    assert (partition["open"], partition["epoch"], partition["seq"]) == (True, 1, 12)
    assert partition["ledger"] == {
        "epoch": 1, "seq": 12, "behind_events": 0, "behind_seconds": 0, "stopped": None
    }  # fmt: skip
    assert (await audited.get("/health/live")).status_code == 200
    assert (await audited.get("/health/ready")).status_code == 200


async def test_without_a_ledger_selling_goes_on_and_the_audit_trail_is_503(
    client: httpx.AsyncClient,
) -> None:
    check_problem(await client.get("/v1/movements"), 503, "unavailable")
    status = await client.get("/v1/status")
    assert status.status_code == 200
    assert status.json()["ledger"] != "ok"
    move = {"movement_id": "m", "type": "receive", "sku": "tea", "location": "M", "quantity": 1}
    assert (await client.post("/v1/movements", json=move)).status_code == 201
    assert (await client.get("/health/ready")).status_code == 200


async def test_with_redis_down_everything_but_live_and_status_is_503(
    one: Settings, one_redis: Any
) -> None:
    """Nothing is granted from memory; once it is back (and opened) the same client goes on."""
    open_by_hand(one.redis_url)
    order = {"order_id": "o", "lines": [{"sku": "tea", "quantity": 1}]}
    async with in_process(one) as client:
        assert (await client.get("/health/ready")).status_code == 200
        one_redis.kill()
        for answer in [
            await client.post("/v1/reservations", json=order),
            await client.get("/v1/stock/tea"),
            await client.get("/v1/reservations/r1"),
            await client.get("/health/ready"),
        ]:
            check_problem(answer, 503, "unavailable")
        assert (await client.get("/health/live")).status_code == 200
        status = await client.get("/v1/status")
        assert (status.status_code, status.json()["selling"]) == (200, False)
        one_redis.start()
        check_problem(await client.post("/v1/reservations", json=order), 503, "partition_closed")
        check_problem(await client.get("/health/ready"), 503, "partition_closed")
        open_by_hand(one.redis_url)
        check_problem(await client.post("/v1/reservations", json=order), 404, "unknown_sku")


async def test_started_before_redis_the_service_waits_for_it(one: Settings, one_redis: Any) -> None:
    open_by_hand(one.redis_url)
    one_redis.stop()
    async with in_process(one) as client:
        check_problem(await client.get("/v1/stock/tea"), 503, "unavailable")
        assert (await client.get("/health/live")).status_code == 200
