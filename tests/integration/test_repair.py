"""Corruption of every kind is found, named, and nothing else; what can be repaired is, by events."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec
import psycopg
import pytest
from kit import Partition, confirm, extend, release, reserve
from redis import Redis
from running import persisting, rows, wait_for_ledger

from engine import keys
from engine.errors import LedgerError
from engine.reservations import check_of, read_record, seal_of
from engine.settings import Settings
from engine.statuses import Status
from persister import database
from persister.audit import audit
from persister.differences import Kind, Report
from persister.persister import connect_redis
from persister.repair import only_repair, repair
from persister.runs import run

SKUS = ("tea", "mug", "cup")
TEA = keys.stock(0, "tea", "X")
R1 = keys.reservation(0, "r1")


def check(settings: Settings, wait_s: float = 20.0, **options: Any) -> Report:
    with (
        connect_redis(settings.redis_url) as redis,
        database.connect(settings.postgres_url) as connection,
    ):
        return run(redis, connection, trigger="test", retention_ms=60_000, wait_s=wait_s, **options)


@pytest.fixture
def filled(settings: Settings, redis: Redis) -> Settings:
    """Both sides agree on three skus and a few reservations; nobody works on them now."""
    with persisting(settings):
        shop = Partition(redis)
        for sku in SKUS:
            shop.receive(sku, 100)
        shop.hold("r1", ("tea", 5), ("mug", 2))
        shop.hold("r2", ("tea", 3))
        shop.one(reserve("r3", ("mug", 4), ("cup", 1), customer_id="ann"))
        shop.hold("gone", ("tea", 7))
        shop.one(confirm("r1", ("tea", 2), request_id="p"))
        shop.one(extend("r2", 3_600_000))
        shop.one(release("gone"))
        wait_for_ledger(settings)
    assert check(settings).clean
    return settings


def rewrite(redis: Redis, name: str, old: bytes = b"", new: bytes = b"", **fields: object) -> None:
    """Change a reservation in Redis as somebody could who knows the checksums."""
    value = redis.get(keys.reservation(0, name))
    assert not old or value.count(old) == 1
    changed = msgspec.structs.replace(read_record(value.replace(old, new)), **fields)
    numbers = (changed.state, changed.created_ms, changed.deadline_ms, changed.seq, changed.parts)
    body = msgspec.to_builtins(changed.body)
    kept = (*numbers, check_of(*numbers), seal_of(msgspec.msgpack.encode(body)), body)
    redis.set(keys.reservation(0, name), b"".join(msgspec.msgpack.encode(value) for value in kept))


def _orphan(redis: Redis, _: Any) -> None:
    redis.set(keys.reservation(0, "ghost"), redis.get(R1))


def _ledger_lost(redis: Redis, ledger: psycopg.Connection[Any]) -> None:
    """An outbox trimmed of an event that the ledger never got: a reservation's end."""
    shop = Partition(redis)
    assert shop.one(release("r3")).status is Status.RELEASED
    ledger.execute("UPDATE positions SET epoch = %s, seq = %s", [shop.head()["epoch"], shop.seq()])
    redis.xtrim(keys.outbox(0), maxlen=0)


