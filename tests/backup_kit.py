"""What the tests of docs/backups.md share: PostgreSQL servers that are copied, archived, followed and lost,
and the commands of that page, which are run as they stand there."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread

import msgspec
import psycopg
from kafka_kit import relaying
from kit import Partition, confirm, reserve
from needed import missing
from running import REPOSITORY, check_clean, environment, eventually, persisting, rows

from api.binaries import find_postgres
from api.privileges import hand_over_all, unprivileged_owner
from api.servers import PostgresServer
from engine.settings import Settings
from persister.persister import connect_redis

PAGE = REPOSITORY / "docs" / "backups.md"
_TOOLS = ("createdb", "pg_basebackup", "pg_dump", "pg_dumpall", "pg_restore", "psql")


class Postgres(PostgresServer):
    """One that may also be a standby: it counts as started once it can be read."""

    def answers(self) -> bool:
        lines = self._pid_file_lines()
        is_told = len(lines) >= 8 and lines[0] == str(self.pid)
        return is_told and lines[7].strip() in ("ready", "standby")

    def is_recovering(self) -> bool:
        return bool(rows(self.url, "SELECT pg_is_in_recovery()")[0][0])

    def run(self, *statements: str) -> None:
        """Each by itself, as the superuser."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)


class Room:
    """A directory in which servers are made and the page's commands are typed. What the page has in
    /backup is in ``backup``."""

    def __init__(self, directory: Path, empty: Postgres, ends: ExitStack) -> None:
        self._empty = empty
        self._ends = ends
        self._directory = directory
        self.backup = directory / "backup"
        (self.backup / "wal").mkdir(parents=True)
        owner = unprivileged_owner(self.backup / "wal")
        if owner is not None:
            hand_over_all(self.backup / "wal", owner)
        tools = find_postgres(directory / "none")
        for name in _TOOLS:
            if not (tools / name).exists():
                missing(f"{name} beside {tools / 'postgres'}")
        ours = directory / "bin"
        ours.mkdir()
        (ours / "holdfast").write_text(
            f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m api.cli "$@"\n'
        )
        (ours / "holdfast").chmod(0o755)
        self._path = f"{ours}:{tools}:{os.environ['PATH']}"

    def new_postgres(self, name: str) -> Postgres:
        """A server with no data, started. All have one system identifier."""
        server = self.postgres(name)
        shutil.copytree(self._empty.directory, server.directory)
        server.start()
        return server

    def postgres(self, name: str, port: int = 0) -> Postgres:
        """A server that has no directory yet."""
        server = Postgres(self._directory / name, port=port)
        self._ends.callback(server.stop)
        return server

    def type(self, heading: str, *, code: int = 0, **environ: str) -> str:
        """Run the commands below a heading of the page; what they print."""
        done = subprocess.run(
            ["bash", "-euc", commands(heading).replace("/backup", str(self.backup))],
            cwd=self.backup,
            env=environment(None, PATH=self._path, PYTHONPATH=str(REPOSITORY), **environ),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr


@contextmanager
def room(empty: Postgres) -> Iterator[Room]:
    # Not below pytest's own directory: for root that is closed to the user PostgreSQL runs as.
    with TemporaryDirectory(prefix="holdfast-backups-") as directory, ExitStack() as ends:
        yield Room(Path(directory), empty, ends)


def commands(heading: str) -> str:
    """The first block of commands below a heading of the page."""
    found = re.search(rf"^##+ {re.escape(heading)}\n(.*?)(?=^##|\Z)", PAGE.read_text(), re.M | re.S)
    assert found, f"docs/backups.md has no heading '{heading}'"
    block = re.search(r"^```sh\n(.*?)^```", found[1], re.M | re.S)
    assert block, f"docs/backups.md has no commands below '{heading}'"
    return block[1]


class Traffic(Thread):
    """Reserves and confirms one unit of A after the other, until it is ended; what was confirmed."""

    def __init__(self, redis_url: str) -> None:
        super().__init__(name="traffic", daemon=True)
        self._url = redis_url
        self._ending = Event()
        self.confirmed: list[str] = []

    def __enter__(self) -> Traffic:
        self.start()
        self.goes_on()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self.join(30)

    def goes_on(self) -> None:
        target = len(self.confirmed) + 20
        eventually("the traffic goes on", lambda: len(self.confirmed) > target)

    def run(self) -> None:
        with connect_redis(self._url) as redis:
            p = Partition.of(redis)
            while not self._ending.is_set():
                name = f"traffic-{len(self.confirmed)}"
                p.one(reserve(name, ("A", 1, "X")))
                if p.one(confirm(name)).status == "confirmed":
                    self.confirmed.append(name)


@contextmanager
def moving(settings: Settings) -> Iterator[None]:
    """The relay, where there is Kafka, and the persister."""
    with ExitStack() as ends:
        if settings.kafka_bootstrap:
            ends.enter_context(relaying(settings))
        ends.enter_context(persisting(settings))
        yield


def at(settings: Settings, postgres_url: str) -> Settings:
    return msgspec.structs.replace(settings, postgres_url=postgres_url)


def beside(postgres_url: str, name: str) -> str:
    """Another database of the same server."""
    return f"{postgres_url.rsplit('/', 1)[0]}/{name}"


def drop(postgres_url: str) -> None:
    name = postgres_url.rsplit("/", 1)[1]
    with psycopg.connect(beside(postgres_url, "postgres"), autocommit=True) as admin:
        admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def sell(p: Partition, name: str, count: int = 20) -> None:
    for number in range(count):
        p.hold(f"{name}-{number}", ("A", 1, "X"))
        if number % 2:
            p.one(confirm(f"{name}-{number}"))


def check_whole(settings: Settings, seq: int) -> None:
    """All that was ever decided is in the ledger, one by one."""
    check_clean(settings)
    seqs = [each for (each,) in rows(settings.postgres_url, "SELECT seq FROM events ORDER BY seq")]
    assert seqs == list(range(1, seq + 1))


def stopped(settings: Settings) -> str:
    return str(rows(settings.postgres_url, "SELECT coalesce(stopped, '') FROM positions")[0][0])
