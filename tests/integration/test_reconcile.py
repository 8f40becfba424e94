"""Reconciliation: clean while traffic runs; each planted drift is found, named rightly, alone."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx
import psycopg
import pytest
from redis import Redis
from running import (
    NO_POSTGRES,
    environment,
    holdfast,
    in_process,
    on_one_redis,
    persisting,
    wait_for_ledger,
)

from engine import keys
from engine.errors import StoreError
from engine.settings import Settings
from persister import database
from persister.persister import connect_redis
from persister.reconcile import Kind, Report, reconcile

pytestmark = pytest.mark.anyio

SKUS = [f"s{n}" for n in range(40)]
S7 = keys.stock(0, "s7", "MAIN")


def check(settings: Settings, wait_s: float = 30.0) -> Report:
    with (
        connect_redis(settings.redis_url) as redis,
        database.connect(settings.postgres_url) as connection,
    ):
        return reconcile(redis, connection, wait_s=wait_s)


def moves(kind: str = "receive", quantity: int = 1000, prefix: str = "m") -> list[dict[str, Any]]:
    return [
        {"op": "movement", "movement_id": f"{prefix}-{sku}", "type": kind, "sku": sku,
         "location": "MAIN", "quantity": quantity}
        for sku in SKUS
    ]  # fmt: skip


def traffic(chance: random.Random, number: int) -> list[dict[str, Any]]:
    """Ten reservations over some skus, most of which end in one way or another."""
    operations: list[dict[str, Any]] = []
    for n in range(10):
        name = {"reservation_id": f"r{number}-{n}"}
        lines = [{"sku": sku, "quantity": chance.randint(1, 3)} for sku in chance.sample(SKUS, 3)]
        operations.append({"op": "reserve", **name, "order_id": "o", "lines": lines})
        part = {"lines": [{**lines[0], "quantity": 1}], "request_id": "p"}
        operations += chance.choice(
            [
                [],
                [{"op": "confirm", **name}],
                [{"op": "release", **name}],
                [{"op": "confirm", **name, **part}, {"op": "release", **name}],
                [{"op": "extend", **name, "ttl_seconds": 3600}, {"op": "release", **name, **part}],
            ]
        )
    return operations


async def send(client: httpx.AsyncClient, operations: list[dict[str, Any]]) -> list[str]:
    answer = await client.post("/v1/batch", json={"operations": operations})
    return [result["code"] for result in answer.json()["results"]]


async def test_it_is_clean_while_traffic_runs(settings: Settings) -> None:
    """Eight times in a row, each with thousands of events on their way."""
    seed = random.randrange(10**6)
    print("seed", seed)
    chance = random.Random(seed)
    sent = 0

    async def load(client: httpx.AsyncClient) -> None:
        nonlocal sent
        for number in range(10**9):
            codes = await send(client, traffic(chance, number))
            assert "reserved" in codes
            sent += len(codes)
            if number % 50 == 0:
                await send(client, moves("count", 100_000_000, f"c{number}"))

    with persisting(settings):
        async with in_process(settings) as client:
            assert set(await send(client, moves(quantity=100_000))) == {"applied"}
            wait_for_ledger(settings)
            loading = asyncio.create_task(load(client))
            for _ in range(8):
                before = sent
                report = await asyncio.to_thread(check, settings)
                assert report.clean, report
                assert report.checked == len(SKUS)
                while sent < before + 300:
                    assert not loading.done(), loading.result()
                    await asyncio.sleep(0)
            loading.cancel()
            with suppress(asyncio.CancelledError):
                await loading
            wait_for_ledger(settings)
            assert check(settings).clean


@pytest.fixture
async def filled(settings: Settings) -> Settings:
    """Both sides agree on 40 skus with some history; nobody works on them now."""
    with persisting(settings):
        async with in_process(settings) as client:
            await send(client, moves())
            await send(client, traffic(random.Random(7), 0))
            wait_for_ledger(settings)
    assert check(settings).clean
    return settings


Plant = Callable[[Redis, psycopg.Connection[Any]], object]


def _lost_event(redis: Redis, ledger: psycopg.Connection[Any]) -> None:
    """As if the outbox had been trimmed of an event the ledger never got."""
    seq = redis.hincrby(keys.head(0), "seq", 1)
    redis.hset(S7, mapping={"seq": seq})
    redis.hincrby(S7, "on_hand", 1)
    ledger.execute("UPDATE positions SET seq = %s", [seq])


def _later_event_with_drift(redis: Redis, ledger: psycopg.Connection[Any]) -> None:
    """The ledger is ahead of Redis' record by an event, and differs below it."""
    ledger.execute(
        "INSERT INTO movements SELECT partition, epoch, 9999, line, type, sku, location, quantity,"
        " on_hand_delta, held_delta, quarantined_delta, NULL, NULL, NULL, NULL, NULL, occurred_at"
        " FROM movements WHERE sku = 's7' AND type = 'receive'"
    )
    ledger.execute("UPDATE balances SET on_hand = on_hand + 999, seq = 9999 WHERE sku = 's7'")


