"""Opening: no process writes to a partition that the persister has not judged."""

from __future__ import annotations

import logging
from typing import Any

import httpx
import psycopg
import pytest
from kit import Partition
from redis import Redis
from running import (
    NO_POSTGRES,
    check_problem,
    eventually,
    in_process,
    is_open,
    persisting,
    rows,
    wait_for_ledger,
)

from api.servers import RedisServer
from engine import keys
from engine.events import Event, EventLine
from engine.partitions import read_head
from engine.settings import Settings
from persister import database
from persister.ledger import Ledger
from persister.opening import Opener
from persister.persister import connect_redis
from persister.sources import OutboxSource

pytestmark = pytest.mark.anyio


async def receive(client: httpx.AsyncClient, name: str, quantity: int = 10) -> httpx.Response:
    place = {"type": "receive", "sku": "tea", "location": "MAIN", "quantity": quantity}
    return await client.post("/v1/movements", json={"movement_id": name, **place})


async def reserve(client: httpx.AsyncClient, name: str) -> httpx.Response:
    lines = [{"sku": "tea", "quantity": 1, "location": "MAIN"}]
    order = {"reservation_id": name, "order_id": "o1", "lines": lines}
    return await client.post("/v1/reservations", json=order)


def head(settings: Settings) -> tuple[int, int]:
    with connect_redis(settings.redis_url) as redis:
        return read_head(redis, 0).position


def epochs(settings: Settings) -> list[tuple[Any, ...]]:
    return rows(settings.postgres_url, "SELECT epoch, seq FROM events ORDER BY seq")


async def test_a_new_partition_is_opened_into_epoch_1(settings: Settings) -> None:
    async with in_process(settings) as client:
        check_problem(await receive(client, "m1"), 503, "partition_closed")
        with persisting(settings):
            assert head(settings) == (1, 0)
            assert (await receive(client, "m1")).status_code == 201
    assert epochs(settings) == [(1, 1)]  # an orderly stop leaves nothing behind


async def test_a_restarted_persister_leaves_an_open_partition_as_it_is(settings: Settings) -> None:
    async with in_process(settings) as client:
        for number in range(3):
            with persisting(settings):
                assert (await receive(client, f"m{number}")).status_code == 201
                wait_for_ledger(settings)
    assert epochs(settings) == [(1, 1), (1, 2), (1, 3)]


@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_a_restarted_redis_refuses_writes_until_the_persister_opens_it(
    one: Settings, one_redis: RedisServer, how: str
) -> None:
    """Also for a client whose pool holds connections of before the restart."""
    async with in_process(one) as client:
        with persisting(one):
            assert (await receive(client, "m1")).status_code == 201
            assert (await reserve(client, "r1")).status_code == 201
            wait_for_ledger(one)
        getattr(one_redis, how)()
        one_redis.start()
        for _ in range(5):
            check_problem(await reserve(client, "r2"), 503, "partition_closed")
            check_problem(await receive(client, "m2"), 503, "partition_closed")
            check_problem(await client.post("/v1/reservations/r1/confirm"), 503, "partition_closed")
        assert head(one) == (1, 2)
        with persisting(one):
            assert (await reserve(client, "r1")).status_code == 200
            assert (await reserve(client, "r2")).status_code == 201
            wait_for_ledger(one)
    assert epochs(one) == [(1, 1), (1, 2), (2, 3)]


async def test_a_running_persister_opens_a_restarted_redis(
    one: Settings, one_redis: RedisServer
) -> None:
    async with in_process(one) as client:
        with persisting(one):
            for number in range(3):
                assert (await receive(client, f"m{number}")).status_code == 201
                one_redis.kill()
                one_redis.start()
                eventually("it is open again", lambda: is_open(one.redis_url))
            assert (await receive(client, "m3")).status_code == 201
            wait_for_ledger(one)
    assert epochs(one) == [(1, 1), (2, 2), (3, 3), (4, 4)]


