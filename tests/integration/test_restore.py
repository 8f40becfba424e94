"""An empty Redis rebuilt from the ledger: field by field what it was, and nothing sold twice."""

from __future__ import annotations

import json
from collections.abc import Iterator

import msgspec
import psycopg
import pytest
from kafka_kit import relaying, through_kafka
from kit import EXPIRED, HELD, RELEASED, Partition, confirm, extend, move, release, reserve
from redis import Redis
from running import (
    all_acknowledged,
    check_clean,
    environment,
    eventually,
    holdfast,
    is_open,
    on_one_redis,
    persisting,
    rows,
    wait_for_ledger,
)

from engine import keys
from engine.errors import LedgerError, StoreError
from engine.events import DISCARD, Event
from engine.reservations import read_record
from engine.settings import Settings
from persister import database, ledger
from persister import restore as restoring
from persister.ledger import Ledger
from persister.persister import connect_redis
from persister.restore import restore
from persister.runs import run

DAY_MS = 86_400_000
HEAD = keys.head(0)


@pytest.fixture
def into(settings: Settings) -> Iterator[str]:
    """The URL of another, empty database of the same server."""
    url = settings.redis_url.removesuffix("/0") + "/1"
    yield url
    with connect_redis(url) as redis:
        redis.flushdb()


def sell(p: Partition, name: str) -> None:
    """A bit of everything; ids begin with the name. Held at its end: -c (in part), -d, -f."""
    p.one(move("receive", "tea", 50, movement_id=f"{name}-in"))
    p.one(move("receive", "tea", 9, "Y", movement_id=f"{name}-in-y"))
    p.one(move("return", "mug", 3, movement_id=f"{name}-back"))
    p.one(move("inspect_pass", "mug", 2, movement_id=f"{name}-good"))
    p.one(move("transfer", "tea", 4, to_location="Z", movement_id=f"{name}-to-z"))
    p.one(move("count", "cup", 7, movement_id=f"{name}-count"))
    for each in ("a", "b", "c", "d", "e", "f"):
        p.hold(f"{name}-{each}", ("tea", 2), ("tea", 1, None), ttl_ms=60_000)
    p.hold(f"{name}-split", ("tea", 30, None), ttl_ms=60_000)
    p.one(confirm(f"{name}-a"))
    p.one(release(f"{name}-b", ("tea", 1), request_id="left"))
    p.one(release(f"{name}-b"))
    p.one(confirm(f"{name}-c", ("tea", 1, "X"), request_id="parcel"))
    for each in ("c", "d", "f"):
        p.one(extend(f"{name}-{each}", 3_600_000))
    p.make_due(f"{name}-split")  # the last to be held: no other deadline of a minute is later
    p.expire()


def contents(redis: Redis) -> tuple[dict[str, bytes], dict[str, int]]:
    """Every key but head, outbox and deadline lists: its bytes, and what is left of its time in ms."""
    others = (HEAD, keys.outbox(0), keys.deadlines(0), keys.due(0, 0)[:-1])
    names = [name.decode() for name in redis.scan_iter(count=1000)]
    kept = [name for name in names if not name.startswith(others)]
    return {n: redis.dump(n) for n in kept}, {n: redis.pttl(n) for n in kept}


def deadlines(redis: Redis) -> dict[int, set[str]]:
    """The live reservations on the list of their own deadline; others there are left behind."""
    found: dict[int, set[str]] = {}
    for name in redis.zrange(keys.deadlines(0), 0, -1):
        for each in redis.lrange(keys.due(0, int(name)), 0, -1):
            value = redis.get(keys.reservation(0, each.decode()))
            record = None if value is None else read_record(value)
            if record and (record.state, record.deadline_ms) == (HELD, int(name)):
                found.setdefault(int(name), set()).add(each.decode())
    return found


@pytest.fixture
def sold(settings: Settings, redis: Redis) -> Partition:
    """A sale that is in the ledger; no persister is at work."""
    with persisting(settings):
        p = Partition(redis)
        sell(p, "s")
        wait_for_ledger(settings)
    return p


