"""Real servers for the tests: started on free ports, in directories of their own, thrown away after.

Tests that take ``redis_server`` run once on each Redis there is: the embedded 6.2, redis-server 7,
valkey-server 8. Those that take a PostgreSQL, too, are about the way behind Redis: each runs on one of the
three, which one by its name; on all of them with ``--all-servers``. A server that is missing is skipped with
a loud line on a laptop, an error where CI=true.
"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from zlib import crc32

import psycopg
import pytest
from kit import PATIENT_MS, open_now
from needed import MISSED, SERVERS, missing
from redis import Redis
from shared_broker import share_broker, shared_broker

from api.kafka_server import KafkaServer, find_kafka
from api.servers import PostgresServer, RedisServer, ServerError, find_redis_binaries
from engine.engine import Engine
from engine.settings import Settings
from persister.persister import connect_redis


def pytest_configure(config: pytest.Config) -> None:
    share_broker(config)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all-servers", action="store_true", help="with PostgreSQL, too, on each kind of Redis"
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The longest first, so that of several workers none waits at the end for the storm."""
    if not config.getoption("--all-servers"):
        left_out = _on_other_servers(items)
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]
    items.sort(
        key=lambda item: (item.path.name != "test_storm.py", item.path.parent.name != "reliability")
    )


def _on_other_servers(items: list[pytest.Item]) -> set[pytest.Item]:
    """Of each test with PostgreSQL that was collected for several kinds of Redis, all but one."""
    kinds: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        params = (
            item.callspec.params
            if isinstance(item, pytest.Function) and hasattr(item, "callspec")
            else {}
        )
        if "redis_server" in params and "postgres_url" in item.fixturenames:
            test, _, ids = item.nodeid.partition("[")
            words = ids.removesuffix("]").split("-")
            words.remove(params["redis_server"])
            kinds["-".join([test, *words])].append(item)
    return {
        item
        for test, same in kinds.items()
        for place, item in enumerate(same)
        if place != crc32(test.encode()) % len(same)
    }


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for what in sorted(MISSED):
        terminalreporter.write_line(f"*** {what} IS MISSING: ITS TESTS WERE SKIPPED ***", red=True)


@pytest.fixture(scope="session", params=SERVERS)
def redis_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RedisServer]:
    """A durable Redis of each kind, shared by the session; see ``redis`` for an empty one."""
    binaries = {binary.name: binary for binary in find_redis_binaries()}
    if request.param not in binaries:
        missing(f"a {request.param} server")
    server = RedisServer(
        binaries[request.param],
        tmp_path_factory.mktemp(request.param),
        appendfsync="no",
        maxmemory_bytes=2**30,
    )
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis(redis_server: RedisServer) -> Iterator[Redis]:
    """A client of an empty server (scripts included), with nothing opened."""
    with connect_redis(redis_server.url) as client:
        client.flushall()
        client.script_flush()
        client.config_set("maxmemory", 2**30)
        yield client


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL shared by the session; see ``postgres_url`` for an empty database. Nobody kills it or
    cuts its power, so it needs no fsync: at its end it took a minute for all the databases.

    Not below pytest's own directory: for root that is closed to the user PostgreSQL runs as.
    """
    with TemporaryDirectory(prefix="holdfast-postgres-") as directory:
        try:
            server = PostgresServer(Path(directory))
            server.start()
        except ServerError as error:
            missing(f"PostgreSQL ({error})")
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET fsync = off")
            connection.execute("SELECT pg_reload_conf()")
        yield server
        server.stop()


@pytest.fixture
def postgres_url(postgres_server: PostgresServer, request: pytest.FixtureRequest) -> str:
    """The URL of a new, empty database."""
    name = f"test_{abs(hash(request.node.nodeid)) % 10**12}"
    with psycopg.connect(postgres_server.url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        connection.execute(f"CREATE DATABASE {name}")
    return postgres_server.url.rsplit("/", 1)[0] + f"/{name}"


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """Async tests run where the product runs: asyncio on uvloop."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture
async def engine(redis: Redis, redis_server: RedisServer) -> AsyncIterator[Engine]:
    """An engine on an empty, open partition, which never gives up on a slow answer."""
    open_now(redis)
    patient = Settings(redis_url=redis_server.url, unavailable_after_ms=PATIENT_MS)
    engine = await Engine.start(patient)
    yield engine
    await engine.close()


@pytest.fixture
def needs() -> Callable[[str], None]:
    """For tests of programs that may not be installed: ``needs("node")``."""

    def needs(program: str) -> None:
        if shutil.which(program) is None:
            missing(program)

    return needs


@pytest.fixture
def repository() -> Path:
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def embedded_kafka() -> None:
    """For tests that start a broker of their own, to kill it."""
    try:
        find_kafka()
    except ServerError as error:
        missing(f"Kafka ({error})")


@pytest.fixture(scope="session")
def kafka_bootstrap() -> Iterator[str]:
    """The address of a Kafka shared by the session: make topics of your own.

    HOLDFAST_KAFKA_BOOTSTRAP if that is set, else one for all workers, else a broker started here.
    """
    given = os.environ.get("HOLDFAST_KAFKA_BOOTSTRAP") or shared_broker()
    if given.startswith("Kafka ("):
        missing(given)
    if given:
        yield given
        return
    with TemporaryDirectory(prefix="holdfast-kafka-") as directory:
        try:
            server = KafkaServer(Path(directory))
            server.start()
        except ServerError as error:
            missing(f"Kafka ({error})")
        yield server.url
        server.stop()
