"""The engine on a real Redis: many callers share script calls, in order, and nobody disturbs another."""

import asyncio
from collections import Counter

import pytest
from kit import EXPIRED, Partition, confirm, extend, move, release, reserve, statuses
from redis.exceptions import NoScriptError

from engine import batching, keys
from engine.model import GetReservation, GetStock, Reserve

pytestmark = pytest.mark.anyio


@pytest.fixture
def p(redis, engine, monkeypatch):
    """10,000 of A. ``engine`` works on the same partition, and gives up on nothing that takes its time."""
    monkeypatch.setattr(batching, "MORE_DUE_MAX_S", 60.0)
    p = Partition(redis)
    p.receive("A", 10_000)
    return p


def script_calls(redis):
    found = redis.info("commandstats")
    return sum(found.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("evalsha", "eval"))


async def test_given_calls_of_one_loop_turn_then_they_share_one_script_call(p, engine):
    p.redis.config_resetstat()
    outcomes = await asyncio.gather(*[engine.call(reserve(f"r{i}", "A")) for i in range(500)])
    assert set(statuses(outcomes)) == {"reserved"}
    assert script_calls(p.redis) == 1
    entries = p.redis.xrevrange(keys.outbox(0), count=1)
    assert entries[0][0].decode().endswith("-501"), "one entry for all"
    assert p.numbers("A")[:2] == (10_000, 500)
    p.check()


async def test_given_calls_of_every_kind_then_each_script_is_called_once(p, engine):
    for i in range(40):
        p.hold(f"c{i}", "A")
    p.redis.config_resetstat()
    commands = []
    for i in range(10):
        commands += [
            reserve(f"r{i}", "A"),
            confirm(f"c{i}"),
            release(f"c{i + 10}"),
            extend(f"c{i + 20}", 1_000_000),
            move("receive", "B", 1, movement_id=f"m{i}"),
            GetReservation(f"c{i + 30}"),
            GetStock("A"),
        ]
    outcomes = await asyncio.gather(*[engine.call(command) for command in commands])
    assert Counter(statuses(outcomes)) == Counter(
        reserved=10, confirmed=10, released=10, extended=10, applied=10, found=20
    )
    assert script_calls(p.redis) == 7
    p.check()


async def test_given_calls_while_others_are_in_flight_then_they_gather_for_the_next(p, engine):
    """3,000 lone callers, handed in over many turns, need a small part of 3,000 script calls."""
    p.redis.config_resetstat()

    async def caller(i):
        for _ in range(i % 7):
            await asyncio.sleep(0)
        return await engine.call(reserve(f"r{i}", "A"))

    outcomes = await asyncio.gather(*[caller(i) for i in range(3_000)])
    assert set(statuses(outcomes)) == {"reserved"}
    assert script_calls(p.redis) <= 30
    assert p.numbers("A")[:2] == (10_000, 3_000)
    p.check()


async def test_given_one_list_then_operations_on_an_id_take_effect_in_the_order_given(p, engine):
    commands, expected = [], []
    for i in range(120):
        commands += [
            confirm(f"r{i}"),
            reserve(f"r{i}", ("A", 3)),
            confirm(f"r{i}", ("A", 1), request_id="q1"),
            extend(f"r{i}", 1_000_000),
            release(f"r{i}", ("A", 1), request_id="q2"),
            confirm(f"r{i}"),
            release(f"r{i}"),
            reserve(f"r{i}", ("A", 3)),
        ]
        expected += [
            "unknown_reservation",
            "reserved",
            "confirmed",
            "extended",
            "released",
            "confirmed",
            "already_confirmed",
            "already_released",
        ]
    outcomes = await engine.call_all(commands)
    assert statuses(outcomes) == expected
    assert p.numbers("A")[:2] == (10_000 - 2 * 120, 0)
    p.check()


async def test_given_one_list_then_movements_on_an_id_take_effect_in_the_order_given(p, engine):
    commands = [move("receive", "M", quantity, movement_id="m1") for quantity in (5, 6, 5)]
    outcomes = await engine.call_all(commands)
    assert statuses(outcomes) == ["applied", "request_mismatch", "already_applied"]
    assert p.stock("M")["on_hand"] == 5
    p.check()


async def test_given_an_empty_list_then_there_is_nothing_to_answer(p, engine):
    assert await engine.call_all([]) == []


async def test_given_a_list_of_2000_then_all_are_decided_in_calls_of_512_at_most(p, engine):
    p.redis.config_resetstat()
    outcomes = await engine.call_all([reserve(f"r{i}", "A") for i in range(2_000)])
    assert set(statuses(outcomes)) == {"reserved"}
    assert script_calls(p.redis) == 4
    assert p.seq() == 2_001
    p.check()


