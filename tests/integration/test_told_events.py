"""Events of every type, told by the real scripts, fit docs/event.v2.schema.json."""

from __future__ import annotations

import json
from typing import Any

import pytest
from event_kit import TYPES, errors
from kit import Partition, confirm, extend, move, release, reserve
from redis import Redis
from running import on_one_redis, persisting, rows, wait_for_ledger

from engine import keys
from engine.settings import Settings
from persister import database
from persister.persister import connect_redis
from persister.runs import run


def decoded(bodies: list[bytes] | list[str]) -> list[dict[str, Any]]:
    return [json.loads(body) for body in bodies]


def test_what_the_scripts_tell_fits(redis: Redis) -> None:
    """Every type but a repair, whole and in parts, with every field that may be there."""
    shop = Partition(redis)
    words = {"reference": "note 7 ☕ \\", "reason": "n" * 1000}
    for each in (
        move("receive", "tea", 100, **words),
        move("receive", "mug", 10**9),
        move("receive", "mug", 3, "Y"),
        move("return", "tea", 5),
        move("return", "tea", 2, movement_id="back", restock=True),
        move("damage", "tea", 4, **words),
        move("transfer", "tea", 6, to_location="Y"),
        move("count", "mug", 40, expected_on_hand=10**9),
        move("count", "none", 0),
        move("inspect_pass", "tea", 2),
        move("inspect_fail", "tea", 3),
    ):
        assert shop.one(each).status == "applied", each
    shop.hold("whole", ("tea", 2), ("mug", 1))
    shop.hold("split", ("mug", 42, None))
    for order in (reserve("parts", ("tea", 9), customer_id="c\\ 1"), reserve("late", ("tea", 1))):
        assert shop.one(order).status == "reserved"
    assert shop.one(extend("parts", 3_600_000)).status == "extended"
    for name, make in (("confirm", confirm), ("release", release)):
        part = make("parts", ("tea", 2), request_id=name)
        assert str(shop.one(part).status).startswith(name)
    assert shop.one(release("parts")).status == "released"
    assert shop.one(confirm("whole", request_id="named")).status == "confirmed"
    shop.hold("last", ("tea", 3), ("tea", 1, "Y"))
    shop.make_all_due()
    assert shop.expire()[1] == 3
    told = decoded([event.to_json() for event in shop.events()])
    assert {event["type"] for event in told} == set(TYPES) - {"repair", "discard", "adopt"}
    assert len(told) == shop.seq()
    for event in told:
        assert errors(event) == [], event


@on_one_redis
def test_what_a_repair_tells_fits(settings: Settings, redis: Redis) -> None:
    """A record made anew, drifts taken off, reservations given back, restored and ended."""
    with persisting(settings):
        shop = Partition(redis)
        for sku in ("tea", "mug", "cup"):
            shop.receive(sku, 100)
        for name in ("gone", "cut", "moved"):
            shop.hold(name, ("tea", 5), ("mug", 2))
        assert shop.one(confirm("gone", ("tea", 1), request_id="p")).status == "confirmed"
        wait_for_ledger(settings)
        moved = redis.get(keys.reservation(0, "moved"))
        assert shop.one(extend("moved", 3_600_000)).status == "extended"
        wait_for_ledger(settings)
        redis.set(keys.reservation(0, "moved"), moved)
        redis.set(keys.reservation(0, "ghost"), redis.get(keys.reservation(0, "cut")))
        redis.delete(keys.reservation(0, "gone"))
        redis.setrange(keys.reservation(0, "cut"), 3, "?")
        redis.delete(keys.stock(0, "cup", "X"))
        redis.hincrby(keys.stock(0, "tea", "X"), "held", 2)
        redis.hincrby(keys.stock(0, "mug", "X"), "on_hand", -30_000_000_000)
        with (
            connect_redis(settings.redis_url) as client,
            database.connect(settings.postgres_url) as connection,
        ):
            report = run(client, connection, trigger="test", repair_by="kim", retention_ms=60_000)
        assert report.clean, report
    bodies = rows(settings.postgres_url, "SELECT body::text FROM events WHERE type = 'repair'")
    told = decoded([body for (body,) in bodies])
    assert len(told) == len(report.repaired) >= 7
    assert {event.get("status") for event in told} == {None, "held", "released"}
    assert {bool(event.get("lines")) for event in told} == {True, False}
    for event in told:
        assert errors(event) == [], event


@pytest.mark.parametrize("field", ["deadline_ms", "lines", "order_id", "fingerprint"])
@on_one_redis
def test_what_the_scripts_tell_does_not_fit_with_a_field_less(redis: Redis, field: str) -> None:
    shop = Partition(redis)
    shop.receive("tea", 5)
    shop.hold("r1", "tea")
    (event,) = decoded([event.to_json() for event in shop.events()][1:])
    assert errors(event) == []
    assert errors({name: value for name, value in event.items() if name != field})
