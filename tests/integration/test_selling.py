"""Does it sell, and if not, why and since when: /v1/status, the gauge and `holdfast check` say the same."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from kit import Partition, reserve
from metrics_kit import numbers
from running import (
    NO_POSTGRES,
    TIME,
    environment,
    eventually,
    holdfast,
    in_process,
    on_one_redis,
    open_by_hand,
    served,
)

from api.servers import RedisServer
from engine import keys
from engine.engine import Engine
from engine.settings import Settings
from persister.persister import connect_redis

pytestmark = pytest.mark.anyio


@pytest.fixture
def server(redis_server: RedisServer, tmp_path: Path) -> Iterator[RedisServer]:
    """A server of this test alone, of the kind the session runs on, with an open partition."""
    server = RedisServer(redis_server.binary, tmp_path / "own", maxmemory_bytes=2**28)
    server.start()
    open_by_hand(server.url)
    with connect_redis(server.url) as redis:
        Partition.of(redis).receive("tea", 10)
    yield server
    server.stop()


def settings_of(server: RedisServer, **more: Any) -> Settings:
    return Settings(**{"redis_url": server.url, "postgres_url": NO_POSTGRES, **more})


@contextmanager
def closed(server: RedisServer) -> Iterator[None]:
    with connect_redis(server.url) as redis:
        redis.hset(keys.head(0), "run_id", "another")
    try:
        yield
    finally:
        open_by_hand(server.url)


@contextmanager
def full(server: RedisServer) -> Iterator[None]:
    with connect_redis(server.url) as redis:
        redis.config_set("maxmemory", 1)
        yield
        redis.config_set("maxmemory", 2**28)


@contextmanager
def hanging(server: RedisServer) -> Iterator[None]:
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


@contextmanager
def away(server: RedisServer) -> Iterator[None]:
    server.kill()
    yield
    server.start()
    open_by_hand(server.url)


@contextmanager
def unable_to_save(server: RedisServer) -> Iterator[None]:
    """As with a full disk: the last snapshot failed, so writes are refused (MISCONF)."""
    (server.directory / "dump.rdb").mkdir()
    with connect_redis(server.url) as redis:
        redis.config_set("save", "3600 1")
        try:
            redis.bgsave()
            eventually(
                "the snapshot failed",
                lambda: redis.info("persistence")["rdb_last_bgsave_status"] == "err",
            )
            yield
        finally:
            redis.config_set("save", "")  # it ends only once it has saved


@contextmanager
def replica(server: RedisServer) -> Iterator[None]:
    with connect_redis(server.url) as redis:
        redis.replicaof("127.0.0.1", 1)
        yield
        redis.replicaof("NO", "ONE")
    open_by_hand(server.url)


Situation = Callable[[RedisServer], Any]
SITUATIONS: dict[str, tuple[Situation, str, str]] = {
    "closed": (closed, "partition_closed", "until the persister has checked"),
    "full": (full, "store_full", "no memory left"),
    "hanging": (hanging, "unavailable", "gave no answer within 800 ms"),
    "away": (away, "unavailable", "can't be asked: "),
    "unable to save": (unable_to_save, "unavailable", "MISCONF"),
    "a replica": (replica, "unavailable", "read only replica"),
}


async def told(client: httpx.AsyncClient) -> dict[str, Any]:
    """The status; its gauge says the same."""
    answer = await client.get("/v1/status")
    assert answer.status_code == 200, answer.text
    status: dict[str, Any] = answer.json()
    (partition,) = status["partitions"]
    assert (partition["selling"], partition["not_selling"]) == (
        status["selling"],
        status["not_selling"],
    )
    found = numbers((await client.get("/metrics")).text)
    assert found["holdfast_selling"] == status["selling"] is (status["not_selling"] is None)
    return status


async def sells(client: httpx.AsyncClient, order: str) -> bool:
    answer = await client.post(
        "/v1/reservations", json={"order_id": order, "lines": [{"sku": "tea", "quantity": 1}]}
    )
    assert answer.status_code in (201, 503), answer.text
    return answer.status_code == 201


@pytest.mark.parametrize(("make", "code", "word"), SITUATIONS.values(), ids=SITUATIONS)
async def test_status_and_gauge_say_what_a_reserve_would_be_told_and_since_when(
    server: RedisServer,
    postgres_url: str,  # one that is away would be waited for, each time
    make: Situation,
    code: str,
    word: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with in_process(settings_of(server, postgres_url=postgres_url)) as client:
        assert (await told(client))["selling"] is True
        assert await sells(client, "before")
        with make(server):
            status = await told(client)
            assert status["selling"] is False and not await sells(client, "meanwhile")
            not_selling = status["not_selling"]
            assert not_selling["code"] == code and word in not_selling["detail"]
            assert TIME.fullmatch(not_selling["since"])
            assert (await told(client))["not_selling"]["since"] == not_selling["since"]
            assert (status["redis"] is None) == (code == "unavailable" and make in (hanging, away))
            assert (status["redis_error"] is None) == (status["redis"] is not None)
            assert f"partition 0 does not sell: {code}, " in caplog.text
        assert (await told(client))["selling"] is True
        assert "partition 0 sells again, after " in caplog.text
        assert await sells(client, "after")


@on_one_redis
async def test_given_a_full_backlog_then_that_is_why(server: RedisServer) -> None:
    async with in_process(settings_of(server, outbox_max_events=1)) as client:
        status = await told(client)
        assert status["not_selling"]["code"] == "backlog_full"
        assert not await sells(client, "o")


@on_one_redis
async def test_without_redis_the_status_says_what_the_ledger_knows(server: RedisServer) -> None:
    """Also of a worker that has never reached it."""
    server.kill()
    async with in_process(settings_of(server)) as client:
        status = await told(client)
        assert status["not_selling"]["detail"] == "Redis has not been reached yet"
        (partition,) = status["partitions"]
        assert {partition[name] for name in ("open", "epoch", "seq", "outbox", "relay")} == {None}
        assert status["ledger"] != "ok"
        server.start()
        open_by_hand(server.url)


@on_one_redis
async def test_given_a_redis_that_refuses_to_write_then_a_line_a_minute_with_the_count(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    for make, word in ((unable_to_save, "MISCONF"), (replica, "read only replica")):
        caplog.clear()
        engine = await Engine.start(settings_of(server))
        with make(server):
            for number in range(40):
                outcome = await engine.call(reserve(f"r{number}", "tea"))
                assert outcome.status == "unavailable"
        lines = [record.getMessage() for record in caplog.records]
        assert len(lines) == 2, lines
        assert word in lines[0] and lines[1] == "calls are refused with unavailable"
        await engine.close()
        counted = [record.getMessage() for record in caplog.records][2:]
        assert [line.rpartition(" (")[2] for line in counted] == ["39 times in 60 s at most)"] * 2


@pytest.mark.parametrize("make", [closed, full], ids=["closed", "full"])
@on_one_redis
async def test_refusals_are_a_line_a_minute_with_their_count(
    server: RedisServer, make: Situation, caplog: pytest.LogCaptureFixture
) -> None:
    engine = await Engine.start(settings_of(server))
    with make(server):
        for number in range(30):
            await engine.call_all([reserve(f"r{number}-{i}", "tea") for i in range(3)])
    assert len(caplog.records) == 1
    assert caplog.records[0].getMessage().endswith(" (3 times)")
    await engine.close()
    assert "(87 times in 60 s at most)" in caplog.records[-1].getMessage()


@on_one_redis
def test_check_asks_the_service_and_ends_with_0_or_1(server: RedisServer, tmp_path: Path) -> None:
    with served(settings_of(server), tmp_path / "log") as url:
        for environ, options in (
            (environment(), ["--url", url]),
            (environment(HOLDFAST_URL=url), []),
        ):
            done = holdfast("check", *options, environ=environ)
            assert (done.returncode, done.stderr) == (0, "")
            assert done.stdout == f"selling: the service at {url} decides reserves\n"
        with full(server):
            done = holdfast("check", "--url", url)
        assert (done.returncode, done.stderr) == (1, "")
        assert done.stdout.startswith("not selling: partition 0: store_full since 20")
        assert done.stdout.count("\n") == 1
    done = holdfast("check", "--url", url)
    assert done.returncode == 1
    assert done.stdout.startswith(f"not selling: the service at {url} gives no answer (")


@on_one_redis
def test_check_without_a_service_asks_redis(server: RedisServer) -> None:
    environ = environment(settings_of(server))
    done = holdfast("check", environ=environ)
    assert (done.returncode, done.stdout) == (0, "selling: a reserve would be decided by Redis\n")
    with closed(server):
        done = holdfast("check", environ=environ)
    assert done.returncode == 1 and "partition 0: partition_closed, " in done.stdout
    server.kill()
    done = holdfast("check", environ=environ)
    assert done.returncode == 1 and "not selling: partition 0: unavailable, " in done.stdout
    assert (done.stderr, done.stdout.count("\n")) == ("", 1)
    server.start()


@pytest.mark.parametrize(
    ("options", "code", "word"),
    [
        (["--url", "ftp://127.0.0.1:1"], 2, "must be one such as http://127.0.0.1:8080"),
        (["--url", "http://user:secret@[::1"], 2, "must be one such as"),
        (["--url", "http://127.0.0.1:99999"], 2, "must be one such as"),
        (["--url", "http://user:secret@127.0.0.1:1"], 1, "service at http://127.0.0.1:1 gives no"),
        ([], 2, "no stack was ever started on "),
        (["--nonsense"], 2, "No such option"),
    ],
)
def test_check_asked_wrongly_ends_with_2_and_no_password(
    options: list[str], code: int, word: str, tmp_path: Path
) -> None:
    done = holdfast("check", *options, "--data-dir", str(tmp_path))
    told = done.stdout + done.stderr
    assert (done.returncode, word in told) == (code, True), told
    assert "secret" not in told and "Traceback" not in told


def test_check_of_something_else_ends_with_2(tmp_path: Path, repository: Path) -> None:
    import http.server
    from threading import Thread

    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>hello</html>")

        def log_message(self, *_: Any) -> None:
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Other) as other:
        Thread(target=other.serve_forever, daemon=True).start()
        done = holdfast("check", "--url", f"http://127.0.0.1:{other.server_port}")
        other.shutdown()
    assert (done.returncode, "is not Holdfast" in done.stderr) == (2, True), done


def test_check_of_a_stack_that_has_ended_ends_with_1(tmp_path: Path) -> None:
    (tmp_path / "stack.json").write_bytes(msgspec.json.encode({"redis_port": 1}))
    done = holdfast("check", "--data-dir", str(tmp_path))
    assert done.returncode == 1
    assert done.stdout.startswith("not selling: no stack runs on ")
