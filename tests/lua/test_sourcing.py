"""Where lua/reserve.lua takes units from, and the rest of section 9 of the design."""

import pytest
from kit import Partition, confirm, line, reserve, statuses

from engine import keys


@pytest.fixture
def p(redis):
    return Partition(redis)


def placed(outcome):
    """{(sku, location): quantity} of a held reservation; its lines are unique by the two."""
    lines = outcome.reservation.lines
    found = {(x.sku, x.location): x.quantity for x in lines}
    assert len(found) == len(lines), "lines must be unique by sku and location"
    return found


def held(p, sku, *locations):
    return tuple(p.stock(sku, at)["held"] for at in locations)


def test_given_no_candidates_then_the_location_with_most_available_fills_the_line(p):
    p.receive("A", 5, "X")
    p.receive("A", 9, "Y")
    p.receive("A", 7, "Z")
    outcome = p.hold("r1", ("A", 3, None))
    assert placed(outcome) == {("A", "Y"): 3}
    assert held(p, "A", "X", "Y", "Z") == (0, 3, 0)
    p.check()


def test_given_equally_much_then_the_code_decides_and_available_counts_not_on_hand(p):
    for at, quantity in (("b", 10), ("a", 5), ("c", 5)):
        p.receive("A", quantity, at)
    p.hold("r0", ("A", 6, "b"))
    assert placed(p.hold("r1", ("A", 1, None))) == {("A", "a"): 1}
    assert placed(p.hold("r2", ("A", 1, None))) == {("A", "c"): 1}, "a has 4 left, c 5"
    p.check()


def test_given_candidates_then_their_order_wins_over_what_is_available(p):
    p.receive("A", 5, "X")
    p.receive("A", 9, "Y")
    p.receive("A", 7, "Z")
    assert placed(p.hold("r1", line("A", 3, None, "Z", "X"))) == {("A", "Z"): 3}
    assert placed(p.hold("r2", line("A", 5, None, "Z", "X"))) == {("A", "X"): 5}, "Z has 4 left"
    p.check()


def test_given_one_location_that_can_fill_the_line_then_it_is_not_split(p):
    p.receive("A", 4, "X")
    p.receive("A", 6, "Y")
    assert placed(p.hold("r1", line("A", 6, None, "X", "Y"))) == {("A", "Y"): 6}
    p.check()


def test_given_no_candidate_can_fill_it_then_another_location_alone_comes_before_a_split(p):
    p.receive("A", 4, "X")
    p.receive("A", 4, "Y")
    p.receive("A", 8, "Z")
    assert placed(p.hold("r1", line("A", 6, None, "X", "Y"))) == {("A", "Z"): 6}
    p.check()


def test_given_none_can_fill_the_line_then_it_is_split_in_the_order_of_candidates(p):
    p.receive("A", 4, "X")
    p.receive("A", 6, "Y")
    p.receive("A", 5, "Z")
    outcome = p.hold("r1", line("A", 10, None, "Z", "X", "Y"))
    assert placed(outcome) == {("A", "Z"): 5, ("A", "X"): 4, ("A", "Y"): 1}
    assert held(p, "A", "X", "Y", "Z") == (4, 1, 5)
    p.check()


def test_given_no_candidates_then_a_split_begins_with_most_available(p):
    p.receive("A", 4, "X")
    p.receive("A", 6, "Y")
    p.receive("A", 4, "B")
    assert placed(p.hold("r1", ("A", 11, None))) == {("A", "Y"): 6, ("A", "B"): 4, ("A", "X"): 1}
    p.check()


def test_given_a_location_with_more_bound_than_there_is_then_a_split_passes_it_over(p):
    p.receive("A", 2, "X")
    p.receive("A", 3, "Y")
    p.receive("A", 3, "Z")
    p.redis.hset(keys.stock(0, "A", "X"), "safety_stock", 9)
    assert placed(p.hold("r1", line("A", 6, None, "X"))) == {("A", "Y"): 3, ("A", "Z"): 3}
    assert held(p, "A", "X", "Y", "Z") == (0, 3, 3)


def test_given_too_little_everywhere_then_the_shortage_has_no_location_and_the_sum(p):
    p.receive("A", 4, "X")
    p.receive("A", 6, "Y")
    p.receive("A", 2, "Z")
    p.redis.hset(keys.stock(0, "A", "Z"), "safety_stock", 9)
    before = p.dump()
    outcome = p.one(reserve("r1", ("A", 11, None)))
    assert outcome.status == "insufficient_stock"
    assert [(s.location, s.requested, s.available) for s in outcome.shortages] == [(None, 11, 10)]
    assert p.dump() == before


