"""Stock records and sets of locations that are missing or can't be read: passed over and reported."""

import pytest
from kit import HELD, Partition, confirm, move, release, reserve, statuses

from engine import keys
from engine.model import GetStock


@pytest.fixture
def p(redis):
    """bad holds 2 of A and good 1 of B until the same deadline; D is kept at X and Y."""
    p = Partition(redis)
    for sku in "ABC":
        p.receive(sku, 10)
    p.receive("D", 5, "X")
    p.receive("D", 4, "Y")
    p.send(reserve("bad", ("A", 2)), reserve("good", "B"))
    return p


def outbox_is_readable(p):
    """No damaged record may become an event that stops the ledger."""
    assert [e.seq for e in p.events()] == list(range(1, p.seq() + 1))


STOCK = {
    "another type": None,
    "not a number": {"on_hand": "many"},
    "a fraction": {"held": "1.5"},
    "empty": {"quarantined": ""},
    "a hexadecimal": {"on_hand": "0x10"},
    "an exponent": {"on_hand": "1e3"},
    "two numbers": {"on_hand": "1 2"},
    "a number and a blank": {"held": "1 "},
    "one digit too many": {"held": "9" * 17},
    "infinite": {"on_hand": "inf"},
    "too many digits": {"on_hand": "9" * 30},
    "garbage": {"safety_stock": b"\xff\x00\xfe"},
    "a missing field": "held",
}


def damage_stock(p, sku, how, at="X"):
    key = keys.stock(0, sku, at)
    if how is None:
        p.redis.delete(key)
        p.redis.rpush(key, "x")
    elif isinstance(how, str):
        p.redis.hdel(key, how)
    else:
        p.redis.hset(key, mapping=how)
    return key


@pytest.mark.parametrize("how", STOCK.values(), ids=STOCK)
def test_given_a_stock_record_that_cant_be_read_then_it_offers_nothing_and_others_are_sold(p, how):
    key = damage_stock(p, "C", how)
    before = p.redis.dump(key)
    outcomes = p.send(reserve("r1", "B"), reserve("r2", "C"), reserve("r3", ("C", 1, None)))
    assert statuses(outcomes) == ["reserved", "insufficient_stock", "insufficient_stock"]
    assert [o.shortages[0].available for o in outcomes[1:]] == [0, 0]
    assert p.damaged == [key]
    read = p.send(GetStock("B"), GetStock("C"))
    assert (read[0].stock[0].held, read[1].stock, p.damaged) == (2, (), [key])
    moved = p.send(move("damage", "B", 1), *[move(k, "C", 1) for k in ("receive", "count")])
    assert statuses(moved)[0] == "applied"
    for outcome in moved[1:]:
        assert outcome.status == "would_break_holds" and "C at X can't be read" in outcome.detail
    assert p.damaged == [key]
    assert p.redis.dump(key) == before, "what can't be read is never written"
    outbox_is_readable(p)


@pytest.mark.parametrize("how", STOCK.values(), ids=STOCK)
def test_given_one_location_damaged_then_a_sourced_line_is_filled_from_the_other(p, how):
    key = damage_stock(p, "D", how, "X")
    outcome = p.one(reserve("r1", ("D", 3, None)))
    assert [(x.location, x.quantity) for x in outcome.reservation.lines] == [("Y", 3)]
    assert p.damaged == [key]
    refused = p.one(move("transfer", "D", 1, "Y", to_location="X"))
    assert refused.status == "would_break_holds" and "D at X can't be read" in refused.detail
    assert p.stock("D", "Y")["on_hand"] == 4
    outbox_is_readable(p)


@pytest.mark.parametrize("how", [*STOCK.values(), "missing"], ids=[*STOCK, "missing"])
@pytest.mark.parametrize("operation", ["confirm", "release", "expire", "reserve"])
def test_given_the_stock_of_a_hold_damaged_then_the_hold_ends_and_it_is_reported(p, operation, how):
    """The event still tells the ledger, and reconciliation names the difference."""
    key = keys.stock(0, "A", "X")
    if how == "missing":
        p.redis.delete(key)
    else:
        damage_stock(p, "A", how)
    before = p.redis.dump(key)
    if operation == "confirm":
        assert statuses(p.send(confirm("bad"), confirm("good"))) == ["confirmed"] * 2
    elif operation == "release":
        assert statuses(p.send(release("bad"), release("good"))) == ["released"] * 2
    else:
        p.make_due("bad")
        if operation == "expire":
            assert p.expire()[1] == 2
        else:
            assert p.one(reserve("r1", ("B", 10))).status == "reserved"
    assert p.damaged == [key]
    assert p.record("bad").state == p.record("good").state != HELD
    assert p.stock("B")["held"] == (10 if operation == "reserve" else 0)
    assert p.redis.dump(key) == before
    outbox_is_readable(p)


def test_given_a_named_location_without_its_record_then_it_is_reported(p):
    p.redis.delete(keys.stock(0, "D", "X"))
    outcome = p.one(reserve("r1", ("D", 5, None)))
    assert (outcome.status, outcome.shortages[0].available) == ("insufficient_stock", 4)
    assert p.damaged == [keys.stock(0, "D", "X")]


def test_given_locations_of_another_type_then_it_is_reported_and_others_are_sold(p):
    key = keys.locations(0, "C")
    p.redis.delete(key)
    p.redis.set(key, "x")
    outcomes = p.send(reserve("r1", "B"), reserve("r2", ("C", 1, None)), reserve("r3", "B"))
    assert statuses(outcomes)[::2] == ["reserved", "reserved"]
    assert outcomes[1].status != "reserved"
    assert p.damaged == [key]
    assert statuses(p.send(*map(GetStock, "ABC"))) == ["found", "found", "unknown_sku"]
    assert p.damaged == [key]
    assert p.one(reserve("r4", "C")).status == "reserved", "a line with location needs no set"
    assert p.one(move("receive", "C", 1, "Z")).status == "applied"
    assert p.damaged == [key]
    assert p.redis.get(key) == b"x"
    outbox_is_readable(p)
