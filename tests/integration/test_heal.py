"""A Redis that has lost what was shipped gets it back from the ledger, and opens with a new epoch; one
that is no earlier state of the ledger stays closed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from kit import Data, Partition, confirm, extend, move, put_back, release, reserve, snapshot
from redis import Redis
from running import (
    all_acknowledged,
    check_clean,
    eventually,
    is_open,
    on_one_redis,
    persisting,
    rows,
    wait_for_ledger,
)

from engine import keys
from engine.events import DISCARD, Event
from engine.partitions import read_server
from engine.scripts import Scripts
from engine.settings import Settings
from persister import database, rebuild
from persister.ledger import Ledger

HEAD = keys.head(0)


def sell(p: Partition, name: str) -> None:
    """A bit of everything, each id with this name."""
    p.one(move("receive", "tea", 50, movement_id=f"in-{name}"))
    p.one(move("return", "mug", 3, movement_id=f"back-{name}"))
    for each in ("a", "b", "c", "d", "e"):
        ttl_ms = 60_000 if each == "e" else 900_000
        p.hold(f"{name}-{each}", ("tea", 2), ("tea", 1, None), ttl_ms=ttl_ms)
    p.one(confirm(f"{name}-a"))
    p.one(release(f"{name}-b"))
    p.one(confirm(f"{name}-c", ("tea", 1), request_id="parcel-1"))
    p.one(extend(f"{name}-d", 3_600_000))
    p.make_due(f"{name}-e")
    p.expire()


def told(p: Partition) -> dict[str, object]:
    """Reservations, stock, and what repeated calls are answered."""
    others = (HEAD, keys.outbox(0), keys.deadlines(0), keys.due(0, 0)[:-1])
    return {name: value for name, value in p.dump().items() if not name.startswith(others)}


@pytest.fixture
def sold(settings: Settings, redis: Redis) -> tuple[Partition, Data, Data]:
    """Two sales, all in the ledger, and Redis' data after the first one: with an outbox, and without."""
    with persisting(settings):
        p = Partition(redis)
        wait_for_ledger(settings)
    sell(p, "first")
    with_outbox = snapshot(redis)
    with persisting(settings):
        eventually("all is acknowledged", lambda: all_acknowledged(redis))
        without = snapshot(redis)
        sell(p, "second")
        wait_for_ledger(settings)
    return p, with_outbox, without


@pytest.mark.parametrize("outbox", [True, False], ids=["an outbox", "no outbox"])
def test_given_a_redis_of_before_then_it_is_made_as_it_was_and_opens_with_a_new_epoch(
    settings: Settings, sold: tuple[Partition, Data, Data], outbox: bool
) -> None:
    p, with_outbox, without = sold
    after, seq, epoch = told(p), p.seq(), int(p.head()["epoch"])
    put_back(p.redis, with_outbox if outbox else without)
    assert p.seq() < seq
    with persisting(settings):
        assert (p.seq(), int(p.head()["epoch"])) == (seq, epoch + 1)
        assert told(p) == after
        p.check_held()
        # What was answered before is answered again, and no unit of it can be sold a second time.
        assert p.one(reserve("second-a", ("tea", 2), ("tea", 1, None))).status == "already_reserved"
        again = move("receive", "tea", 50, movement_id="in-second")
        assert p.one(again).status == "already_applied"
        part = confirm("second-c", ("tea", 1), request_id="parcel-1")
        assert p.one(part).replayed
        p.make_due("second-c")
        p.expire()
        wait_for_ledger(settings)
    check_clean(settings)


@pytest.mark.parametrize("outbox", [True, False], ids=["an outbox", "no outbox"])
def test_given_an_open_redis_of_before_then_it_is_closed_and_healed_too(
    settings: Settings, sold: tuple[Partition, Data, Data], outbox: bool
) -> None:
    """A server that became a replica and was promoted again was never restarted: it would go on selling
    what is sold."""
    p, with_outbox, without = sold
    after, seq, epoch = told(p), p.seq(), int(p.head()["epoch"])
    server = read_server(p.redis)
    put_back(p.redis, with_outbox if outbox else without)
    p.redis.hset(HEAD, mapping={"run_id": server.run_id, "replid": server.replid})
    assert is_open(settings.redis_url)
    with persisting(settings, until_open=False):
        eventually(
            "it is healed and open", lambda: (p.seq(), is_open(settings.redis_url)) == (seq, True)
        )
        assert (told(p), int(p.head()["epoch"])) == (after, epoch + 1)
    check_clean(settings)


