"""lua/replay.lua: events of the ledger applied once more to a closed partition. What they make of one is
what their scripts made; tests/integration/test_heal.py and test_restore.py play whole sales."""

from typing import Any

import msgspec
import pytest
from kit import HELD, WRITES, Partition, confirm, extend, move, release, reserve

from engine import keys
from engine.events import Event
from engine.settings import Settings
from persister.rebuild import packed

HEAD = keys.head(0)
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


@pytest.fixture
def p(redis):
    """A bit of everything, an hour ago: r1 is held, r2 confirmed, r3 held and in part confirmed, r4
    released in parts, r5 expired, r6 extended, r7 extended and in part released."""
    p = Partition(redis)
    p.receive("A", 30)
    p.one(move("return", "B", 3, movement_id="back"))
    p.one(move("transfer", "A", 4, to_location="Y", movement_id="moved"))
    for each in ("r1", "r2", "r3", "r4", "r5", "r6", "r7"):
        ttl_ms = 60_000 if each == "r5" else 900_000
        p.hold(each, ("A", 2), ("A", 1, "Y") if each == "r1" else ("A", 1), ttl_ms=ttl_ms)
    p.one(confirm("r2"))
    p.one(confirm("r3", ("A", 1), request_id="q1"))
    p.one(release("r4", ("A", 1), request_id="q1"))
    p.one(release("r4", ("A", 2), request_id="q2"))
    p.one(extend("r6", 1_800_000))
    p.one(extend("r7", 1_800_000))
    p.one(release("r7", ("A", 1), request_id="q1"))
    p.make_due("r5")
    p.expire()
    return p


def earlier(events: list[Event], ms: int) -> list[Event]:
    """The same, so much earlier."""
    return [
        msgspec.structs.replace(
            event,
            at_ms=event.at_ms - ms,
            deadline_ms=None if event.deadline_ms is None else event.deadline_ms - ms,
        )
        for event in events
    ]


def empty(p: Partition, **head: Any) -> None:
    """A closed partition before the first event."""
    p.redis.flushall()
    p.redis.hset(HEAD, mapping={"epoch": 1, "seq": 0, "run_id": ""} | head)


def replay(p: Partition, events: list[Event], with_due: int = 1) -> str:
    wire = msgspec.msgpack.encode([packed(event) for event in events])
    kept = (p.settings.retention_ms, p.settings.lifetime_max_ms)
    word, *damaged = p.script("replay", WRITES, wire, *kept, with_due)
    p.damaged = [key.decode() for key in damaged[0]] if damaged else []
    return word.decode()


def contents(p: Partition) -> dict[str, Any]:
    others = (HEAD, keys.outbox(0), keys.deadlines(0), keys.due(0, 0)[:-1])
    return {name: value for name, value in p.dump().items() if not name.startswith(others)}


def now_ms(p: Partition) -> int:
    seconds, micros = p.redis.time()
    return seconds * 1000 + micros // 1000


def test_given_all_events_when_replayed_then_every_key_is_as_their_scripts_left_it(p):
    events, was, seq = p.events(), contents(p), p.seq()
    empty(p)
    assert (replay(p, events), p.damaged) == ("replayed", [])
    assert contents(p) == was
    assert (p.seq(), p.head()["trimmed_seq"]) == (seq, str(seq))
    assert p.redis.xlen(keys.outbox(0)) == 0
    p.check_held()


@pytest.mark.parametrize("size", [1, 5])
def test_given_events_in_several_calls_then_it_is_the_same(p, size):
    events, was = p.events(), contents(p)
    empty(p)
    for first in range(0, len(events), size):
        assert replay(p, events[first : first + size]) == "replayed"
        assert p.seq() == events[first : first + size][-1].seq
    assert contents(p) == was
    p.check_held()


def test_given_events_of_an_hour_ago_then_the_clock_is_that_of_the_last_one(p):
    """Whoever goes on from here after a kill finds the ledger's event by that time."""
    events = earlier(p.events(), HOUR_MS)
    empty(p)
    replay(p, events)
    assert int(p.head()["last_ms"]) == events[-1].at_ms < now_ms(p)


def test_given_a_later_epoch_then_head_has_it(p):
    events = p.events()
    last = msgspec.structs.replace(events[-1], epoch=3)
    empty(p)
    replay(p, [*events[:-1], last])
    assert (p.head()["epoch"], p.seq()) == ("3", last.seq)


def test_given_what_ended_long_ago_then_it_is_not_remembered_again(p):
    """By the clock of now, or a replay would remember for a day what a retry can't be about."""
    events = earlier(p.events(), 2 * DAY_MS)
    empty(p)
    assert replay(p, events) == "replayed"
    for name in ("r2", "r4", "r5"):
        assert p.record(name) is None
    assert not list(p.redis.scan_iter(keys.movement_request(0, "*")))
    assert p.record("r1").state == HELD, "a hold never vanishes with its units"
    parts = [keys.part_request(0, name, "q1") for name in ("r3", "r4", "r7")]
    assert p.redis.exists(*parts) == 3, "a part is remembered for twice the retention and longer"
    empty(p)
    replay(p, earlier(events, 10 * DAY_MS))
    assert p.redis.exists(*parts) == 0


def test_given_an_end_within_retention_then_it_is_remembered_for_the_rest(p):
    events = earlier(p.events(), 20 * HOUR_MS)
    empty(p)
    replay(p, events)
    for name in ("r2", "r4", "r5"):
        ended = next(e.at_ms for e in reversed(events) if e.reservation_id == name)
        left = ended + p.settings.retention_ms - now_ms(p)
        assert abs(p.redis.pttl(keys.reservation(0, name)) - left) < 60_000, name
    moved = next(e for e in events if e.movement_id == "back")
    left = moved.at_ms + p.settings.retention_ms - now_ms(p)
    assert abs(p.redis.pttl(keys.movement_request(0, "back")) - left) < 60_000


