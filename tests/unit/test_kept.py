"""How much of what was acknowledged is kept, and for how long: by a clock that the test moves."""

from __future__ import annotations

from persister.kept import TOGETHER_S, Kept

KEEP_MS = 60_000


def filled(bytes_max: int = 1_000) -> Kept:
    """Ten bytes a second, for 30 s: the last at (1, 30)."""
    kept = Kept(KEEP_MS, bytes_max)
    for number in range(1, 31):
        kept.add(float(number), (1, number), 10)
    return kept


def test_what_is_old_enough_goes_and_no_more() -> None:
    kept = filled()
    assert kept.take_over(60.999) is None
    assert kept.take_over(61.0) == (1, 1)
    assert kept.take_over(70.5) == (1, 10)
    assert (kept.bytes_count, len(kept)) == (200, 20)
    assert kept.take_over(70.5) is None
    assert kept.take_over(90.0) == (1, 30)
    assert (kept.bytes_count, len(kept)) == (0, 0)


def test_what_is_too_much_goes_oldest_first_whatever_its_age() -> None:
    kept = filled(bytes_max=100)
    assert kept.take_over(30.0) == (1, 20)
    assert kept.bytes_count == 100
    kept.add(30.5, (1, 31), 101)
    assert kept.take_over(30.5) == (1, 31)


def test_with_0_nothing_is_kept() -> None:
    for kept in (Kept(0, 1_000), Kept(KEEP_MS, 0)):
        kept.add(1.0, (1, 5), 10)
        assert kept.take_over(1.0) == (1, 5)
        kept.add(2.0, (1, 6), 0)
        assert kept.take_over(2.0) == (1, 6), "also where no bytes are known"


def test_all_of_it_goes_when_that_is_asked_for() -> None:
    kept = filled()
    assert kept.take_over(30.0, all_of_it=True) == (1, 30)
    assert kept.take_over(30.0, all_of_it=True) is None


def test_what_comes_in_quick_succession_is_remembered_together_and_goes_by_the_last_of_it() -> None:
    kept = Kept(KEEP_MS, 10**9)
    for number in range(100_000):
        kept.add(number / 1_000, (1, number), 1)
    assert len(kept) <= 100 / TOGETHER_S
    kept = Kept(KEEP_MS, 10**9)
    kept.add(1.0, (1, 1), 1)
    kept.add(1.05, (2, 2), 1)
    assert kept.take_over(61.0) is None
    assert kept.take_over(61.05) == (2, 2)


def test_what_is_said_again_gets_no_younger_and_takes_no_memory() -> None:
    kept = Kept(KEEP_MS, 1_000)
    for number in range(120):
        kept.add(1.0 + number / 2, (1, 5), 0 if number else 10)
    assert len(kept) == 1
    assert kept.take_over(61.0) == (1, 5)


def test_no_byte_is_forgotten_and_no_place_goes_back() -> None:
    """Whatever comes to what was there: more of it, less far, farther without a byte."""
    for at_s in (1.05, 1.1, 2.0):
        for place, count in (((1, 6), 7), ((1, 3), 7), ((1, 6), 0), ((1, 3), 0)):
            kept = Kept(KEEP_MS, 1_000)
            kept.add(1.0, (1, 5), 10)
            kept.add(at_s, place, count)
            assert kept.bytes_count == 10 + count
            assert kept.take_over(200.0, all_of_it=True) in (place, (1, 5))
            assert (kept.bytes_count, len(kept)) == (0, 0)
            kept.add(1.0, (1, 5), 10)
            kept.add(1.05, place, count)
            assert kept.take_over(200.0) == max(place, (1, 5))


def test_what_comes_a_tenth_of_a_second_later_is_remembered_by_itself() -> None:
    kept = Kept(KEEP_MS, 1_000)
    kept.add(0.0, (1, 1), 1)
    kept.add(TOGETHER_S, (1, 2), 1)
    assert len(kept) == 2


def test_with_0_nothing_is_kept_for_whoever_stood_still_either() -> None:
    """He can't know what the ledger has by now, but what keeps nothing relies on nothing."""
    kept = Kept(0, 1_000)
    kept.add(5.0, (1, 5), 10)
    assert kept.take_over(4.0) == (1, 5)
