"""At most 512 commands and 4,000 lines a script call, those found in reservations and taken back
included; the ones beyond come back undecided, and at least one is decided (section 4)."""

import pytest
from kit import HELD, Partition, confirm, extend, move, release, reserve, statuses

from engine.model import GetReservation, GetStock

SKUS = [f"s{i}" for i in range(2_000)]


@pytest.fixture
def p(redis):
    """r1 holds 1 of 1,000 of A."""
    p = Partition(redis)
    p.receive("A", 1_000)
    p.hold("r1", "A")
    return p


@pytest.fixture
def large(redis):
    """9 of each of 2,000 skus."""
    p = Partition(redis)
    for first in range(0, 2_000, 500):
        outcomes = p.send(*[move("receive", sku, 9) for sku in SKUS[first : first + 500]])
        assert set(statuses(outcomes)) == {"applied"}
    return p


# 512 commands.


def test_given_600_reserves_then_the_ones_beyond_512_come_back_undecided(p):
    outcomes = p.send(*[reserve(f"n{i}", "A") for i in range(600)])
    assert statuses(outcomes) == ["reserved"] * 512 + ["more_due"] * 88
    assert p.numbers("A")[:2] == (1_000, 513)
    assert p.record("n512") is None
    p.check()


@pytest.mark.parametrize("settle", [confirm, release])
def test_given_513_settled_then_the_last_comes_back_undecided(p, settle):
    outcomes = p.send(*[settle("nope") for _ in range(512)], settle("r1"))
    assert statuses(outcomes) == ["unknown_reservation"] * 512 + ["more_due"]
    assert p.record("r1").state == HELD


def test_given_513_extends_then_the_last_comes_back_undecided(p):
    outcomes = p.send(*[extend("nope", 1_000) for _ in range(512)], extend("r1", 1_200_000))
    assert statuses(outcomes) == ["unknown_reservation"] * 512 + ["more_due"]
    assert p.seq() == 2


def test_given_513_movements_then_the_last_comes_back_undecided(p):
    outcomes = p.send(*[move("receive", "B", 1, movement_id=f"m{i}") for i in range(513)])
    assert statuses(outcomes) == ["applied"] * 512 + ["more_due"]
    assert p.stock("B")["on_hand"] == 512
    p.check()


@pytest.mark.parametrize("command", [GetReservation("r1"), GetStock("A")], ids=str)
def test_given_513_reads_then_the_last_comes_back_undecided(p, command):
    outcomes = p.send(*[command] * 513)
    assert statuses(outcomes) == ["found"] * 512 + ["more_due"]


def test_given_an_undecided_command_then_later_ones_on_its_id_are_undecided_too(p):
    commands = [reserve(f"n{i}", "A") for i in range(512)]
    outcomes = p.send(*commands, reserve("late", "A"), reserve("late", "A"))
    assert statuses(outcomes)[-2:] == ["more_due"] * 2
    assert p.record("late") is None


# 4,000 lines.


def test_given_carts_of_1999_lines_then_the_one_that_begins_behind_4000_is_undecided(large):
    outcomes = large.send(*[reserve(f"r{i}", *SKUS[1:]) for i in range(4)])
    assert statuses(outcomes) == ["reserved"] * 3 + ["more_due"]
    assert {large.stock(sku)["held"] for sku in SKUS} == {0, 3}
    large.check()


def test_given_the_largest_cart_then_it_is_decided_and_settled_in_one_call_each(large):
    """More values than unpack() takes."""
    assert large.one(reserve("r1", *SKUS)).status == "reserved"
    assert {large.stock(sku)["held"] for sku in SKUS} == {1}
    assert len(large.events()[-1].lines) == 2_000
    halves = [(sku, 1) for sku in SKUS[:1_000]]
    assert large.one(confirm("r1", *halves, request_id="q1")).reservation.status == "held"
    assert large.one(release("r1")).reservation.status == "released"
    assert {large.stock(sku)["on_hand"] for sku in SKUS} == {8, 9}
    large.check()


@pytest.mark.parametrize("ended", [False, True], ids=["held", "ended"])
@pytest.mark.parametrize("settle", [confirm, release])
def test_given_reservations_of_2000_lines_then_the_third_settled_is_undecided(large, settle, ended):
    """Whether their lines are taken or only read: those found in reservations count."""
    for i in range(3):
        large.hold(f"r{i}", *SKUS)
        if ended:
            large.one(settle(f"r{i}"))
    outcomes = large.send(*[settle(f"r{i}") for i in range(3)])
    assert statuses(outcomes)[2] == "more_due"
    assert "more_due" not in statuses(outcomes)[:2]
    assert (large.record("r2").state == HELD) is not ended
    large.check()


def test_given_repeats_of_large_carts_then_the_third_is_undecided(large):
    for i in range(3):
        large.hold(f"r{i}", *SKUS)
    before = large.dump()
    outcomes = large.send(*[reserve(f"r{i}", *SKUS) for i in range(3)])
    assert statuses(outcomes) == ["already_reserved"] * 2 + ["more_due"]
    assert large.dump() == before


def test_given_refused_large_carts_then_the_third_is_undecided(large):
    before = large.dump()
    cart = [*SKUS[1:], (SKUS[0], 10)]
    outcomes = large.send(*[reserve(f"r{i}", *cart) for i in range(3)])
    assert statuses(outcomes) == ["insufficient_stock"] * 2 + ["more_due"]
    assert large.dump() == before


def test_given_large_reservations_then_the_third_extended_is_undecided(large):
    for i in range(3):
        large.hold(f"r{i}", *SKUS)
    outcomes = large.send(*[extend(f"r{i}", 1_000_000) for i in range(3)])
    assert statuses(outcomes) == ["extended", "extended", "more_due"]
    large.check()


def test_given_large_reservations_then_the_third_read_is_undecided(large):
    for i in range(2):
        large.hold(f"r{i}", *SKUS)
    outcomes = large.send(*[GetReservation(f"r{i % 2}") for i in range(4)])
    assert statuses(outcomes) == ["found", "found", "more_due", "more_due"]


def test_given_due_holds_of_many_lines_then_a_sweep_takes_back_few_more_than_4000(large):
    for i in range(4):
        large.hold(f"r{i}", *SKUS[:1_500])
    large.make_all_due()
    assert large.expire() == (3, 3, 1), "after 3,000 lines there was room for more"
    assert {large.stock(sku)["held"] for sku in SKUS[:1_500]} == {1}
    large.check()
    assert large.expire() == (1, 1, 0)
    large.check()


def test_given_ended_holds_of_many_lines_then_a_sweep_reads_few_more_than_4000(large):
    """The entry of every confirmed cart is passed over one day, and costs its lines then."""
    for i in range(4):
        large.hold(f"r{i}", *SKUS[:1_500])
        large.one(confirm(f"r{i}"))
    large.make_all_due()
    assert large.expire() == (3, 0, 1)
    assert large.expire() == (1, 0, 0)


def test_given_due_holds_of_many_lines_then_a_short_reserve_takes_few_more_than_4000(large):
    large.receive("A", 4)
    for i in range(4):
        large.hold(f"r{i}", "A", *SKUS[:1_499])
    large.make_all_due()
    assert large.one(reserve("late", ("A", 4))).status == "more_due"
    assert large.stock("A")["held"] == 1
    large.check()
    assert large.one(reserve("late", ("A", 4))).status == "reserved"
    large.check()
