"""lua/open.lua, and what a partition that is not open answers: nothing, and nothing is written."""

import msgspec
import pytest
from kit import Partition, confirm, extend, move, release, reserve

from engine import keys
from engine.model import GetReservation, GetStock
from engine.partitions import (
    Head,
    Opening,
    close_partition,
    open_partition,
    read_head,
    read_server,
)
from engine.scripts import Scripts
from persister.outbox import Outbox


def try_open(redis, judged, server=None):
    return open_partition(
        redis,
        Scripts.for_server(redis.info("server")),
        0,
        judged=judged,
        server=server or read_server(redis),
        epoch=(judged.position[0] if judged.epoch.isdecimal() else 0) + 1,
        trimmer="persister",
    )


def test_given_no_head_when_opened_then_epoch_1_begins_on_this_server(redis):
    assert try_open(redis, Head("", "", "", "")) is Opening.OPENED
    head = {k.decode(): v.decode() for k, v in redis.hgetall(keys.head(0)).items()}
    assert head["last_ms"].isdecimal()
    assert (head["epoch"], head["seq"], head["trimmer"]) == ("1", "0", "persister")
    assert head["run_id"] == read_server(redis).run_id
    assert redis.keys() == [keys.head(0).encode()]


def test_given_a_history_when_opened_anew_then_the_epoch_rises_and_seq_goes_on(redis):
    p = Partition(redis)
    p.receive("A", 5)
    clock = int(p.head()["last_ms"])
    p.open()
    assert (p.head()["epoch"], p.head()["seq"]) == ("2", "1")
    assert int(p.head()["last_ms"]) >= clock
    p.hold("r1", "A")
    entries = [entry_id.decode() for entry_id, _ in redis.xrange(keys.outbox(0))]
    assert entries == ["1-1", "2-2"], "the first event of an epoch has the last seq + 1"
    assert [(e.epoch, e.seq) for e in p.events()] == [(1, 1), (2, 2)]
    p.check()


@pytest.mark.parametrize("field", ["epoch", "seq", "run_id"])
def test_given_head_changed_since_it_was_judged_then_it_is_not_opened(redis, field):
    p = Partition(redis)
    p.receive("A", 5)
    judged = read_head(redis, 0)
    redis.hset(keys.head(0), field, "7")
    before = p.dump()
    assert try_open(redis, judged) is Opening.CHANGED
    assert p.dump() == before


def test_given_two_that_judged_the_same_then_only_the_first_opens(redis):
    judged = read_head(redis, 0)
    assert try_open(redis, judged) is Opening.OPENED
    before = redis.hgetall(keys.head(0))
    assert try_open(redis, judged) is Opening.CHANGED
    assert redis.hgetall(keys.head(0)) == before


def test_given_a_relay_that_took_over_since_head_was_judged_then_it_stays_the_trimmer(redis):
    """It begins while the persister opens; named wrongly, what it moves to Kafka would be a gap to
    whoever reads the outbox directly."""
    p = Partition(redis)
    p.receive("A", 5)
    judged = read_head(redis, 0)
    assert judged.trimmer == "persister"
    Outbox(redis, p.scripts, 0, "relay").become_trimmer()
    assert try_open(redis, judged) is Opening.OPENED
    assert p.head()["trimmer"] == "relay"


@pytest.mark.parametrize("field", ["run_id", "replid"])
def test_given_another_server_than_the_judged_one_then_it_is_not_opened(redis, field):
    judged = msgspec.structs.replace(read_server(redis), **{field: "0" * 40})
    assert try_open(redis, Head("", "", "", ""), server=judged) is Opening.CHANGED
    assert redis.dbsize() == 0


def test_given_a_partition_as_it_was_judged_then_it_is_closed(redis):
    p = Partition(redis)
    before = p.head()
    close_partition(redis, p.scripts, 0, judged=read_head(redis, 0))
    assert p.head() == before | {"run_id": ""}
    assert p.one(GetStock("A")).status == "partition_closed"


@pytest.mark.parametrize("field", ["epoch", "run_id"])
def test_given_it_was_opened_anew_since_it_was_judged_then_it_is_not_closed(redis, field):
    p = Partition(redis)
    judged = read_head(redis, 0)
    redis.hset(keys.head(0), field, "7")
    before = p.dump()
    close_partition(redis, p.scripts, 0, judged=judged)
    assert p.dump() == before


def test_given_no_head_then_there_is_nothing_to_close(redis):
    scripts = Scripts.for_server(redis.info("server"))
    close_partition(redis, scripts, 0, judged=read_head(redis, 0))
    assert redis.dbsize() == 0


