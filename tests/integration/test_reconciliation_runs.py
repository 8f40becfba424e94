"""Runs of reconciliation: kept, told by HTTP, as a page, daily; a repair while traffic runs."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from kit import Partition, confirm, release, reserve
from redis import Redis
from running import (
    REPOSITORY,
    TIME,
    check_problem,
    environment,
    eventually,
    holdfast,
    in_process,
    on_one_redis,
    persisting,
    rows,
    wait_for_ledger,
)

from engine import keys
from engine.engine import Engine
from engine.errors import LedgerError
from engine.expiry import sweep_until
from engine.settings import Settings
from persister import database
from persister.audit import audit
from persister.differences import Report
from persister.ledger import Ledger
from persister.persister import connect_redis
from persister.runs import run
from persister.sides import Sides

pytestmark = [pytest.mark.anyio, on_one_redis]
TEA = keys.stock(0, "tea", "X")


def check(settings: Settings, repair_by: str | None = None) -> Report:
    with (
        connect_redis(settings.redis_url) as redis,
        database.connect(settings.postgres_url) as connection,
    ):
        return run(redis, connection, trigger="test", repair_by=repair_by, retention_ms=50)


@pytest.fixture
def filled(settings: Settings, redis: Redis) -> Settings:
    with persisting(settings):
        shop = Partition(redis)
        shop.receive("tea", 100)
        shop.hold("r1", ("tea", 5))
        wait_for_ledger(settings)
    return settings


async def test_no_false_alarm_while_holds_come_and_go_and_a_repair_under_traffic_is_right(
    settings: Settings,
) -> None:
    """Ended ones are forgotten after 50 ms here, so keys vanish all the time."""
    seed = random.randrange(10**6)
    print("seed", seed)
    chance = random.Random(seed)
    short = Settings(
        redis_url=settings.redis_url, postgres_url=settings.postgres_url, retention_ms=50
    )
    count, stopping = 0, asyncio.Event()

    async def load(engine: Engine, worker: int) -> None:
        nonlocal count
        while not stopping.is_set():
            names = [f"r{worker}-{count}-{n}" for n in range(20)]
            count += 20
            await engine.call_all(
                [reserve(name, ("tea", 1), ttl_ms=chance.choice((100, 5000))) for name in names]
            )
            ends = [chance.choice((confirm, release))(name) for name in names[:12]]
            await engine.call_all(ends)
            await asyncio.sleep(0.03)  # more than one process persists would only fall behind

    with persisting(settings):
        engine = await Engine.start(short)
        with connect_redis(settings.redis_url) as redis:
            Partition(redis).receive("tea", 10_000_000)
        tasks = [asyncio.create_task(load(engine, n)) for n in range(3)]
        tasks.append(asyncio.create_task(sweep_until(stopping, engine, 20, 1)))
        try:
            compared = 0
            while count < 3000:
                report = await asyncio.to_thread(check, settings)
                assert report.clean, report
                compared += report.reservations_checked
                assert not any(task.done() for task in tasks)
            assert compared > 100
            with connect_redis(settings.redis_url) as redis:
                redis.hincrby(TEA, "on_hand", -7)
                redis.hincrby(TEA, "held", 2)
                for name in list(redis.scan_iter(keys.reservation(0, "*"), count=1000))[:3]:
                    redis.delete(name)
            after = await asyncio.to_thread(check, settings, True)
            assert after.clean, after
            assert after.repaired[0].event
        finally:
            stopping.set()
            await asyncio.wait(tasks)
            await engine.close()
        wait_for_ledger(settings)
        assert check(settings).clean
    with database.connect(settings.postgres_url) as connection:
        assert audit(connection).clean


async def test_runs_are_kept_and_told_over_http(filled: Settings, redis: Redis) -> None:
    async with in_process(filled) as client:
        check_problem(await client.get("/v1/reconciliations/latest"), 404, "not_found")
        both = await asyncio.gather(*[client.post("/v1/reconciliations") for _ in range(2)])
        assert [answer.status_code for answer in both] == [201, 201]
        report = both[0].json()
        assert both[1].json() == report
        assert (report["clean"], report["checked"], report["reservations_checked"]) == (True, 1, 1)
        assert TIME.fullmatch(report["started_at"]) and report["duration_ms"] >= 0
        redis.hincrby(TEA, "held", 1)
        report = (await client.post("/v1/reconciliations")).json()
        (difference,) = report["differences"]
        assert (difference["kind"], difference["partition"]) == ("leaked_hold", 0)
        assert (difference["sku"], difference["location"]) == ("tea", "X")
        assert (difference["redis"]["held"], difference["ledger"]["held"]) == (6, 5)
        latest = (await client.get("/v1/reconciliations/latest")).json()
        assert latest["repaired_by"] is None
        for name in ("reconciliation_id", "clean", "checked", "reservations_checked",
                     "differences", "started_at", "duration_ms"):  # fmt: skip
            assert latest[name] == report[name]
        assert latest["trigger"] == "http"
        redis.hset(keys.head(0), "run_id", "another")
        check_problem(await client.post("/v1/reconciliations"), 503, "unavailable")
    assert rows(filled.postgres_url, "SELECT count(*) FROM reconciliations") == [(2,)]


def test_the_command_repairs_and_tells_it_as_table_json_and_page(
    filled: Settings, redis: Redis, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    redis.hset("hf:{0}:stock:<b>x", "on_hand", 1)
    told = holdfast("reconcile", "--html", str(page), environ=environment(filled))
    assert told.returncode == 1 and "missing_in_ledger" in told.stdout
    text = page.read_text()
    assert "missing_in_ledger" in text and "&lt;b&gt;x" in text and "<b>" not in text
    assert "http" not in text
    redis.delete("hf:{0}:stock:<b>x")
    redis.hincrby(TEA, "on_hand", 4)
    dry = holdfast("reconcile", "--repair", "--dry-run", environ=environment(filled))
    assert dry.returncode == 1 and "on_hand -4" in dry.stdout
    assert redis.hget(TEA, "on_hand") == b"104"
    with persisting(filled):
        nobody = holdfast("reconcile", "--repair", environ=environment(filled))
        assert (nobody.returncode, nobody.stdout) == (2, "") and "--by NAME" in nobody.stderr
        empty = holdfast("reconcile", "--repair", "--by", " ", environ=environment(filled))
        assert (empty.returncode, empty.stdout) == (2, "")
        assert redis.hget(TEA, "on_hand") == b"104"
        done = holdfast(
            "reconcile", "--repair", "--by", "Ada", "--json", environ=environment(filled)
        )
        wait_for_ledger(filled)
    report = json.loads(done.stdout)
    assert report["repaired_by"] == "Ada"
    told = rows(filled.postgres_url, "SELECT DISTINCT reason FROM movements WHERE type = 'repair'")
    assert len(told) == 1 and told[0][0].endswith(", repaired by Ada")
    assert (done.returncode, report["clean"]) == (0, True)
    assert [(r["kind"], bool(r["event"])) for r in report["repaired"]] == [("counter_drift", True)]
    assert redis.hget(TEA, "on_hand") == b"100"
    kept = rows(
        filled.postgres_url,
        "SELECT clean, json_array_length(repaired), repaired_by FROM reconciliations ORDER BY 1, 2",
    )
    assert kept == [(False, 0, None), (False, 1, "Ada"), (True, 0, None)]


def test_without_the_right_to_insert_a_run_says_so_and_goes_on(filled: Settings) -> None:
    with psycopg.connect(filled.postgres_url, autocommit=True) as connection:
        for statement in (
            "DROP ROLE IF EXISTS reader",
            "CREATE ROLE reader LOGIN",
            "GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader",
        ):
            connection.execute(statement)
    try:
        url = filled.postgres_url.replace("postgres@", "reader@", 1)
        done = holdfast("reconcile", environ=environment(filled, HOLDFAST_POSTGRES_URL=url))
        assert done.returncode == 0, done.stderr
        assert "could not be kept" in done.stdout
    finally:
        with psycopg.connect(filled.postgres_url, autocommit=True) as connection:
            connection.execute("DROP OWNED BY reader")
            connection.execute("DROP ROLE reader")


def test_daily_runs_at_once_and_ends_by_sigterm_with_0(filled: Settings, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "api.cli", "reconcile", "--daily-at", "03:00"],
            cwd=REPOSITORY,
            env=environment(filled),
            stdout=output,
            stderr=output,
        )
    try:
        eventually("a run is logged", lambda: "0 differences" in log.read_text())
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert len(log.read_text().splitlines()) == 1
    assert holdfast("reconcile", "--daily-at", "25:00").returncode == 2


async def test_where_the_ledger_has_stopped_a_run_ends_at_once_and_says_so(
    filled: Settings, redis: Redis
) -> None:
    """Given a Redis that has gone on: the ledger won't come as far, so nobody waits for it."""
    Partition.of(redis).receive("mug", 5)
    with database.connect(filled.postgres_url) as connection:
        Ledger(connection, 0).stop("event 1-3 is missing")
    with pytest.raises(LedgerError, match=r"has stopped.*event 1-3 is missing"):
        check(filled)
    told = holdfast("reconcile", "--repair", "--by", "Ada", environ=environment(filled))
    assert (told.returncode, told.stdout) == (2, "")
    assert "event 1-3 is missing" in told.stderr and len(told.stderr.splitlines()) == 1
    async with in_process(filled) as client:
        answer = await client.post("/v1/reconciliations")
    assert "event 1-3 is missing" in check_problem(answer, 503, "unavailable")["detail"]


async def test_a_ledger_that_stops_while_a_run_waits_ends_it(
    filled: Settings, redis: Redis
) -> None:
    shop = Partition.of(redis)
    with (
        connect_redis(filled.redis_url) as client,
        database.connect(filled.postgres_url) as connection,
        database.connect(filled.postgres_url) as other,
    ):
        sides = Sides(client, connection, 0, 60.0)
        sides.check_goes_on()
        Ledger(other, 0).stop("somebody must look")
        shop.receive("mug", 5)
        with pytest.raises(LedgerError, match="somebody must look"):
            sides.wait_for_ledger(shop.seq())