async def test_given_a_command_no_script_may_see_then_its_caller_alone_is_told(p, engine):
    bad = [reserve("r1", ("A", 0)), reserve("r1"), extend("r1", 0), confirm("r1", "A")]
    calls = [engine.call(command) for command in bad]
    answers = await asyncio.gather(*calls, engine.call(reserve("r2", "A")), return_exceptions=True)
    assert [type(answer) for answer in answers[:-1]] == [ValueError] * len(bad)
    assert answers[-1].status == "reserved"
    with pytest.raises(ValueError):
        await engine.call_all([reserve("r3", "A"), bad[0]])
    assert p.record("r3") is None, "none of a list with such a command was handed in"
    p.check()


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
async def test_given_a_waiting_call_is_cancelled_then_the_others_are_answered(p, engine, turns):
    """Cancelled before it is sent, or on its way."""
    tasks = [asyncio.ensure_future(engine.call(reserve(f"r{i}", "A"))) for i in range(1_200)]
    for _ in range(turns):
        await asyncio.sleep(0)
    cancelled = range(0, 1_200, 7)
    for i in cancelled:
        tasks[i].cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    for i, answer in enumerate(answers):
        if i in cancelled and not isinstance(answer, BaseException):
            assert answer.status == "reserved"
        elif i in cancelled:
            assert isinstance(answer, asyncio.CancelledError)
        else:
            assert answer.status == "reserved"
            assert answer.reservation.reservation_id == f"r{i}"
    p.check()
    again = await engine.call_all([reserve(f"r{i}", "A") for i in cancelled])
    assert set(statuses(again)) <= {"reserved", "already_reserved"}
    assert p.numbers("A")[:2] == (10_000, 1_200)
    p.check()


async def test_given_a_cancelled_list_then_what_was_not_sent_is_dropped(p, engine):
    """The confirm waits for the answer to its reserve; the caller is gone before that."""
    task = asyncio.ensure_future(engine.call_all([reserve("r1", "A"), confirm("r1")]))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    other = await engine.call(reserve("r2", "A"))
    assert other.status == "reserved"
    assert p.stock("A")["on_hand"] == 10_000, "nothing was confirmed for nobody"
    p.check()


async def test_given_scripts_forgotten_in_mid_run_then_nobody_notices(p, engine):
    made = []
    for i in range(30):
        calls = [engine.call(reserve(f"r{i}-{j}", "A")) for j in range(10)]
        calls += [engine.call(confirm(f"r{i - 1}-{j}")) for j in range(10)] if i else []
        flushing = asyncio.gather(*calls)
        await asyncio.sleep(0)
        p.redis.script_flush()
        made += await flushing
        if i % 5 == 0:
            p.redis.script_flush()
            assert (await engine.sweep(0)).expired == 0
    assert Counter(statuses(made)) == Counter(reserved=300, confirmed=290)
    assert p.numbers("A")[:2] == (10_000 - 290, 10)
    p.check()


async def test_given_forgotten_scripts_then_the_engine_uses_their_hash_again(p, engine):
    p.redis.script_flush()
    assert (await engine.call(reserve("r1", "A"))).status == "reserved"
    p.redis.config_resetstat()
    assert (await engine.call(reserve("r2", "A"))).status == "reserved"
    stats = p.redis.info("commandstats")
    assert stats["cmdstat_evalsha"]["calls"] == 1
    assert "cmdstat_eval" not in stats
    with pytest.raises(NoScriptError):
        p.redis.evalsha("0" * 40, 0)


async def test_given_every_operation_sent_twice_then_nothing_happens_twice(p, engine):
    steps = [
        (move("receive", "B", 20, movement_id="in"), "already_applied"),
        (reserve("r1", ("A", 5), ("B", 3, None)), "already_reserved"),
        (reserve("r2", ("B", 3)), "already_reserved"),
        (confirm("r1", ("A", 2), request_id="q1"), "confirmed"),
        (release("r1", ("A", 1), ("B", 1), request_id="q2"), "released"),
        (extend("r1", 1_000_000), "extended"),
        (confirm("r1"), "already_confirmed"),
        (release("r2"), "already_released"),
        (move("damage", "B", 2, movement_id="out"), "already_applied"),
        (move("count", "B", 30, movement_id="count"), "already_applied"),
        (move("transfer", "B", 5, to_location="Y", movement_id="t"), "already_applied"),
    ]
    for command, repeated in steps:
        first = await engine.call(command)
        assert first.status not in ("store_full", "unavailable"), first
        before = p.dump()
        again = await asyncio.gather(engine.call(command), engine.call(command))
        assert statuses(again) == [repeated] * 2
        if repeated != "extended":  # a later now gives a later deadline
            assert p.dump() == before
        p.check()
    assert p.numbers("A")[:2] == (10_000 - 4, 0)
    assert (p.numbers("B")[:2], p.numbers("B", "Y")[:2]) == ((25, 0), (5, 0))