Plant = Callable[[Redis, Any], object]
Found = set[tuple[Kind, str, str | None]]
#: Kinds with sku and reservation, what was planted, and is it repaired?
PLANTED: dict[str, tuple[Found, Plant, bool]] = {
    "on_hand in Redis": (
        {(Kind.COUNTER_DRIFT, "tea", None)}, lambda r, _: r.hincrby(TEA, "on_hand", 3), True),
    "on_hand in Redis, by far": (
        {(Kind.COUNTER_DRIFT, "tea", None)},
        lambda r, _: r.hincrby(TEA, "on_hand", -30_000_000_000), True),
    "quarantined in Redis": (
        {(Kind.COUNTER_DRIFT, "tea", None)}, lambda r, _: r.hincrby(TEA, "quarantined", 1), True),
    "held in Redis": (
        {(Kind.LEAKED_HOLD, "tea", None)}, lambda r, _: r.hincrby(TEA, "held", -2), True),
    "a record that can't be read": (
        {(Kind.MISSING_IN_REDIS, "tea", None)}, lambda r, _: r.hset(TEA, "on_hand", "many"), True),
    "a record gone": ({(Kind.MISSING_IN_REDIS, "tea", None)}, lambda r, _: r.delete(TEA), True),
    "a record of another type": (
        {(Kind.MISSING_IN_REDIS, "tea", None)},
        lambda r, _: (r.delete(TEA), r.lpush(TEA, "x")), True),
    "a record the ledger never knew": (
        {(Kind.MISSING_IN_LEDGER, "new", None)},
        lambda r, _: r.hset(keys.stock(0, "new", "X"), mapping={
            "on_hand": 9, "held": 1, "quarantined": 0, "safety_stock": 0, "seq": 1}), True),
    "a reservation gone": ({(Kind.MISSING_IN_REDIS, "", "r1")}, lambda r, _: r.delete(R1), True),
    "a reservation that can't be read": (
        {(Kind.MISSING_IN_REDIS, "", "r1")}, lambda r, _: r.setrange(R1, 3, "?"), True),
    "a reservation of another type": (
        {(Kind.MISSING_IN_REDIS, "", "r1")},
        lambda r, _: (r.delete(R1), r.lpush(R1, "x")), True),
    "a hold the ledger never knew": ({(Kind.ORPHAN_RESERVATION, "", "ghost")}, _orphan, True),
    "another order in Redis": (
        {(Kind.COUNTER_DRIFT, "", "r2")},
        lambda r, _: rewrite(r, "r2", b"order-r2", b"order-XX"), True),
    "another customer in Redis": (
        {(Kind.COUNTER_DRIFT, "", "r3")}, lambda r, _: rewrite(r, "r3", b"\xa3ann", b"\xa3bob"),
        True),
    "no customer in Redis": (
        {(Kind.COUNTER_DRIFT, "", "r3")}, lambda r, _: rewrite(r, "r3", b"\xa3ann", b"\xa0"),
        True),
    "another deadline in Redis": (
        {(Kind.COUNTER_DRIFT, "", "r2")}, lambda r, _: rewrite(r, "r2", deadline_ms=100), True),
    "another creation in Redis": (
        {(Kind.COUNTER_DRIFT, "", "r2")}, lambda r, _: rewrite(r, "r2", created_ms=100), True),
    "other parts in Redis": (
        {(Kind.COUNTER_DRIFT, "", "r1")}, lambda r, _: rewrite(r, "r1", parts=[1, 1, 0, 0]), True),
    "no parts in Redis": (
        {(Kind.COUNTER_DRIFT, "", "r1")}, lambda r, _: rewrite(r, "r1", parts=None), True),
    "another fingerprint in Redis": (
        {(Kind.COUNTER_DRIFT, "", "r2")},
        lambda r, _: rewrite(r, "r2", b"\xa0\xa0\x93", b"\xa0\xa1f\x93"), True),
    "another order under the same fingerprint": (
        {(Kind.COUNTER_DRIFT, "", "r3")},
        lambda r, _: rewrite(r, "r3", b"order-r3", b"order-XX"), True),
    "another quantity under the same fingerprint": (
        {(Kind.COUNTER_DRIFT, "", "r3")},
        lambda r, _: rewrite(r, "r3", b"\xa3mug\xa1X\x04", b"\xa3mug\xa1X\x05"), True),
    "an earlier state in Redis": (
        {(Kind.COUNTER_DRIFT, "", "r1")}, lambda r, _: rewrite(r, "r1", seq=1, parts=None), True),
    "an earlier record in Redis": (
        {(Kind.LEAKED_HOLD, "tea", None)},
        lambda r, _: r.hset(TEA, mapping={"held": 13, "seq": int(r.hget(TEA, "seq")) - 1}), True),
    "another quantity in Redis": (
        {(Kind.COUNTER_DRIFT, "", "r2")},
        lambda r, _: rewrite(r, "r2", b"\xa3tea\xa1X\x03", b"\xa3tea\xa1X\x04"), True),
    "a balance": (
        {(Kind.LEAKED_HOLD, "tea", None)},
        lambda _, p: p.execute("UPDATE balances SET held = held + 1 WHERE sku = 'tea'"), False),
    "on_hand of a balance": (
        {(Kind.COUNTER_DRIFT, "tea", None)},
        lambda _, p: p.execute("UPDATE balances SET on_hand = 0 WHERE sku = 'tea'"), False),
    "a balance gone": (
        {(Kind.MISSING_IN_LEDGER, "cup", None)},
        lambda _, p: p.execute("DELETE FROM balances WHERE sku = 'cup'"), False),
    "held on both sides": (
        {(Kind.LEAKED_HOLD, "tea", None)},
        lambda r, p: (r.hincrby(TEA, "held", 1),
                      p.execute("UPDATE balances SET held = held + 1 WHERE sku = 'tea'")), False),
    "a live row gone": (
        {(Kind.ORPHAN_RESERVATION, "", "r1")},
        lambda _, p: p.execute("DELETE FROM live_reservations WHERE reservation_id = 'r1'"), False),
    "a live row and its key gone": (
        {(Kind.LEAKED_HOLD, "tea", None)},
        lambda r, p: (r.delete(keys.reservation(0, "r2")), p.execute(
            "DELETE FROM live_reservations WHERE reservation_id = 'r2'")), False),
    "a live row with another quantity": (
        {(Kind.COUNTER_DRIFT, "", "r2")},
        lambda _, p: p.execute("UPDATE live_reservations SET lines = '[[\"tea\",\"X\",9,0,0]]'"
                               " WHERE reservation_id = 'r2'"), False),
    "a live row with another deadline": (
        {(Kind.COUNTER_DRIFT, "", "r2")},
        lambda _, p: p.execute("UPDATE live_reservations SET deadline_ms = 100"
                               " WHERE reservation_id = 'r2'"), False),
    "a live row that nobody made": (
        {(Kind.MISSING_IN_REDIS, "", "zz")},
        lambda _, p: p.execute("INSERT INTO live_reservations SELECT partition, 'zz', order_id,"
                               " customer_id, fingerprint, created_ms, deadline_ms, seq, lines"
                               " FROM live_reservations WHERE reservation_id = 'r2'"), False),
    "an end lost on the way": (
        {(Kind.MISSING_IN_LEDGER, "", "r3"), (Kind.MISSING_IN_LEDGER, "mug", None),
         (Kind.MISSING_IN_LEDGER, "cup", None)}, _ledger_lost, False),
    "a value that can't be read": (
        {(Kind.ORPHAN_RESERVATION, "", "junk")},
        lambda r, _: r.set(keys.reservation(0, "junk"), "junk"), False),
    "a key that no script makes": (
        {(Kind.MISSING_IN_LEDGER, "hf:{0}:stock:x", None)},
        lambda r, _: r.set("hf:{0}:stock:x", "x"), False),
}  # fmt: skip