async def test_an_emptied_redis_with_a_ledger_stays_closed(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """Also while it runs: FLUSHALL takes the head away."""
    async with in_process(settings) as client:
        with persisting(settings):
            await receive(client, "m1")
            wait_for_ledger(settings)
            with connect_redis(settings.redis_url) as redis:
                redis.flushall()
            eventually("it is said", lambda: "stays closed" in caplog.text)
            check_problem(await receive(client, "m1"), 503, "partition_closed")
    assert "rebuild it with 'holdfast restore'" in caplog.text
    assert epochs(settings) == [(1, 1)]


async def test_without_postgresql_it_stays_closed(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    away = Settings(redis_url=settings.redis_url, postgres_url=NO_POSTGRES)
    async with in_process(away) as client:
        with persisting(away, until_open=False):
            eventually("it is said", lambda: "PostgreSQL" in caplog.text)
            check_problem(await receive(client, "m1"), 503, "partition_closed")
    assert head(settings) == (0, 0)


async def test_a_second_persister_waits_for_the_lease(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """It neither opens nor writes; once the first has ended it takes over."""
    caplog.set_level(logging.INFO)
    async with in_process(settings) as client:
        with persisting(settings) as first, persisting(settings):
            eventually("the second says so", lambda: "another persister" in caplog.text)
            assert (await receive(client, "m1")).status_code == 201
            wait_for_ledger(settings)
            first.stop()
            assert (await receive(client, "m2")).status_code == 201
            wait_for_ledger(settings)
    assert epochs(settings) == [(1, 1), (1, 2)]


async def test_a_persister_that_lost_postgresql_goes_on_where_it_was(settings: Settings) -> None:
    async with in_process(settings) as client:
        with persisting(settings):
            for number in range(3):
                assert (await receive(client, f"m{number}")).status_code == 201
                rows(
                    settings.postgres_url,
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE"
                    " application_name = 'holdfast' AND datname = current_database()",
                )
                wait_for_ledger(settings)
    assert epochs(settings) == [(1, 1), (1, 2), (1, 3)]


async def test_a_persister_with_the_ledger_of_another_redis_moves_nothing(
    settings: Settings, redis: Redis
) -> None:
    """One wrong URL, and this Redis is open: its events must neither be trimmed nor end up there."""
    p = Partition(redis)
    p.receive("A", 9)
    p.hold("r1", "A")
    p.hold("r2", "A")
    with database.connect(settings.postgres_url) as connection:
        database.migrate(connection)
        connection.commit()
        line = EventLine("coffee", "MAIN", 5, 5, 0, 0)
        foreign = Event(
            version=1, partition=0, epoch=1, seq=1, type="receive", at_ms=1, lines=(line,)
        )
        Ledger(connection, 0).write([foreign])
    with persisting(settings, until_open=False):
        stopped = eventually(
            "it says why",
            lambda: rows(settings.postgres_url, "SELECT stopped FROM positions")[0][0],
        )
    assert "its outbox is not this ledger's" in stopped
    assert [event.reservation_id for event in p.events()] == [None, "r1", "r2"]
    assert rows(settings.postgres_url, "SELECT count(*) FROM events") == [(1,)]


async def test_a_persister_that_lost_its_lease_unnoticed_opens_nothing(
    settings: Settings, redis: Redis
) -> None:
    """Another one may have written meanwhile what this Redis has lost."""
    p = Partition(redis)
    p.receive("A", 9)
    with persisting(settings):
        wait_for_ledger(settings)
    redis.hset(keys.head(0), "run_id", "")
    with database.connect(settings.postgres_url) as connection:
        ledger = Ledger(connection, 0)
        assert ledger.lease()
        source = OutboxSource(redis, p.scripts, settings, 0)
        at = ledger.position()
        opener = Opener(redis, p.scripts, settings, ledger, source)
        pid = connection.info.backend_pid
        rows(settings.postgres_url, f"SELECT pg_terminate_backend({pid})")
        with pytest.raises(psycopg.OperationalError):
            opener.look(at)
    assert not is_open(settings.redis_url)
