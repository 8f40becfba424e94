"""Request ids of partial confirms and releases: a known one answers its first success, whatever came
after; with other content or another operation it is refused (section 3)."""

import pytest
from kit import Partition, confirm, release, statuses

from engine import keys
from engine.settings import Settings

BOTH = [(confirm, "confirmed", release), (release, "released", confirm)]
both = pytest.mark.parametrize(("settle", "success", "other"), BOTH)
one_of_both = pytest.mark.parametrize("settle", [confirm, release])


@pytest.fixture
def p(redis):
    """10 of A and 10 of B; r1 holds 3 of A and 2 of B."""
    p = Partition(redis)
    p.receive("A", 10)
    p.receive("B", 10)
    p.hold("r1", ("A", 3), ("B", 2))
    return p


def parts(outcome):
    return [(x.sku, x.quantity, x.confirmed, x.released) for x in outcome.reservation.lines]


@both
def test_given_a_known_request_id_then_its_first_success_is_told_whatever_came_after(
    p, settle, success, other
):
    first = p.one(settle("r1", ("A", 1), ("B", 1), request_id="q1"))
    same = [
        settle("r1", ("A", 1), ("B", 1), request_id="q1"),
        settle("r1", ("B", 1), ("A", 1), request_id="q1"),
    ]
    p.one(other("r1", ("A", 1), request_id="q2"))
    for later in (None, "due", "swept"):
        if later == "due":
            p.make_due("r1")
        elif later == "swept":
            p.expire()
        before = p.dump()
        for command in same:
            again = p.one(command)
            assert (again.status, again.replayed) == (success, True)
            assert parts(again) == parts(first)
        assert p.dump() == before
    p.check()


@both
def test_given_a_known_request_id_then_the_state_of_then_is_told_however_late(
    p, settle, success, other
):
    first = p.one(settle("r1", ("A", 1), request_id="q1"))
    p.one(settle("r1"))
    p.set_clock(p.record("r1").deadline_ms + 1)
    again = p.one(settle("r1", ("A", 1), request_id="q1"))
    assert (again.status, again.replayed) == (success, True)
    assert again.reservation == first.reservation and first.reservation.status == "held"


@both
def test_given_a_known_request_id_with_other_content_then_request_mismatch(
    p, settle, success, other
):
    p.one(settle("r1", ("A", 1), request_id="q1"))
    before = p.dump()
    for command in (
        settle("r1", ("A", 2), request_id="q1"),
        settle("r1", ("B", 1), request_id="q1"),
        settle("r1", ("A", 1), ("B", 1), request_id="q1"),
        other("r1", ("A", 1), request_id="q1"),
    ):
        assert p.one(command).status == "request_mismatch"
    p.one(settle("r1"))
    ended = p.dump()
    assert ended != before
    assert p.one(other("r1", ("A", 1), request_id="q1")).status == "request_mismatch"
    assert p.dump() == ended


@one_of_both
def test_given_a_known_request_id_and_no_lines_then_request_mismatch_not_the_whole_rest(p, settle):
    """ "With other content": a call for all that is left isn't the part that the id stands for."""
    p.one(settle("r1", ("A", 1), request_id="q1"))
    before = p.dump()
    assert p.one(settle("r1", request_id="q1")).status == "request_mismatch"
    assert p.dump() == before


def test_given_one_request_id_in_two_reservations_then_they_are_two_requests(p):
    p.hold("r2", ("A", 2))
    outcomes = p.send(
        confirm("r1", ("A", 1), request_id="q1"), confirm("r2", ("A", 2), request_id="q1")
    )
    assert statuses(outcomes) == ["confirmed", "confirmed"]
    assert p.stock("A")["on_hand"] == 7
    p.check()


@one_of_both
def test_given_a_refused_part_then_its_request_id_stays_free(p, settle):
    before = p.dump()
    refused = p.one(settle("r1", ("A", 4), request_id="q1"))
    assert refused.status == "exceeds_reservation"
    assert p.dump() == before, "refusals aren't kept"
    assert p.one(settle("r1", ("A", 3), request_id="q1")).replayed is False
    assert p.stock("A")["held"] == 0
    p.check()


def test_given_a_request_record_then_it_outlives_the_reservations_key(redis):
    p = Partition(redis, Settings(retention_ms=1_000, lifetime_max_ms=5_000))
    p.receive("A", 5)
    p.hold("r1", ("A", 3), ttl_ms=3_000)
    p.one(confirm("r1", ("A", 1), request_id="q1"))
    request = keys.part_request(0, "r1", "q1")
    assert redis.pttl(request) > 5_000 + 1_000, "it can be extended to 5 s and is kept 1 s then"
    p.one(confirm("r1"))
    redis.delete(keys.reservation(0, "r1"))
    before = p.dump()
    again = p.one(confirm("r1", ("A", 1), request_id="q1"))
    assert (again.status, again.replayed) == ("confirmed", True)
    assert p.dump() == before


def test_given_a_ttl_longer_than_an_extend_may_reach_then_the_request_record_outlives_that(redis):
    """A reservation may be made for a day, and extended to four hours only."""
    p = Partition(redis, Settings(retention_ms=1_000, lifetime_max_ms=5_000))
    p.receive("A", 5)
    p.hold("r1", ("A", 3), ttl_ms=60_000)
    p.one(confirm("r1", ("A", 1), request_id="q1"))
    left_ms = p.record("r1").deadline_ms + 2 * 1_000 - p.now_ms
    assert left_ms - 5_000 < redis.pttl(keys.part_request(0, "r1", "q1")) <= left_ms


@both
def test_given_a_later_reservation_of_the_same_id_then_a_request_id_of_the_earlier_is_free(
    p, settle, success, other
):
    """The record outlives the reservation's key; it must not answer for the one made anew."""
    p.one(settle("r1", ("A", 1), request_id="q1"))
    p.one(release("r1"))
    p.redis.delete(keys.reservation(0, "r1"))  # as its expiry does
    p.set_clock(p.now_ms + 90_000_000)
    p.hold("r1", ("A", 3))
    held = p.stock("A")["held"]
    outcome = p.one(settle("r1", ("A", 1), request_id="q1"))
    assert (outcome.status, outcome.replayed) == (success, False)
    assert p.stock("A")["held"] == held - 1
    assert p.one(settle("r1", ("A", 1), request_id="q1")).replayed
    assert p.stock("A")["held"] == held - 1