def test_given_a_ledger_then_the_restored_redis_is_the_original_field_by_field(
    settings: Settings, sold: Partition, into: str
) -> None:
    restored = restore(settings, into)
    with connect_redis(into) as redis:
        original, original_ttl = contents(sold.redis)
        copy, copy_ttl = contents(redis)
        assert copy == original
        for name, ttl_ms in original_ttl.items():
            assert (ttl_ms < 0) == (copy_ttl[name] < 0), name
            assert abs(copy_ttl[name] - ttl_ms) < 120_000, name  # clocks differ by what was moved
        assert deadlines(redis) == deadlines(sold.redis) != {}
        head = {k.decode(): v.decode() for k, v in redis.hgetall(HEAD).items()}
        assert (int(head["epoch"]), head["seq"]) == (int(sold.head()["epoch"]) + 1, str(sold.seq()))
        assert "restoring" not in head and head["trimmed_seq"] == head["seq"]
        assert (restored.epoch, restored.seq) == (int(head["epoch"]), sold.seq())
        assert restored.live_reservations == 3
        assert is_open(into)


def test_given_a_restored_redis_then_selling_goes_on_and_a_retry_takes_nothing_twice(
    settings: Settings, sold: Partition, into: str
) -> None:
    restore(settings, into)
    after = msgspec.structs.replace(settings, redis_url=into)
    with connect_redis(into) as redis, persisting(after):
        p = Partition(redis)
        for each, status in (
            ("s-a", "already_reserved"),
            ("s-b", "already_released"),
            ("s-d", "already_reserved"),
            ("s-e", "reservation_expired"),
        ):
            again = reserve(each, ("tea", 2), ("tea", 1, None))
            assert p.one(again).status == status
        assert p.one(move("receive", "tea", 50, movement_id="s-in")).status == "already_applied"
        assert p.one(confirm("s-c", ("tea", 1, "X"), request_id="parcel")).replayed
        assert p.one(release("s-b", ("tea", 1), request_id="left")).replayed
        assert p.one(confirm("s-f")).status == "confirmed"
        p.make_due("s-d")
        assert p.expire()[1] >= 2
        p.hold("new", ("tea", 1))
        wait_for_ledger(after)
    check_clean(after)


def test_given_a_long_history_then_only_what_is_still_remembered_is_replayed(
    settings: Settings, redis: Redis, into: str
) -> None:
    """Stock is as it was all the same; a reservation that was live all the time comes back too."""
    with persisting(settings):
        p = Partition(redis)
        sell(p, "old")
        p.make_all_due()
        while p.expire()[1]:
            continue
        before = p.seq()
        p.set_clock(int(p.head()["last_ms"]) + 10 * DAY_MS)
        sell(p, "new")
        wait_for_ledger(settings)
    assert restore(settings, into).events_replayed == p.seq() - before
    with connect_redis(into) as other:
        original, _ = contents(redis)
        copy, _ = contents(other)
        assert copy.items() <= original.items()
        forgotten = original.keys() - copy.keys()
        assert forgotten and all(":old-" in name for name in forgotten)
        assert not any(":old-" in name for name in copy)


def test_given_repairs_and_a_discarded_event_in_the_ledger_then_they_are_restored_too(
    settings: Settings, sold: Partition, into: str
) -> None:
    """A drift, a record and reservations that were gone, one that was changed, and an event that nobody
    could read."""
    p, redis = sold, sold.redis
    for each in ("gone", "changed", "parted"):
        p.hold(each, ("tea", 1), ("cup", 1))
    p.one(confirm("parted", ("tea", 1, "X"), request_id="first"))
    with persisting(settings):
        wait_for_ledger(settings)
    changed = keys.reservation(0, "changed")
    before = redis.get(changed)
    p.one(extend("changed", 3_600_000))
    redis.set(changed, before)
    redis.hincrby(keys.stock(0, "mug", "X"), "on_hand", 3)
    redis.delete(keys.stock(0, "tea", "Y"), *(keys.reservation(0, i) for i in ("gone", "parted")))
    with persisting(settings):
        wait_for_ledger(settings)
        with database.connect(settings.postgres_url) as connection:
            mended = run(redis, connection, trigger="test", repair_by="Ada", retention_ms=DAY_MS)
        assert mended.clean, mended.differences
        assert {each.event is not None for each in mended.repaired} == {True}
        assert len(mended.repaired) == 6
        wait_for_ledger(settings)
    with database.connect(settings.postgres_url) as connection:
        ledger = Ledger(connection, 0)
        epoch, seq = ledger.position().epoch, ledger.position().seq
        discard = Event(
            version=1,
            partition=0,
            epoch=epoch,
            seq=seq + 1,
            type=DISCARD,
            at_ms=int(p.head()["last_ms"]),
            reason="discarded by the test",
        )
        ledger.write([discard])
    assert restore(settings, into).seq == seq + 1
    with connect_redis(into) as other:
        assert contents(other)[0] == contents(redis)[0]
        assert deadlines(other) == deadlines(redis) != {}


