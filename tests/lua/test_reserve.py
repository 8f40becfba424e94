"""lua/reserve.lua: what it answers, and the keys afterwards. Sourcing and take-back: own files."""

import msgspec
import pytest
from kit import (
    HELD,
    TOO_LARGE,
    WRITES,
    WRONG_NUMBERS,
    Partition,
    confirm,
    extend,
    line,
    reserve,
    statuses,
)
from redis.exceptions import ResponseError

from engine import keys
from engine.engine import _operations
from engine.model import Reserve
from engine.reservations import seal_of
from engine.settings import Settings


@pytest.fixture
def p(redis):
    return Partition(redis)


def test_given_stock_when_reserved_then_units_are_held_and_one_event_tells_it(p):
    p.receive("A", 10)
    outcome = p.one(reserve("r1", ("A", 3), ttl_ms=1_234, customer_id="c1"))
    assert outcome.status == "reserved"
    deadline = -(-(p.now_ms + 1_234) // 100) * 100
    told = outcome.reservation
    assert (told.status, told.created_ms, told.expires_ms) == ("held", p.now_ms, deadline)
    assert [(x.sku, x.location, x.quantity, x.confirmed, x.released) for x in told.lines] == [
        ("A", "X", 3, 0, 0)
    ]

    assert p.numbers("A") == (10, 3, 0, 0, 2)
    record = p.record("r1")
    assert (record.state, record.created_ms, record.deadline_ms) == (HELD, p.now_ms, deadline)
    assert (record.seq, record.parts, record.body.lines) == (2, None, ["A", "X", 3])
    assert (record.body.order_id, record.body.customer_id) == ("order-r1", "c1")
    assert p.redis.pttl(keys.reservation(0, "r1")) == -1, "a hold may not vanish by itself"
    assert p.redis.zrange(keys.deadlines(0), 0, -1, withscores=True) == [
        (str(deadline).encode(), deadline)
    ]
    assert p.redis.lrange(keys.due(0, deadline), 0, -1) == [b"r1"]
    event = p.events()[-1]
    assert (event.epoch, event.seq, event.type, event.at_ms) == (1, 2, "reserve", p.now_ms)
    assert (event.reservation_id, event.order_id, event.customer_id) == ("r1", "order-r1", "c1")
    assert (event.deadline_ms, event.fingerprint) == (deadline, record.fingerprint)
    assert [msgspec.structs.astuple(x) for x in event.lines] == [("A", "X", 3, 0, 3, 0)]
    assert (p.head()["seq"], p.head()["last_ms"]) == ("2", str(p.now_ms))
    p.check()


def test_given_many_commands_when_sent_then_one_entry_holds_their_events_in_order(p):
    p.receive("A", 3)
    outcomes = p.send(*[reserve(f"r{i}", "A") for i in range(4)])
    assert statuses(outcomes) == ["reserved"] * 3 + ["insufficient_stock"]
    entries = [entry_id.decode() for entry_id, _ in p.redis.xrange(keys.outbox(0))]
    assert entries == ["1-1", "1-4"], "the id is the epoch-seq of the last event"
    assert [e.reservation_id for e in p.events()[1:]] == ["r0", "r1", "r2"]
    assert p.numbers("A") == (3, 3, 0, 0, 4)
    p.check()


def test_given_lines_of_one_sku_and_location_when_reserved_then_they_are_added_up(p):
    p.receive("A", 5)
    p.receive("B", 5)
    outcome = p.hold("r1", ("A", 2), ("B", 1), ("A", 3))
    assert [(x.sku, x.quantity) for x in outcome.reservation.lines] == [("A", 5), ("B", 1)]
    assert p.numbers("A")[:2] == (5, 5)
    assert p.numbers("B")[:2] == (5, 1)
    p.check()


def test_given_added_up_lines_too_large_when_reserved_then_nothing_is_held(p):
    p.receive("A", 5)
    before = p.dump()
    outcome = p.one(reserve("r1", ("A", 3), ("A", 3)))
    assert [(s.requested, s.available) for s in outcome.shortages] == [(6, 5)]
    assert p.dump() == before


def test_given_one_line_short_when_reserved_then_no_line_is_held(p):
    p.receive("A", 5)
    p.receive("B", 1)
    p.receive("C", 5)
    before = p.dump()
    outcome = p.one(reserve("r1", ("A", 5), ("B", 2), ("C", 5)))
    assert outcome.status == "insufficient_stock"
    assert [(s.sku, s.location, s.requested, s.available) for s in outcome.shortages] == [
        ("B", "X", 2, 1)
    ]
    assert p.dump() == before
    assert p.one(reserve("r2", ("A", 5), ("C", 5))).status == "reserved", "nothing stayed held"
    p.check()


def test_given_all_units_bound_when_reserved_then_available_leaves_out_each_kind(p):
    """available = on_hand - held - quarantined - safety_stock"""
    p.receive("A", 20)
    p.hold("r1", ("A", 3))
    p.redis.hset(keys.stock(0, "A", "X"), mapping={"quarantined": 4, "safety_stock": 5})
    before = p.dump()
    outcome = p.one(reserve("r2", ("A", 9)))
    assert (outcome.status, outcome.shortages[0].available) == ("insufficient_stock", 8)
    assert p.dump() == before
    assert p.one(reserve("r2", ("A", 8))).status == "reserved"
    assert p.stock("A")["held"] == 11


def test_given_more_safety_stock_than_stock_when_reserved_then_available_is_told_as_none(p):
    p.receive("A", 2)
    p.redis.hset(keys.stock(0, "A", "X"), "safety_stock", 5)
    located, sourced = p.send(reserve("r1", "A"), reserve("r2", ("A", 1, None)))
    assert [s.available for s in located.shortages + sourced.shortages] == [0, 0]


def test_given_a_sku_never_named_when_reserved_then_unknown_sku_before_any_shortage(p):
    p.receive("A", 1)
    before = p.dump()
    for at in ("X", None):
        outcome = p.one(reserve("r1", ("A", 2), ("nope", 1, at)))
        assert outcome.status == "unknown_sku"
        assert "nope" in outcome.detail
    assert p.dump() == before


def test_given_a_known_sku_at_another_location_then_insufficient_with_none_available(p):
    p.receive("A", 5)
    before = p.dump()
    outcome = p.one(reserve("r1", ("A", 1, "elsewhere")))
    assert outcome.status == "insufficient_stock"
    assert [(s.location, s.available) for s in outcome.shortages] == [("elsewhere", 0)]
    assert p.dump() == before


def test_given_a_reservation_when_sent_again_then_already_reserved_and_nothing_changes(p):
    p.receive("A", 10)
    first = p.hold("r1", ("A", 2))
    before = p.dump()
    again = p.one(reserve("r1", ("A", 2)))
    assert (again.status, again.replayed) == ("already_reserved", True)
    assert again.reservation == first.reservation
    assert p.dump() == before
    p.check()


def test_given_no_stock_left_when_the_same_is_sent_again_then_already_reserved(p):
    """The replay check comes before the look at the stock."""
    p.receive("A", 2)
    p.hold("r1", ("A", 2))
    before = p.dump()
    outcomes = p.send(reserve("r1", ("A", 2)), reserve("r1", ("A", 1)), reserve("r1", "nope"))
    assert statuses(outcomes) == [
        "already_reserved",
        "reservation_mismatch",
        "reservation_mismatch",
    ]
    assert p.dump() == before


@pytest.mark.parametrize(
    "same",
    [
        reserve("r1", ("A", 3), ("B", 1), ttl_ms=5_000, customer_id="c"),
        reserve("r1", ("B", 1), ("A", 3), customer_id="c"),
        reserve("r1", ("A", 1), ("B", 1), ("A", 2), customer_id="c"),
        reserve("r1", line("A", 3, "X", "Y"), ("B", 1), customer_id="c"),
    ],
)
def test_given_another_ttl_order_split_or_candidates_then_it_is_the_same_reserve(p, same):
    p.receive("A", 9)
    p.receive("B", 9)
    first = p.one(reserve("r1", ("A", 3), ("B", 1), customer_id="c"))
    before = p.dump()
    again = p.one(same)
    assert (first.status, again.status) == ("reserved", "already_reserved")
    assert again.reservation.expires_ms == first.reservation.expires_ms
    assert p.dump() == before


@pytest.mark.parametrize(
    "other",
    [
        reserve("r1", ("A", 4), ("B", 1), customer_id="c"),
        reserve("r1", ("A", 3), customer_id="c"),
        reserve("r1", ("A", 3), ("B", 1, None), customer_id="c"),
        reserve("r1", ("A", 3), ("B", 1, "Y"), customer_id="c"),
        reserve("r1", ("A", 3), ("B", 1), customer_id="d"),
        reserve("r1", ("A", 3), ("B", 1)),
        reserve("r1", ("A", 3), ("B", 1), order_id="other", customer_id="c"),
    ],
)
def test_given_other_content_under_one_id_then_reservation_mismatch_and_nothing_changes(p, other):
    p.receive("A", 9)
    p.receive("B", 9)
    assert p.one(reserve("r1", ("A", 3), ("B", 1), customer_id="c")).status == "reserved"
    before = p.dump()
    outcome = p.one(other)
    assert (outcome.status, outcome.reservation) == ("reservation_mismatch", None)
    assert p.dump() == before


def test_given_an_id_twice_in_one_call_then_it_is_held_once(p):
    p.receive("A", 9)
    outcomes = p.send(reserve("r1", ("A", 2)), reserve("r1", ("A", 2)), reserve("r1", ("A", 3)))
    assert statuses(outcomes) == ["reserved", "already_reserved", "reservation_mismatch"]
    assert p.numbers("A") == (9, 2, 0, 0, 2)
    p.check()


@pytest.mark.parametrize("wrong", [*WRONG_NUMBERS.values(), TOO_LARGE, b"\xce\0\x0f\x42\x41"])
def test_given_a_wrong_quantity_past_python_then_an_error_and_its_neighbours_wrote_nothing(
    p, wrong
):
    p.receive("A", 9)
    before = p.dump()
    good, bad = reserve("r0", "A"), reserve("r1", ("A", 1_000_000))
    with pytest.raises(ResponseError):
        p.forge(good, bad, instead=1_000_000, wrong=wrong)
    assert p.dump() == before


@pytest.mark.parametrize("wrong", WRONG_NUMBERS.values(), ids=WRONG_NUMBERS)
def test_given_a_wrong_ttl_past_python_then_an_error_and_its_neighbours_wrote_nothing(p, wrong):
    p.receive("A", 9)
    before = p.dump()
    good, bad = reserve("r0", "A"), reserve("r1", "A", ttl_ms=80_000_000)
    with pytest.raises(ResponseError):
        p.forge(good, bad, instead=80_000_000, wrong=wrong)
    assert p.dump() == before


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_given_lines_not_of_three_values_past_python_then_an_error_and_nothing_is_written(p, count):
    p.receive("A", 9)
    before = p.dump()
    operation = _operations(0, p.settings)[Reserve]
    values, tails = operation.pack([operation.encode(reserve("r1", "A"))])
    flat = [*msgspec.msgpack.decode(values)[:4], count, *["A", "X", 1, "B"][:count]]
    forged = msgspec.msgpack.encode(flat)
    with pytest.raises(ResponseError, match="lines of three values"):
        p.script("reserve", WRITES, forged, tails, *operation.arguments)
    assert p.dump() == before


@pytest.mark.parametrize(("quantity", "ttl_ms"), [(1_000_000, 1), (1, 1_001)])
def test_the_largest_quantity_and_any_whole_time_are_taken(p, quantity, ttl_ms):
    p.receive("A", 1_000_000)
    assert p.one(reserve("r1", ("A", quantity), ttl_ms=ttl_ms)).status == "reserved"


@pytest.mark.parametrize("tails_of", [lambda tails: tails[:-1], lambda tails: tails + b"x"])
def test_given_tails_of_another_length_then_an_error_and_nothing_is_written(p, tails_of):
    p.receive("A", 9)
    before = p.dump()
    operation = _operations(0, p.settings)[Reserve]
    commands = [reserve("r0", "A"), reserve("r1", "A")]
    values, tails = operation.pack([operation.encode(command) for command in commands])
    with pytest.raises(ResponseError, match="tails have"):
        p.script("reserve", WRITES, values, tails_of(tails), *operation.arguments)
    assert p.dump() == before
    assert p.script("reserve", WRITES, values, tails, *operation.arguments)[1] == [1, 1]
    p.check()


@pytest.mark.parametrize("quantity", [0, -1, 1_000_001])
def test_given_a_quantity_out_of_range_then_python_refuses_it_before_redis(p, quantity):
    p.receive("A", 9)
    before = p.dump()
    with pytest.raises(ValueError, match="quantity"):
        p.send(reserve("r1", ("A", quantity)))
    assert p.dump() == before


def test_given_another_retention_then_the_ended_record_lives_that_long(redis):
    p = Partition(redis, Settings(retention_ms=60_000))
    p.receive("A", 1)
    p.hold("r1", "A")
    p.one(extend("r1", 1_000_000))
    assert redis.pttl(keys.reservation(0, "r1")) == -1
    p.one(confirm("r1"))
    assert 0 < redis.pttl(keys.reservation(0, "r1")) <= 60_000
    p.check()


# Ids are looked up many at once where stock runs out.


def test_given_an_id_that_is_held_after_its_look_up_then_its_repeat_is_known(redis):
    p = Partition(redis)
    p.receive("A", 1)
    more, one = reserve("r1", ("A", 2)), reserve("r1", "A")
    outcomes = p.send(reserve("first", ("A", 2)), one, one, more, reserve("last", "A"))
    assert statuses(outcomes) == [
        "insufficient_stock",
        "reserved",
        "already_reserved",
        "reservation_mismatch",
        "insufficient_stock",
    ]
    p.check()


@pytest.mark.parametrize("place", [0, 31, 32, 33, 99])
def test_given_a_kept_id_among_many_refused_ones_then_it_is_told_as_it_is(redis, place):
    p = Partition(redis)
    p.receive("A", 1)
    p.hold("kept", "A")
    commands = [reserve(f"n{i}", "A") for i in range(100)]
    commands[place] = reserve("kept", "A")
    expected = ["insufficient_stock"] * 100
    expected[place] = "already_reserved"
    outcomes = p.send(*commands)
    assert statuses(outcomes) == expected
    shortage = outcomes[place - 1].shortages[0]
    assert (shortage.sku, shortage.location, shortage.requested, shortage.available) == (
        "A",
        "X",
        1,
        0,
    )


# Holds are written many at once.


@pytest.mark.parametrize("count", [1, 63, 64, 65, 300])
def test_given_many_holds_with_a_kept_id_among_them_then_each_is_there_as_told(redis, count):
    p = Partition(redis)
    p.receive("A", 1_000)
    p.hold("kept", "A")
    commands = [reserve(f"n{i}", "A") for i in range(count)]
    commands.insert(count // 2, reserve("kept", "A"))
    outcomes = p.send(*commands, commands[0], commands[-1])
    assert [c.reservation_id for c, o in zip(commands, outcomes, strict=False) if o.replayed] == [
        "kept"
    ]
    assert statuses(outcomes[-2:]) == ["already_reserved"] * 2
    assert [p.record(c.reservation_id).seq for c in commands if c.reservation_id != "kept"] == list(
        range(3, count + 3)
    )
    p.check()


# The fingerprint is the seal, or carried in the body.


def test_given_lines_in_order_then_the_fingerprint_is_the_seal_and_of_any_order_the_same(p):
    p.receive("A", 9)
    p.receive("B", 9)
    p.hold("r1", ("A", 1), ("B", 2))
    p.hold("r2", ("B", 2), ("A", 1))
    p.hold("r3", line("A", 1, None), ("B", 2))
    sorted_, unsorted, sourced = (p.record(each) for each in ("r1", "r2", "r3"))
    assert (sorted_.body.named, unsorted.body.named != "", sourced.body.named != "") == (
        "",
        True,
        True,
    )
    asked = ("order-r1", "", "", ["A", "X", 1, "B", "X", 2])
    assert sorted_.fingerprint == sorted_.seal == seal_of(msgspec.msgpack.encode(asked))
    again = [
        reserve("r1", ("B", 2), ("A", 1)),
        reserve("r2", ("A", 1), ("B", 2)),
        reserve("r3", ("B", 2), line("A", 1, None)),
        reserve("r3", ("A", 1), ("B", 2)),
    ]
    assert statuses(p.send(*again)) == ["already_reserved"] * 3 + ["reservation_mismatch"]
    assert [e.fingerprint for e in p.events()[-3:]] == [
        each.fingerprint for each in (sorted_, unsorted, sourced)
    ]
    p.check()
