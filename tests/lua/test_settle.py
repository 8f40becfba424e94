"""lua/confirm.lua and lua/release.lua: what they answer, and the keys afterwards."""

import msgspec
import pytest
from kit import (
    CONFIRMED,
    HELD,
    RELEASED,
    WRITES,
    WRONG_NUMBERS,
    Partition,
    confirm,
    release,
    statuses,
)
from redis.exceptions import ResponseError

from engine import keys

#: operation, its success, the other one, what on_hand loses a unit
BOTH = [(confirm, "confirmed", release, 1), (release, "released", confirm, 0)]
both = pytest.mark.parametrize(("settle", "success", "other", "leaves"), BOTH)
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
def test_given_a_hold_when_settled_then_all_units_move_and_one_event_tells_it(
    p, settle, success, other, leaves
):
    outcome = p.one(settle("r1"))
    taken = (3, 0) if leaves else (0, 3)
    assert (outcome.status, outcome.reservation.status, outcome.replayed) == (
        success,
        success,
        False,
    )
    assert parts(outcome)[0] == ("A", 3, *taken)
    assert p.numbers("A") == (10 - 3 * leaves, 0, 0, 0, 4)
    assert p.numbers("B") == (10 - 2 * leaves, 0, 0, 0, 4)
    record = p.record("r1")
    assert (record.state, record.seq) == (CONFIRMED if leaves else RELEASED, 4)
    assert 0 < p.redis.pttl(keys.reservation(0, "r1")) <= 24 * 3_600_000
    event = p.events()[-1]
    assert (event.type, event.seq, event.at_ms) == (settle.__name__, 4, p.now_ms)
    assert (event.reservation_id, event.order_id, event.request_id) == ("r1", "order-r1", None)
    assert [msgspec.structs.astuple(x) for x in event.lines] == [
        ("A", "X", 3, -3 * leaves, -3, 0),
        ("B", "X", 2, -2 * leaves, -2, 0),
    ]
    assert p.head()["last_ms"] == str(p.now_ms)
    p.check()


@both
def test_given_a_settled_one_when_sent_again_or_the_other_way_then_told_and_nothing_changes(
    p, settle, success, other, leaves
):
    p.one(settle("r1"))
    before = p.dump()
    for command in (settle("r1"), other("r1"), settle("r1", ("A", 1), request_id="q1")):
        outcome = p.one(command)
        assert outcome.status == f"already_{success}"
        assert outcome.reservation.status == success
    assert p.dump() == before


@one_of_both
def test_given_no_such_reservation_then_unknown_and_nothing_is_written(p, settle):
    before = p.dump()
    outcomes = p.send(settle("nope"), settle("nope", ("A", 1), request_id="q1"))
    assert statuses(outcomes) == ["unknown_reservation"] * 2
    assert p.dump() == before


@one_of_both
@pytest.mark.parametrize("swept", [False, True])
def test_given_a_deadline_passed_then_reservation_expired_swept_or_not(p, settle, swept):
    p.make_due("r1")
    if swept:
        p.expire()
    before = p.dump()
    for command in (settle("r1"), settle("r1", ("A", 1), request_id="q1")):
        outcome = p.one(command)
        assert (outcome.status, outcome.reservation.status) == ("reservation_expired", "expired")
    assert p.dump() == before


@one_of_both
def test_given_one_ms_before_the_deadline_then_it_is_still_settled(p, settle):
    p.set_clock(p.record("r1").deadline_ms - 1)
    assert p.one(settle("r1")).status in ("confirmed", "released")
    p.check()


@both
def test_given_a_part_then_the_rest_stays_held_and_the_last_part_names_the_end(
    p, settle, success, other, leaves
):
    outcome = p.one(settle("r1", ("A", 2), request_id="q1"))
    assert (outcome.status, outcome.reservation.status) == (success, "held")
    assert parts(outcome) == [("A", 3, 2 * leaves, 2 - 2 * leaves), ("B", 2, 0, 0)]
    assert p.numbers("A") == (10 - 2 * leaves, 1, 0, 0, 4)
    assert p.numbers("B") == (10, 2, 0, 0, 3)
    assert (p.record("r1").state, p.record("r1").seq) == (HELD, 4)
    assert p.redis.pttl(keys.reservation(0, "r1")) == -1
    event = p.events()[-1]
    assert (event.type, event.request_id) == (settle.__name__, "q1")
    assert event.fingerprint
    assert [msgspec.structs.astuple(x) for x in event.lines] == [("A", "X", 2, -2 * leaves, -2, 0)]
    p.check()

    last = p.one(other("r1"))
    ended = "released" if leaves else "confirmed"
    assert (last.status, last.reservation.status) == (ended, ended)
    assert p.stock("A")["on_hand"] == 10 - (2 if leaves else 1)
    assert p.stock("B")["on_hand"] == 10 - (0 if leaves else 2)
    assert [line.quantity for line in p.events()[-1].lines] == [1, 2]
    assert p.redis.pttl(keys.reservation(0, "r1")) > 0
    p.check()