def test_given_lines_with_and_without_location_then_the_located_ones_are_served_first(p):
    """Though it comes first, the line without location gets what the other leaves."""
    p.receive("A", 5, "X")
    p.receive("A", 3, "Y")
    outcome = p.hold("r1", line("A", 3, None, "X"), ("A", 5, "X"))
    assert placed(outcome) == {("A", "X"): 5, ("A", "Y"): 3}
    p.check()


def test_given_both_kinds_of_lines_at_one_location_then_they_become_one_line(p):
    p.receive("A", 9, "X")
    outcome = p.hold("r1", ("A", 3, None), ("A", 5, "X"))
    assert placed(outcome) == {("A", "X"): 8}
    assert p.record("r1").body.lines == ["A", "X", 8]
    assert [line.quantity for line in p.events()[-1].lines] == [8]
    p.check()


def test_given_located_lines_leave_too_little_then_the_sourced_line_is_short_and_all_refused(p):
    p.receive("A", 5, "X")
    p.receive("A", 3, "Y")
    before = p.dump()
    outcome = p.one(reserve("r1", ("A", 4, None), ("A", 5, "X")))
    assert [(s.location, s.requested, s.available) for s in outcome.shortages] == [(None, 4, 3)]
    assert p.dump() == before


def test_given_a_sourced_reserve_again_then_the_same_places_are_told_though_others_fit_now(p):
    p.receive("A", 5, "X")
    first = p.hold("r1", ("A", 3, None))
    p.receive("A", 9, "Y")
    before = p.dump()
    again = p.one(reserve("r1", line("A", 3, None, "Y")))
    assert again.status == "already_reserved"
    assert again.reservation == first.reservation
    assert p.dump() == before
    assert p.one(reserve("r1", ("A", 3, "X"))).status == "reservation_mismatch", "asked for X"
    assert p.dump() == before


def test_given_candidates_unknown_or_named_twice_then_they_do_no_harm(p):
    p.receive("A", 4, "X")
    p.receive("A", 4, "Y")
    outcome = p.hold("r1", line("A", 6, None, "nowhere", "Y", "Y", "nowhere"))
    assert placed(outcome) == {("A", "Y"): 4, ("A", "X"): 2}
    p.check()


def test_given_candidates_for_one_of_two_lines_then_each_line_has_its_own(p):
    for sku in "AB":
        p.receive(sku, 5, "X")
        p.receive(sku, 4, "Y")
    outcome = p.hold("r1", ("A", 2, None), line("B", 2, None, "Y"))
    assert placed(outcome) == {("A", "X"): 2, ("B", "Y"): 2}
    p.check()


def test_given_two_sourced_commands_in_one_call_then_the_second_sees_what_the_first_took(p):
    p.receive("A", 5, "X")
    p.receive("A", 4, "Y")
    first, second = p.send(reserve("r1", ("A", 4, None)), reserve("r2", ("A", 4, None)))
    assert placed(first) == {("A", "X"): 4}
    assert placed(second) == {("A", "Y"): 4}
    p.check()


def test_given_an_unknown_sku_then_the_next_command_finds_all_units_of_the_lines_before_it(p):
    p.receive("A", 10)
    p.receive("A", 5, "Y")
    p.receive("B", 1)
    outcomes = p.send(
        reserve("r1", ("A", 10), "B", ("nope", 1, None)),
        reserve("r2", ("A", 10), ("nope", 1)),
        reserve("r3", ("A", 15, None), "B"),
    )
    assert statuses(outcomes) == ["unknown_sku", "unknown_sku", "reserved"]
    assert (p.numbers("A")[:2], p.numbers("A", "Y")[:2]) == ((10, 10), (5, 5))
    p.check()


def test_given_a_sku_in_two_lines_without_location_then_the_first_ones_candidates_count(p):
    for at in "XYZ":
        p.receive("A", 5, at)
    lines = [line("A", 1, None, at) for at in "YXZ"]
    assert placed(p.one(reserve("r1", *lines))) == {("A", "Y"): 3}
    assert placed(p.one(reserve("r2", *lines[1:]))) == {("A", "X"): 2}


def test_given_one_sku_at_several_locations_then_the_order_of_its_lines_is_none_of_its_content(p):
    p.receive("A", 5, "X")
    p.receive("A", 5, "Y")
    both = [("A", 1, "X"), ("A", 1, "Y")]
    assert p.one(reserve("r1", *both)).status == "reserved"
    assert p.one(reserve("r1", *reversed(both))).status == "already_reserved"
    assert p.one(confirm("r1", *both, request_id="q1")).status == "confirmed"
    assert p.one(confirm("r1", *reversed(both), request_id="q1")).replayed
    three = [("A", 1, "Y"), ("A", 1, "X"), ("A", 1, None)]
    assert p.one(reserve("r2", *three)).status == "reserved"
    assert p.one(reserve("r2", three[2], three[1], three[0])).status == "already_reserved"
