"""lua/trim.lua: one holder at a time trims the outbox; and what a full outbox refuses."""

from __future__ import annotations

import msgspec
import pytest

from engine import keys
from engine.model import Confirm, Release
from engine.settings import Settings
from persister.rebuild import packed
from tests.kit import WRITES, Partition, move, reserve


@pytest.fixture
def p(redis):
    return Partition(redis)


def trim(p, holder, lease_ms=3000, role="", epoch="", seq=0, size=0, opening="", to=None, takes=0):
    """Acknowledge up to there, and take all of it away, or ``to``: (epoch, seq, bytes that stay)."""
    to = (epoch, seq, 0) if to is None else to
    answer = p.script("trim", WRITES, holder, lease_ms, role, epoch, seq, size, opening, *to, takes)
    return [part.decode() if isinstance(part, bytes) else part for part in answer]


def test_given_a_holder_then_another_is_refused_and_nothing_is_trimmed(p):
    p.receive("A", 10)
    assert trim(p, "relay:1", role="relay") == ["kept", "relay"]
    word, holder, left = trim(p, "persister", role="persister", epoch="1", seq=1, size=9)
    assert (word, holder) == ("taken", "relay:1") and 0 < left <= 3000
    assert p.redis.xlen(keys.outbox(0)) == 1 and p.head()["trimmer"] == "relay"


def test_given_a_partition_opened_anew_since_they_were_read_then_nothing_is_trimmed(p):
    p.receive("A", 10)
    p.open()
    assert trim(p, "relay:1", role="relay", epoch="1", seq=1, size=9, opening="1") == [
        "opened_anew"
    ]
    assert p.redis.xlen(keys.outbox(0)) == 1 and p.head()["trimmed_seq"] == "0"
    assert trim(p, "relay:1", role="relay", epoch="1", seq=1, size=9, opening="2")[0] == "kept"
    assert p.redis.xlen(keys.outbox(0)) == 0


def test_given_another_that_had_the_lease_since_then_what_one_knows_is_refused(p):
    """It was frozen. The other one has ended, and what was safe may not be so any more."""
    p.receive("A", 10)
    trim(p, "persister:1", role="persister")
    trim(p, "persister:2", takes=1)
    assert trim(p, "persister:1", epoch="1", seq=1, size=9)[:2] == ["taken", "persister:2"]
    trim(p, "persister:2", lease_ms=0)
    safe = {"epoch": "1", "seq": 1, "size": 9}
    for known in safe, safe | {"to": ("", 0, 0)}, {"to": ("1", 1, 0)}:
        assert trim(p, "persister:1", **known) == ["taken", "persister:2", 0]
    assert p.redis.xlen(keys.outbox(0)) == 1 and "acknowledged_seq" not in p.head()
    assert trim(p, "persister:1") == ["kept", "persister"]
    assert trim(p, "persister:1", epoch="1", seq=1, size=9) == ["kept", "persister"]
    assert p.head()["acknowledged_seq"] == "1"


def test_given_one_that_was_replaced_then_its_lease_is_taken_by_its_own_role_only(p):
    trim(p, "persister:1", role="persister")
    assert trim(p, "persister:2")[:2] == ["taken", "persister:1"]
    assert trim(p, "relay:1", takes=1)[:2] == ["taken", "persister:1"]
    assert trim(p, "persister:2", takes=1) == ["kept", "persister"]
    assert trim(p, "persister:1")[:2] == ["taken", "persister:2"]


@pytest.mark.parametrize(("holder", "other"), [("relay:1", "persister"), ("persister", "relay")])
def test_given_a_trimmer_that_lost_its_role_while_it_was_away_then_it_trims_nothing(
    p, holder, other
):
    """What it moved is elsewhere than head says: whoever looks for it there would find a gap."""
    p.receive("A", 10)
    p.redis.hset(keys.head(0), "trimmer", other)
    assert trim(p, holder, epoch="1", seq=1, size=9) == ["other_trimmer", other]
    assert (p.redis.xlen(keys.outbox(0)), p.head()["trimmer"]) == (1, other)
    own = holder.split(":")[0]
    assert trim(p, holder, role=own, epoch="1", seq=1, size=9) == ["kept", own]
    assert p.redis.xlen(keys.outbox(0)) == 0


def test_given_a_lease_given_back_or_over_then_the_next_has_it(p):
    trim(p, "relay:1")
    trim(p, "relay:1", lease_ms=0)
    assert trim(p, "relay:2")[0] == "kept"
    p.redis.hset(keys.head(0), "lease_until_ms", 1)
    assert trim(p, "relay:3")[0] == "kept"