PLANTED: dict[str, tuple[Kind, Plant]] = {
    "on_hand in Redis": (Kind.COUNTER_DRIFT, lambda r, _: r.hincrby(S7, "on_hand", 1)),
    "held in Redis": (Kind.LEAKED_HOLD, lambda r, _: r.hincrby(S7, "held", -1)),
    "quarantined in Redis": (Kind.COUNTER_DRIFT, lambda r, _: r.hincrby(S7, "quarantined", 1)),
    "a balance": (
        Kind.LEAKED_HOLD,
        lambda _, p: p.execute("UPDATE balances SET held = held + 1 WHERE sku = 's7'"),
    ),
    "below a later event": (Kind.COUNTER_DRIFT, _later_event_with_drift),
    "a record that can't be read": (
        Kind.MISSING_IN_REDIS,
        lambda r, _: r.hset(S7, "on_hand", "many"),
    ),
    "a record gone": (Kind.MISSING_IN_REDIS, lambda r, _: r.delete(S7)),
    "a record of another type": (
        Kind.MISSING_IN_REDIS,
        lambda r, _: (r.delete(S7), r.set(S7, "x")),
    ),
    "a balance gone": (
        Kind.MISSING_IN_LEDGER,
        lambda _, p: p.execute("DELETE FROM balances WHERE sku = 's7'"),
    ),
    "an event lost on the way": (Kind.MISSING_IN_LEDGER, _lost_event),
    "a ledger that does not catch up": (
        Kind.LEDGER_BEHIND,
        lambda r, _: r.hset(S7, "seq", r.hincrby(keys.head(0), "seq", 1)),
    ),
}


@pytest.mark.parametrize(("kind", "plant"), PLANTED.values(), ids=PLANTED)
async def test_each_planted_drift_is_found_named_and_nothing_else(
    filled: Settings, kind: Kind, plant: Plant
) -> None:
    with connect_redis(filled.redis_url) as redis, psycopg.connect(filled.postgres_url) as ledger:
        plant(redis, ledger)
    (difference,) = check(filled, wait_s=0.5).differences
    assert (difference.kind, difference.sku, difference.location) == (kind, "s7", "MAIN")
    assert difference.detail


async def test_a_stock_key_that_no_script_makes_is_told_and_the_others_are_compared(
    filled: Settings,
) -> None:
    with connect_redis(filled.redis_url) as redis:
        redis.hset("hf:{0}:stock:foo", "on_hand", 1)
    report = check(filled)
    assert [(d.kind, d.sku) for d in report.differences] == [
        (Kind.MISSING_IN_LEDGER, "hf:{0}:stock:foo")
    ]
    assert report.checked == len(SKUS)


