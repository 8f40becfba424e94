"""A ledger that has lost events for good takes over what they had changed, wherever that is killed."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import psycopg
import pytest
from adopt_kit import adopt, begin, change_much, lose_events, older_copy, story, trim
from kit import (
    Partition,
    confirm,
    line,
    move,
    open_now,
    put_back,
    release,
    reserve,
    snapshot,
    statuses,
)
from redis import Redis
from running import (
    check_clean,
    environment,
    eventually,
    holdfast,
    in_process,
    is_open,
    on_one_redis,
    persisting,
    rows,
    until_ready,
    wait_for_ledger,
)

from engine import keys
from engine.scripts import Scripts
from engine.settings import Settings
from persister import database
from persister.adopt import adopt as take_over
from persister.audit import audit
from persister.holes import Holes
from persister.ledger import Ledger
from persister.openings import Openings


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Nothing is kept in the outbox once it was shipped: what the ledger loses is lost."""
    return msgspec.structs.replace(settings, outbox_keep_ms=0)


@pytest.fixture
def lost(settings: Settings, redis: Redis) -> tuple[Settings, Partition]:
    return lose_events(settings, redis)


def check_told(settings: Settings) -> None:
    with database.connect(settings.postgres_url) as connection:
        (hole,) = audit(connection).holes
    events = story(settings)
    adopts = [event for event in events if event["type"] == "adopt"]
    assert adopts[0]["hole"] == {"from": hole.from_seq, "to": hole.to_seq}
    assert "kim" in adopts[0]["reason"] and "the disk died" in adopts[0]["reason"]
    assert all("hole" not in event for event in adopts[1:])
    assert [e["seq"] for e in events if e["seq"] > hole.to_seq] == list(
        range(hole.to_seq + 1, events[-1]["seq"] + 1)
    )
    for command in ("audit", "reconcile"):
        done = holdfast(command, environ=environment(settings))
        assert done.returncode == 0, done.stdout
        assert "missing for good" in done.stdout and "the disk died" in done.stdout


def test_given_a_ledger_that_lost_events_then_it_takes_over_what_redis_has_and_tells_it_for_ever(
    lost: tuple[Settings, Partition],
) -> None:
    settings, p = lost
    seq = p.seq()
    stock = {name: p.numbers(name)[:4] for name in ("tea", "cup", "pot")}
    before = p.dump()
    assert "can't be read anywhere" in adopt(settings, "--dry-run")
    assert p.dump() == before
    assert "missing for good" in adopt(settings)
    assert is_open(settings.redis_url)
    assert p.seq() > seq
    assert {name: p.numbers(name)[:4] for name in stock} == stock
    check_clean(settings)
    check_told(settings)
    with persisting(settings):
        assert statuses([p.one(confirm("new")), p.one(release("two"))]) == ["confirmed", "released"]
        p.hold("later", "tea")
        wait_for_ledger(settings)
    check_clean(settings)
    check_told(settings)
    assert "nothing is missing" in adopt(settings)


@on_one_redis
@pytest.mark.anyio
async def test_after_it_each_reservation_is_listed_as_it_reads_by_its_id_and_a_run_tells_the_hole(
    lost: tuple[Settings, Partition],
) -> None:
    """Also what was reserved, confirmed in part or extended in the hole. Who came and went within it is in no
    ledger any more."""
    settings, _ = lost
    adopt(settings)
    async with in_process(settings) as client:
        await until_ready(client)
        for name in ("new", "stays", "ends", "lapses", "parted", "longer", "two"):
            kept = (await client.get(f"/v1/reservations/{name}")).json()
            asked = {"order_id": f"order-{name}"}
            listed = (await client.get("/v1/reservations", params=asked)).json()["reservations"]
            assert listed == [kept]
        gone = await client.get("/v1/reservations", params={"order_id": "order-gone"})
        assert gone.json()["reservations"] == []
        run = (await client.post("/v1/reconciliations")).json()
        assert run["clean"] and [hole["by"] for hole in run["holes"]] == ["kim"]
        latest = (await client.get("/v1/reconciliations/latest")).json()
        assert latest["holes"] == run["holes"]


@on_one_redis
@pytest.mark.anyio
async def test_an_id_that_was_used_again_in_the_hole_is_listed_for_whom_it_is_now(
    settings: Settings, redis: Redis
) -> None:
    """How the first one ended nobody knows any more, as of one that Redis has forgotten: they aren't told."""
    p = Partition.of(redis)
    with persisting(settings):
        p.receive("tea", 100)
        for name in ("cart", "paid"):
            p.one(reserve(name, "tea", order_id=f"old-{name}", customer_id="ann"))
        wait_for_ledger(settings)
    dump = older_copy(settings)
    with persisting(settings):
        for name in ("cart", "paid"):
            assert p.one(confirm(name)).status == "confirmed"
        redis.delete(
            keys.reservation(0, "cart"), keys.reservation(0, "paid")
        )  # the end of the retention
        p.one(reserve("cart", ("tea", 3), order_id="new", customer_id="bob"))
        trim(p, settings)
    adopt(dump)
    check_clean(dump)
    async with in_process(dump) as client:
        await until_ready(client)
        kept = (await client.get("/v1/reservations/cart")).json()
        for asked, listed in [("ann", []), ("bob", [kept])]:
            answer = await client.get("/v1/reservations", params={"customer_id": asked})
            assert answer.json()["reservations"] == listed