def found_in(report: Report) -> Found:
    assert all(d.detail for d in report.differences)
    return {(d.kind, d.sku, d.reservation_id) for d in report.differences}


@pytest.mark.parametrize(("expected", "plant", "mended"), PLANTED.values(), ids=PLANTED)
def test_what_was_planted_is_found_and_named_and_repaired_by_events(
    filled: Settings, redis: Redis, expected: Found, plant: Plant, mended: bool
) -> None:
    with psycopg.connect(filled.postgres_url) as ledger:
        plant(redis, ledger)
    report = check(filled, wait_s=2)
    assert found_in(report) == expected
    assert len(report.differences) == len(expected)
    before = Partition.dump(_look(redis))
    dry = check(filled, wait_s=2, dry_run=True)
    assert found_in(dry) == expected and len(dry.repaired) == len(expected)
    assert Partition.dump(_look(redis)) == before
    if not mended:
        with persisting(filled):
            after = check(filled, wait_s=2, repair_by="Ada")
        assert not after.clean and found_in(after) <= expected
        assert not any(d.repairable for d in after.differences)
        return
    with persisting(filled):
        after = check(filled, repair_by="Ada")
    assert after.clean, after
    assert after.repaired and all(r.event for r in after.repaired)
    with database.connect(filled.postgres_url) as connection:
        assert audit(connection).clean
    for sku, *numbers in rows(
        filled.postgres_url, "SELECT sku, on_hand, held, quarantined, seq FROM balances"
    ):
        names = ("on_hand", "held", "quarantined", "seq")
        assert [int(n) for n in redis.hmget(keys.stock(0, sku, "X"), names)] == numbers
    told = rows(filled.postgres_url, "SELECT reason FROM movements WHERE type = 'repair'")
    assert all(
        re.search(r"found by reconciliation \d+, repaired by Ada$", reason) for (reason,) in told
    )
    kept = rows(
        filled.postgres_url, "SELECT repaired_by FROM reconciliations WHERE trigger = 'test'"
    )
    assert [name for (name,) in kept if name] == ["Ada"]


def _look(redis: Redis) -> Partition:
    """Partition 0 without opening it anew."""
    shop = Partition.__new__(Partition)
    shop.redis = redis
    return shop


def test_a_reservation_given_back_is_told_as_released(filled: Settings, redis: Redis) -> None:
    redis.delete(R1)
    with persisting(filled):
        assert check(filled, repair_by="Ada").clean
        shop = Partition(redis)
        late = shop.one(confirm("r1"))
        assert late.status is Status.ALREADY_RELEASED
        assert late.reservation is not None
        assert [(x.quantity, x.confirmed, x.released) for x in late.reservation.lines] == [
            (5, 2, 3), (2, 0, 2)
        ]  # fmt: skip
        assert shop.numbers("tea")[:3] == (98, 3, 0)
    assert 0 < redis.pttl(R1) <= 60_000


def test_what_changed_since_it_was_found_is_left_as_it_is(filled: Settings, redis: Redis) -> None:
    """The ledger does not know of it yet: what it has would be an older state."""
    rewrite(redis, "r2", b"order-r2", b"order-XX")
    found = check(filled).differences
    assert [d.reservation_id for d in found] == ["r2"]
    shop = Partition.of(redis)
    extended = shop.one(extend("r2", 7_200_000))
    assert extended.status is Status.EXTENDED
    before = shop.dump()
    with database.connect(filled.postgres_url) as connection, only_repair(connection, 0):
        (outcome,) = repair(
            redis, connection, 0, found, found_by="test", retention_ms=60_000, wait_s=0.1
        )
    assert (outcome.event, "changed meanwhile" in outcome.outcome) == (None, True)
    assert shop.dump() == before


def test_two_repairs_at_once_are_refused(filled: Settings) -> None:
    with (
        database.connect(filled.postgres_url) as connection,
        only_repair(connection, 0),
        pytest.raises(LedgerError, match="another repair"),
    ):
        check(filled, repair_by="Ada")
    assert check(filled, repair_by="Ada").clean
