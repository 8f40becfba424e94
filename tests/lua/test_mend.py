"""lua/repair.lua: each repair tells one event, and does nothing where what it would repair is no longer as
it was judged. tests/integration/test_repair.py shows that reconciliation asks for the right ones."""

from typing import Any

import msgspec
import pytest
from kit import HELD, RELEASED, WRITES, Partition, confirm, extend, release
from redis.exceptions import ResponseError

from engine import keys
from engine.reservations import as_string, tail_of

RETENTION_MS = 60_000
STOCK = keys.stock(0, "A", "X")
R1 = keys.reservation(0, "r1")


@pytest.fixture
def p(redis):
    """10 of A and 10 of B; r1 holds 3 of A and 2 of B, of which 1 of A is confirmed."""
    p = Partition(redis)
    p.receive("A", 10)
    p.receive("B", 10)
    p.hold("r1", ("A", 3), ("B", 2))
    p.one(confirm("r1", ("A", 1), request_id="q1"))
    return p


def repair(p: Partition, *commands: list[Any]) -> list[Any]:
    wire = msgspec.msgpack.encode([["found by the test", *command] for command in commands])
    _, answers, damaged = p.script("repair", WRITES, wire, RETENTION_MS)
    p.damaged = [key.decode() for key in damaged]
    return [word.decode() if word == b"changed" else (word.decode(), *identity)
            for word, *identity in answers]  # fmt: skip


def as_ledger(p: Partition, reservation_id: str) -> list[Any]:
    """created, deadline, parts and tail, as the ledger would have them now."""
    record = p.record(reservation_id)
    tail = tail_of(record.body.order_id, record.body.customer_id, record.body.lines)
    return [record.created_ms, record.deadline_ms, record.parts, as_string(tail)]


def kept(p: Partition, reservation_id: str) -> msgspec.Raw:
    return as_string(p.redis.get(keys.reservation(0, reservation_id)))


def last(p: Partition) -> tuple[Any, ...]:
    event = p.events()[-1]
    lines = [msgspec.structs.astuple(each) for each in event.lines]
    return event.type, event.seq, event.reservation_id, event.status, event.reason, lines


def unchanged(p: Partition, command: list[Any]) -> None:
    before = p.dump()
    assert repair(p, command) == ["changed"]
    assert p.dump() == before


# Stock.


@pytest.mark.parametrize("field", ["on_hand", "held", "quarantined", "safety_stock", "seq"])
@pytest.mark.parametrize("how", ["many", None], ids=["no number", "missing"])
def test_given_a_record_that_cant_be_read_when_created_then_it_is_of_zeros(p, field, how):
    p.redis.hset(STOCK, "safety_stock", 4)
    p.redis.hset(STOCK, "reorder_point", 7)
    if how is None:
        p.redis.hdel(STOCK, field)
    else:
        p.redis.hset(STOCK, field, how)
    assert repair(p, ["create", "A", "X"]) == [("repaired", 1, 5)]
    safety_stock = 0 if field == "safety_stock" else 4
    assert p.stock("A") == {
        "on_hand": 0, "held": 0, "quarantined": 0, "seq": 5,
        "safety_stock": safety_stock, "reorder_point": 7,
    }  # fmt: skip
    assert last(p) == ("repair", 5, None, None, "found by the test", [("A", "X", 0, 0, 0, 0)])
    assert p.seq() == 5


@pytest.mark.parametrize("how", ["missing", "another type"])
def test_given_no_record_when_created_then_it_is_of_zeros_and_its_location_is_known(p, how):
    p.redis.delete(STOCK, keys.locations(0, "A"))
    if how == "another type":
        p.redis.rpush(STOCK, "x")
    assert repair(p, ["create", "A", "X"]) == [("repaired", 1, 5)]
    assert p.numbers("A") == (0, 0, 0, 0, 5)
    assert p.stock("A")["reorder_point"] == 0
    assert p.redis.smembers(keys.locations(0, "A")) == {b"X"}


def test_given_a_record_created_when_corrected_in_the_same_call_then_its_safety_stock_binds(p):
    """What is available follows from the safety stock that was kept."""
    p.redis.hset(STOCK, mapping={"on_hand": "many", "safety_stock": 4})
    done = repair(p, ["create", "A", "X"], ["correct", "A", "X", -9, -2, 0])
    assert done == [("repaired", 1, 5), ("repaired", 1, 6)]
    assert p.numbers("A") == (9, 2, 0, 4, 6)


def test_given_locations_of_another_type_when_created_then_it_is_reported(p):
    name = keys.locations(0, "A")
    p.redis.delete(STOCK, name)
    p.redis.set(name, "x")
    assert repair(p, ["create", "A", "X"]) == [("repaired", 1, 5)]
    assert p.damaged == [name]


def test_given_a_record_that_can_be_read_by_now_when_created_then_it_is_left(p):
    unchanged(p, ["create", "A", "X"])


