"""lua/extend.lua: the deadline moves to now + ttl, never back, never past what a hold may last."""

import pytest
from kit import HELD, WRONG_NUMBERS, Partition, confirm, extend, release, statuses
from redis.exceptions import ResponseError

from engine import keys
from engine.settings import Settings

HOUR_MS = 3_600_000


@pytest.fixture
def p(redis):
    """10 of A; r1 holds 3 of it for a minute."""
    p = Partition(redis)
    p.receive("A", 10)
    p.hold("r1", ("A", 3), ttl_ms=60_000)
    return p


def test_given_a_hold_when_extended_then_its_deadline_moves_and_one_event_tells_it(p):
    before = p.record("r1")
    stock = p.numbers("A")
    outcome = p.one(extend("r1", 120_000))
    deadline = -(-(p.now_ms + 120_000) // 100) * 100
    assert (outcome.status, outcome.reservation.status) == ("extended", "held")
    assert outcome.reservation.expires_ms == deadline
    record = p.record("r1")
    assert (record.state, record.created_ms, record.deadline_ms, record.seq) == (
        HELD,
        before.created_ms,
        deadline,
        3,
    )
    assert record.body == before.body
    assert p.redis.pttl(keys.reservation(0, "r1")) == -1
    assert p.redis.lrange(keys.due(0, deadline), 0, -1) == [b"r1"]
    assert p.redis.zscore(keys.deadlines(0), deadline) == deadline
    assert p.redis.lrange(keys.due(0, before.deadline_ms), 0, -1) == [b"r1"], "is passed over"
    event = p.events()[-1]
    assert (event.type, event.seq, event.reservation_id) == ("extend", 3, "r1")
    assert (event.deadline_ms, event.at_ms, event.lines) == (deadline, p.now_ms, ())
    assert event.order_id == "order-r1"
    assert p.numbers("A") == stock, "no stock is touched, its seq neither"
    p.check()


@pytest.mark.parametrize("ttl_ms", [1, 59_000])
def test_given_a_shorter_ttl_then_extended_is_answered_and_the_deadline_stays(p, ttl_ms):
    deadline = p.record("r1").deadline_ms
    before = p.dump()
    outcome = p.one(extend("r1", ttl_ms))
    assert (outcome.status, outcome.reservation.expires_ms) == ("extended", deadline)
    assert p.dump() == before


def test_given_a_ttl_to_the_same_deadline_then_nothing_is_written(p):
    p.set_clock(p.now_ms + HOUR_MS)
    p.hold("r2", "A", ttl_ms=60_000)
    before = p.dump()
    assert p.one(extend("r2", 60_000)).status == "extended"
    assert p.dump() == before


def test_given_an_extended_hold_when_its_old_deadline_comes_then_it_stays_until_the_new_one(p):
    old = p.record("r1").deadline_ms
    p.one(extend("r1", 120_000))
    p.set_clock(old)
    assert p.expire() == (1, 0, 0)
    assert (p.record("r1").state, p.stock("A")["held"]) == (HELD, 3)
    p.check()
    p.make_due("r1")
    assert p.expire() == (1, 1, 0)
    assert p.stock("A")["held"] == 0
    p.check()


def test_given_four_hours_since_creation_then_beyond_is_lifetime_exceeded(p):
    created = p.record("r1").created_ms
    before = p.dump()
    refused = p.one(extend("r1", 4 * HOUR_MS + 60_000))
    assert refused.status == "lifetime_exceeded"
    assert refused.reservation.status == "held"
    assert p.dump() == before
    outcome = p.one(extend("r1", 4 * HOUR_MS - 60_000))
    assert outcome.status == "extended"
    p.set_clock(created + HOUR_MS)
    assert p.one(extend("r1", 3 * HOUR_MS)).status == "extended", "to the very end"
    last = p.dump()
    assert p.one(extend("r1", 3 * HOUR_MS + 1_000)).status == "lifetime_exceeded"
    assert p.dump() == last
    p.check()


def test_given_another_lifetime_setting_then_it_counts(redis):
    p = Partition(redis, Settings(lifetime_max_ms=100_000))
    p.receive("A", 1)
    p.hold("r1", "A", ttl_ms=10_000)
    outcomes = p.send(extend("r1", 101_000), extend("r1", 90_000))
    assert statuses(outcomes) == ["lifetime_exceeded", "extended"]
    p.check()


def test_given_a_hold_longer_than_the_lifetime_then_a_shorter_extend_changes_nothing(redis):
    """A first ttl may be longer than 4 h; extending to an earlier deadline leaves it."""
    p = Partition(redis)
    p.receive("A", 1)
    p.hold("r1", "A", ttl_ms=24 * HOUR_MS)
    before = p.dump()
    assert p.one(extend("r1", HOUR_MS)).status == "extended"
    assert p.one(extend("r1", 24 * HOUR_MS)).status in ("extended", "lifetime_exceeded")
    assert p.record("r1").deadline_ms - p.record("r1").created_ms <= 24 * HOUR_MS + 100
    assert p.dump() == before


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        ("confirm", "already_confirmed"),
        ("release", "already_released"),
        ("due", "reservation_expired"),
        ("expire", "reservation_expired"),
    ],
)
def test_given_an_ended_or_due_reservation_then_it_is_told_and_nothing_changes(p, ending, status):
    if ending in ("confirm", "release"):
        p.one({"confirm": confirm, "release": release}[ending]("r1"))
    else:
        p.make_due("r1")
        if ending == "expire":
            p.expire()
    before = p.dump()
    outcome = p.one(extend("r1", 600_000))
    assert outcome.status == status
    assert outcome.reservation.status == status.removeprefix("already_").removeprefix(
        "reservation_"
    )
    assert p.dump() == before


