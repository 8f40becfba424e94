"""A sku with many locations: sourced by a ranking of them, which must cost little and never mislead."""

import random

import msgspec
import pytest
from kit import WRITES, Partition, confirm, extend, line, move, release, reserve, statuses
from model import Model

from engine import keys
from engine.model import GetStock

RANKING = keys.available(0, "A")


@pytest.fixture
def p(redis):
    return Partition(redis)


def name(i):
    return f"L{i:04}"


def stocked(p, count, quantity=10, sku="A"):
    """`count` locations with the same quantity each."""
    commands = [
        move("receive", sku, quantity, name(i), movement_id=f"in-{sku}-{i}") for i in range(count)
    ]
    for first in range(0, count, 500):
        assert set(statuses(p.send(*commands[first : first + 500]))) == {"applied"}


def placed(outcome):
    assert outcome.status == "reserved", outcome
    return {x.location: x.quantity for x in outcome.reservation.lines}


def kept(p, key=RANKING):
    """The ranking, without the time it was counted."""
    return {
        member.decode(): -score
        for member, score in p.redis.zrange(key, 0, -1, withscores=True)
        if member != b":checked"
    }


def truth(p, sku="A"):
    return {record.location: record.available for record in p.one(GetStock(sku)).stock}


def calls_of(p, *commands):
    """How often each Redis command is called by a script call of these."""
    p.redis.config_resetstat()
    outcomes = p.send(*commands)
    stats = p.redis.info("commandstats")
    return outcomes, {
        key.removeprefix("cmdstat_"): stat["calls"]
        for key, stat in stats.items()
        if key not in ("cmdstat_config|resetstat", "cmdstat_config", "cmdstat_evalsha")
    }


def test_given_up_to_8_locations_then_there_is_no_ranking_and_with_9_there_is_one(p):
    stocked(p, 8)
    p.hold("r1", ("A", 1, None))
    assert not p.redis.exists(RANKING)
    p.receive("A", 50, "L9999")
    assert not p.redis.exists(RANKING), "nobody needs it before a line without location"
    assert placed(p.hold("r2", ("A", 1, None))) == {"L9999": 1}
    assert kept(p) == truth(p)
    p.check()


# It is right.


@pytest.mark.parametrize("seed", range(12))
def test_given_calls_by_chance_then_units_come_from_where_the_model_takes_them(redis, seed):
    """12 locations of A, 9 of B, 3 of C; lines with and without location, candidates, expiry, movements."""
    print("seed", seed)
    chance = random.Random(seed)
    p, model = Partition(redis), Model(4 * 3_600_000)
    p.set_clock(4_102_444_800_000)
    places = [
        (sku, name(i)) for sku, count in (("A", 12), ("B", 9), ("C", 3)) for i in range(count)
    ]
    number = 0

    def some_line():
        sku, at = chance.choice(places)
        if chance.random() < 0.3:
            return line(sku, chance.randint(1, 4), at)
        candidates = [name(chance.randrange(13)) for _ in range(chance.choice([0, 0, 2]))]
        return line(sku, chance.choice([1, 2, 5, 20, 60]), None, *candidates)

    def some_call():
        kind = chance.choice(["reserve"] * 5 + ["move"] * 3 + ["confirm", "release", "release"])
        if kind == "reserve":
            ttl_ms = chance.choice([900_000, 60_000])
            return [
                reserve(f"r{number}-{i}", *[some_line() for _ in range(chance.choice([1, 1, 2, 4]))],
                        ttl_ms=ttl_ms)
                for i in range(chance.choice([1, 1, 5]))
            ]  # fmt: skip
        if kind == "move":
            sku, at = chance.choice(places)
            what = chance.choice(["receive", "count", "damage", "return"])
            return [move(what, sku, chance.randint(1, 9), at, movement_id=f"m{number}")]
        each = chance.choice([*model.reservations, "nobody"])
        return [confirm(each) if kind == "confirm" else release(each)]

    for sku, at in places:
        first = move("receive", sku, chance.randint(1, 9), at, movement_id=f"in-{sku}-{at}")
        assert (str(p.one(first).status), model.move(first)) == ("applied", "applied")
    for number in range(120):
        commands = some_call()
        outcomes = p.send(*commands)
        for command, outcome in zip(commands, outcomes, strict=True):
            method = {"Reserve": model.reserve, "Movement": lambda c, _: model.move(c)}
            decide = method.get(type(command).__name__, model.settle)
            assert outcome.status == decide(command, p.now_ms), (number, command)
            if outcome.status == "reserved":
                told = {(x.sku, x.location): x.quantity for x in outcome.reservation.lines}
                assert told == model.reservations[command.reservation_id].lines, (number, command)
        if chance.random() < 0.1:
            p.set_clock(int(p.head()["last_ms"]) + 70_000)
        for sku in "AB":
            ranking = kept(p, keys.available(0, sku))
            assert ranking in ({}, truth(p, sku)), number
    assert p.damaged == []
    assert kept(p) == truth(p), "it was used"
    p.check()


