"""A reserve whose id is kept: a success only while every unit of it is held or confirmed."""

import pytest
from kit import Partition, confirm, extend, release, reserve, statuses

from engine import keys
from engine.model import GetReservation

AGAIN = reserve("r1", ("A", 3), ("B", 1))
#: What happened to r1 (3 A and 1 B) → the status of the same reserve again, and what its detail says.
CASES = {
    "nothing": ([], "already_reserved", ""),
    "extended": ([extend("r1", 1_000_000)], "already_reserved", ""),
    "all confirmed": ([confirm("r1")], "already_reserved", ""),
    "some confirmed": ([confirm("r1", ("A", 2), request_id="q1")], "already_reserved", ""),
    "confirmed in parts": (
        [confirm("r1", ("A", 2), request_id="q1"), confirm("r1")],
        "already_reserved",
        "",
    ),
    "all released": ([release("r1")], "already_released", "all 4 units were released"),
    "some released, the rest is held": (
        [release("r1", ("A", 1), request_id="q1")],
        "already_released",
        "1 of 4 units was released, 3 are still held",
    ),
    "released, confirmed, one is held": (
        [
            release("r1", ("A", 2), request_id="q1"),
            confirm("r1", ("A", 1), request_id="q2"),
        ],
        "already_released",
        "1 of 4 units was confirmed, 2 were released, 1 is still held",
    ),
    "released, then confirmed": (
        [release("r1", ("A", 1), request_id="q1"), confirm("r1")],
        "already_released",
        "3 of 4 units were confirmed, 1 was released",
    ),
    "confirmed, then released": (
        [confirm("r1", ("A", 3), request_id="q1"), release("r1")],
        "already_released",
        "3 of 4 units were confirmed, 1 was released",
    ),
    "expired": (["expire"], "reservation_expired", "all 4 units expired"),
    "some confirmed, then expired": (
        [confirm("r1", ("A", 1), request_id="q1"), "expire"],
        "reservation_expired",
        "1 of 4 units was confirmed, 3 expired",
    ),
    "all confirmed, then its deadline passed": (
        [confirm("r1"), "expire"],
        "already_reserved",
        "",
    ),
    "some released, then expired": (
        [release("r1", ("B", 1), request_id="q1"), "expire"],
        "already_released",
        "1 of 4 units was released, 3 expired",
    ),
    "some of each": (
        [
            confirm("r1", ("A", 1), request_id="q1"),
            release("r1", ("B", 1), request_id="q2"),
            "expire",
        ],
        "already_released",
        "1 of 4 units was confirmed, 1 was released, 2 expired",
    ),
}


@pytest.fixture
def p(redis):
    p = Partition(redis)
    p.receive("A", 10)
    p.receive("B", 10)
    p.hold("r1", ("A", 3), ("B", 1))
    return p


@pytest.mark.parametrize("swept", [True, False])
@pytest.mark.parametrize(("steps", "status", "counts"), CASES.values(), ids=CASES)
def test_given_what_became_of_it_then_a_repeat_is_told_that_and_holds_nothing(
    p, steps, status, counts, swept
):
    for step in steps:
        if step == "expire":
            p.make_due("r1")
            if swept:
                p.expire()
        else:
            assert p.one(step).status in ("confirmed", "released", "extended")
    before = p.dump()
    again, other, in_a_batch = p.send(AGAIN, reserve("r1", ("A", 4)), AGAIN)
    assert p.dump() == before, "an id that is still kept is never held again"
    assert (again.status, other.status) == (status, "reservation_mismatch")
    assert again.reservation == in_a_batch.reservation == p.one(GetReservation("r1")).reservation
    assert again.replayed is (status == "already_reserved")
    assert again.detail.startswith(counts) or f": {counts};" in again.detail
    assert ("choose a new reservation_id" in again.detail) is (status != "already_reserved")


def test_given_one_of_one_unit_released_then_the_counts_say_so(p):
    p.hold("one", "A")
    p.one(release("one"))
    assert p.one(reserve("one", "A")).detail.startswith("its 1 unit was released; ")


@pytest.mark.parametrize("tail", [b"", b"x"])
def test_given_a_record_that_can_t_be_read_then_its_id_was_used_for_nobody_knows_what(p, tail):
    key = keys.reservation(0, "r1")
    p.redis.set(key, p.redis.get(key)[:-1] + tail)
    before = p.dump()
    outcome = p.one(AGAIN)
    assert (outcome.status, outcome.reservation) == ("reservation_mismatch", None)
    assert p.damaged == [key]
    assert p.dump() == before


# Whoever else is told that it has ended hears the same counts.


@pytest.mark.parametrize(
    ("first", "last", "status"),
    [
        (confirm("r1", ("A", 3), request_id="q1"), release("r1"), "already_released"),
        (release("r1", ("B", 1), request_id="q1"), confirm("r1"), "already_confirmed"),
    ],
)
def test_given_a_mixture_then_each_refusal_tells_the_counts(p, first, last, status):
    assert statuses([p.one(first), p.one(last)])[1] == status.removeprefix("already_")
    late = [
        p.one(confirm("r1")),
        p.one(release("r1")),
        p.one(extend("r1", 1_000)),
        p.one(confirm("r1", "A", request_id="q9")),
        p.one(release("r1", "A", request_id="q9")),
    ]
    assert {outcome.status for outcome in late} == {status}
    assert {o.detail for o in late} == {"3 of 4 units were confirmed, 1 was released"}


@pytest.mark.parametrize("swept", [True, False])
def test_given_an_expired_rest_then_each_refusal_tells_the_counts(p, swept):
    p.one(confirm("r1", ("A", 3), request_id="q1"))
    p.make_due("r1")
    if swept:
        p.expire()
    late = [p.one(confirm("r1")), p.one(release("r1")), p.one(extend("r1", 1_000))]
    assert {outcome.status for outcome in late} == {"reservation_expired"}
    assert {o.detail for o in late} == {
        "its deadline has passed: 3 of 4 units were confirmed, 1 expired"
    }
