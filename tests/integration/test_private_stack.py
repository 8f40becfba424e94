"""`holdfast up` keeps other users of the machine out: of its files, of Redis, of PostgreSQL."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
from redis import Redis
from running import REPOSITORY, Up, eventually, holdfast, rows

from api.local import discover
from api.servers import PostgresServer, RedisServer, ServerError, choose_redis
from api.state_file import State, read_state, state_file, write_state
from engine.partitions import read_head
from persister.persister import connect_redis

NOBODY = 65_534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: needs root")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that all may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="holdfast-private-") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@pytest.fixture
def stack(place: Path) -> Iterator[Up]:
    stack = Up(place / "stack")
    yield stack
    if stack.process is not None and stack.process.poll() is None:
        assert stack.stop() == 0, stack.output.read_text()


def as_nobody(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a Python program of the system's as another user."""
    return subprocess.run(
        ["/usr/bin/env", "python3", "-c", program, *arguments],
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


_KNOCK = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=10) as redis:
    for command in (b"PING", b"GET x", b"CONFIG GET requirepass", b"KEYS *", b"EVAL return 0"):
        redis.sendall(command + b"\\r\\n")
        print(redis.recv(1000).decode().strip())
"""
_LOOK = """
import os, sys
for top, directories, files in os.walk(sys.argv[1]):
    for name in files:
        try:
            open(os.path.join(top, name)).close()
        except OSError:
            continue
        print("read", os.path.join(top, name))
    print("listed", top)
"""


def check_closed(stack: Up) -> None:
    """To everybody but who started it."""
    state = stack.state()
    for line in as_nobody(_KNOCK, str(state["redis_port"])).stdout.splitlines():
        assert line.startswith("-NOAUTH"), line
    with pytest.raises(psycopg.OperationalError, match=r"no password supplied|password auth"):
        psycopg.connect(f"postgresql://postgres@127.0.0.1:{state['postgres_port']}/postgres")
    looked = as_nobody(_LOOK, str(stack.data_dir))
    assert (looked.stdout, looked.returncode) == ("", 0), looked
    passes = 0o010 if os.geteuid() == 0 else 0  # through two directories, for the servers' user
    for path in (stack.data_dir, *stack.data_dir.rglob("*")):
        others = stat.S_IMODE(path.stat().st_mode) & 0o077
        assert others in (0, passes if path.is_dir() else 0), path
    for name in ("redis.log", "postgresql.log", "http-1.log"):
        assert (stack.data_dir / "logs" / name).exists()


def passwords(stack: Up) -> list[str]:
    state = stack.state()
    return [
        url.rpartition("@")[0].rpartition(":")[2]
        for url in (state["redis_url"], state["postgres_url"])
    ]


@as_root
def test_as_root_the_servers_have_a_user_of_their_own_and_no_other_user_gets_in(stack: Up) -> None:
    stack.start()
    check_closed(stack)
    pids = stack.pids()
    for name in ("redis", "postgresql"):
        assert psutil.Process(pids[name]).uids().real not in (0, NOBODY), name
    told = (
        " ".join(
            word
            for process in psutil.Process(pids["supervisor"]).children(recursive=True)
            for word in process.cmdline()
        )
        + stack.output.read_text()
    )
    assert not [each for each in passwords(stack) if each in told]
    with connect_redis(stack.state()["redis_url"]) as redis:
        assert read_head(redis, 0).position[0] == 1


def test_the_printed_variables_let_the_usual_clients_in(stack: Up) -> None:
    stack.start()
    done = holdfast("env", "--data-dir", str(stack.data_dir))
    script = f'{done.stdout}\nredis-cli -u "$HOLDFAST_REDIS_URL" PING'
    shell = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert shell.stdout == "PONG\n"
    assert rows(stack.state()["postgres_url"], "SELECT 1") == [(1,)]
    for command in (["check"], ["reconcile"], ["audit"]):
        done = holdfast(*command, "--data-dir", str(stack.data_dir))
        assert done.returncode == 0, done.stdout + done.stderr


def test_data_of_an_earlier_version_is_kept_and_closed(stack: Up) -> None:
    """Open to all, without passwords, Redis' owned by root where that started it."""
    logs = stack.data_dir / "logs"
    old_redis = RedisServer(choose_redis(), stack.data_dir / "redis", log=logs / "redis.log")
    old_postgres = PostgresServer(stack.data_dir / "postgres", log=logs / "postgresql.log")
    for server in (old_redis, old_postgres):
        server.start()
    with Redis.from_url(old_redis.url) as redis, psycopg.connect(old_postgres.url) as ledger:
        redis.set("kept", "yes")
        ledger.execute("CREATE TABLE kept (text text)")
    old_redis.stop()
    old_postgres.kill()  # also where its log has to be recovered first
    (stack.data_dir / "stack.json").write_text("{}")
    for path in (stack.data_dir, *stack.data_dir.rglob("*")):
        if not path.is_relative_to(old_postgres.data):
            path.chmod(0o755 if path.is_dir() else 0o644)
    stack.start()
    check_closed(stack)
    with connect_redis(stack.state()["redis_url"]) as redis:
        assert redis.get("kept") == b"yes"
    assert rows(stack.state()["postgres_url"], "SELECT count(*) FROM kept") == [(0,)]


