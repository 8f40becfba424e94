"""A request waits 3 s for PostgreSQL; what it gave up, or its client, is cancelled; a restart is noticed."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
import psutil
import psycopg
import pytest
from ledger_kit import receipt, write
from running import check_problem, eventually, in_process, on_one_redis, open_by_hand, rows, served

from api.ledger_reader import CONNECTIONS_MAX, Connection, LedgerReader
from api.servers import PostgresServer, RedisServer
from engine.settings import Settings

pytestmark = pytest.mark.anyio

READS = [
    "/v1/movements", "/v1/movements?sku=tea", "/v1/movements?since=2020-01-01",
    "/v1/reservations?order_id=o", "/v1/reconciliations/latest",
]  # fmt: skip
ASKED = """
SELECT pid FROM pg_stat_activity
WHERE datname = current_database() AND application_name = 'holdfast' AND wait_event_type = 'Lock'
"""


async def test_who_gave_up_while_waiting_for_a_connection_asks_nothing(one: Settings) -> None:
    """However the connection and the end of waiting meet."""
    reader = LedgerReader(one.postgres_url)
    await reader.open()
    asked = []

    async def ask(connection: Connection) -> None:
        asked.append(connection)

    try:
        for turns in range(12):
            async with AsyncExitStack() as taken:
                for _ in range(CONNECTIONS_MAX):
                    await taken.enter_async_context(reader._pool.connection())
                reading = asyncio.create_task(reader._read(ask))
                await asyncio.sleep(0.01)
            for _ in range(turns):
                await asyncio.sleep(0)
            asked_before = len(asked)
            if reading.cancel():
                with pytest.raises(asyncio.CancelledError):
                    await reading
                assert len(asked) == asked_before, f"asked {turns} turns later"
    finally:
        await reader.close()


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    with TemporaryDirectory(prefix="holdfast-postgres-") as directory:
        server = PostgresServer(Path(directory))
        server.start()
        yield server
        if server.running():
            server.stop()


@pytest.fixture
def locked(own_postgres: PostgresServer) -> Iterator[Settings]:
    """A ledger whose tables somebody holds, so that every query waits."""
    write(own_postgres.url, receipt(1))
    with psycopg.connect(own_postgres.url) as connection:
        connection.execute(
            "LOCK TABLE events, movements, positions, reconciliations IN ACCESS EXCLUSIVE MODE"
        )
        yield Settings(redis_url="redis://127.0.0.1:1/0", postgres_url=own_postgres.url)


async def test_a_query_that_waits_too_long_is_503_and_is_cancelled(locked: Settings) -> None:
    async with in_process(locked) as client:
        for path in READS:
            with anyio.fail_after(30):  # or a query that waits for ever would be waited for
                answer = await client.get(path)
            problem = check_problem(answer, 503, "unavailable")
            assert "no answer within 3 s" in problem["detail"]
        eventually("no query is left", lambda: not rows(locked.postgres_url, ASKED))


@on_one_redis
async def test_when_its_client_has_left_a_query_is_cancelled_at_once(
    locked: Settings, own_postgres: PostgresServer, redis_server: RedisServer, tmp_path: Path
) -> None:
    """PostgreSQL's log tells by whom: a user's request, or the time limit."""
    open_by_hand(redis_server.url)
    settings = Settings(redis_url=redis_server.url, postgres_url=locked.postgres_url)
    log = tmp_path / "log"
    with served(settings, log) as url:
        host, _, port = url.removeprefix("http://").partition(":")
        for path in (*READS, "/v1/status", "/metrics"):
            with socket.create_connection((host, int(port))) as client:
                client.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
                eventually("the query waits", lambda: rows(settings.postgres_url, ASKED))
            eventually("no query is left", lambda: not rows(settings.postgres_url, ASKED))
    told = own_postgres.log.read_text()
    assert told.count("canceling statement due to user request") == len(READS) + 2
    assert "statement timeout" not in told
    assert "Traceback" not in log.read_text()


@on_one_redis
@pytest.mark.parametrize("how", ["stop", "kill", "freeze", "freeze and kill"])
async def test_status_is_true_again_with_the_first_request_after_postgresql_is_back(
    how: str, own_postgres: PostgresServer, redis_server: RedisServer
) -> None:
    """Given as many open connections as there can be, and one that was told meanwhile that it is away."""
    write(own_postgres.url, receipt(1))
    open_by_hand(redis_server.url)
    settings = Settings(redis_url=redis_server.url, postgres_url=own_postgres.url)
    async with in_process(settings) as client:

        async def word() -> str:
            return (await client.get("/v1/status")).json()["ledger"]

        async with anyio.create_task_group() as group:
            for _ in range(16):
                group.start_soon(word)
        assert await word() == "ok"
        main = psutil.Process(own_postgres.pid)
        frozen = [main, *main.children()] if how.startswith("freeze") else []
        for process in frozen:
            process.suspend()
        if how == "stop":
            own_postgres.stop()
        elif how != "freeze":
            own_postgres.kill()
        for process in frozen[1:] if how != "freeze" else ():
            process.kill()
        assert await word() != "ok"
        assert await word() != "ok"
        if how == "freeze":
            for process in frozen:
                process.resume()
        else:
            own_postgres.start()
        assert await word() == "ok"
