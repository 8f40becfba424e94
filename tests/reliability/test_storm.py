"""Relay, persister, broker and PostgreSQL are killed again and again while orders come in.

Afterwards every acknowledged reservation is in the ledger exactly once, without a gap, and all agrees.
Two blows of each kind here; ``make lab`` deals 20 (HOLDFAST_LAB_KILLS).
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event as Flag
from threading import Thread

import msgspec
import psycopg
import pytest

from api.kafka_server import KafkaServer
from api.servers import PostgresServer, RedisServer, choose_redis
from engine.engine import Engine
from engine.model import Confirm, Line, Movement, Release, Reserve
from engine.partitions import read_head
from engine.settings import Settings
from engine.statuses import Status
from persister import database
from persister.audit import audit
from persister.persister import connect_redis
from persister.reconcile import reconcile
from tests.kafka_kit import messages
from tests.running import (
    REPOSITORY,
    all_acknowledged,
    environment,
    eventually,
    is_open,
    ledger_seq,
    rows,
)

KILLS = int(os.environ.get("HOLDFAST_LAB_KILLS", "2"))
SKUS = 20


class Process:
    """`holdfast <name>` that can be killed and started again."""

    def __init__(self, name: str, settings: Settings, log: Path) -> None:
        self.name = name
        self._environ = environment(settings)
        self._log = log
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "api.cli", self.name],
                cwd=REPOSITORY,
                env=self._environ,
                stdout=output,
                stderr=output,
            )

    def kill(self) -> None:
        assert self._process.poll() is None, f"{self.name} has ended: {self._log.read_text()}"
        self._process.kill()
        self._process.wait(10)

    def stop(self) -> None:
        self._process.terminate()
        assert self._process.wait(60) == 0, self._log.read_text()


class Orders(Thread):
    """Buyers: reserve, then pay, leave or do nothing. Keeps what was acknowledged."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(name="orders")
        self._settings = settings
        self.ending = Flag()
        self.reserved: list[str] = []
        self.unknown = 0

    def run(self) -> None:
        asyncio.run(self._sell())

    async def _sell(self) -> None:
        engine = await Engine.start(self._settings)
        for sku in range(SKUS):
            received = await engine.call(
                Movement(
                    movement_id=f"in-{sku}",
                    type="receive",
                    sku=f"S{sku}",
                    location="X",
                    quantity=1_000_000,
                )
            )
            assert received.status == "applied"
        number = 0
        while not self.ending.is_set():
            ids = [f"R{number + i}" for i in range(20)]
            number += len(ids)
            outcomes = await engine.call_all(
                [
                    Reserve(
                        reservation_id=each,
                        order_id=f"order-{each}",
                        lines=(Line(f"S{hash(each) % SKUS}", 1, "X"), Line("S0", 1, "X")),
                        ttl_ms=900_000,
                    )
                    for each in ids
                ]
            )
            held = [i for i, o in zip(ids, outcomes, strict=True) if o.status is Status.RESERVED]
            self.reserved += held
            self.unknown += len(ids) - len(held)
            await engine.call_all(
                [
                    Confirm(reservation_id=each) if i % 2 else Release(reservation_id=each)
                    for i, each in enumerate(held[: len(held) // 2])
                ]
            )
            await asyncio.sleep(0.02)
        await engine.close()


@pytest.fixture
def storm(embedded_kafka: None) -> Iterator[Storm]:
    with TemporaryDirectory(prefix="holdfast-storm-") as directory:
        place = Path(directory)
        place.chmod(0o755)  # PostgreSQL runs as another user where we are root
        storm = Storm(place)
        yield storm
        storm.end()


class Storm:
    def __init__(self, place: Path) -> None:
        self._log = place / "processes.log"
        self.redis_server = RedisServer(choose_redis(), place / "redis")
        self.postgres = PostgresServer(place / "postgres")
        self.broker = KafkaServer(place / "kafka")
        for server in (self.redis_server, self.postgres, self.broker):
            server.start()
        self.settings = Settings(
            redis_url=self.redis_server.url,
            postgres_url=self.postgres.url,
            kafka_bootstrap=self.broker.url,
        )
        self.redis = connect_redis(self.settings.redis_url)
        self.relay = Process("relay", self.settings, self._log)
        self.persister = Process("persister", self.settings, self._log)
        eventually("the partition is open", lambda: is_open(self.settings.redis_url))

    def end(self) -> None:
        self.relay.stop()
        self.persister.stop()
        self.redis.close()
        for server in (self.broker, self.postgres, self.redis_server):
            server.stop()

    def log(self) -> str:
        return self._log.read_text()

    def seq(self) -> int:
        return ledger_seq(self.settings)

    def has_sent_twice(self) -> bool:
        """Has a relay died between producing and trimming? Then another one sent the same events."""
        sent = messages(self.settings)
        return len(set(sent)) < len(sent)

    def moves_on(self) -> None:
        """Events go all the way again."""
        before = self.seq()
        eventually("the ledger moves on", lambda: self.seq() > before, 60)

    @contextmanager
    def transaction_held(self) -> Iterator[None]:
        """The persister stands between COPY and commit, waiting for a lock of ours."""
        with psycopg.connect(self.settings.postgres_url) as holder:
            holder.execute("LOCK TABLE balances IN EXCLUSIVE MODE")
            eventually("the persister waits", lambda: self._waiting() > 0)
            yield

    def _waiting(self) -> int:
        return int(
            rows(
                self.settings.postgres_url,
                "SELECT count(*) FROM pg_locks"
                " WHERE relation = 'balances'::regclass AND NOT granted",
            )[0][0]
        )


def kill_relay_between_produce_and_trim(storm: Storm) -> None:
    """Redis takes no writes for a moment: what the relay has read and produced it can't trim."""
    storm.redis.execute_command("CLIENT", "PAUSE", 400, "WRITE")
    time.sleep(random.uniform(0.05, 0.2))
    storm.relay.kill()
    storm.redis.execute_command("CLIENT", "UNPAUSE")
    storm.relay.start()


def kill_persister_between_copy_and_commit(storm: Storm) -> None:
    with storm.transaction_held():
        storm.persister.kill()
    storm.persister.start()


def kill_persister_after_commit(storm: Storm) -> None:
    before = storm.seq()
    eventually("a commit", lambda: storm.seq() > before)
    storm.persister.kill()
    storm.persister.start()


def kill_broker(storm: Storm) -> None:
    storm.broker.kill()
    time.sleep(random.uniform(0, 0.5))
    storm.broker.start()


def kill_postgres_in_a_transaction(storm: Storm) -> None:
    try:
        with storm.transaction_held():
            storm.postgres.kill()
    except psycopg.Error:
        pass  # our own session died with the server
    storm.postgres.start()


BLOWS: list[Callable[[Storm], None]] = [
    kill_relay_between_produce_and_trim,
    kill_persister_between_copy_and_commit,
    kill_persister_after_commit,
    kill_broker,
    kill_postgres_in_a_transaction,
]


def test_given_a_storm_of_kills_then_every_acknowledged_reservation_is_in_the_ledger_once(
    storm: Storm,
) -> None:
    seed = int(os.environ.get("HOLDFAST_SEED", time.time_ns() % 10**6))
    print(f"seed {seed}")
    random.seed(seed)
    settings = storm.settings
    orders = Orders(settings)
    orders.start()
    try:
        blows = BLOWS * KILLS
        random.shuffle(blows)
        for blow in blows:
            storm.moves_on()
            blow(storm)
        while not storm.has_sent_twice():
            storm.moves_on()
            kill_relay_between_produce_and_trim(storm)
        storm.moves_on()
    finally:
        orders.ending.set()
        orders.join(30)
    head_seq = read_head(storm.redis, 0).position[1]
    eventually("the ledger has all", lambda: storm.seq() == head_seq, 60)
    eventually("all is acknowledged", lambda: all_acknowledged(storm.redis))

    assert len(orders.reserved) > 100 * KILLS, orders.unknown
    count = "SELECT body->>'reservation_id', count(*) FROM events WHERE type = 'reserve' GROUP BY 1"
    in_ledger = dict(rows(settings.postgres_url, count))
    assert [each for each in orders.reserved if in_ledger.get(each) != 1] == []
    assert rows(settings.postgres_url, "SELECT count(*), min(seq), max(seq) FROM events") == [
        (head_seq, 1, head_seq)
    ]
    with database.connect(settings.postgres_url) as connection:
        assert msgspec.to_builtins(audit(connection).findings) == []
        assert reconcile(storm.redis, connection).differences == []
    assert "CRITICAL" not in storm.log()
