"""Where a benchmark runs: servers and processes of its own, on this machine, thrown away afterwards.

The audit after each run is the point of it: what was acknowledged is in Redis and in the ledger, once,
and no unit was sold twice or lost.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import psutil  # type: ignore[import-untyped]
import psycopg
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from api.kafka_server import KafkaServer
from api.servers import PostgresServer, RedisServer, choose_redis
from engine import keys
from engine.partitions import read_head, read_server

REPOSITORY = Path(__file__).resolve().parent.parent
PATIENCE_S = 120.0
_SLICE = 5_000


class BenchError(Exception):
    """The benchmark can't go on; its text says why."""


def until(what: str, check: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
    """The first true answer of ``check``. BenchError where none comes in time."""
    give_up_at = time.monotonic() + patience_s
    while not (answer := check()):
        if time.monotonic() > give_up_at:
            raise BenchError(f"not within {patience_s:.0f} s: {what}")
        time.sleep(0.02)
    return answer


def cpu_s(*pids: int) -> float:
    """Processor time that these processes have used, in seconds."""
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return float(sum([each.user + each.system for each in times]))


def connect_redis(url: str) -> Redis:
    """A client that repeats nothing by itself."""
    return Redis.from_url(url, protocol=2, retry=Retry(NoBackoff(), 0), socket_timeout=60)


class Process:
    """One of our own programs, with its words in a log."""

    def __init__(self, arguments: Sequence[str], environ: dict[str, str], log: Path) -> None:
        self._log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                cwd=REPOSITORY,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def check(self) -> bool:
        """True while it runs; BenchError with its last words once it has ended."""
        if self._process.poll() is not None:
            raise BenchError(f"a process has ended: {self._log.read_text()[-500:]}")
        return True

    def hold_back(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def let_go(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self.let_go()
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Place:
    """A Redis and a PostgreSQL, and a Kafka where asked for. ``fresh`` begins with an empty ledger."""

    def __init__(self, *, appendfsync: str = "always", kafka: bool = False) -> None:
        self._directory = TemporaryDirectory(prefix="holdfast-bench-")
        place = Path(self._directory.name)
        place.chmod(0o755)  # PostgreSQL runs as another user where we are root
        self.log = place / "processes.log"
        self.redis_server = RedisServer(choose_redis(), place / "redis", appendfsync=appendfsync)
        self.postgres_server = PostgresServer(place / "postgres")
        self.kafka_server = KafkaServer(place / "kafka") if kafka else None
        self._databases = 0
        self.postgres_url = self.postgres_server.url
        self.directory = place

    def __enter__(self) -> Self:
        self._started: list[RedisServer | PostgresServer | KafkaServer] = []
        try:
            for server in (self.kafka_server, self.redis_server, self.postgres_server):
                if server is not None:
                    server.start()
                    self._started.append(server)
        except BaseException:
            self.__exit__()
            raise
        self.redis = connect_redis(self.redis_server.url)
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._started:
            server.stop()
        self._directory.cleanup()

    @property
    def environ(self) -> dict[str, str]:
        """What our programs are started with."""
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")
        }
        kept["HOLDFAST_REDIS_URL"] = self.redis_server.url
        kept["HOLDFAST_POSTGRES_URL"] = self.postgres_url
        if self.kafka_server is not None:
            kept["HOLDFAST_KAFKA_BOOTSTRAP"] = self.kafka_server.url
        return kept

    @contextmanager
    def fresh(self) -> Iterator[Process]:
        """An empty Redis and a new ledger, opened by a persister, which is yielded."""
        self.redis.flushall()
        self._databases += 1
        name = f"bench_{self._databases}"
        with psycopg.connect(self.postgres_server.url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        self.postgres_url = self.postgres_server.url.rsplit("/", 1)[0] + f"/{name}"
        persister = Process(["api.cli", "persister"], self.environ, self.log)
        try:
            until("the partition is open", lambda: persister.check() and is_open(self.redis))
            yield persister
        finally:
            persister.stop()

    def redis_cpu_s(self) -> float:
        """Processor time that Redis has used, in seconds."""
        told = self.redis.info("cpu")
        return float(told["used_cpu_user"] + told["used_cpu_sys"])

    def wait_for_ledger(self) -> None:
        wait_for_ledger(self.redis, self.postgres_url)


def wait_for_ledger(redis: Redis, postgres_url: str) -> None:
    """Until the ledger has all that Redis has decided. BenchError where it stands still."""
    last, moved_at = -1, time.monotonic()
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        while (seq := _ledger_seq(connection)) != read_head(redis, 0).position[1]:
            if seq != last:
                last, moved_at = seq, time.monotonic()
            if time.monotonic() - moved_at > PATIENCE_S:
                raise BenchError(f"the ledger stands still at {seq}")
            time.sleep(0.05)


def is_open(redis: Redis) -> bool:
    return read_head(redis, 0).is_open_on(read_server(redis))


def _ledger_seq(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute("SELECT seq FROM positions WHERE partition = 0").fetchone()
    return int(row[0]) if row else 0


def audit_reservations(redis: Redis, postgres_url: str, acknowledged: Sequence[str]) -> list[str]:
    """Each acknowledged reservation is in Redis, and in the ledger exactly once. What is wrong, a line
    each. The ledger must have caught up."""
    findings = []
    if len(set(acknowledged)) != len(acknowledged):
        findings.append("an id was acknowledged as new twice")
    missing = 0
    for first in range(0, len(acknowledged), _SLICE):
        pipe = redis.pipeline(transaction=False)
        for each in acknowledged[first : first + _SLICE]:
            pipe.exists(keys.reservation(0, each))
        missing += sum(not found for found in pipe.execute())
    if missing:
        findings.append(f"{missing} acknowledged reservations are not in Redis")
    with psycopg.connect(postgres_url) as connection:
        connection.execute("CREATE TEMPORARY TABLE acknowledged (id text)")
        with connection.cursor() as cursor, cursor.copy("COPY acknowledged FROM STDIN") as copy:
            for first in range(0, len(acknowledged), _SLICE):
                part = acknowledged[first : first + _SLICE]
                copy.write("".join([f"{each}\n" for each in part]))
        row = connection.execute(
            "SELECT count(*) FROM (SELECT id FROM acknowledged LEFT JOIN movements m ON"
            " m.reservation_id = id AND m.type = 'reserve' AND m.line = 1"
            " GROUP BY id HAVING count(m.seq) <> 1) AS wrong"
        ).fetchone()
        if row and row[0]:
            findings.append(
                f"{row[0]} acknowledged reservations are not in the ledger exactly once"
            )
    return findings


def audit_stock(redis: Redis, postgres_url: str) -> list[str]:
    """No sku has fewer than 0 units available, and Redis and the ledger have the same numbers. Nobody
    may be at work."""
    findings = []
    with psycopg.connect(postgres_url) as connection:
        balances = connection.execute(
            "SELECT sku, location, on_hand, held, quarantined, seq FROM balances"
        ).fetchall()
    pipe = redis.pipeline(transaction=False)
    for sku, location, *_ in balances:
        pipe.hmget(keys.stock(0, sku, location), "on_hand", "held", "quarantined", "seq")
    for (sku, location, *kept), answer in zip(balances, pipe.execute(), strict=True):
        found = [int(value or -1) for value in answer]
        if found != kept:
            findings.append(f"{sku} at {location}: Redis has {found}, the ledger {kept}")
        if found[0] - found[1] - found[2] < 0:
            findings.append(f"{sku} at {location} is oversold: {found}")
    return findings[:20]