def test_given_nothing_is_missing_then_it_says_so_and_changes_nothing(
    settings: Settings, redis: Redis
) -> None:
    p = Partition.of(redis)
    with persisting(settings):
        begin(p)
        wait_for_ledger(settings)
    change_much(p)  # it waits in the outbox
    before = p.dump()
    for options in ((), ("--dry-run",)):
        assert "nothing is missing" in adopt(settings, *options)
    assert p.dump() == before
    with persisting(settings):
        wait_for_ledger(settings)
    check_clean(settings)


def test_given_a_persister_at_work_then_nothing_is_adopted(
    lost: tuple[Settings, Partition],
) -> None:
    settings, p = lost
    holder = psycopg.connect(settings.postgres_url)
    with holder, database.connect(settings.postgres_url) as connection:
        assert Ledger(connection, 0).lease()
        before = p.dump()
        assert "a persister is at work" in adopt(settings, code=2)
    assert p.dump() == before


def lose(p: Partition, *numbers: int) -> None:
    """Entries of the outbox are gone."""
    entries = [entry_id for entry_id, _ in p.redis.xrange(keys.outbox(0))]
    assert p.redis.xdel(keys.outbox(0), *[entries[number] for number in numbers]) == len(numbers)


@pytest.mark.parametrize("numbers", [(0, 1), (2,), (3, 4), (-1,), (-2, -1), (1, 5)])
@on_one_redis
def test_given_entries_that_were_lost_then_the_others_are_read_and_only_those_are_a_hole(
    settings: Settings, redis: Redis, numbers: tuple[int, ...]
) -> None:
    p = Partition.of(redis)
    with persisting(settings):
        begin(p)
        wait_for_ledger(settings)
    first = p.seq() + 1
    change_much(p)
    last = p.seq()
    lose(p, *numbers)
    missing = {first + number if number >= 0 else last + 1 + number for number in numbers}
    adopt(settings)
    with database.connect(settings.postgres_url) as connection:
        holes = audit(connection).holes
    assert {seq for hole in holes for seq in range(hole.from_seq, hole.to_seq + 1)} == missing
    kept = {event["seq"] for event in story(settings) if event["seq"] <= last}
    assert kept == set(range(1, last + 1)) - missing
    (told,) = [event["hole"] for event in story(settings) if "hole" in event]
    assert told == {"from": min(missing), "to": max(missing)}
    check_clean(settings)


@on_one_redis
def test_given_a_new_ledger_then_it_takes_over_all_that_redis_has(
    settings: Settings, lost: tuple[Settings, Partition]
) -> None:
    _, p = lost
    base, name = settings.postgres_url.rsplit("/", 1)
    with psycopg.connect(f"{base}/postgres", autocommit=True) as admin:
        admin.execute(f"DROP DATABASE IF EXISTS {name}_new WITH (FORCE)")
        admin.execute(f"CREATE DATABASE {name}_new")
    new = msgspec.structs.replace(settings, postgres_url=f"{base}/{name}_new")
    seq = p.seq()
    adopt(new)
    check_clean(new)
    with database.connect(new.postgres_url) as connection:
        assert [(h.from_seq, h.to_seq) for h in audit(connection).holes] == [(1, seq)]
    with persisting(new):
        assert p.one(confirm("two")).status == "confirmed"
        wait_for_ledger(new)
    check_clean(new)


@on_one_redis
def test_given_much_then_it_is_told_in_bounded_events(settings: Settings, redis: Redis) -> None:
    p = Partition.of(redis)
    with persisting(settings):
        p.receive("tea", 100_000)
        wait_for_ledger(settings)
    dump = older_copy(settings)
    with persisting(settings):
        for first in range(0, 2_600, 500):
            numbers = range(first, min(first + 500, 2_600))
            p.send(*[move("receive", f"sku-{n}", 2, movement_id=f"in-{n}") for n in numbers])
            p.send(*[reserve(f"r-{n}", "tea") for n in numbers[::2]])
        cart = [line(f"sku-{n}") for n in range(1_500)]
        p.hold("cart", *cart)
        trim(p, settings)
    adopt(dump)
    check_clean(dump)
    adopts = [event for event in story(dump) if event["type"] == "adopt"]
    assert max(len(event.get("lines", ())) for event in adopts) <= 2_000
    assert len([event for event in adopts if "reservation_id" in event]) == 1_301
    assert all(
        len(e.get("lines", ())) == 1 for e in adopts if e.get("reservation_id", "")[:2] == "r-"
    )