@on_one_redis
@pytest.mark.parametrize(
    ("ttl_ms", "hours", "remembered"),
    [
        (900_000, 20, {"s-a", "left"}),
        (900_000, 50, {"left"}),
        (900_000, 54, set()),
        (DAY_MS, 70, {"left"}),
        (DAY_MS, 74, set()),
    ],
)
def test_what_is_remembered_of_a_reservation_that_ended_hours_ago(
    settings: Settings, redis: Redis, into: str, ttl_ms: int, hours: int, remembered: set[str]
) -> None:
    """The reservation for 24 h, a part's request id until 48 h after its latest possible end: 4 h after it
    was made, or its deadline where that is later."""
    with persisting(settings):
        p = Partition(redis)
        p.receive("tea", 9)
        for each in ("s-a", "s-b"):
            p.hold(each, ("tea", 2), ttl_ms=ttl_ms)
            p.one(confirm(each, ("tea", 1), request_id="left"))
            p.one(release(each))
        p.set_clock(int(p.head()["last_ms"]) + hours * 3_600_000)
        p.receive("mug", 1)
        wait_for_ledger(settings)
    restore(settings, into)
    with connect_redis(into) as other:
        found = {name.decode().split(":")[-1] for name in other.scan_iter("hf:{0}:re*:s-a*")}
        found |= {name.decode().split(":")[-1] for name in other.scan_iter("hf:{0}:request:part:*")}
    assert found == remembered


@pytest.mark.parametrize("ended", [None, "expire", "repair"])
def test_given_a_reservation_from_before_then_the_replay_begins_with_it(
    settings: Settings, redis: Redis, into: str, ended: str | None
) -> None:
    """Still held, or ended since: in both cases a repeat may still come."""
    with persisting(settings):
        p = Partition(redis)
        p.receive("tea", 100)
        for name in ("gone", "early"):
            before = p.seq()
            p.set_clock(int(p.head()["last_ms"]) + 1_000)
            p.hold(name, ("tea", 2))
            p.one(confirm(name, ("tea", 1), request_id="parcel"))
            if name == "gone":
                p.one(release(name))
        p.set_clock(int(p.head()["last_ms"]) + 10 * DAY_MS)
        p.receive("mug", 1)
        if ended == "expire":
            p.expire()
        elif ended == "repair":
            redis.delete(keys.reservation(0, "early"))
            with database.connect(settings.postgres_url) as connection:
                run(redis, connection, trigger="test", repair_by="kim", retention_ms=DAY_MS)
        wait_for_ledger(settings)
    restored = restore(settings, into)
    assert restored.events_replayed == p.seq() - before
    with connect_redis(into) as other:
        original, copy = contents(redis)[0], contents(other)[0]
        name = keys.reservation(0, "early")
        assert copy[name] == original[name]
        assert read_record(redis.get(name)).state == {None: HELD, "repair": RELEASED}.get(
            ended, EXPIRED
        )
        assert keys.reservation(0, "gone") not in copy
        assert copy[keys.stock(0, "tea", "X")] == original[keys.stock(0, "tea", "X")]


@on_one_redis
def test_given_a_redis_that_is_not_empty_then_it_is_refused_and_left_alone(
    settings: Settings, sold: Partition
) -> None:
    before = sold.dump()
    with pytest.raises(StoreError, match="keys; nothing was changed"):
        restore(settings, settings.redis_url)
    assert sold.dump() == before