def test_given_due_holds_then_their_units_are_found_wherever_they_are(p):
    stocked(p, 30, 2)
    for i in range(30):
        p.hold(f"r{i}", ("A", 2, name(i)), ttl_ms=60_000)
    assert p.one(reserve("early", ("A", 1, None))).status == "insufficient_stock"
    p.make_all_due()
    assert placed(p.one(reserve("late", ("A", 2, None)))) == {name(0): 2}
    assert kept(p) == truth(p)
    p.check()


def test_given_too_little_then_the_sum_is_told_with_what_the_same_cart_takes(p):
    stocked(p, 20, 3)
    short, located = p.send(
        reserve("r1", ("A", 61, None)), reserve("r2", ("A", 58, None), ("A", 3, name(7)))
    )
    assert [(s.location, s.available) for s in short.shortages] == [(None, 60)]
    assert [(s.location, s.available) for s in located.shortages] == [(None, 57)]
    assert placed(p.one(reserve("r3", ("A", 57, None), ("A", 3, name(7))))) == {
        name(i): 3 for i in range(20)
    }
    p.check()


def test_given_two_short_lines_then_what_was_undone_can_be_had_by_the_next(p):
    stocked(p, 9, 4)
    stocked(p, 9, 4, "B")
    refused, held = p.send(
        reserve("r1", ("A", 20, None), ("B", 99, None), ("A", 4, name(0))),
        reserve("r2", ("A", 36, None)),
    )
    assert statuses([refused, held]) == ["insufficient_stock", "reserved"]
    assert kept(p) == truth(p)
    p.check()


# It is derived: whatever it says, the records decide.


def spoil(p, how):
    if how == "gone":
        p.redis.delete(RANKING)
    elif how == "another type":
        p.redis.delete(RANKING)
        p.redis.set(RANKING, "x")
    elif how == "a location missing":
        p.redis.zrem(RANKING, name(5))
    elif how == "too much":
        p.redis.zadd(RANKING, {name(3): -1_000})
    elif how == "no such location":
        p.redis.zadd(RANKING, {"elsewhere": -1_000})
    elif how == "infinite":
        p.redis.zadd(RANKING, {name(3): float("-inf")})
    elif how == "a location too few":
        p.redis.zrem(RANKING, name(5))
        p.redis.zadd(RANKING, {"elsewhere": 0})
        p.redis.zadd(RANKING, {name(4): -1_000})
    elif how == "changed by hand, a second ago":
        p.redis.hset(keys.stock(0, "A", name(7)), "on_hand", 10)
        p.redis.zadd(RANKING, {name(7): 0})  # nothing was there then
        p.set_clock(int(p.redis.zscore(RANKING, ":checked")) + 1_000)
    elif how == "all sold by hand":
        for i in range(20):
            p.redis.hset(keys.stock(0, "A", name(i)), "on_hand", 40 if i == 5 else 3)
    elif how == "a broken record":
        p.redis.hset(keys.stock(0, "A", name(3)), "on_hand", "x")