async def test_it_waits_for_a_ledger_that_is_behind(filled: Settings) -> None:
    async with in_process(filled) as client:
        assert await send(client, moves("damage", 1, "d")) == ["applied"] * len(SKUS)
        behind = check(filled, wait_s=0.2)
        assert {difference.kind for difference in behind.differences} == {Kind.LEDGER_BEHIND}
        assert len(behind.differences) == len(SKUS)
        waiting = asyncio.create_task(asyncio.to_thread(check, filled))
        with persisting(filled):
            assert (await waiting).clean


async def test_a_closed_partition_is_not_reconciled(filled: Settings) -> None:
    with connect_redis(filled.redis_url) as redis:
        redis.hset(keys.head(0), "run_id", "another")
    with pytest.raises(StoreError, match="closed"):
        check(filled)


@on_one_redis
async def test_the_command_line_ends_with_0_clean_1_differences_2_could_not_run(
    filled: Settings,
) -> None:
    environ = environment(filled)
    clean = holdfast("reconcile", environ=environ)
    assert (clean.returncode, clean.stderr) == (0, "")
    assert "0 differences" in clean.stdout
    told = holdfast("reconcile", "--json", environ=environ)
    assert told.returncode == 0
    report = json.loads(told.stdout)
    assert (report["clean"], report["checked"], report["differences"]) == (True, len(SKUS), [])

    with connect_redis(filled.redis_url) as redis:
        redis.hincrby(S7, "on_hand", 1)
    differs = holdfast("reconcile", environ=environ)
    assert differs.returncode == 1
    assert "counter_drift" in differs.stdout and "s7" in differs.stdout
    told = holdfast("reconcile", "--json", environ=environ)
    (difference,) = json.loads(told.stdout)["differences"]
    assert told.returncode == 1
    assert (difference["kind"], difference["sku"]) == ("counter_drift", "s7")
    assert difference["redis"]["on_hand"] == difference["ledger"]["on_hand"] + 1


@pytest.mark.parametrize(
    "away", [{"HOLDFAST_REDIS_URL": "redis://127.0.0.1:1/0"}, {"HOLDFAST_POSTGRES_URL": NO_POSTGRES},
             {"HOLDFAST_REDIS_URL": ""}, {"HOLDFAST_PARTITIONS": "two"},
             {"HOLDFAST_REDIS_URL": "nonsense"}, {"HOLDFAST_REDIS_URL": "redis://127.0.0.1:99999"},
             {"HOLDFAST_POSTGRES_URL": "nonsense"}]
)  # fmt: skip
@on_one_redis
def test_what_can_not_be_asked_is_one_line_and_exit_code_2(
    settings: Settings, away: dict[str, str], tmp_path: Any
) -> None:
    nowhere = {"HOLDFAST_DATA_DIR": str(tmp_path)}
    done = holdfast("reconcile", "--json", environ=environment(settings, **nowhere, **away))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("holdfast: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["serve", "sweeper", "persister"])
def test_a_url_that_is_none_is_told_at_the_start(command: str) -> None:
    """A setting that can't be used is one line and exit code 2, never a service that waits forever."""
    away = {"HOLDFAST_REDIS_URL": "nonsense", "HOLDFAST_POSTGRES_URL": NO_POSTGRES}
    more = ("--port", "0") if command == "serve" else ()
    done = holdfast(command, *more, environ=environment(**away), timeout_s=10)
    assert done.returncode == 2
    assert "HOLDFAST_REDIS_URL" in done.stderr
    assert "Traceback" not in done.stderr


@on_one_redis
def test_a_database_without_a_ledger_is_exit_code_2(redis: Redis, settings: Settings) -> None:
    redis.hset(
        keys.head(0), mapping={"epoch": 1, "seq": 0, "run_id": redis.info("server")["run_id"]}
    )
    done = holdfast("reconcile", environ=environment(settings))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