def test_given_a_drift_when_corrected_then_it_is_taken_off_and_told_both_ways(p):
    p.redis.hset(STOCK, mapping={"on_hand": 12, "held": 5, "quarantined": 1})
    assert repair(p, ["correct", "A", "X", 3, 3, 1]) == [("repaired", 1, 5)]
    assert p.numbers("A") == (9, 2, 0, 0, 5)
    assert last(p)[-1] == [("A", "X", 3, 3, 3, 1), ("A", "X", 3, -3, -3, -1)]


@pytest.mark.parametrize(
    ("drift", "quantity"),
    [((0, -4, 0), 4), ((1, 0, -6), 6), ((2_000_000_000, 0, 0), 1_000_000_000)],
)
def test_given_a_drift_then_its_quantity_is_the_largest_change_and_a_billion_at_most(
    p, drift, quantity
):
    on_hand, held, quarantined = (a + b for a, b in zip((9, 2, 0), drift, strict=True))
    mapping = {"on_hand": on_hand, "held": held, "quarantined": quarantined}
    p.redis.hset(STOCK, mapping=mapping)
    repair(p, ["correct", "A", "X", *drift])
    assert p.numbers("A") == (9, 2, 0, 0, 5)
    assert [line[2] for line in last(p)[-1]] == [quantity, quantity]


@pytest.mark.parametrize("how", ["missing", "many"])
def test_given_no_readable_record_when_corrected_then_nothing_is_done(p, how):
    p.redis.delete(STOCK)
    if how != "missing":
        p.redis.hset(STOCK, "on_hand", how)
    unchanged(p, ["correct", "A", "X", 3, 0, 0])


@pytest.mark.parametrize("name", [keys.deadlines(0), keys.outbox(0)], ids=["deadlines", "outbox"])
@pytest.mark.parametrize("action", ["create", "correct", "give_back", "restore", "end"])
def test_given_a_key_of_every_call_of_another_type_then_no_half_of_a_repair_is_written(
    p, action, name
):
    ledger, judged = as_ledger(p, "r1"), kept(p, "r1")
    command = {
        "create": ["create", "A", "Y"],
        "correct": ["correct", "A", "X", 1, 0, 0],
        "give_back": ["give_back", "r1", *ledger],
        "restore": ["restore", "r1", *ledger, judged],
        "end": ["end", "r1", judged],
    }[action]
    if action == "give_back":
        p.redis.delete(R1)
    p.redis.delete(name)
    p.redis.set(name, "x")
    before = p.dump()
    with pytest.raises(ResponseError, match="is a string, not a"):
        repair(p, command)
    assert p.dump() == before


def test_given_no_such_repair_then_an_error_and_nothing_is_written(p):
    before = p.dump()
    with pytest.raises(ResponseError, match="no repair forget"):
        repair(p, ["forget", "r1"])
    assert p.dump() == before


# Reservations.


@pytest.mark.parametrize("how", [None, b"junk"], ids=["missing", "unreadable"])
def test_given_a_lost_reservation_when_given_back_then_its_units_can_be_sold_and_it_is_released(
    p, how
):
    ledger = as_ledger(p, "r1")
    p.redis.delete(R1) if how is None else p.redis.set(R1, how)
    assert repair(p, ["give_back", "r1", *ledger]) == [("repaired", 1, 5)]
    assert (p.numbers("A"), p.numbers("B")) == ((9, 0, 0, 0, 5), (10, 0, 0, 0, 5))
    record = p.record("r1")
    assert (record.state, record.seq, record.parts) == (RELEASED, 5, [1, 2, 0, 2])
    assert 0 < p.redis.pttl(R1) <= RETENTION_MS
    lines = [("A", "X", 2, 0, -2, 0), ("B", "X", 2, 0, -2, 0)]
    assert last(p) == ("repair", 5, "r1", "released", "found by the test", lines)
    assert p.one(release("r1")).status == "already_released"


def test_given_a_lost_reservation_of_which_a_line_is_all_taken_then_that_is_not_given_back(p):
    p.one(confirm("r1", ("B", 2), request_id="q2"))
    ledger = as_ledger(p, "r1")
    p.redis.delete(R1)
    repair(p, ["give_back", "r1", *ledger])
    assert p.numbers("B") == (8, 0, 0, 0, 5)
    assert p.record("r1").parts == [1, 2, 2, 0]
    assert last(p)[-1] == [("A", "X", 2, 0, -2, 0)]


def test_given_a_lost_reservation_without_parts_when_given_back_then_its_state_tells_them(p):
    p.hold("r2", ("B", 4))
    ledger = as_ledger(p, "r2")
    p.redis.delete(keys.reservation(0, "r2"))
    repair(p, ["give_back", "r2", *ledger])
    assert (p.record("r2").state, p.record("r2").parts) == (RELEASED, None)
    assert p.numbers("B")[:2] == (10, 2)


def test_given_a_lost_reservation_of_one_unit_then_that_is_given_back_and_told_with_whose_it_was(p):
    p.hold("r2", "B", customer_id="c")
    ledger = as_ledger(p, "r2")
    p.redis.delete(keys.reservation(0, "r2"))
    repair(p, ["give_back", "r2", *ledger])
    assert p.numbers("B")[:2] == (10, 2)
    assert last(p)[-1] == [("B", "X", 1, 0, -1, 0)]
    event = p.events()[-1]
    assert (event.order_id, event.customer_id) == ("order-r2", "c")