@on_one_redis
def test_given_a_persister_at_work_then_it_is_refused(
    settings: Settings, sold: Partition, into: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "LEASE_PATIENCE_S", 0.2)
    with persisting(settings):
        sold.receive("tea", 1)
        wait_for_ledger(settings)
        with pytest.raises(LedgerError, match="a persister is at work"):
            restore(settings, into)
    with connect_redis(into) as redis:
        assert redis.dbsize() == 0


@on_one_redis
def test_given_an_empty_ledger_then_there_is_nothing_to_restore(
    settings: Settings, into: str
) -> None:
    with pytest.raises(LedgerError, match="nothing to restore"):
        restore(settings, into)


@on_one_redis
def test_given_a_kill_on_the_way_then_nobody_opens_what_is_there_and_the_next_try_works(
    settings: Settings, sold: Partition, into: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(self: object) -> int:
        raise RuntimeError("killed")

    monkeypatch.setattr(restoring._Restore, "_write_deadlines", die)
    with pytest.raises(RuntimeError, match="killed"):
        restore(settings, into)
    monkeypatch.undo()
    other = msgspec.structs.replace(settings, redis_url=into)
    with persisting(other, until_open=False):
        query = "SELECT stopped FROM positions"
        word = eventually("it is said", lambda: rows(settings.postgres_url, query)[0][0])
        assert "a restore into this Redis was not finished" in word
    assert not is_open(into)
    with pytest.raises(StoreError, match="is not empty"):
        restore(settings, into)
    with connect_redis(into) as redis:
        redis.flushdb()
    restore(settings, into)
    assert is_open(into)


@on_one_redis
def test_given_a_ledger_that_does_not_agree_with_itself_then_nothing_is_opened(
    settings: Settings, sold: Partition, into: str
) -> None:
    with psycopg.connect(settings.postgres_url) as connection:
        change = "UPDATE live_reservations SET reservation_id = %s WHERE reservation_id = 's-d'"
        connection.execute(change, ["nobody"])
    with pytest.raises(LedgerError, match="live reservation nobody is not what its events tell"):
        restore(settings, into)
    assert not is_open(into)
    with psycopg.connect(settings.postgres_url) as connection:
        connection.execute(change.replace("'s-d'", "'nobody'"), ["s-d"])
        connection.execute("UPDATE balances SET seq = seq - 1 WHERE sku = 'mug'")
    with connect_redis(into) as redis:
        redis.flushdb()
    with pytest.raises(LedgerError, match="mug at X became"):
        restore(settings, into)
    assert not is_open(into)


@on_one_redis
def test_given_events_in_kafka_only_then_they_are_restored_too(
    settings: Settings, redis: Redis, into: str, kafka_bootstrap: str
) -> None:
    through = through_kafka(settings, kafka_bootstrap)
    with relaying(through):
        with persisting(through):
            p = Partition(redis)
            sell(p, "s")
            wait_for_ledger(through)
        sell(p, "kafka")
        eventually("all is acknowledged", lambda: all_acknowledged(redis))
    restored = restore(through, into)
    assert restored.seq == p.seq()
    with connect_redis(into) as other:
        assert contents(other)[0] == contents(redis)[0]
        assert other.hget(HEAD, "trimmer") == b"relay"
        other.flushdb()
    assert not restored.without_kafka
    done = holdfast("restore", "--into", into, environ=environment(settings))
    assert done.returncode == 0 and "what only Kafka may have is not restored" in done.stderr


@on_one_redis
def test_on_the_command_line(settings: Settings, sold: Partition, into: str) -> None:
    environ = environment(settings)
    refused = holdfast("restore", "--into", settings.redis_url, environ=environ)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "is not empty" in refused.stderr and "Traceback" not in refused.stderr
    for wrong in ("127.0.0.1:1", "redis://127.0.0.1:1/0"):
        away = holdfast("restore", "--into", wrong, environ=environ)
        assert away.returncode == 2 and "Traceback" not in away.stderr
    done = holdfast("restore", "--into", into, "--json", environ=environ)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["seq"], told["live_reservations"]) == (sold.seq(), 3)
    assert is_open(into)