@one_of_both
def test_given_parts_that_add_up_to_all_then_the_last_of_them_ends_it(p, settle):
    first = p.one(settle("r1", ("A", 3), request_id="q1"))
    last = p.one(settle("r1", ("B", 1), ("B", 1), request_id="q2"))
    assert [first.reservation.status, last.reservation.status] == ["held", last.status]
    assert (p.stock("A")["held"], p.stock("B")["held"]) == (0, 0)
    p.check()


@one_of_both
@pytest.mark.parametrize(
    ("asked", "left"),
    [
        ([("A", 4)], "3 of sku A"),
        ([("A", 2), ("A", 2)], "3 of sku A"),
        ([("A", 1), ("B", 3)], "2 of sku B"),
        ([("C", 1)], "0 of sku C"),
        ([("A", 1, "Y")], "0 of sku A"),
        ([("A", 3), ("A", 1, None)], "3 of sku A"),
        ([("A", 1_000_000)], "3 of sku A"),
    ],
)
def test_given_a_part_larger_than_what_is_left_then_exceeds_and_nothing_is_taken(
    p, settle, asked, left
):
    before = p.dump()
    refused = p.one(settle("r1", *asked, request_id="q1"))
    assert (refused.status, left in refused.detail) == ("exceeds_reservation", True)
    assert p.dump() == before


@one_of_both
def test_given_what_is_left_then_it_counts_and_not_the_original_quantity(p, settle):
    p.one(confirm("r1", ("A", 1), request_id="q1"))
    p.one(release("r1", ("A", 1), request_id="q2"))
    before = p.dump()
    assert p.one(settle("r1", ("A", 2), request_id="q3")).status == "exceeds_reservation"
    assert p.dump() == before
    assert p.one(settle("r1", ("A", 1), request_id="q3")).reservation.status == "held"
    p.check()


@one_of_both
def test_given_a_split_sku_then_a_part_must_name_the_location(p, settle):
    p.receive("S", 2, "X")
    p.receive("S", 3, "Y")
    p.hold("r2", ("S", 5, None), ("A", 1, None))
    before = p.dump()
    refused = p.one(settle("r2", ("S", 1, None), request_id="q1"))
    assert refused.status == "invalid_request"
    assert "S" in refused.detail
    assert p.dump() == before
    outcome = p.one(settle("r2", ("S", 1, "Y"), ("A", 1, None), request_id="q1"))
    assert outcome.reservation.status == "held"
    assert (p.stock("S", "X")["held"], p.stock("S", "Y")["held"]) == (2, 2)
    p.check()


@one_of_both
def test_given_many_commands_on_one_reservation_then_they_are_decided_in_order(p, settle):
    outcomes = p.send(
        settle("r1", ("A", 1), request_id="q1"),
        settle("r1", ("A", 1), request_id="q1"),
        settle("r1", ("A", 3), request_id="q2"),
        settle("r1"),
        settle("r1"),
    )
    assert [o.replayed for o in outcomes] == [False, True, False, False, False]
    success = str(outcomes[0].status)
    assert statuses(outcomes) == [
        success,
        success,
        "exceeds_reservation",
        success,
        f"already_{success}",
    ]
    assert len(p.redis.xrange(keys.outbox(0))) == 4
    p.check()


@one_of_both
@pytest.mark.parametrize("wrong", WRONG_NUMBERS.values(), ids=WRONG_NUMBERS)
def test_given_a_wrong_quantity_past_python_then_an_error_and_neighbours_wrote_nothing(
    p, settle, wrong
):
    before = p.dump()
    bad = settle("r1", ("A", 1), ("B", 1_000_000), request_id="q1")
    with pytest.raises(ResponseError):
        p.forge(settle("r1"), bad, instead=1_000_000, wrong=wrong)
    assert p.dump() == before


@one_of_both
@pytest.mark.parametrize(
    ("request_id", "wanted"),
    [
        ("q1", []),
        ("q1", ["A"]),
        ("q1", ["A", "X"]),
        ("q1", ["A", "X", 1, "B"]),
        ("", ["A", "X", 1]),
    ],
)
def test_given_a_part_of_another_shape_past_python_then_an_error_and_neighbours_wrote_nothing(
    p, settle, request_id, wanted
):
    before = p.dump()
    flat = ["r1", "", "", 0, "r1", request_id, "f" * 24, wanted]
    times = (p.settings.retention_ms, p.settings.lifetime_max_ms)
    with pytest.raises(ResponseError, match="a part needs lines of three values and a request_id"):
        p.script(settle.__name__, WRITES, msgspec.msgpack.encode(flat), *times)
    assert p.dump() == before


def test_given_a_part_without_request_id_then_python_refuses_it_before_redis(p):
    before = p.dump()
    with pytest.raises(ValueError, match="request_id"):
        p.send(confirm("r1", ("A", 1)))
    assert p.dump() == before
