"""Relay, persister, sweeper or HTTP worker stands still at any moment, Redis loses its end and is opened
anew, the sale goes on, and the frozen one wakes: nothing of it enters, and all agrees. Again and again.

Two rounds here; ``make lab`` plays 200 (HOLDFAST_LAB_ROUNDS).
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event as Flag
from threading import Thread

import httpx
import pytest
from kafka_kit import through_kafka
from running import (
    REPOSITORY,
    append_only_file,
    check_clean,
    environment,
    eventually,
    is_open,
    ledger_seq,
    rows,
)

from api.ports import free_port
from api.servers import RedisServer, choose_redis
from engine.partitions import read_head
from engine.settings import Settings
from persister.persister import connect_redis

ROUNDS = int(os.environ.get("HOLDFAST_LAB_ROUNDS", "2"))
STOCK = 1_000_000


class Process:
    """`holdfast …` as a process that can be frozen."""

    def __init__(self, settings: Settings, log: Path, *words: str) -> None:
        self._words = words
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "api.cli", *words],
                cwd=REPOSITORY,
                env=environment(settings),
                stdout=output,
                stderr=output,
            )

    def send(self, number: signal.Signals) -> None:
        assert self._process.poll() is None, f"{self._words} has ended"
        self._process.send_signal(number)

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
        self._process.wait(10)


class Buyers(Thread):
    """Reserve at one worker or the other, confirm every second one; keeps what was acknowledged."""

    def __init__(self, urls: list[str], name: str) -> None:
        super().__init__(name="buyers", daemon=True)
        self._urls = urls
        self._name = name
        self.ending = Flag()
        self.sold = 0

    def run(self) -> None:
        # A frozen worker says nothing: most of the time goes to the other one.
        with httpx.Client(timeout=0.3, trust_env=False) as client:
            number = 0
            while not self.ending.is_set():
                number += 1
                url = self._urls[number % len(self._urls)]
                name = f"{self._name}-{number}"
                order = {"reservation_id": name, "order_id": name, "ttl_seconds": 3600}
                lines = [{"sku": "tea", "quantity": 1, "location": "X"}]
                try:
                    answer = client.post(f"{url}/v1/reservations", json={**order, "lines": lines})
                    if answer.status_code == 201:
                        self.sold += 1
                        if number % 2:
                            client.post(f"{url}/v1/reservations/{name}/confirm")
                except httpx.TransportError:
                    continue
                if answer.status_code == 503:
                    time.sleep(0.02)


class Shop:
    """Redis, and every other process of its own, on a shared PostgreSQL and Kafka."""

    def __init__(self, place: Path, postgres_url: str, kafka_bootstrap: str) -> None:
        self.log = place / "processes.log"
        self.server = RedisServer(choose_redis(), place / "redis")
        self.server.start()
        direct = Settings(redis_url=self.server.url, postgres_url=postgres_url)
        self.settings = through_kafka(direct, kafka_bootstrap)
        ports = [free_port(), free_port()]
        self.urls = [f"http://127.0.0.1:{port}" for port in ports]
        self.parts = {
            "relay": self.start("relay"),
            "persister": self.start("persister"),
            "sweeper": self.start("sweeper"),
            "http": self.start("serve", "--port", str(ports[0])),
            "other http": self.start("serve", "--port", str(ports[1])),
        }
        eventually("the partition is open", lambda: is_open(self.settings.redis_url), 60)
        for url in self.urls:
            eventually("it serves", lambda: self.answers(url), 60)  # noqa: B023

    def start(self, *words: str) -> Process:
        return Process(self.settings, self.log, *words)

    def answers(self, url: str) -> bool:
        try:
            return httpx.get(f"{url}/health/ready", trust_env=False, timeout=2).is_success
        except httpx.TransportError:
            return False

    def end(self) -> None:
        for part in self.parts.values():
            part.end()
        self.server.stop()

    def freeze(self, name: str) -> None:
        self.parts[name].send(signal.SIGSTOP)
        if name == "persister":
            # Its session, and the lease with it, is gone, as after a restart of PostgreSQL.
            query = (
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'holdfast' AND datname = current_database()"
            )
            rows(self.settings.postgres_url, query)
            self.parts["second persister"] = self.start("persister")
        if name == "relay":
            self.parts["second relay"] = self.start("relay")

    def wake(self, name: str) -> None:
        """And one of the two goes, whichever it is."""
        self.parts[name].send(signal.SIGCONT)
        second = self.parts.pop(f"second {name}", None)
        if second is not None:
            time.sleep(random.uniform(0, 1))
            kept, other = random.sample([self.parts[name], second], 2)
            other.end()
            self.parts[name] = kept

    def lose_the_end(self, at_least_bytes: int) -> None:
        """Kill Redis, and cut what it wrote since the file had so many bytes at any place."""
        self.server.kill()
        file = append_only_file(self.server)
        size = file.stat().st_size
        with file.open("r+b") as data:
            data.truncate(random.randint(min(at_least_bytes, size), size))
        self.server.start()


@pytest.fixture
def shop(tmp_path: Path, postgres_url: str, kafka_bootstrap: str) -> Iterator[Shop]:
    shop = Shop(tmp_path, postgres_url, kafka_bootstrap)
    yield shop
    shop.end()


def test_given_who_was_frozen_while_redis_lost_its_end_then_it_adds_nothing_when_it_wakes(
    shop: Shop,
) -> None:
    seed = int(os.environ.get("HOLDFAST_SEED", time.time_ns() % 10**6))
    print(f"seed {seed}")
    random.seed(seed)
    settings = shop.settings
    move = {"movement_id": "in", "type": "receive", "sku": "tea", "location": "X"}
    answer = httpx.post(f"{shop.urls[1]}/v1/movements", json=move | {"quantity": STOCK})
    assert answer.status_code == 201
    victims = ["relay", "persister", "http", "sweeper"] * (ROUNDS // 4 + 1)
    for number in range(ROUNDS):
        victim = victims[number] if ROUNDS > 4 else ["relay", "persister"][number % 2]
        buyers = Buyers(shop.urls, f"r{number}")
        buyers.start()
        try:
            eventually("some are sold", lambda: buyers.sold > 40)  # noqa: B023
            kept_bytes = append_only_file(shop.server).stat().st_size
            eventually("more are sold", lambda: buyers.sold > 60)  # noqa: B023
            time.sleep(random.uniform(0, 0.1))
            shop.freeze(victim)
            shop.lose_the_end(kept_bytes)
            eventually("it is opened anew", lambda: is_open(settings.redis_url), 60)
            at = buyers.sold
            eventually("it sells", lambda: buyers.sold > at + 40, 60)  # noqa: B023
            shop.wake(victim)
            at = buyers.sold
            eventually("it sells on", lambda: buyers.sold > at + 40, 60)  # noqa: B023
        finally:
            buyers.ending.set()
            buyers.join(30)
        with connect_redis(settings.redis_url) as redis:
            eventually(
                f"round {number}, {victim}: the ledger has all",
                lambda: ledger_seq(settings) == read_head(redis, 0).position[1],
                60,
            )
        check_clean(settings)
    told = "SELECT count(*), min(seq), max(seq), count(DISTINCT seq) FROM events"
    [(count, first, last, seqs)] = rows(settings.postgres_url, told)
    assert (count, first, seqs) == (last, 1, last)