async def test_given_more_than_500_due_then_a_reserve_in_need_of_them_succeeds(p, engine):
    p.receive("B", 2_000)
    await engine.call_all([reserve(f"h{i}", "B", ttl_ms=60_000) for i in range(2_000)])
    p.make_all_due()
    assert p.numbers("B")[:2] == (2_000, 2_000)
    outcomes = await engine.call_all(
        [reserve("big", ("B", 1_900)), confirm("big"), reserve("other", "A")]
    )
    assert statuses(outcomes) == ["reserved", "confirmed", "reserved"]
    assert p.numbers("B")[0] == 100
    assert p.record("h0").state == EXPIRED
    p.check()


async def test_given_more_due_for_one_then_callers_who_need_nothing_of_it_are_answered(p, engine):
    p.receive("B", 3_000)
    await engine.call_all([reserve(f"h{i}", "B", ttl_ms=60_000) for i in range(3_000)])
    p.make_all_due()
    calls = [engine.call(reserve("big", ("B", 3_000)))]
    calls += [engine.call(reserve(f"a{i}", "A")) for i in range(50)]
    outcomes = await asyncio.gather(*calls)
    assert set(statuses(outcomes)) == {"reserved"}
    assert p.numbers("B")[:2] == (3_000, 3_000)
    p.check()


async def test_given_more_asked_for_than_all_that_is_due_then_it_is_refused_in_the_end(p, engine):
    p.receive("B", 1_200)
    await engine.call_all([reserve(f"h{i}", "B", ttl_ms=60_000) for i in range(1_200)])
    p.make_all_due()
    outcome = await engine.call(reserve("big", ("B", 1_201)))
    assert outcome.status == "insufficient_stock"
    assert outcome.shortages[0].available == 1_200
    assert p.record("big") is None
    p.check()


async def test_given_reserves_handed_in_together_then_the_first_ones_get_the_units(p, engine):
    """More than two steps can take, among others' calls that fill them, small and large carts mixed."""
    p.receive("B", 1_500)
    skus = [f"s{i}" for i in range(200)]
    p.send(*[move("receive", sku, 10_000) for sku in skus])
    for run in range(2):
        mine = []
        for i in range(1_200):
            cart = [*skus, "B"] if i % 150 == 0 else ["B"]
            mine += [
                reserve(f"m{run}-{i}", *cart),
                *([confirm(f"m{run}-{i}")] if i % 3 == 0 else []),
            ]
        others = [
            engine.call_all([reserve(f"o{run}-{k}-{i}", "A") for i in range(170)])
            for k in range(12)
        ]
        outcomes, *_ = await asyncio.gather(engine.call_all(mine), *others)
        told = [o.status for c, o in zip(mine, outcomes, strict=True) if isinstance(c, Reserve)]
        left = 1_500 - 1_200 * run
        expected = ["reserved"] * min(1_200, left) + ["insufficient_stock"] * max(0, 1_200 - left)
        assert told == expected
    p.check()


async def test_given_an_id_first_confirmed_then_held_then_that_order_is_kept(p, engine):
    """The types appear in an order that would change it."""
    mixed = [reserve("r1", "A"), confirm("r2"), reserve("r2", "A"), confirm("r1"), release("r2")]
    outcomes = await engine.call_all(mixed)
    assert statuses(outcomes) == [
        "reserved",
        "unknown_reservation",
        "reserved",
        "confirmed",
        "released",
    ]
    p.check()


async def test_given_more_than_a_step_takes_then_no_second_step_decides_on_it_meanwhile(p, engine):
    """Two steps go over two connections, and Redis may read the later one first."""
    p.redis.client_pause(300, all=False)
    mine = asyncio.gather(engine.call_all([reserve(f"m{i}", "A") for i in range(1_200)]))
    others = [engine.call_all([reserve(f"o{k}-{i}", "A") for i in range(100)]) for k in range(4)]
    rest = asyncio.gather(*others)
    await asyncio.sleep(0.1)
    groups = engine._batchers[0]._queue._in_flight
    assert len(groups) == 2, "others' go meanwhile"
    assert groups[0].submissions.isdisjoint(groups[1].submissions)
    outcomes = [*(await mine), *(await rest)]
    assert {o.status for each in outcomes for o in each} == {"reserved"}
    p.check()