def test_given_a_clock_set_back_then_a_lease_far_away_is_none(p):
    trim(p, "relay:1")
    p.redis.hset(keys.head(0), "lease_until_ms", 9_999_999_999_999)
    assert trim(p, "relay:2")[0] == "kept"


@pytest.mark.parametrize(("ahead_ms", "word"), [(59_000, "taken"), (61_000, "kept")])
def test_a_lease_of_more_than_a_minute_is_none(p, ahead_ms, word):
    seconds, _ = p.redis.time()
    until_ms = seconds * 1000 + ahead_ms
    p.redis.hset(keys.head(0), mapping={"lease": "relay:1", "lease_until_ms": until_ms})
    assert trim(p, "persister", role="persister")[0] == word


def test_a_lease_that_is_over_has_no_time_left(p):
    p.redis.hset(keys.head(0), mapping={"lease": "persister:2", "lease_until_ms": 1})
    assert trim(p, "persister:1", epoch="1", seq=1, size=9) == ["taken", "persister:2", 0]


def test_given_no_head_then_nothing_is_written(redis):
    p = Partition(redis)
    redis.flushall()
    assert trim(p, "relay:1") == ["no_head"]
    assert redis.dbsize() == 0


def test_trimming_forgets_events_and_bytes_up_to_the_seq(p):
    for number in range(4):
        p.receive(f"S{number}", 1)
    sizes = [len(fields[b"events"]) for _, fields in p.redis.xrange(keys.outbox(0))]
    assert p.head()["written_bytes"] == str(sum(sizes)) and p.head()["trimmed_seq"] == "0"
    trim(p, "persister", epoch="1", seq=3, size=sum(sizes[:3]))
    assert [event.seq for event in p.events()] == [4]
    assert (p.head()["trimmed_seq"], p.head()["trimmed_bytes"]) == ("3", str(sum(sizes[:3])))
    trim(p, "persister", epoch="1", seq=4, size=0)
    assert p.head()["trimmed_bytes"] == p.head()["written_bytes"], "empty: the sums meet again"


def test_given_a_seq_before_what_was_trimmed_or_beyond_head_then_the_count_neither_falls_nor_passes(
    p,
):
    """A trimmer that was killed comes again with what it knows; `backlog_full` is judged by the count."""
    for number in range(5):
        p.receive(f"S{number}", 1)
    trim(p, "persister", epoch="1", seq=3, size=10)
    trim(p, "persister", epoch="1", seq=2, size=10)
    assert (p.head()["trimmed_seq"], p.head()["trimmed_bytes"]) == ("3", "20")
    assert [event.seq for event in p.events()] == [4, 5]
    written = int(p.head()["written_bytes"])
    trim(p, "persister", epoch="1", seq=4, size=written)
    assert (p.head()["trimmed_seq"], p.head()["trimmed_bytes"]) == ("4", str(written))
    p.redis.xadd(keys.outbox(0), {"events": b"\x90"}, id="9-9")  # by somebody else
    trim(p, "persister", epoch="1", seq=8, size=0)
    assert (p.head()["trimmed_seq"], p.redis.xlen(keys.outbox(0))) == ("5", 1)


def test_given_nobody_who_trims_then_nothing_is_trimmed_until_somebody_does(p):
    p.receive("A", 10)
    p.redis.hdel(keys.head(0), "trimmer")
    assert trim(p, "persister:1", epoch="1", seq=1, size=9) == ["other_trimmer", ""]
    assert p.redis.xlen(keys.outbox(0)) == 1
    assert trim(p, "persister:1") == ["kept", ""]
    assert trim(p, "persister:1", role="persister", epoch="1", seq=1) == ["kept", "persister"]
    assert p.redis.xlen(keys.outbox(0)) == 0


