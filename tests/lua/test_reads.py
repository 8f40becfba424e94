"""lua/reservations.lua and lua/stock.lua: what is read, and that nothing is ever written."""

import pytest
from kit import Partition, confirm, move, release, statuses

from engine import keys
from engine.model import GetReservation, GetStock


@pytest.fixture
def p(redis):
    p = Partition(redis)
    p.receive("A", 10)
    p.hold("r1", ("A", 3))
    return p


def test_given_a_hold_when_read_then_it_is_told_as_it_was_answered(p):
    made = p.hold("r2", ("A", 2), ttl_ms=5_000)
    before = p.dump()
    read = p.one(GetReservation("r2"))
    assert read.status == "found"
    assert read.reservation == made.reservation
    assert p.dump() == before


def test_given_each_state_when_read_then_it_is_told(p):
    for each in ("part", "confirmed", "released", "due"):
        p.hold(each, "A", ttl_ms=5_000 if each == "due" else 900_000)
    p.hold("expired", "A", ttl_ms=1_000)
    p.one(confirm("confirmed"))
    p.one(release("released"))
    p.make_due("expired")
    p.expire()
    p.make_due("due")
    before = p.dump()
    ids = ("r1", "confirmed", "released", "expired", "due")
    outcomes = p.send(*[GetReservation(each) for each in ids])
    assert statuses(outcomes) == ["found"] * 5
    states = [str(o.reservation.status) for o in outcomes]
    assert states == ["held", "confirmed", "released", "expired", "expired"], "swept or not"
    lines = [(o.reservation.lines[0].confirmed, o.reservation.lines[0].released) for o in outcomes]
    assert lines == [(0, 0), (1, 0), (0, 1), (0, 0), (0, 0)]
    assert p.dump() == before


def test_given_a_deadline_then_expired_is_read_from_that_millisecond_on(p):
    deadline = p.record("r1").deadline_ms
    p.set_clock(deadline - 1)
    assert p.one(GetReservation("r1")).reservation.status == "held"
    p.set_clock(deadline)
    assert p.one(GetReservation("r1")).reservation.status == "expired"


def test_given_unknown_ids_among_known_ones_then_each_is_answered_in_its_place(p):
    before = p.dump()
    outcomes = p.send(GetReservation("no"), GetReservation("r1"), GetReservation("nor"))
    assert statuses(outcomes) == ["unknown_reservation", "found", "unknown_reservation"]
    assert p.dump() == before


def test_given_stock_at_several_locations_when_read_then_each_is_told_in_order(p):
    p.receive("A", 5, "B2")
    p.one(move("return", "A", 2, "B2"))
    p.redis.hset(keys.stock(0, "A", "X"), "safety_stock", 4)
    before = p.dump()
    outcome = p.one(GetStock("A"))
    assert outcome.status == "found"
    read = [(s.location, s.on_hand, s.held, s.quarantined, s.safety_stock) for s in outcome.stock]
    assert read == [("B2", 7, 0, 2, 0), ("X", 10, 3, 0, 4)]
    assert [s.available for s in outcome.stock] == [5, 3]
    assert p.dump() == before


@pytest.mark.parametrize("location", ["X", "7 8", "-3", ""])
@pytest.mark.parametrize(
    "numbers", [(0, 0, 0, 0), (10**15, 999_999_999, 12, 0), (-5, 7, -(10**14), 1_234_567)], ids=str
)
def test_given_any_numbers_at_any_location_when_read_then_they_are_told_exactly(
    p, location, numbers
):
    fields = dict(zip(("on_hand", "held", "quarantined", "safety_stock"), numbers, strict=True))
    p.redis.hset(keys.stock(0, "Z", location), mapping=fields)
    p.redis.sadd(keys.locations(0, "Z"), location)
    (record,) = p.one(GetStock("Z")).stock
    assert (record.location, record.on_hand, record.held) == (location, *numbers[:2])
    assert (record.quarantined, record.safety_stock) == numbers[2:]


def test_given_many_skus_in_one_place_and_some_in_two_when_read_then_each_tells_its_own(p):
    skus = [f"S{i}" for i in range(100)]
    moves = [move("receive", sku, 1 + i, "Y" if i == 70 else "X") for i, sku in enumerate(skus)]
    moves += [move("receive", sku, 500, "Z") for sku in ("S40", "S99")]
    p.send(*moves)
    asked = [*skus[:30], "no", *skus[30:], "nor", "S5"]
    stocks = {
        sku: [(s.location, s.on_hand) for s in outcome.stock]
        for sku, outcome in zip(asked, p.send(*map(GetStock, asked)), strict=True)
    }
    expected = {sku: [("X", 1 + i)] for i, sku in enumerate(skus)}
    expected |= {"S70": [("Y", 71)], "no": [], "nor": []}
    expected["S40"].append(("Z", 500))
    expected["S99"].append(("Z", 500))
    assert stocks == expected
    assert p.damaged == []


def test_given_unknown_skus_among_known_ones_then_each_is_answered_in_its_place(p):
    before = p.dump()
    outcomes = p.send(GetStock("no"), GetStock("A"), GetStock("A"), GetStock("nor"))
    assert statuses(outcomes) == ["unknown_sku", "found", "found", "unknown_sku"]
    assert p.dump() == before


@pytest.mark.parametrize("command", [GetReservation("r1"), GetStock("A")], ids=str)
def test_given_a_full_server_then_reading_goes_on(p, command):
    p.fill()
    assert p.one(command).status == "found"
