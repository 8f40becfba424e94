"""A retry of a known id is answered with what happened, also where nothing new can begin: Redis is full, or
too much waits for the ledger."""

import asyncio

import pytest
from kit import Partition, confirm, extend, move, release, reserve, statuses

from engine import keys
from engine.engine import Engine
from engine.settings import Settings

pytestmark = pytest.mark.anyio

LATER, EARLIER = 10_000_000, 1_000


@pytest.fixture
def p(redis, engine):
    """Reservations in every state, and a movement that was applied."""
    p = Partition.of(redis)
    p.receive("A", 100)
    for name in ("held", "confirmed", "released", "part released", "expired", "due"):
        ttl_ms = 1_000 if name == "expired" else 2_000 if name == "due" else 900_000
        p.hold(name.replace(" ", "-"), ("A", 2), ttl_ms=ttl_ms)
    assert p.one(move("receive", "A", 5, movement_id="m1")).status == "applied"
    p.one(confirm("confirmed"))
    p.one(release("released"))
    p.one(release("part-released", "A", request_id="q1"))
    p.make_due("expired")
    assert p.expire()[1] == 1
    p.make_due("due")
    return p


KNOWN = [
    (reserve("held", ("A", 2)), "already_reserved"),
    (reserve("held", ("A", 3)), "reservation_mismatch"),
    (reserve("confirmed", ("A", 2)), "already_reserved"),
    (reserve("released", ("A", 2)), "already_released"),
    (reserve("part-released", ("A", 2)), "already_released"),
    (reserve("expired", ("A", 2)), "reservation_expired"),
    (reserve("due", ("A", 2)), "reservation_expired"),
    (extend("held", EARLIER), "extended"),
    (extend("confirmed", LATER), "already_confirmed"),
    (extend("released", LATER), "already_released"),
    (extend("expired", LATER), "reservation_expired"),
    (extend("nobody", LATER), "unknown_reservation"),
    (move("receive", "A", 5, movement_id="m1"), "already_applied"),
    (move("receive", "A", 6, movement_id="m1"), "request_mismatch"),
    (move("damage", "A", 5, movement_id="m1"), "request_mismatch"),
]
NEW = [
    reserve("new", "A"),
    reserve("new-2", "nope"),
    extend("held", LATER),
    move("receive", "A", 1, movement_id="m2"),
    move("count", "A", 1, movement_id="m3"),
]


async def test_given_a_full_server_then_known_ids_are_told_as_before_and_new_ones_store_full(
    p, engine
):
    known = [command for command, _ in KNOWN]
    before_it = await engine.call_all(known)
    p.fill()
    before = p.dump()
    together = await engine.call_all([*known, *NEW])
    assert statuses(together) == [status for _, status in KNOWN] + ["store_full"] * len(NEW)
    assert together[: len(known)] == before_it, "the very same answers"
    alone = await asyncio.gather(*[engine.call(command) for command in [*known, *NEW]])
    assert alone == together
    assert p.dump() == before


async def test_given_a_full_server_and_more_than_one_call_takes_then_each_is_told_in_order(
    p, engine
):
    """512 commands a call, and known ones among many that are new, and the same id twice."""
    p.fill()
    commands = []
    for i in range(1_200):
        commands.append(reserve(f"n{i}", "A") if i % 100 else reserve("held", ("A", 2)))
    outcomes = await engine.call_all(commands)
    expected = ["store_full" if i % 100 else "already_reserved" for i in range(1_200)]
    assert statuses(outcomes) == expected


async def test_given_a_full_server_and_a_broken_record_then_its_id_is_told_as_before(p, engine):
    key = keys.reservation(0, "held")
    p.redis.set(key, p.redis.get(key)[:-1])
    p.redis.set(keys.movement_request(0, "m1"), "broken")
    p.fill()
    outcomes = await engine.call_all([KNOWN[0][0], KNOWN[12][0]])
    assert statuses(outcomes) == ["reservation_mismatch", "request_mismatch"]


async def test_given_a_full_server_that_is_closed_then_closed_comes_first(p, engine):
    p.redis.hset(keys.head(0), "run_id", "")
    p.fill()
    outcomes = await engine.call_all([command for command, _ in KNOWN])
    assert set(statuses(outcomes)) == {"partition_closed"}


@pytest.mark.parametrize("settle", [confirm, release])
async def test_given_a_full_server_then_a_part_sent_again_is_told_its_first_success(
    p, engine, settle
):
    part = settle("held", "A", request_id="q7")
    first = await engine.call(part)
    p.fill()
    again = await engine.call(part)
    assert (again.status, again.replayed) == (first.status, True)


async def test_given_a_full_outbox_then_known_ids_are_told_and_new_ones_backlog_full(
    p, redis_server
):
    limits = Settings(redis_url=redis_server.url, outbox_max_events=1)
    engine = await Engine.start(limits)
    try:
        before = p.dump()
        reserves = [(c, s) for c, s in KNOWN if type(c).__name__ == "Reserve"]
        receives = [(c, s) for c, s in KNOWN if getattr(c, "type", "") == "receive"]
        known = reserves + receives
        new = [reserve("new", "A"), reserve("nope", "nope"), NEW[3]]
        outcomes = await engine.call_all([*[command for command, _ in known], *new])
        assert statuses(outcomes) == [status for _, status in known] + ["backlog_full"] * 3
        assert p.dump() == before
    finally:
        await engine.close()
