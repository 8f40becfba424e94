"""lua/expire.lua and the take-back inside lua/reserve.lua: an expired unit can be sold from its
deadline on, in calls that look at 500 entries at most."""

import msgspec
import pytest
from kit import EXPIRED, HELD, Partition, confirm, extend, release, reserve, statuses

from engine import keys


@pytest.fixture
def p(redis):
    return Partition(redis)


def hold_many(p, count, sku="A", ttl_ms=1_000, prefix="h"):
    """Holds of one unit each, in one deadline or two."""
    for first in range(0, count, 512):
        ids = range(first, min(first + 512, count))
        outcomes = p.send(*[reserve(f"{prefix}{i}", sku, ttl_ms=ttl_ms) for i in ids])
        assert set(statuses(outcomes)) == {"reserved"}


def due_lists(p):
    return list(p.redis.scan_iter(keys.due(0, "*"), count=1000))


def test_given_a_due_hold_when_swept_then_units_are_back_and_one_event_tells_it(p):
    p.receive("A", 10)
    p.receive("B", 10)
    p.hold("r1", ("A", 3), ("B", 1))
    deadline = p.make_due("r1")
    assert p.expire() == (1, 1, 0)
    assert (p.now_ms, p.damaged) == (deadline, [])
    assert p.numbers("A") == (10, 0, 0, 0, 4)
    assert p.numbers("B") == (10, 0, 0, 0, 4)
    record = p.record("r1")
    assert (record.state, record.seq, record.deadline_ms) == (EXPIRED, 4, deadline)
    assert 0 < p.redis.pttl(keys.reservation(0, "r1")) <= 24 * 3_600_000
    event = p.events()[-1]
    assert (event.type, event.seq, event.at_ms) == ("expire", 4, deadline)
    assert (event.reservation_id, event.order_id) == ("r1", "order-r1")
    assert [msgspec.structs.astuple(x) for x in event.lines] == [
        ("A", "X", 3, 0, -3, 0),
        ("B", "X", 1, 0, -1, 0),
    ]
    assert p.redis.zcard(keys.deadlines(0)) == 0
    assert due_lists(p) == []
    p.check()


def test_given_a_hold_one_ms_before_its_deadline_then_it_is_not_taken_back(p):
    p.receive("A", 1)
    p.hold("r1", "A", ttl_ms=60_000)
    p.set_clock(p.record("r1").deadline_ms - 1)
    before = p.dump()
    assert p.expire() == (0, 0, 0)
    outcome = p.one(reserve("r2", "A"))
    assert outcome.status == "insufficient_stock"
    assert p.dump() == before
    assert p.record("r1").state == HELD


def test_given_a_short_ttl_when_its_time_has_really_come_then_the_unit_is_sold_again(p):
    """By the server's own clock: a deadline is at most a tenth of a second after now + ttl."""
    p.receive("A", 1)
    outcome = p.hold("r1", "A", ttl_ms=1)
    deadline = outcome.reservation.expires_ms
    assert 1 <= deadline - outcome.reservation.created_ms <= 101
    second = p.one(reserve("r2", "A"))
    while second.status != "reserved":
        assert (second.status, p.now_ms < deadline) == ("insufficient_stock", True)
        second = p.one(reserve("r2", "A"))
    assert p.now_ms >= deadline
    assert [e.type for e in p.events()] == ["receive", "reserve", "expire", "reserve"]
    p.check()


def test_given_nothing_due_when_swept_then_nothing_is_written(p):
    p.receive("A", 1)
    p.hold("r1", "A")
    before = p.dump()
    assert p.expire() == (0, 0, 0)
    assert p.dump() == before


def test_given_partly_settled_and_extended_and_ended_holds_then_only_what_is_left_comes_back(p):
    p.receive("A", 20)
    four = ("part", "extended", "confirmed", "released")
    p.send(*[reserve(each, ("A", 4), ttl_ms=1_000) for each in four])
    p.one(confirm("part", ("A", 1), request_id="q1"))
    p.one(release("part", ("A", 1), request_id="q2"))
    p.one(extend("extended", 60_000))
    p.one(confirm("confirmed"))
    p.one(release("released"))
    p.make_due("part")
    looked_at, expired, more = p.expire()
    assert (looked_at, expired, more) == (4, 1, 0), "entries of the others are passed over"
    assert p.numbers("A")[:2] == (15, 4)
    assert (p.record("part").state, p.record("part").parts) == (EXPIRED, [1, 1])
    assert [line.quantity for line in p.events()[-1].lines] == [2]
    assert p.record("extended").state == HELD
    p.check()
    p.make_due("extended")
    assert p.expire() == (1, 1, 0)
    assert p.numbers("A")[:2] == (15, 0)
    p.check()


