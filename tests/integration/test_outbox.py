"""The outbox as whoever moves it elsewhere sees it."""

from __future__ import annotations

import time
import tracemalloc

import pytest
from kit import Partition
from redis import Redis
from running import on_one_redis

from engine import keys
from engine.acknowledged import acknowledged
from engine.settings import Settings
from persister.ledger import Position
from persister.outbox import LeaseTaken, Outbox
from persister.sources import OutboxSource

pytestmark = on_one_redis
OUTBOX = keys.outbox(0)


@pytest.fixture
def p(redis: Redis) -> Partition:
    p = Partition(redis)
    p.receive("A", 5_000)
    return p


def sell(p: Partition, count: int) -> None:
    for number in range(count):
        p.hold(f"r-{number}", ("A", 1, "X"))


def test_where_an_outbox_begins_after_a_place(redis: Redis, p: Partition) -> None:
    sell(p, 4)
    outbox = Outbox(redis, p.scripts, 0, "persister")
    assert [outbox.begins_after((1, seq)) for seq in (0, 3, 4, 5)] == [1, 4, 5, None]
    redis.xdel(OUTBOX, "1-3")
    assert outbox.begins_after((1, 2)) == 4, "events that were healed never stood there"
    redis.delete(OUTBOX)
    redis.xadd(OUTBOX, {"events": b"\xc1"}, id="1-9")
    redis.hset(keys.head(0), "trimmed_seq", 4)
    assert outbox.begins_after((1, 2)) == 5, "it can't be read: from what was trimmed on"
    redis.delete(OUTBOX)
    redis.xadd(OUTBOX, {"events": b"\xc1"}, id="1-8")
    redis.xadd(OUTBOX, {"events": b"\xc1"}, id="1-9")
    assert outbox.begins_after((1, 8)) == 9


def test_given_a_frozen_persister_that_was_replaced_then_what_it_knows_counts_no_more(
    settings: Settings, redis: Redis, p: Partition
) -> None:
    """The ledger fell back meanwhile; a relay that begins afterwards sends what that lacks."""
    sell(p, 3)
    frozen, next_one = [OutboxSource(redis, p.scripts, settings, 0) for _ in range(2)]
    frozen.begin(Position(1, 1))
    frozen.read(Position(1, 1), 0)
    known_s = time.monotonic()
    next_one.begin(Position(1, 2))
    next_one.committed(Position(1, 2), known_s)
    for _ in range(2):
        with pytest.raises(LeaseTaken, match=r"persister:.* trims the outbox"):
            frozen.committed(Position(1, 4), known_s)
        assert acknowledged(redis, 0) == (1, 2)
        next_one.give_back()
    relay = Outbox(redis, p.scripts, 0, "relay")
    relay.keep()
    relay.become_trimmer()
    assert relay.go_on() == (1, 2)


def test_who_only_reads_remembers_nothing_of_it(redis: Redis, p: Partition) -> None:
    """An adoption reads ten million events where so many wait."""
    sell(p, 2_000)

    def read() -> Outbox:
        outbox, place = Outbox(redis, p.scripts, 0, "persister"), (0, 0)
        while entries := outbox.read(place, 0):
            place = (entries[-1].epoch, entries[-1].seq)
        assert place == (1, 2_001)
        return outbox

    read()  # what is made once is there
    tracemalloc.start()
    kept = read()
    kept_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept_bytes < 100_000, kept
