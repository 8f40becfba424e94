"""The order of a replay: a unit goes out only when every earlier one of its skus is answered, or is an
invoice before it in the same request."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from api.replay import Request, Schedule

plans = st.lists(
    st.tuples(st.sets(st.sampled_from("abcde"), min_size=1, max_size=3), st.booleans()), max_size=30
)


def movements(*skus: Sequence[str]) -> Schedule:
    return Schedule(skus, [False] * len(skus))


def invoices(*skus: Sequence[str]) -> Schedule:
    return Schedule(skus, [True] * len(skus))


def send(schedule: Schedule, at_most: int = 100) -> list[int]:
    """The units of one request."""
    request, units = Request(schedule), []
    while request.first() is not None and len(units) < at_most:
        units.append(request.take())
    return units


def test_units_that_share_no_sku_go_out_at_once_in_the_files_order() -> None:
    assert send(movements(("a",), ("b",), ("c", "d"))) == [0, 1, 2]


def test_a_movement_waits_for_every_earlier_one_of_its_skus() -> None:
    schedule = movements(("a",), ("b",), ("a", "b"), ("b",))
    assert send(schedule) == [0, 1]
    schedule.answered(1)
    assert send(schedule) == []
    schedule.answered(0)
    assert send(schedule) == [2]
    schedule.answered(2)
    assert send(schedule) == [3]


def test_two_shared_skus_are_waited_for_once() -> None:
    schedule = movements(("a", "b"), ("a", "b"))
    assert send(schedule) == [0]
    schedule.answered(0)
    assert send(schedule) == [1]


def test_invoices_follow_one_another_in_one_request() -> None:
    assert send(invoices(("a",), ("a", "b"), ("b",), ("a",))) == [0, 1, 2, 3]


def test_an_invoice_waits_for_one_that_is_in_another_request() -> None:
    schedule = invoices(("a",), ("b",), ("a", "b"), ("b",))
    assert send(schedule, at_most=1) == [0]
    assert send(schedule) == [1]
    schedule.answered(1)
    assert send(schedule) == []
    schedule.answered(0)
    assert send(schedule) == [2, 3]


def test_an_invoice_that_could_have_followed_is_not_sent_twice() -> None:
    schedule = invoices(("a",), ("a",), ("a",))
    assert send(schedule, at_most=2) == [0, 1]
    schedule.answered(0)
    assert send(schedule) == []
    schedule.answered(1)
    assert send(schedule) == [2]


def test_invoice_and_movement_wait_for_one_another() -> None:
    schedule = Schedule([("a",), ("a",), ("a",)], [True, False, True])
    for unit in range(3):
        assert send(schedule) == [unit]
        schedule.answered(unit)


def test_an_empty_plan_has_nothing_to_take() -> None:
    assert send(movements()) == []


@settings(deadline=None)
@given(plans, st.randoms(use_true_random=False), st.integers(1, 8))
def test_whatever_the_answers_order_each_sku_sees_the_files_order(
    plan: list[tuple[set[str], bool]], chance: object, at_once: int
) -> None:
    """Answers come in any order; every unit goes out once, and none overtakes on a sku."""
    schedule = Schedule([sorted(names) for names, _ in plan], [invoice for _, invoice in plan])
    under_way: list[list[int]] = []
    sent: list[int] = []
    while True:
        while len(under_way) < 4 and (request := send(schedule, at_once)):
            for unit in request:
                names, invoice = plan[unit]
                others = [other for batch in under_way for other in batch]
                before = [other for other in request if other < unit and names & plan[other][0]]
                assert not any(names & plan[other][0] for other in others)
                assert all(invoice and plan[other][1] for other in before)
            assert request == sorted(request)
            under_way.append(request)
            sent += request
        if not under_way:
            break
        batch = under_way.pop(chance.randrange(len(under_way)))  # type: ignore[attr-defined]
        for unit in batch:
            schedule.answered(unit)
    assert sorted(sent) == list(range(len(plan)))
    for sku in "abcde":
        of_sku = [unit for unit in sent if sku in plan[unit][0]]
        assert of_sku == sorted(of_sku)