def test_passwords_outlive_a_restart_and_lost_ones_are_made_anew(stack: Up) -> None:
    stack.start()
    first = passwords(stack)
    assert stack.stop() == 0
    assert stack.state()["redis_url"] is None
    stack.start()
    assert passwords(stack) == first
    assert stack.stop() == 0
    (stack.data_dir / "passwords.json").unlink()
    stack.start()
    assert not set(passwords(stack)) & set(first)
    check_closed(stack)


def test_a_directory_that_holds_other_things_keeps_its_own_permissions(stack: Up) -> None:
    stack.data_dir.mkdir()
    stack.data_dir.chmod(0o755)
    (stack.data_dir / "shop.txt").write_text("not ours")
    (stack.data_dir / "shop.txt").chmod(0o644)
    stack.start()
    assert stat.S_IMODE(stack.data_dir.stat().st_mode) == 0o755
    assert stat.S_IMODE((stack.data_dir / "shop.txt").stat().st_mode) == 0o644
    found = as_nobody(_LOOK, str(stack.data_dir)).stdout if os.geteuid() == 0 else ""
    assert found.count("read") == found.count("listed") == (1 if found else 0), found


def test_to_another_user_a_stack_is_closed_and_not_away(place: Path) -> None:
    """`holdfast check` of a monitoring user said "not selling: no stack runs"."""
    write_state(place, State())
    assert read_state(place) == State()
    own = os.geteuid()
    state_file(place).chmod(0o600 if own == 0 else 0)
    try:
        if own == 0:
            os.seteuid(NOBODY)
        with pytest.raises(
            ServerError, match=r"stack.json is closed to this user; ask as the one who"
        ):
            discover(place, {})
        named = {"HOLDFAST_REDIS_URL": "redis://r", "HOLDFAST_POSTGRES_URL": "postgresql://p"}
        assert discover(place, named).redis_url == "redis://r"
    finally:
        os.seteuid(own)


#: As another user who may read what root may: root's own Python can lie where nobody else gets to.
_AS_NOBODY = [
    *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
]


@as_root
def test_not_as_root_the_same(place: Path) -> None:
    """Run by another user, whom root then can't be told from by files; nobody else gets in."""
    home = place / "home"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    if subprocess.run([*_AS_NOBODY, "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("NOT TESTED: setpriv gives no capabilities here")
    stack = Up(home / "stack")
    with (place / "out").open("wb") as output:
        stack.process = subprocess.Popen(
            [*_AS_NOBODY, sys.executable, "-m", "api.cli", "up", *stack.options()],
            cwd=REPOSITORY,
            env=stack.environ | {"HOME": str(home)},
            stdout=output,
            stderr=output,
        )
    try:
        eventually("it is ready", lambda: stack.process.poll() is not None or stack.ready(), 90)
        assert stack.process.poll() is None, (place / "out").read_text()
        for path in (stack.data_dir, *stack.data_dir.rglob("*")):
            assert (path.stat().st_uid, path.stat().st_mode & 0o077) == (NOBODY, 0), path
        port = stack.state()["redis_port"]
        with Redis(port=port) as redis, pytest.raises(Exception, match="uthenticat"):
            redis.ping()
    finally:
        stack.process.terminate()
        assert stack.process.wait(60) == 0