@pytest.mark.parametrize(
    "how",
    ["gone", "another type", "a location missing", "too much", "no such location", "infinite",
     "a location too few", "changed by hand, a second ago", "all sold by hand", "a broken record"],
)  # fmt: skip
def test_given_a_wrong_ranking_then_the_records_decide_and_it_is_put_right(p, how):
    stocked(p, 20, 4)
    p.one(move("receive", "A", 20, name(5), movement_id="more"))
    assert placed(p.hold("r1", ("A", 1, None))) == {name(5): 1}
    spoil(p, how)
    on_hand = {name(i): 4 for i in range(20)} | {name(5): 23}
    if how in ("changed by hand, a second ago", "all sold by hand"):
        on_hand = {
            at: int(p.stock("A", at)["on_hand"]) - p.stock("A", at)["held"] for at in on_hand
        }
    elif how == "a broken record":
        del on_hand[name(3)]
    best = on_hand[name(5)]
    outcomes = [
        p.one(reserve("whole", ("A", best, None))),
        p.one(reserve("short", ("A", 1_000, None))),
        p.one(reserve("all", ("A", sum(on_hand.values()) - best, None))),
        p.one(reserve("none", ("A", 1, None))),
    ]
    assert placed(outcomes[0]) == {name(5): best}
    assert outcomes[1].shortages[0].available == sum(on_hand.values()) - best
    assert placed(outcomes[2]) == {at: n for at, n in on_hand.items() if at != name(5)}
    assert outcomes[3].shortages[0].available == 0
    if how == "another type":
        assert p.redis.get(RANKING) == b"x", "nothing there is ours to delete"
        assert p.damaged == [RANKING]
        assert p.one(release("all")).status == "released", "and nobody else is stopped"
        assert p.damaged == [RANKING]
    else:
        assert kept(p) == truth(p) | ({name(3): 0} if how == "a broken record" else {})


def test_given_a_ranking_then_every_script_keeps_it_up_to_date(p):
    stocked(p, 10, 5)
    p.hold("r1", ("A", 2, None))
    p.hold("r2", ("A", 2, name(4)))
    p.hold("r3", ("A", 2, name(5)), ttl_ms=1_000)
    for command in (
        release("r2"),
        confirm("r1"),
        extend("r1", 1_000_000),
        move("receive", "A", 7, name(8), movement_id="m1"),
        move("receive", "A", 1, "new", movement_id="m2"),
        move("damage", "A", 1, name(2), movement_id="m3"),
        move("return", "A", 1, name(2), movement_id="m4"),
        move("transfer", "A", 3, name(8), movement_id="m5", to_location="newer"),
    ):
        p.one(command)
        assert kept(p) == truth(p), command
    p.make_due("r3")
    p.expire()
    assert kept(p) == truth(p)
    p.check()
    for drift in ([1, 0, 0], [0, 2, 0], [0, 0, 3], [-4, -5, -6]):
        wire = msgspec.msgpack.encode([["why", "correct", "A", name(1), *drift]])
        p.script("repair", WRITES, wire, 60_000)
        assert kept(p) == truth(p), drift


# It costs little.


def flat(p, *commands):
    outcomes, calls = calls_of(p, *commands)
    return statuses(outcomes), calls


@pytest.mark.parametrize("count", [9, 1_000])
def test_given_any_number_of_locations_then_a_line_costs_the_same_calls(p, count):
    stocked(p, count)
    p.hold("first", ("A", 1, None))
    told, calls = flat(p, reserve("r1", ("A", 2, None)))
    assert told == ["reserved"]
    assert (calls["hmget"], calls["zrange"]) == (2, 1), "head and the best"
    assert "smembers" not in calls and sum(calls.values()) <= 20, calls


def test_given_a_thousand_locations_with_nothing_left_then_a_refusal_costs_the_same_calls(p):
    stocked(p, 1_000, 1)
    assert p.one(reserve("all", ("A", 1_000, None))).status == "reserved"
    assert p.one(reserve("short", ("A", 1, None))).status == "insufficient_stock"
    told, calls = flat(p, *[reserve(f"r{i}", ("A", 1, None)) for i in range(300)])
    assert set(told) == {"insufficient_stock"}
    assert calls["hmget"] == 1 and calls["zrange"] <= 301, calls
    assert "smembers" not in calls


def test_given_many_locations_to_read_then_they_count_and_no_call_reads_more_than_it_may(p):
    for sku in "ABCDEF":
        stocked(p, 1_000, 1, sku)
    cart = [(sku, 1, None) for sku in "ABCDEF"]
    told, calls = flat(p, reserve("r1", *cart))
    assert told == ["more_due"], "six rankings are to be made"
    assert calls["hmget"] <= 4_010
    told, calls = flat(p, reserve("r1", *cart))
    assert told == ["reserved"]
    p.check()
    told, calls = flat(p, *[reserve(f"s{i}", ("A", 2_000, None)) for i in range(20)])
    assert told[0] == "insufficient_stock"
    assert calls["hmget"] <= 4_010


def test_given_candidates_then_they_are_read_only_until_the_line_is_filled(p):
    stocked(p, 100)
    p.hold("first", ("A", 1, None))
    many = [name(i) for i in range(20, 80)]
    told, calls = flat(p, reserve("r1", line("A", 2, None, *many)))
    assert told == ["reserved"]
    assert calls["hmget"] == 2, "head and the first of them"