@pytest.mark.parametrize("with_due", [0, 1])
def test_given_holds_then_they_are_put_on_the_lists_of_their_deadlines_or_left_to_the_caller(
    p, with_due
):
    events = p.events()
    empty(p)
    replay(p, events, with_due)
    assert p.redis.exists(keys.deadlines(0)) == with_due
    for name in ("r1", "r3", "r6", "r7"):
        listed = p.redis.lrange(keys.due(0, p.record(name).deadline_ms), 0, -1)
        assert (name.encode() in listed) == bool(with_due), name


def test_given_the_stock_damaged_then_it_stays_as_it_is_and_the_rest_is_replayed(p):
    events, key = p.events(), keys.stock(0, "A", "X")
    empty(p)
    p.redis.hset(key, mapping={"on_hand": "many", "held": 0, "quarantined": 0, "safety_stock": 0})
    before = p.redis.dump(key)
    assert (replay(p, events), p.damaged) == ("replayed", [key])
    assert p.redis.dump(key) == before
    assert p.numbers("A", "Y")[:2] == (4, 1)
    assert p.record("r1").state == HELD


def test_given_a_drift_then_it_stays_what_it_was(p):
    """Redis minus ledger: healing adds the ledger's changes and hides nothing."""
    events = p.events()
    empty(p)
    replay(p, events[:1])
    p.redis.hincrby(keys.stock(0, "A", "X"), "on_hand", 5)
    replay(p, events[1:])
    assert p.stock("A")["on_hand"] == 30 - 4 - 3 - 1 + 5


def test_given_reservations_that_are_gone_then_later_events_on_them_are_passed_over(p):
    events = p.events()
    empty(p)
    holds = max(e.seq for e in events if e.type == "reserve")
    replay(p, events[:holds])
    for name in ("r2", "r6", "r7"):
        p.redis.delete(keys.reservation(0, name))
    assert replay(p, events[holds:]) == "replayed"
    assert [p.record(name) for name in ("r2", "r6", "r7")] == [None] * 3
    assert p.numbers("A")[:2] == (22, 9), "stock follows the events, whatever is found here"


def test_given_entries_in_the_outbox_then_what_was_trimmed_of_it_stays(p):
    events = p.events()
    outbox = p.redis.dump(keys.outbox(0))
    empty(p, trimmed_seq=0)
    p.redis.restore(keys.outbox(0), 0, outbox)
    replay(p, events)
    assert p.head()["trimmed_seq"] == "0"


def refused(p: Partition, events: list[Event]) -> None:
    before = p.dump()
    assert replay(p, events) == "changed"
    assert p.dump() == before


def test_given_events_that_do_not_follow_head_then_nothing_is_replayed(p):
    events = p.events()
    empty(p)
    refused(p, events[1:])
    refused(p, [events[0], *events[2:]])
    refused(p, [events[1], events[0]])
    empty(p, seq=3)
    refused(p, events)
    refused(p, events[4:])
    assert replay(p, events[3:4]) == "replayed"


def test_given_an_epoch_before_that_of_head_then_nothing_is_replayed(p):
    events = p.events()
    empty(p, epoch=2)
    refused(p, events)


@pytest.mark.parametrize("lost", ["epoch", "seq"])
def test_given_no_head_that_can_be_read_then_nothing_is_replayed(p, lost):
    events = p.events()
    empty(p)
    p.redis.hdel(HEAD, lost)
    refused(p, events)


def test_given_an_open_partition_then_nothing_is_replayed(redis):
    """Somebody else writes to it."""
    p = Partition(redis, Settings())
    p.receive("A", 5)
    event = msgspec.structs.replace(p.events()[0], seq=2)
    refused(p, [event])


def test_given_an_extend_and_a_repair_then_a_hold_has_the_deadline_and_seq_of_them(p):
    events = p.events()
    at = events[-1].seq
    p.hold("r8", "A")
    reserved = p.events()[-1]
    given = {"version": 1, "partition": 0, "epoch": 1, "at_ms": p.now_ms, "reservation_id": "r8"}
    extended = Event(**given, seq=at + 2, type="extend", deadline_ms=reserved.deadline_ms + 5_000)
    restored = Event(**given, seq=at + 3, type="repair", status="held", reason="found")
    released = Event(**given, seq=at + 4, type="repair", status="released", reason="found")
    discard = Event(version=1, partition=0, epoch=1, seq=at + 5, type="discard", at_ms=p.now_ms)
    empty(p)
    replay(p, [*events, reserved, extended, restored])
    record = p.record("r8")
    assert (record.state, record.seq, record.parts) == (HELD, at + 3, None)
    assert record.deadline_ms == reserved.deadline_ms + 5_000
    assert p.redis.pttl(keys.reservation(0, "r8")) == -1
    assert replay(p, [released, discard]) == "replayed"
    assert (p.record("r8").state, p.record("r8").seq) == (2, at + 4)
    assert p.redis.pttl(keys.reservation(0, "r8")) > 0
    assert p.seq() == at + 5


def test_given_what_was_replayed_when_opened_then_repeats_are_answered_as_before(p):
    events = p.events()
    empty(p)
    replay(p, events)
    p.open()
    assert p.one(reserve("r2", ("A", 2), ("A", 1))).status == "already_reserved"
    assert p.one(confirm("r3", ("A", 1), request_id="q1")).replayed
    assert p.one(release("r3", ("A", 1), request_id="q1")).status == "request_mismatch"
    assert p.one(move("return", "B", 3, movement_id="back")).status == "already_applied"
    assert p.one(confirm("r4")).status == "already_released"