def test_given_no_such_reservation_then_unknown_and_nothing_is_written(p):
    before = p.dump()
    assert p.one(extend("nope", 1_000)).status == "unknown_reservation"
    assert p.dump() == before


def test_given_a_partly_settled_hold_when_extended_then_its_parts_are_kept(p):
    p.one(confirm("r1", ("A", 1), request_id="q1"))
    outcome = p.one(extend("r1", 120_000))
    assert (outcome.reservation.lines[0].confirmed, p.record("r1").parts) == (1, [1, 0])
    p.check()
    p.one(release("r1"))
    assert p.numbers("A")[:2] == (9, 0)
    p.check()


def test_given_many_extends_in_one_call_then_each_is_on_the_list_of_its_deadline(p):
    p.hold("r2", "A", ttl_ms=60_000)
    outcomes = p.send(
        extend("r1", 200_000),
        extend("r2", 200_000),
        extend("r1", 300_000),
        extend("nope", 1),
        extend("r1", 250_000),
    )
    assert statuses(outcomes) == ["extended"] * 3 + ["unknown_reservation", "extended"]
    assert outcomes[4].reservation.expires_ms == outcomes[2].reservation.expires_ms
    first = p.redis.lrange(keys.due(0, outcomes[0].reservation.expires_ms), 0, -1)
    assert first == [b"r1", b"r2"]
    assert [e.type for e in p.events()[3:]] == ["extend"] * 3
    p.check()
    p.make_due("r1")
    assert p.expire()[1:] == (2, 0)
    assert p.numbers("A")[:2] == (10, 0)
    p.check()


@pytest.mark.parametrize("wrong", WRONG_NUMBERS.values(), ids=WRONG_NUMBERS)
def test_given_a_wrong_ttl_past_python_then_an_error_and_its_neighbours_wrote_nothing(p, wrong):
    before = p.dump()
    with pytest.raises(ResponseError):
        p.forge(extend("r1", 120_000), extend("r1", 80_000_000), instead=80_000_000, wrong=wrong)
    assert p.dump() == before