@pytest.mark.parametrize("setting", ["outbox_max_events", "outbox_max_bytes"])
def test_given_a_full_outbox_then_what_begins_is_refused_and_what_has_begun_can_end(redis, setting):
    p = Partition(redis)
    p.receive("A", 10)
    p.hold("R1", ("A", 1, "X"))
    p.hold("R2", ("A", 1, "X"))
    limit = 3 if setting == "outbox_max_events" else int(p.head()["written_bytes"])
    p.settings = Settings(**{setting: limit})
    before = p.dump()
    assert p.one(reserve("R3", ("A", 1, "X"))).status == "backlog_full"
    assert p.one(reserve("R1", ("A", 1, "X"))).status == "already_reserved", "a known id is told"
    assert p.one(reserve("R3", ("nope", 1, "X"))).status == "backlog_full", "before all others"
    assert p.one(move("receive", "A", 1)).status == "backlog_full"
    assert p.dump() == before
    assert p.one(Confirm(reservation_id="R1")).status == "confirmed"
    assert p.one(Release(reservation_id="R2")).status == "released"
    for kind in ("damage", "return", "count"):
        assert p.one(move(kind, "A", 7 if kind == "count" else 1)).status == "applied", kind
    transfer = move("transfer", "A", 1, to_location="Y")
    assert p.one(transfer).status == "applied"
    trim(p, "persister", epoch="1", seq=p.seq())
    assert p.one(reserve("R3", ("A", 1, "X"))).status == "reserved"


def test_given_an_older_head_when_opened_then_what_is_in_the_outbox_counts(p):
    for number in range(3):
        p.receive(f"S{number}", 1)
    p.redis.xtrim(keys.outbox(0), minid="1-2", approximate=False)
    p.redis.hdel(keys.head(0), "trimmed_seq")
    p.redis.hset(keys.head(0), "run_id", "")
    p.open()
    assert p.head()["trimmed_seq"] == "1"


def acknowledged(p):
    """Place and bytes, and what was taken away."""
    head = p.head()
    return [head.get(f"acknowledged_{name}") for name in ("epoch", "seq", "bytes")]


def sizes_of(p):
    return [len(fields[b"events"]) for _, fields in p.redis.xrange(keys.outbox(0))]


def test_what_is_acknowledged_stays_until_it_is_taken_away(p):
    for number in range(4):
        p.receive(f"S{number}", 1)
    sizes = sizes_of(p)
    trim(p, "persister", epoch="1", seq=3, size=sum(sizes[:3]), to=("", 0, 0))
    assert [event.seq for event in p.events()] == [1, 2, 3, 4]
    assert acknowledged(p) == ["1", "3", str(sum(sizes[:3]))]
    assert (p.head()["trimmed_seq"], p.head().get("trimmed_bytes")) == ("0", None)
    trim(p, "persister", to=(1, 2, sizes[2]))
    assert [event.seq for event in p.events()] == [3, 4]
    assert (p.head()["trimmed_seq"], p.head()["trimmed_bytes"]) == ("2", str(sum(sizes[:2])))
    assert acknowledged(p) == ["1", "3", str(sum(sizes[:3]))]


def test_given_nothing_behind_what_is_acknowledged_then_that_is_all_there_is(p):
    """The bytes meet again, and what was replayed, and so never stood in the outbox, counts."""
    for number in range(3):
        p.receive(f"S{number}", 1)
    p.redis.hset(keys.head(0), "seq", 9)
    trim(p, "persister", epoch="1", seq=2, size=1, to=("", 0, 0))
    assert acknowledged(p) == ["1", "2", "1"]
    trim(p, "persister", epoch="1", seq=3, size=1, to=("", 0, 0))
    assert acknowledged(p) == ["1", "9", p.head()["written_bytes"]]
    p.receive("later", 1)
    trim(p, "persister", epoch="1", seq=3, size=1, to=("", 0, 0))
    assert acknowledged(p)[:2] == ["1", "9"], "never back"


def test_given_a_place_of_an_earlier_epoch_or_beyond_head_then_it_neither_falls_back_nor_passes(p):
    """A trimmer that was killed comes again with what it knows."""
    p.receive("A", 1)
    p.open()
    for sku in ("B", "C"):
        p.receive(sku, 1)
    trim(p, "persister", epoch="1", seq=99, to=("", 0, 0))
    assert acknowledged(p)[:2] == ["1", "3"]
    p.redis.hset(keys.head(0), "acknowledged_seq", 1)
    trim(p, "persister", epoch="2", seq=2, to=("", 0, 0))
    trim(p, "persister", epoch="1", seq=1, to=("", 0, 0))
    assert acknowledged(p)[:2] == ["2", "2"]


def test_given_all_is_taken_away_then_nothing_is_kept_any_more(p):
    """Also of what was replayed, and of bytes that were counted wrong."""
    p.receive("A", 1)
    p.redis.hset(keys.head(0), "seq", 9)
    trim(p, "persister", epoch="1", seq=1, size=1, to=(1, 1, 5))
    head = p.head()
    assert (head["trimmed_seq"], head["trimmed_bytes"]) == ("9", head["written_bytes"])


