"""A record that is missing or can't be read is passed over and reported, never raised: one bad value
must not stop every sale, nor the ledger behind it."""

import msgspec
import pytest
from kit import HELD, Partition, confirm, extend, move, release, reserve

from engine import keys
from engine.model import GetReservation


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


def packed(*values):
    return b"".join(msgspec.msgpack.encode(value) for value in values)


def held_value(p, *, state=0, created=None, deadline=None, parts=None, body=None, tail=b""):
    record = p.record("bad")
    return (
        packed(
            state,
            record.created_ms if created is None else created,
            record.deadline_ms if deadline is None else deadline,
            record.seq,
            parts,
            record.check,
            record.seal,
            body or ["order-bad", "", record.body.named, ["A", "X", 2]],
        )
        + tail
    )


F = "f" * 24
RESERVATIONS = {
    "another type": lambda p: None,
    "empty": lambda p: b"",
    "garbage": lambda p: b"\xc1\xff\xfe\x00garbage",
    "text": lambda p: b"held",
    "cut short": lambda p: held_value(p)[:-3],
    "no body": lambda p: packed(0, 1, 2, 3, None, 0, "s" * 24),
    "unknown state": lambda p: held_value(p, state=7),
    "negative state": lambda p: held_value(p, state=-1),
    "state is a text": lambda p: held_value(p, state="held"),
    "deadline is a text": lambda p: held_value(p, deadline="soon"),
    "deadline is a fraction": lambda p: held_value(p, deadline=1.5),
    "created is a text": lambda p: held_value(p, created="then"),
    "body is a number": lambda p: held_value(p, body=5),
    "no name": lambda p: held_value(p, body=["o", ""]),
    "no lines": lambda p: held_value(p, body=["o", "", F]),
    "lines are empty": lambda p: held_value(p, body=["o", "", F, []]),
    "lines are a text": lambda p: held_value(p, body=["o", "", F, "AX2"]),
    "two values a line": lambda p: held_value(p, body=["o", "", F, ["A", "X"]]),
    "quantity is a text": lambda p: held_value(p, body=["o", "", F, ["A", "X", "2"]]),
    "quantity is negative": lambda p: held_value(p, body=["o", "", F, ["A", "X", -2]]),
    "quantity is a fraction": lambda p: held_value(p, body=["o", "", F, ["A", "X", 1.5]]),
    "quantity is huge": lambda p: held_value(p, body=["o", "", F, ["A", "X", 2**60]]),
    "sku is a number": lambda p: held_value(p, body=["o", "", F, [5, "X", 2]]),
    "location is nil": lambda p: held_value(p, body=["o", "", F, ["A", None, 2]]),
    "parts are a number": lambda p: held_value(p, parts=5),
    "parts are texts": lambda p: held_value(p, parts=["a", "b"]),
    "parts are too few": lambda p: held_value(p, parts=[1]),
    "parts exceed the line": lambda p: held_value(p, parts=[3, 0]),
    "parts are negative": lambda p: held_value(p, parts=[-1, 0]),
    "bytes after its end": lambda p: held_value(p, tail=b"x"),
    "order_id is a number": lambda p: held_value(p, body=[5, "", F, ["A", "X", 2]]),
    "customer_id is nil": lambda p: held_value(p, body=["o", None, F, ["A", "X", 2]]),
    "a fraction that is whole": lambda p: held_value(p, body=["o", "", F, ["A", "X", 2.0]]),
    "order_id is no UTF-8": lambda p: held_value(p).replace(b"order-bad", b"order-\xff\xfe\xfd"),
}


@pytest.mark.parametrize("how", RESERVATIONS.values(), ids=RESERVATIONS)
@pytest.mark.parametrize("operation", ["confirm", "release", "extend", "expire", "reserve", "read"])
def test_given_a_reservation_that_cant_be_read_then_it_is_passed_over_and_others_go_on(
    p, operation, how
):
    key = keys.reservation(0, "bad")
    p.make_due("bad") if operation in ("expire", "reserve") else None
    value = how(p)
    if value is None:
        p.redis.delete(key)
        p.redis.rpush(key, "x")
    else:
        p.redis.set(key, value)
    before = p.redis.dump(key)
    stock = p.numbers("A")
    if operation in ("confirm", "release", "extend", "read"):
        make = {
            "confirm": confirm,
            "release": release,
            "extend": lambda each: extend(each, 9_000_000),
            "read": GetReservation,
        }[operation]
        bad, good = p.send(make("bad"), make("good"))
        assert bad.status == "unknown_reservation"
        assert good.reservation is not None
    elif operation == "expire":
        assert p.expire()[:2] == (2, 1)
    else:
        bad, good = p.send(reserve("bad", ("A", 2)), reserve("r1", ("B", 10)))
        assert bad.status == "reservation_mismatch", "an id that is kept is never held again"
        assert good.status == "reserved"
    assert key in p.damaged
    assert p.redis.dump(key) == before
    assert p.numbers("A") == stock
    outbox_is_readable(p)


