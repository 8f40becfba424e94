"""/metrics while a server is away, and over a socket."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import psutil
import pytest
from kit import Partition
from metrics_kit import numbers, reconcile
from running import in_process, persisting, served, wait_for_ledger

from api.ledger_reader import READ_WITHIN_S
from api.servers import PostgresServer, RedisServer
from engine.settings import Settings
from persister.persister import connect_redis

pytestmark = pytest.mark.anyio


@contextmanager
def hanging(pid: int) -> Iterator[None]:
    """A server of ours that neither works nor ends, children included."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    for process in family:
        process.suspend()
    try:
        yield
    finally:
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.resume()


async def test_given_no_redis_then_what_the_ledger_knows_is_told(
    one: Settings, one_redis: RedisServer
) -> None:
    with connect_redis(one.redis_url) as redis:
        Partition(redis).receive("tea", 5)
    with persisting(one):
        wait_for_ledger(one)
    reconcile(one)
    for reached in (True, False):
        if not reached:
            one_redis.kill()
        async with in_process(one) as client:
            if reached:
                assert numbers((await client.get("/metrics")).text)["holdfast_redis_up"] == 1
                one_redis.kill()
            answer = await client.get("/metrics")
            assert answer.status_code == 200
            found = numbers(answer.text)
            assert (found["holdfast_redis_up"], found["holdfast_postgres_up"]) == (0, 1)
            assert (found["holdfast_ledger_epoch"], found["holdfast_ledger_seq"]) == (1, 1)
            assert found["holdfast_reconciliation_differences"] == 0
            assert not any("outbox_e" in name or "partition" in name for name in found)
            assert "holdfast_ledger_behind_events" not in found
        one_redis.start()


async def test_given_a_postgresql_that_hangs_then_the_scrape_waits_for_three_seconds(
    one_redis: RedisServer,
) -> None:
    """Also where a connection is open: one that hangs hears no cancellation (10 s in psycopg)."""
    with TemporaryDirectory(prefix="holdfast-postgres-") as directory:
        server = PostgresServer(Path(directory))
        server.start()
        try:
            settings = Settings(redis_url=one_redis.url, postgres_url=server.url)
            with persisting(settings):
                pass
            async with in_process(settings) as client:
                before = numbers((await client.get("/metrics")).text)
                with hanging(server.pid):
                    begun = time.monotonic()
                    answer = await client.get("/metrics")
                    took_s = time.monotonic() - begun
        finally:
            server.stop()
    found = numbers(answer.text)
    assert before["holdfast_postgres_up"] == 1
    assert (found["holdfast_postgres_up"], found["holdfast_redis_up"]) == (0, 1)
    assert READ_WITHIN_S <= took_s < READ_WITHIN_S + 2


async def test_over_a_socket_get_and_head(
    one: Settings, one_redis: RedisServer, tmp_path: Path
) -> None:
    with persisting(one), served(one, tmp_path / "log") as url:
        async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
            got, head = await client.get("/metrics"), await client.head("/metrics")
    for answer in (got, head):
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert numbers(got.text)["holdfast_redis_up"] == 1
    assert head.content == b"" and int(head.headers["content-length"]) > 1000
