"""The oversell audit finds each thing that can go wrong, and nothing where all is right."""

from __future__ import annotations

from typing import Any

import pytest

from bench.oversell import Place, Position, Told, Trail, judge

TEA: Place = ("tea", "MAIN")
DELTAS = {"receive": (1, 0), "reserve": (0, 1), "confirm": (-1, -1), "release": (0, -1)}
DELTAS["expire"] = DELTAS["release"]


def movement(
    seq: int, kind: str, quantity: int, reservation_id: str | None = None, place: Place = TEA
) -> dict[str, Any]:
    on_hand, held = DELTAS[kind]
    return {
        "seq": seq,
        "type": kind,
        "sku": place[0],
        "location": place[1],
        "on_hand_delta": on_hand * quantity,
        "held_delta": held * quantity,
        "quarantined_delta": 0,
        "reservation_id": reservation_id,
    }


def told(**confirmed_released: tuple[int, int]) -> Told:
    """Reservations of 2 units of tea each."""
    all_told = Told()
    for reservation_id, (confirmed, released) in confirmed_released.items():
        line = {"sku": "tea", "location": "MAIN", "quantity": 2}
        line |= {"confirmed": confirmed, "released": released}
        all_told.answered(reservation_id, {"lines": [line]})
    return all_told


#: 10 in; a paid for, b given back, c let go, d still held.
MOVEMENTS = [
    movement(1, "receive", 10),
    movement(2, "reserve", 2, "a"),
    movement(3, "reserve", 2, "b"),
    movement(4, "confirm", 2, "a"),
    movement(5, "reserve", 2, "c"),
    movement(6, "release", 2, "b"),
    movement(7, "expire", 2, "c"),
    movement(8, "reserve", 2, "d"),
]
RIGHT = {"a": (2, 0), "b": (0, 2), "c": (0, 0), "d": (0, 0)}


def findings(
    movements: list[dict[str, Any]] = MOVEMENTS,
    all_told: Told | None = None,
    on_hand: int = 8,
    held: int = 2,
    received: int = 10,
) -> list[str]:
    trail = Trail()
    trail.add(movements)
    stock = {TEA: Position(on_hand=on_hand, held=held)}
    return judge(trail, stock, all_told or told(**RIGHT), {TEA: received})


def test_nothing_is_found_where_all_is_right() -> None:
    assert findings() == []


def test_units_sold_that_never_were_are_found() -> None:
    more = [movement(9 + i, "reserve", 2, f"x{i}") for i in range(4)]
    found = findings(
        [*MOVEMENTS, *more], told(**RIGHT, **{f"x{i}": (0, 0) for i in range(4)}), 8, 10
    )
    assert found == ["tea at MAIN oversold at seq 12: on_hand 8, held 10, available -2"]


def test_a_moment_below_nothing_is_found_though_it_passes() -> None:
    more = [movement(9, "reserve", 7, "x"), movement(10, "expire", 7, "x")]
    known = told(**RIGHT)
    known.asks("x")
    assert findings([*MOVEMENTS, *more], known) == [
        "tea at MAIN oversold at seq 9: on_hand 8, held 9, available -1"
    ]


@pytest.mark.parametrize(
    ("without", "what"),
    [
        (8, "reservation d was acknowledged and is in the ledger 0 times: lost"),
        (4, "reservation a, tea at MAIN: told confirmed 2, the ledger has 0"),
        (6, "reservation b, tea at MAIN: told released 2, the ledger has 0"),
        (1, "tea at MAIN: the run put 10 in, the ledger has 0 received"),
    ],
)
def test_what_is_lost_is_found(without: int, what: str) -> None:
    assert what in findings([entry for entry in MOVEMENTS if entry["seq"] != without])


def test_a_reservation_held_twice_is_found() -> None:
    assert findings([*MOVEMENTS, movement(9, "reserve", 2, "d")], held=4) == [
        "reservation d was acknowledged and is in the ledger 2 times: held twice"
    ]


def test_units_confirmed_twice_are_found() -> None:
    found = findings([*MOVEMENTS, movement(9, "confirm", 2, "a")], on_hand=6, held=0)
    assert "reservation a, tea at MAIN: told confirmed 2, the ledger has 4" in found
    assert "reservation a, tea at MAIN: given back twice" in found


def test_a_refused_reservation_in_the_ledger_is_found() -> None:
    known = told(**RIGHT)
    known.asks("x")
    known.answered("x")
    assert findings([*MOVEMENTS, movement(9, "reserve", 1, "x")], known, held=3) == [
        "reservation x is in the ledger and was told to nobody"
    ]


def test_what_had_no_answer_may_have_happened_or_not() -> None:
    known = told(**{**RIGHT, "a": (0, 0)})
    for reservation_id in ("a", "x", "y"):
        known.asks(reservation_id)
    assert findings([*MOVEMENTS, movement(9, "reserve", 1, "x")], known, held=3) == []


def test_other_units_than_told_are_found() -> None:
    movements = [*MOVEMENTS[:-1], movement(8, "reserve", 3, "d")]
    assert findings(movements, held=3) == [
        "reservation d: the ledger holds other units than were told"
    ]


@pytest.mark.parametrize(
    ("stock", "what"),
    [
        ({"on_hand": 9}, "tea at MAIN: stock says on_hand 9, the ledger 8"),
        ({"held": 0}, "tea at MAIN: stock says held 0, the ledger 2"),
    ],
)
def test_stock_that_is_not_the_ledgers_is_found(stock: dict[str, int], what: str) -> None:
    assert findings(**stock) == [what]


def test_workers_tell_the_master_all_they_were_told() -> None:
    first, second = told(a=(2, 0), b=(0, 2)), told(c=(0, 0), d=(0, 0))
    second.asks("x")
    first.tally["reserve: reserved"] = second.tally["reserve: reserved"] = 2
    merged = Told()
    for each in (first, second):
        merged.merge(each.message())
    assert findings([*MOVEMENTS, movement(9, "reserve", 1, "x")], merged, held=3) == []
    assert merged.tally == {"reserve: reserved": 4}