def test_given_the_reservation_of_an_entry_missing_then_it_is_passed_over(p):
    p.make_due("bad")
    p.redis.delete(keys.reservation(0, "bad"))
    assert p.expire() == (2, 1, 0)
    assert p.damaged == [keys.reservation(0, "bad")]
    assert p.record("good").state != HELD
    outbox_is_readable(p)


def test_given_a_due_list_of_another_type_then_the_other_deadlines_are_swept(p):
    p.hold("later", "B", ttl_ms=1_000_000)
    key = keys.due(0, p.record("bad").deadline_ms)
    p.redis.delete(key)
    p.redis.set(key, "x")
    p.make_due("later")
    assert p.expire()[1:] == (1, 0)
    assert (p.record("later").state, p.damaged) == (3, [key])
    assert p.redis.get(key) == b"x"
    outbox_is_readable(p)


def test_given_the_list_of_its_deadline_of_another_type_then_it_is_held_and_that_is_told(p):
    later = p.now_ms + 3_600_000
    p.set_clock(later)
    key = keys.due(0, -(-(later + 1_000) // 100) * 100)
    p.redis.set(key, "x")
    p.hold("r1", "B", ttl_ms=1_000)
    assert (p.damaged, p.redis.get(key)) == ([key], b"x")
    outbox_is_readable(p)


def test_given_a_due_list_missing_then_its_deadline_is_removed(p):
    p.redis.delete(keys.due(0, p.record("bad").deadline_ms))
    p.make_due("bad")
    assert p.expire()[1:] == (0, 0)
    assert p.redis.zcard(keys.deadlines(0)) == 0


@pytest.mark.parametrize("name", [keys.deadlines(0), keys.outbox(0)], ids=["deadlines", "outbox"])
@pytest.mark.parametrize(
    "operation", ["reserve", "many", "short", "confirm", "extend", "move", "expire"]
)
def test_given_deadlines_or_outbox_of_another_type_then_no_half_of_a_command_is_written(
    p, operation, name
):
    """Redis rolls nothing back: whatever is answered, it may not fail after the first write."""
    p.make_due("bad")
    p.hold("later", "B")
    p.receive("D", 80)
    p.redis.delete(name)
    p.redis.set(name, "x")
    before = p.dump()
    try:
        if operation == "expire":
            p.expire()
        else:
            command = {
                "reserve": [reserve("r1", "B")],
                "many": [reserve(f"many-{i}", "D") for i in range(80)],
                "short": [reserve("r1", "B"), reserve("r2", ("B", 10))],
                "confirm": [confirm("later")],
                "extend": [extend("later", 9_000_000)],
                "move": [move("receive", "B", 1)],
            }[operation]
            p.send(*command)
    except Exception as error:
        assert p.dump() == before, error
    if name == keys.deadlines(0):
        outbox_is_readable(p)


def test_given_more_than_twenty_damaged_records_then_twenty_are_named_each_once(p):
    names = [f"lost{i:02}" for i in range(25)]
    for name in names:
        p.redis.set(keys.reservation(0, name), "junk")
    for count in (3, 19, 20, 21, 25):
        p.send(*[confirm(name) for name in [*names[:count], *names[:count]]])
        assert p.damaged == [keys.reservation(0, name) for name in names[:count]][:20]


def test_given_bytes_behind_a_request_record_then_it_is_damaged(p):
    p.one(move("receive", "B", 1, movement_id="m1"))
    key = keys.movement_request(0, "m1")
    p.redis.append(key, b"\x01")
    before = p.dump()
    assert p.one(move("receive", "B", 1, movement_id="m1")).status == "request_mismatch"
    assert p.damaged == [key] and p.dump() == before


@pytest.mark.parametrize("value", [b"", b"garbage", packed([1, 2]), packed(5), None], ids=str)
def test_given_a_request_record_that_cant_be_read_then_nothing_is_done_twice(p, value):
    """It was used, nobody can tell for what."""
    p.one(confirm("bad", ("A", 1), request_id="q1"))
    p.one(move("receive", "B", 1, movement_id="m1"))
    part, moved = keys.part_request(0, "bad", "q1"), keys.movement_request(0, "m1")
    for key in (part, moved):
        p.redis.delete(key)
        if value is None:
            p.redis.rpush(key, "x")
        else:
            p.redis.set(key, value)
    before = p.dump()
    for settle in (confirm, release):
        assert p.one(settle("bad", ("A", 1), request_id="q1")).status == "request_mismatch"
        assert p.damaged == [part]
    assert p.one(move("receive", "B", 1, movement_id="m1")).status == "request_mismatch"
    assert p.damaged == [moved]
    assert p.dump() == before
    assert p.one(confirm("bad")).status == "confirmed"