@on_one_redis
def test_given_records_that_cannot_be_read_then_they_are_left_and_told(
    lost: tuple[Settings, Partition],
) -> None:
    settings, p = lost
    broken = keys.reservation(0, "new")
    p.redis.set(broken, b"junk")
    p.redis.hset(keys.stock(0, "pot", "X"), "held", "many")
    assert "2 records of Redis can't be read" in adopt(settings)
    assert p.redis.get(broken) == b"junk"
    done = holdfast("reconcile", environ=environment(settings))
    assert done.returncode == 1 and "pot" in done.stdout


class Killed(BaseException):
    """As kill -9 does it: nothing is put in order."""


STEPS = [
    (Holes, "begin"),
    (Ledger, "write"),
    (Holes, "note"),
    (Openings, "note"),
    (Scripts, "call_sync"),
    (Holes, "end"),
]


@pytest.mark.parametrize("loses", [False, True])
@on_one_redis
def test_given_it_is_killed_anywhere_then_the_next_one_goes_on(
    lost: tuple[Settings, Partition], monkeypatch: pytest.MonkeyPatch, loses: bool
) -> None:
    """After each step of it; ``loses``: and Redis is restarted then, as it was before that call."""
    settings, p = lost
    seq, data = p.seq(), snapshot(p.redis)
    killed_at: list[str] = []
    for number in itertools.count(1):
        again = older_copy(settings)
        put_back(p.redis, data)
        count = 0

        def kill_after(of: Any, name: str, number: int = number) -> None:
            step = getattr(of, name)

            def stepped(*args: Any, **more: Any) -> Any:
                nonlocal count
                answer = step(*args, **more)
                count += 1
                if count == number:
                    killed_at.append(name)
                    raise Killed
                return answer

            monkeypatch.setattr(of, name, stepped)

        with monkeypatch.context():
            for of, name in STEPS:
                kill_after(of, name)
            try:
                take_over(again, by="kim", reason="the disk died")
            except Killed:
                is_over = False
            else:
                is_over = True
            monkeypatch.undo()
        if loses and not is_over:
            put_back(p.redis, data)
        if killed_at[-1:] == ["note"] and is_adopting(again):
            check_waits(again)
        take_over(again, by="kim", reason="the disk died")
        with persisting(again):  # it opens what was taken over, where it was killed just before
            wait_for_ledger(again)
        check_clean(again)
        assert p.seq() > seq
        with database.connect(again.postgres_url) as connection:
            assert [hole.to_seq for hole in audit(connection).holes] == [seq]
        told_holes = [event for event in story(again) if "hole" in event]
        assert [event["hole"]["to"] for event in told_holes] == [seq], killed_at
        if is_over:
            break
    assert {name for _, name in STEPS} - {"write"} <= set(killed_at)


def is_adopting(settings: Settings) -> bool:
    with database.connect(settings.postgres_url) as connection:
        return Holes(connection, 0).adoption() is not None


def check_waits(settings: Settings) -> None:
    """No persister opens what is not taken over wholly."""

    def stopped() -> str:
        return rows(settings.postgres_url, "SELECT coalesce(stopped, '') FROM positions")[0][0]

    with persisting(settings, until_open=False):
        assert "was not finished" in eventually("it says why", stopped)
        assert not is_open(settings.redis_url)


@on_one_redis
def test_given_the_end_of_the_outbox_cannot_be_read_then_it_is_kept_and_taken_over(
    settings: Settings, redis: Redis
) -> None:
    """Its epoch is one that the ledger has no event of: no place of the ledger's is behind it."""
    p = Partition.of(redis)
    with persisting(settings):
        begin(p)
        wait_for_ledger(settings)
    redis.hset(keys.head(0), "run_id", "")
    open_now(redis)
    change_much(p)
    lose(p, *range(redis.xlen(keys.outbox(0))))
    epoch, first = p.head()["epoch"], p.seq() + 1
    places = [f"{epoch}-{seq}" for seq in range(first, first + 650)]  # more than one read brings
    for place in places:
        redis.xadd(keys.outbox(0), {"events": b"\xc1"}, id=place)
    redis.hset(keys.head(0), "seq", first + 649)
    assert "missing for good" in adopt(settings)
    check_clean(settings)
    query = "SELECT place, raw FROM quarantine ORDER BY quarantine_id"
    assert rows(settings.postgres_url, query) == [(place, b"\xc1") for place in places]