@pytest.mark.parametrize("ended", [False, True])
def test_given_a_reservation_that_is_there_by_now_when_given_back_then_nothing_is_done(p, ended):
    """Its units would come back twice."""
    ledger = as_ledger(p, "r1")
    if ended:
        p.one(release("r1"))
    unchanged(p, ["give_back", "r1", *ledger])


def test_given_a_changed_reservation_when_restored_then_it_is_as_the_ledger_has_it(p):
    ledger, value = as_ledger(p, "r1"), p.redis.get(R1)
    p.one(extend("r1", 3_600_000))
    later = p.record("r1").deadline_ms
    p.redis.delete(keys.due(0, ledger[1]))
    assert repair(p, ["restore", "r1", *ledger, kept(p, "r1")]) == [("repaired", 1, 6)]
    record = p.record("r1")
    assert (record.state, record.seq, record.parts) == (HELD, 6, [1, 0, 0, 0])
    assert record.deadline_ms == ledger[1] != later
    assert p.redis.get(R1) != value, "its seq is that of the repair"
    assert p.redis.pttl(R1) == -1
    assert last(p) == ("repair", 6, "r1", "held", "found by the test", [])
    p.set_clock(record.deadline_ms)
    assert p.expire()[1] == 1, "it is on the list of its deadline"


@pytest.mark.parametrize("how", ["changed", "ended", "gone"])
def test_given_another_value_than_judged_when_restored_then_nothing_is_done(p, how):
    ledger, judged = as_ledger(p, "r1"), kept(p, "r1")
    if how == "changed":
        p.one(extend("r1", 3_600_000))
    elif how == "ended":
        p.one(release("r1"))
    else:
        p.redis.delete(R1)
    unchanged(p, ["restore", "r1", *ledger, judged])


def test_given_an_orphan_when_ended_then_it_is_released_and_stock_keeps_its_numbers(p):
    """Its units were never held in the ledger, nor by the stock record."""
    p.hold("other", ("A", 1))
    p.redis.set(keys.reservation(0, "ghost"), p.redis.get(R1))
    assert repair(p, ["end", "ghost", kept(p, "r1")]) == [("repaired", 1, 6)]
    assert (p.numbers("A"), p.numbers("B")) == ((9, 3, 0, 0, 6), (10, 2, 0, 0, 6))
    record = p.record("ghost")
    assert (record.state, record.seq, record.parts) == (RELEASED, 6, [1, 2, 0, 2])
    assert 0 < p.redis.pttl(keys.reservation(0, "ghost")) <= RETENTION_MS
    lines = [("A", "X", 2, 0, 2, 0), ("A", "X", 2, 0, -2, 0),
             ("B", "X", 2, 0, 2, 0), ("B", "X", 2, 0, -2, 0)]  # fmt: skip
    assert last(p) == ("repair", 6, "ghost", "released", "found by the test", lines)


def test_given_an_orphan_of_one_unit_when_ended_then_that_is_told(p):
    p.hold("r2", "B")
    p.redis.set(keys.reservation(0, "ghost"), p.redis.get(keys.reservation(0, "r2")))
    repair(p, ["end", "ghost", kept(p, "r2")])
    assert last(p)[-1] == [("B", "X", 1, 0, 1, 0), ("B", "X", 1, 0, -1, 0)]


@pytest.mark.parametrize("how", ["taken", "missing", "unreadable"])
def test_given_an_orphan_with_a_line_that_holds_nothing_then_that_line_is_not_told(p, how):
    if how == "taken":
        p.one(confirm("r1", ("A", 2), request_id="q2"))
    elif how == "missing":
        p.redis.delete(STOCK)
    else:
        p.redis.hset(STOCK, "on_hand", "many")
    p.redis.set(keys.reservation(0, "ghost"), p.redis.get(R1))
    stock = p.redis.hgetall(STOCK)
    assert repair(p, ["end", "ghost", kept(p, "r1")])[0][0] == "repaired"
    assert [line[:2] for line in last(p)[-1]] == [("B", "X")] * 2
    assert p.redis.hgetall(STOCK) == stock


@pytest.mark.parametrize("how", ["changed", "gone", "unreadable"])
def test_given_another_value_than_judged_when_ended_then_nothing_is_done(p, how):
    judged = kept(p, "r1")
    if how == "changed":
        p.one(extend("r1", 3_600_000))
    elif how == "gone":
        p.redis.delete(R1)
    else:
        p.redis.set(R1, "junk")
    unchanged(p, ["end", "r1", judged])


def test_given_a_closed_partition_then_nothing_is_repaired(p):
    p.redis.hset(keys.head(0), "run_id", "f" * 40)
    before = p.dump()
    wire = msgspec.msgpack.encode([["why", "create", "A", "Y"]])
    assert p.script("repair", WRITES, wire, RETENTION_MS) == b"partition_closed"
    assert p.dump() == before
