"""A full server refuses what takes stock up, and lets everything go on that gives it back."""

import pytest
from kit import Partition, confirm, extend, move, release, reserve, statuses


@pytest.fixture
def p(redis):
    """A full server: r1 holds 5 of 10 of A, r2 1, and r3's 2 are due."""
    p = Partition(redis)
    p.receive("A", 10)
    p.hold("r1", ("A", 5))
    p.hold("r2", "A")
    p.hold("r3", ("A", 2), ttl_ms=1_000)
    p.make_due("r3")
    p.fill()
    return p


@pytest.mark.parametrize(
    "command",
    [
        reserve("r4", "A"),
        reserve("r4", ("A", 3)),
        reserve("r4", ("A", 1, None)),
        extend("r1", 9_000_000),
        move("receive", "A", 1),
        move("receive", "new", 1),
        move("damage", "A", 1),
        move("count", "A", 9),
    ],
    ids=str,
)
def test_given_a_full_server_then_store_full_and_nothing_is_written(p, command):
    """reserve ("A", 3) is short before a take-back: it must not begin with one."""
    before = p.dump()
    assert p.one(command).status == "store_full"
    assert p.dump() == before


def test_given_a_full_server_then_store_full_comes_before_any_other_answer(p):
    """Section 6: before all others, for reserve, extend and movements."""
    before = p.dump()
    commands = [
        reserve("r4", "nope"),
        reserve("r1", ("A", 5)),
        extend("nope", 1_000),
        extend("r1", 1),
        move("damage", "nope", 1),
        move("damage", "A", 99),
    ]
    answers = {str(command): p.one(command).status for command in commands}
    assert p.dump() == before
    assert answers == dict.fromkeys(answers, "store_full")


@pytest.mark.parametrize(("settle", "on_hand"), [(confirm, 5), (release, 10)])
def test_given_a_full_server_then_confirm_and_release_work_in_whole_and_in_part(p, settle, on_hand):
    first = p.one(settle("r1", ("A", 2), request_id="q1"))
    again = p.one(settle("r1", ("A", 2), request_id="q1"))
    last = p.one(settle("r1"))
    success = first.status
    assert statuses([first, again, last]) == [success] * 3
    assert success in ("confirmed", "released")
    assert (again.replayed, last.reservation.status) == (True, success)
    assert p.numbers("A")[:2] == (on_hand, 3)
    p.check()


def test_given_a_full_server_then_what_is_due_is_taken_back(p):
    assert p.expire() == (1, 1, 0)
    assert p.numbers("A")[:2] == (10, 6)
    p.check()


def test_given_room_again_then_all_goes_on_where_it_stood(p):
    assert p.one(reserve("r4", ("A", 4))).status == "store_full"
    p.redis.config_set("maxmemory", 2**30)
    assert p.one(reserve("r4", ("A", 4))).status == "reserved", "with what r3 gave back"
    p.check()


def test_given_a_server_that_really_fills_up_then_it_can_be_emptied_to_the_last_hold(redis):
    """Not a trick with maxmemory alone: holds are made until no more fit, then all released."""
    p = Partition(redis)
    p.receive("A", 1_000_000)
    limit = redis.info("memory")["used_memory"] + 2**20
    redis.config_set("maxmemory", limit)
    made = []
    for first in range(0, 60_000, 500):
        batch = [f"r{i}" for i in range(first, first + 500)]
        outcome = p.send(*[reserve(each, "A") for each in batch])
        if outcome[0].status == "store_full":
            break
        made += batch
    assert 500 <= len(made) < 60_000
    p.check()
    for first in range(0, len(made), 500):
        outcomes = p.send(*[release(each) for each in made[first : first + 500]])
        assert set(statuses(outcomes)) == {"released"}
    assert p.numbers("A")[:2] == (1_000_000, 0)
    p.check()