@pytest.mark.parametrize("written", ["5-0", "1-9", "1-2", "2-1"])
def test_given_an_outbox_beyond_head_then_it_is_not_opened(redis, written):
    """The next event could not be written behind it."""
    p = Partition(redis)
    p.receive("A", 5)
    redis.xadd(keys.outbox(0), {"events": b"\x90"}, id=written)
    before = p.dump()
    assert try_open(redis, read_head(redis, 0)) is Opening.OUTBOX_AHEAD
    assert p.dump() == before


def test_given_a_trimmed_outbox_then_it_still_tells_how_far_it_was(redis):
    p = Partition(redis)
    p.receive("A", 5)
    redis.xadd(keys.outbox(0), {"events": b"\x90"}, id="1-9")
    redis.xtrim(keys.outbox(0), maxlen=0)
    assert try_open(redis, read_head(redis, 0)) is Opening.OUTBOX_AHEAD


def test_given_a_clock_in_the_future_when_opened_then_it_does_not_run_back(redis):
    p = Partition(redis)
    later = int(p.head()["last_ms"]) + 3_600_000
    p.set_clock(later)
    p.open()
    assert int(p.head()["last_ms"]) == later
    p.receive("A", 1)
    assert p.events()[-1].at_ms == later


def test_given_a_full_server_then_a_partition_can_be_opened_and_emptied(redis):
    """A full Redis that was restarted must be opened, or nobody could ever empty it."""
    p = Partition(redis)
    p.receive("A", 5)
    p.hold("r1", "A")
    redis.hset(keys.head(0), "run_id", "f" * 40)
    p.fill()
    p.open()
    assert p.one(confirm("r1")).status == "confirmed"


ALL = [
    reserve("r2", "A"),
    reserve("r2", ("A", 99)),
    confirm("r1"),
    confirm("r1", "A", request_id="q1"),
    release("r1"),
    extend("r1", 9_000_000),
    move("receive", "A", 1, movement_id="m1"),
    GetReservation("r1"),
    GetStock("A"),
]
CLOSED = {
    "another server": lambda redis: redis.hset(keys.head(0), "run_id", "f" * 40),
    "no run_id": lambda redis: redis.hdel(keys.head(0), "run_id"),
    "no head": lambda redis: redis.delete(keys.head(0)),
    "no epoch": lambda redis: redis.hdel(keys.head(0), "epoch"),
    "unreadable seq": lambda redis: redis.hset(keys.head(0), "seq", "1.5"),
    "head of another type": lambda redis: (
        redis.delete(keys.head(0)),
        redis.set(keys.head(0), "x"),
    ),
}


@pytest.mark.parametrize("close", CLOSED.values(), ids=CLOSED)
def test_given_a_closed_partition_then_every_script_says_so_and_writes_nothing(redis, close):
    p = Partition(redis)
    p.receive("A", 2)
    p.hold("r1", ("A", 2))
    p.make_due("r1")
    close(redis)
    before = p.dump()
    for command in ALL:
        assert p.one(command).status == "partition_closed", command
    assert p.script("expire", [keys.head(0), keys.deadlines(0), keys.outbox(0)], 500, 1) == (
        b"partition_closed"
    )
    assert p.dump() == before


def test_given_a_clock_in_the_future_then_no_script_runs_back(redis):
    p = Partition(redis)
    p.receive("A", 9)
    later = int(p.head()["last_ms"]) + 7_200_000
    p.set_clock(later)
    outcome = p.hold("r1", ("A", 2), ttl_ms=1_000)
    assert outcome.reservation.created_ms == p.now_ms == later
    assert outcome.reservation.expires_ms == -(-(later + 1_000) // 100) * 100
    for command in (
        confirm("r1", "A", request_id="q1"),
        extend("r1", 60_000),
        release("r1"),
        move("receive", "A", 1),
    ):
        p.one(command)
        assert (p.now_ms, int(p.head()["last_ms"])) == (later, later)
    assert [e.at_ms for e in p.events()[1:]] == [later] * 5
    p.check()


def test_given_a_garbled_clock_then_the_servers_own_is_used(redis):
    p = Partition(redis)
    p.receive("A", 9)
    redis.hset(keys.head(0), "last_ms", "soon")
    seconds, micros = redis.time()
    p.hold("r1", "A")
    assert p.now_ms >= seconds * 1000 + micros // 1000
    p.check()