def test_given_several_deadlines_when_swept_little_by_little_then_the_oldest_come_first(p):
    p.receive("A", 6)
    for i, ttl_ms in enumerate((3_000, 1_000, 2_000)):
        p.hold(f"a{i}", "A", ttl_ms=ttl_ms)
        p.hold(f"b{i}", "A", ttl_ms=ttl_ms)
    p.make_all_due()
    order = []
    for _ in range(6):
        assert p.expire(entries_max=1)[:2] == (1, 1)
        order.append(p.events()[-1].reservation_id)
        p.check()
    assert [each[1] for each in order] == list("112200")
    assert p.expire(entries_max=1) == (0, 0, 0)
    assert due_lists(p) == []


def test_given_a_hold_extended_by_a_tenth_then_it_is_passed_over_until_that_is_over(p):
    """To the millisecond: the entry on the list of its old deadline says nothing."""
    p.receive("A", 1)
    p.set_clock(p.now_ms // 100 * 100 + 3_600_000)
    deadline = p.hold("r1", "A", ttl_ms=1_000).reservation.expires_ms
    p.set_clock(deadline - 900)
    extended = p.one(extend("r1", 1_000))
    assert extended.reservation.expires_ms == deadline + 100
    p.set_clock(deadline + 1)
    assert p.expire() == (1, 0, 0)
    assert p.record("r1").state == HELD
    p.set_clock(deadline + 99)
    assert p.expire() == (0, 0, 0)
    p.set_clock(deadline + 100)
    assert p.expire() == (1, 1, 0)
    p.check()


def test_given_600_deadlines_without_their_lists_then_each_counts_as_an_entry_of_the_500(p):
    p.receive("A", 1)
    first = p.hold("r1", "A").reservation.expires_ms
    late = {first + 100 * i: first + 100 * i for i in range(1, 601)}
    p.redis.zadd(keys.deadlines(0), {str(ms): ms for ms in late})
    p.make_all_due()
    assert p.expire() == (500, 1, 1)
    assert p.expire() == (101, 0, 0)
    assert p.redis.zcard(keys.deadlines(0)) == 0


def test_given_1200_due_when_swept_then_a_call_looks_at_500_at_most(p):
    p.receive("A", 1_200)
    hold_many(p, 1_200)
    p.make_all_due()
    calls = [p.expire() for _ in range(3)]
    assert [looked_at for looked_at, _, _ in calls] == [500, 500, 200]
    assert [expired for _, expired, _ in calls] == [500, 500, 200]
    assert [more for _, _, more in calls] == [1, 1, 0]
    assert p.numbers("A")[:2] == (1_200, 0)
    assert (due_lists(p), p.redis.zcard(keys.deadlines(0))) == ([], 0)
    p.check()


def test_given_three_deadlines_of_300_when_swept_then_a_call_ends_within_the_second_list(p):
    p.receive("A", 900)
    for ttl_ms in (60_000, 120_000, 180_000):
        hold_many(p, 300, ttl_ms=ttl_ms, prefix=f"h{ttl_ms}-")
    p.make_all_due()
    assert [p.expire() for _ in range(3)] == [(500, 500, 1), (400, 400, 0), (0, 0, 0)]
    assert (due_lists(p), p.redis.zcard(keys.deadlines(0))) == ([], 0)
    p.check()


def test_given_passed_over_entries_then_they_count_towards_the_500(p):
    p.receive("A", 1_000)
    hold_many(p, 600)
    for first in (0, 300):
        p.send(*[release(f"h{i}") for i in range(first, first + 300)])
    p.hold("last", "A", ttl_ms=5_000)
    p.make_all_due()
    assert p.expire() == (500, 0, 1)
    assert p.expire() == (101, 1, 0)
    p.check()


# Inside reserve.


def test_given_a_shortage_and_due_holds_then_reserve_takes_them_back_in_the_same_call(p):
    p.receive("A", 2)
    p.receive("B", 5)
    p.hold("r1", ("A", 2), ("B", 1))
    p.make_due("r1")
    assert p.one(reserve("r2", ("A", 2))).status == "reserved"
    assert [(e.type, e.reservation_id) for e in p.events()[-2:]] == [
        ("expire", "r1"),
        ("reserve", "r2"),
    ]
    assert p.numbers("A") == (2, 2, 0, 0, 5)
    assert p.numbers("B") == (5, 0, 0, 0, 4)
    assert p.record("r1").state == EXPIRED
    p.check()


def test_given_an_id_held_anew_in_a_call_that_takes_back_then_its_old_entry_is_passed_over(p):
    p.receive("A", 3)
    p.hold("r1", "A")
    p.hold("r2", "A")
    p.one(release("r1"))
    p.redis.delete(keys.reservation(0, "r1"))  # as its retention does
    p.make_all_due()
    outcomes, damaged = p.send(reserve("r1", ("A", 2)), reserve("r3", "A")), p.damaged
    assert (statuses(outcomes), damaged) == (["reserved", "reserved"], [])
    assert p.record("r1").state == HELD
    assert p.record("r2").state == EXPIRED
    p.check()


def test_given_enough_stock_then_reserve_takes_nothing_back(p):
    p.receive("A", 3)
    p.hold("r1", "A")
    p.make_due("r1")
    p.hold("r2", "A")
    assert p.record("r1").state == HELD
    assert [e.type for e in p.events()] == ["receive", "reserve", "reserve"]
    p.check()


def test_given_still_short_after_the_take_back_then_refused_with_what_is_available_then(p):
    p.receive("A", 3)
    p.hold("r1", ("A", 2))
    p.make_due("r1")
    outcome = p.one(reserve("r2", ("A", 4)))
    assert (outcome.status, outcome.shortages[0].available) == ("insufficient_stock", 3)
    assert p.numbers("A")[:2] == (3, 0)
    assert p.record("r2") is None
    p.check()


def test_given_a_shortage_of_a_sourced_line_then_it_too_takes_back(p):
    p.receive("A", 2, "X")
    p.receive("A", 2, "Y")
    p.hold("r1", ("A", 4, None))
    p.make_due("r1")
    outcome = p.one(reserve("r2", ("A", 3, None)))
    assert outcome.status == "reserved"
    p.check()


def test_given_more_than_500_due_when_short_then_more_due_and_the_command_wrote_nothing(p):
    p.receive("A", 700)
    hold_many(p, 700)
    p.make_all_due()
    assert p.one(reserve("big", ("A", 600))).status == "more_due"
    assert p.record("big") is None
    assert p.numbers("A")[:2] == (700, 200)
    assert len(p.events()) == 1 + 700 + 500
    p.check()
    assert p.one(reserve("big", ("A", 600))).status == "reserved"
    assert p.numbers("A")[:2] == (700, 600)
    p.check()


def test_given_two_short_commands_then_they_share_the_500_entries_of_their_call(p):
    p.receive("A", 700)
    hold_many(p, 700)
    p.receive("B", 2)
    p.make_all_due()
    outcomes = p.send(
        reserve("r1", ("A", 200)), reserve("r2", ("A", 600)), reserve("r3", "B"), reserve("r2", "B")
    )
    assert statuses(outcomes) == ["reserved", "more_due", "reserved", "more_due"], (
        "a later command on an undecided id may not overtake it"
    )
    assert len([e for e in p.events() if e.type == "expire"]) == 500
    assert p.record("r2") is None
    p.check()


def test_given_several_undecided_ids_then_a_later_command_overtakes_none_of_them(p):
    p.receive("A", 700)
    hold_many(p, 700)
    p.receive("B", 9)
    p.make_all_due()
    big = [reserve(f"r{i}", ("A", 600)) for i in range(3)]
    outcomes = p.send(*big, *[reserve(f"r{i}", "B") for i in range(4)])
    assert statuses(outcomes) == ["more_due"] * 6 + ["reserved"]
    assert [p.record(f"r{i}") for i in range(3)] == [None] * 3
    p.check()


def test_given_a_shortage_no_take_back_can_end_then_reserve_says_so_after_looking(p):
    p.receive("A", 600)
    hold_many(p, 600)
    p.make_all_due()
    asked = [p.one(reserve("big", ("A", 601))) for _ in range(2)]
    assert statuses(asked) == ["more_due", "insufficient_stock"]
    assert asked[1].shortages[0].available == 600
    p.check()


def test_given_a_repeat_that_falls_short_then_it_is_told_before_anything_is_taken_back(p):
    p.receive("A", 2)
    p.hold("r1", ("A", 2))
    p.make_due("r1")
    before = p.dump()
    outcome = p.one(reserve("r1", ("A", 2)))
    assert (outcome.status, outcome.reservation.status) == ("reservation_expired", "expired")
    assert p.dump() == before
