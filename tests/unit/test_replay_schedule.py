"""The order of a replay: a unit goes out only when every earlier one of its skus is answered."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from api.replay import Schedule

plans = st.lists(st.sets(st.sampled_from("abcde"), min_size=1, max_size=3), max_size=30)


def test_units_that_share_no_sku_go_out_at_once_in_the_files_order() -> None:
    schedule = Schedule([("a",), ("b",), ("c", "d")])
    assert [schedule.take() for _ in range(4)] == [0, 1, 2, None]


def test_a_unit_waits_for_every_earlier_one_of_its_skus() -> None:
    schedule = Schedule([("a",), ("b",), ("a", "b"), ("b",)])
    assert [schedule.take() for _ in range(3)] == [0, 1, None]
    schedule.answered(1)
    assert schedule.take() is None
    schedule.answered(0)
    assert [schedule.take(), schedule.take()] == [2, None]
    schedule.answered(2)
    assert schedule.take() == 3


def test_two_shared_skus_are_waited_for_once() -> None:
    schedule = Schedule([("a", "b"), ("a", "b")])
    assert [schedule.take(), schedule.take()] == [0, None]
    schedule.answered(0)
    assert schedule.take() == 1


def test_what_was_put_back_comes_first_again() -> None:
    schedule = Schedule([("a",), ("b",), ("a",)])
    first, second = schedule.take(), schedule.take()
    assert (first, second) == (0, 1)
    schedule.put_back(0)
    assert [schedule.take(), schedule.take()] == [0, None]


def test_an_empty_plan_has_nothing_to_take() -> None:
    assert Schedule([]).take() is None


@given(plans, st.randoms(use_true_random=False), st.integers(1, 8))
def test_whatever_the_answers_order_each_sku_sees_the_files_order(
    skus: list[set[str]], chance: object, at_once: int
) -> None:
    """Answers come in any order; every unit goes out once, and none overtakes on a sku."""
    schedule = Schedule([sorted(names) for names in skus])
    under_way: list[int] = []
    sent: list[int] = []
    while True:
        while len(under_way) < at_once and (unit := schedule.take()) is not None:
            assert not any(skus[unit] & skus[other] for other in under_way)
            under_way.append(unit)
            sent.append(unit)
        if not under_way:
            break
        schedule.answered(under_way.pop(chance.randrange(len(under_way))))  # type: ignore[attr-defined]
    assert sorted(sent) == list(range(len(skus)))
    for sku in "abcde":
        of_sku = [unit for unit in sent if sku in skus[unit]]
        assert of_sku == sorted(of_sku)
