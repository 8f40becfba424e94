"""The order in which the engine has commands decided, where one step can't take all of them; when it gives up
on one, and what it does with answers that don't fit."""

from __future__ import annotations

import asyncio

import pytest
from kit import Partition, confirm, move, reserve, statuses
from redis import Redis

from engine import batching
from engine.engine import Engine
from engine.model import GetStock

pytestmark = pytest.mark.anyio


@pytest.fixture
def p(redis: Redis, engine: Engine) -> Partition:
    """``engine`` works on the same partition."""
    return Partition(redis)


async def test_given_confirms_that_a_script_left_undecided_then_they_keep_their_order(
    p: Partition, engine: Engine
) -> None:
    """Nobody can tell beforehand that each is of 2,000 lines: a call takes two."""
    skus = [f"s{i}" for i in range(2_000)]
    ids = [f"r{i}" for i in range(7)]
    for first in range(0, 2_000, 500):
        p.send(*[move("receive", sku, 9) for sku in skus[first : first + 500]])
    for each in ids:
        p.hold(each, *skus)
    outcomes = await engine.call_all([confirm(each) for each in ids])
    assert statuses(outcomes) == ["confirmed"] * 7
    assert [e.reservation_id for e in p.events() if e.type == "confirm"] == ids


async def test_given_carts_that_wait_for_the_next_step_then_no_later_reserve_takes_their_units(
    p: Partition, engine: Engine
) -> None:
    """Handed in together. What stands between makes the last one a part of its own, on other ids."""
    skus = [f"s{i}" for i in range(189)]
    p.send(*[move("receive", sku, 1_000) for sku in skus], move("receive", "B", 30))
    carts = [reserve(f"cart{i}", *skus, "B") for i in range(30)]
    between = [confirm("x"), reserve("x", "s0"), confirm("x")]
    outcomes = await engine.call_all([*carts, *between, reserve("last", "B")])
    told = statuses(outcomes)
    assert told[:30] == ["reserved"] * 30
    assert told[30:] == ["unknown_reservation", "reserved", "confirmed", "insufficient_stock"]
    p.check()


async def test_given_more_due_than_there_is_time_for_then_unavailable_and_nothing_is_held(
    p: Partition, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "MORE_DUE_MAX_S", 0.0)
    p.receive("A", 5_000)
    p.receive("B", 1)
    for first in range(0, 5_000, 500):
        p.send(*[reserve(f"h{i}", "A", ttl_ms=60_000) for i in range(first, first + 500)])
    p.make_all_due()
    big, other = await engine.call_all([reserve("big", ("A", 5_000)), reserve("other", "B")])
    assert (big.status, other.status) == ("unavailable", "reserved")
    assert p.record("big") is None
    p.check()


#: Decides none of the reserves of a call (a command of one line has eight values); counts the calls.
UNDECIDED = """
redis.call('INCR', 'asked')
local answers = {}
for i = 1, #cmsgpack.unpack(ARGV[1]) / 8 do
  answers[i] = 'more_due'
end
return {1764000000000, answers, {}}
"""


@pytest.mark.parametrize("within_s", [0.0, 0.05])
@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("count", [1, 2, 5])
async def test_given_commands_that_are_never_decided_then_each_is_given_up_in_its_turn(
    p: Partition,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    within_s: float,
    at_once: bool,
    count: int,
) -> None:
    """By a script under the name of ours. Each is the first of a call until its time is up: twice at least,
    given any. Nobody is forgotten."""
    monkeypatch.setattr(batching, "MORE_DUE_MAX_S", within_s)
    p.receive("A", 10)
    known = dict(engine._scripts.sha1)
    engine._scripts.sha1["reserve"] = str(p.redis.script_load(UNDECIDED))
    commands = [reserve(f"r{i}", "A") for i in range(count)]
    async with asyncio.timeout(30):
        if at_once:
            told = statuses(await engine.call_all(commands))
        else:
            told = statuses(await asyncio.gather(*map(engine.call, commands)))
    assert told == ["unavailable"] * count
    assert int(p.redis.get("asked") or 0) >= count * (2 if within_s else 1)
    engine._scripts.sha1 |= known
    assert statuses(await engine.call_all(commands)) == ["reserved"] * count
    p.check()


async def test_given_too_many_answers_then_that_step_is_unknown_and_what_follows_goes_on(
    p: Partition, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """A mistake of ours, or of whoever changed a script: nobody waits for ever, nothing is asked twice."""
    p.receive("A", 10)
    p.hold("r0", "A")
    known = dict(engine._scripts.sha1)
    too_many = p.redis.script_load("return {1764000000000, {'odd', 'odd'}, {}}")
    engine._scripts.sha1["confirm"] = str(too_many)
    engine._scripts.sha1["reserve"] = str(p.redis.script_load(UNDECIDED))
    mixed = [reserve("r1", "A"), reserve("r2", "A"), confirm("r0"), *[GetStock("A")] * 2_500]
    told = statuses(await engine.call_all(mixed))
    assert (told[:3], told[-1]) == (["unavailable"] * 3, "found")
    assert p.redis.get("asked") == b"1"
    assert [r.getMessage() for r in caplog.records if r.levelname == "ERROR"] == ["a step failed"]
    engine._scripts.sha1 |= known
    told = statuses(await engine.call_all([reserve("r1", "A"), confirm("r0")]))
    assert told == ["reserved", "confirmed"]