def test_given_fewer_bytes_than_were_trimmed_then_the_count_does_not_fall(p):
    for sku in ("A", "B"):
        p.receive(sku, 1)
    size = sizes_of(p)[0]
    trim(p, "persister", epoch="1", seq=1, size=size)
    trim(p, "persister", to=(1, 1, 5))
    assert p.head()["trimmed_bytes"] == str(size)


@pytest.mark.parametrize("setting", ["outbox_max_events", "outbox_max_bytes"])
def test_given_entries_that_are_only_kept_then_the_outbox_is_not_full_of_them(redis, setting):
    p = Partition(redis)
    p.receive("A", 10)
    p.hold("R1", ("A", 1, "X"))
    limit = 2 if setting == "outbox_max_events" else int(p.head()["written_bytes"])
    p.settings = Settings(**{setting: limit})
    assert p.one(reserve("R2", ("A", 1, "X"))).status == "backlog_full"
    trim(p, "persister", epoch="1", seq=2, size=sum(sizes_of(p)), to=("", 0, 0))
    assert p.redis.xlen(keys.outbox(0)) == 2
    assert p.one(reserve("R2", ("A", 1, "X"))).status == "reserved"


@pytest.mark.parametrize(
    "fields", [("acknowledged_epoch", "acknowledged_seq", "acknowledged_bytes")]
)
def test_given_an_older_head_then_what_was_trimmed_is_what_is_acknowledged(p, fields):
    """Its trimmer took away at once what was shipped; what it left waits."""
    p.receive("A", 10)
    for number in range(3):
        p.hold(f"R{number}", ("A", 1, "X"))
    trim(p, "persister", epoch="1", seq=2, size=sum(sizes_of(p)[:2]))
    p.redis.hdel(keys.head(0), *fields)
    waiting = int(p.head()["written_bytes"]) - int(p.head()["trimmed_bytes"])
    p.settings = Settings(outbox_max_events=2)
    assert p.one(reserve("R9", ("A", 1, "X"))).status == "backlog_full"
    p.settings = Settings(outbox_max_bytes=waiting)
    assert p.one(reserve("R9", ("A", 1, "X"))).status == "backlog_full"
    p.settings = Settings(outbox_max_events=3, outbox_max_bytes=waiting + 1)
    assert p.one(reserve("R9", ("A", 1, "X"))).status == "reserved"
    # An older version at work again takes away more than the newer one had acknowledged.
    p.redis.hset(keys.head(0), mapping={"acknowledged_seq": 1, "acknowledged_bytes": 1})
    p.settings = Settings(outbox_max_events=4)
    assert p.one(reserve("R8", ("A", 1, "X"))).status == "reserved"


def test_given_a_ledger_that_fell_back_then_what_it_lacks_waits_again(p):
    for number in range(4):
        p.receive(f"S{number}", 1)
    sizes = sizes_of(p)
    trim(p, "persister", epoch="1", seq=4, size=sum(sizes), to=(1, 1, sum(sizes[1:])))
    trim(p, "persister", epoch="1", seq=2, size="", to=("", 0, 0))
    assert acknowledged(p) == ["1", "2", str(sizes[0])]
    assert [event.seq for event in p.events()] == [2, 3, 4]
    trim(p, "persister", epoch="1", seq=0, size="", to=("", 0, 0))
    assert acknowledged(p) == ["1", "1", str(sizes[0])], "what is gone does not wait"


@pytest.mark.parametrize(("trimmer", "opening"), [("persister", ""), ("relay", "2")])
def test_given_another_trimmer_or_opening_then_the_lease_is_kept_and_nothing_taken_away(
    p, trimmer, opening
):
    p.receive("A", 10)
    p.redis.hset(keys.head(0), "trimmer", trimmer)
    assert trim(p, "relay:1", opening=opening, to=(1, 1, 0)) == ["kept", trimmer]
    assert p.redis.xlen(keys.outbox(0)) == 1


def test_replayed_events_count_as_acknowledged_where_nothing_waits(p):
    p.receive("A", 10)
    trim(p, "persister", epoch="1", seq=1, to=("", 0, 0))
    event = msgspec.structs.replace(p.events()[0], seq=2, movement_id="in-again")
    p.redis.hset(keys.head(0), "run_id", "")
    wire = msgspec.msgpack.encode([packed(event)])
    assert p.script("replay", WRITES, wire, 60_000, 60_000, 1)[0] == b"replayed"
    assert (p.seq(), acknowledged(p)[1], p.head()["trimmed_seq"]) == (2, "2", "0")