def test_given_a_kill_in_the_middle_then_the_next_persister_goes_on_from_there(
    settings: Settings, sold: tuple[Partition, Data, Data], monkeypatch: pytest.MonkeyPatch
) -> None:
    p, _, before = sold
    after, seq = told(p), p.seq()
    put_back(p.redis, before)
    first = p.seq()
    calls: list[int] = []
    call = Scripts.call_sync

    def die_after_three(self: Scripts, redis: Redis, name: str, *rest: object) -> object:
        if name == "replay":
            calls.append(p.seq())
            if len(calls) == 4:
                raise RuntimeError("killed")
        return call(self, redis, name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(rebuild, "COMMANDS_MAX", 2)
    monkeypatch.setattr(Scripts, "call_sync", die_after_three)
    with persisting(settings):
        assert calls[:5] == [first, first + 2, first + 4, first + 6, first + 6]
        assert (p.seq(), told(p)) == (seq, after)
    check_clean(settings)


def test_given_a_full_redis_then_it_is_healed_all_the_same(
    settings: Settings, sold: tuple[Partition, Data, Data]
) -> None:
    p, _, before = sold
    after = told(p)
    put_back(p.redis, before)
    p.fill()
    with persisting(settings):
        assert told(p) == after
        assert p.one(release("second-d")).status == "released"


def test_given_a_cut_at_an_event_that_was_discarded_then_its_time_is_not_asked_for(
    settings: Settings, sold: tuple[Partition, Data, Data]
) -> None:
    """The ledger tells a discarded event by a time that is not its own."""
    p, _, _ = sold
    p.receive("tea", 1)
    at_cut, head = p.seq(), p.head()
    p.redis.delete(keys.outbox(0))
    discards = [
        Event(
            version=1,
            partition=0,
            epoch=int(head["epoch"]),
            seq=at_cut + number,
            type=DISCARD,
            at_ms=int(head["last_ms"]) + 1_000,
            reason="discarded by the test",
        )
        for number in (0, 1)
    ]
    with database.connect(settings.postgres_url) as connection:
        Ledger(connection, 0).write(discards)
    put_back(p.redis, snapshot(p.redis))
    with persisting(settings):
        assert (p.seq(), int(p.head()["epoch"])) == (at_cut + 1, int(head["epoch"]) + 1)


Change = Callable[[Redis, Data], None]


def another_clock(redis: Redis, data: Data) -> None:
    put_back(redis, data)
    redis.hincrby(HEAD, "last_ms", 1)


def another_epoch(redis: Redis, data: Data) -> None:
    put_back(redis, data)
    redis.hset(HEAD, "epoch", 3)


def another_outbox(redis: Redis, data: Data) -> None:
    """The numbers fit; one of its events is not what the ledger has under that identity."""
    put_back(redis, data)
    ((name, fields),) = redis.xrevrange(keys.outbox(0), count=1)
    redis.delete(keys.outbox(0))
    other = fields[b"events"].replace(b"tea", b"ten")
    assert other != fields[b"events"]
    redis.xadd(keys.outbox(0), {"events": other}, id=name)


def went_on_by_itself(redis: Redis, data: Data) -> None:
    """A copy of it took orders of its own, more of them than the ledger knows."""
    put_back(redis, data)
    p = Partition(redis)
    while p.seq() < 200:
        p.receive("tea", 1)
    redis.hset(HEAD, mapping={"run_id": "0" * 40, "epoch": int(p.head()["epoch"]) - 1})


def a_former_master(redis: Redis, data: Data) -> None:
    """It took orders of its own after another server had been promoted and opened."""
    went_on_by_itself(redis, data)
    redis.hincrby(HEAD, "epoch", -1)


def half_restored(redis: Redis, data: Data) -> None:
    put_back(redis, data)
    redis.hset(HEAD, "restoring", 1)


@on_one_redis
@pytest.mark.parametrize(
    ("change", "word"),
    [
        (another_clock, "its clock is at"),
        (another_epoch, "that has no event 3-"),
        (another_outbox, "its outbox is not this ledger's"),
        (went_on_by_itself, "its outbox is not this ledger's"),
        (a_former_master, "that has no event 1-200"),
        (half_restored, "a restore into this Redis was not finished"),
    ],
)
def test_given_a_redis_that_is_no_earlier_state_of_the_ledger_then_it_stays_closed_and_untouched(
    settings: Settings, sold: tuple[Partition, Data, Data], change: Change, word: str
) -> None:
    p, before, _ = sold
    change(p.redis, before)
    was = p.dump()
    with persisting(settings, until_open=False):
        stopped = eventually(
            "it is said",
            lambda: rows(settings.postgres_url, "SELECT stopped FROM positions")[0][0],
        )
        assert "stays closed" in stopped and word in stopped
    assert not is_open(settings.redis_url)
    assert p.dump() == was
