"""A file that was cut within a transaction: what was lost with the first restart doesn't come back with the
second one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import Partition, reserve
from needed import SERVERS, missing
from running import append_only_file, check_clean, eventually, is_open, persisting, wait_for_ledger

from api.servers import RedisServer, find_redis_binaries
from engine.settings import Settings
from persister.persister import connect_redis


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    binaries = {each.name: each for each in find_redis_binaries()}
    if request.param not in binaries:
        missing(f"a {request.param} server")
    server = RedisServer(binaries[request.param], tmp_path / "redis", appendfsync="always")
    server.start()
    yield server
    server.stop()


def test_given_a_cut_within_a_transaction_then_no_half_of_it_comes_back(
    server: RedisServer, postgres_url: str
) -> None:
    settings = Settings(redis_url=server.url, postgres_url=postgres_url)
    with connect_redis(server.url) as redis, persisting(settings):
        p = Partition.of(redis)
        p.receive("tea", 100)
        wait_for_ledger(settings)
    with connect_redis(server.url) as redis:
        before = append_only_file(server).stat().st_size
        assert Partition.of(redis).one(reserve("ghost", ("tea", 60))).status == "reserved"
        written = append_only_file(server).read_bytes()[before:]
    server.kill()
    # Behind the write of the reservation and the one of stock, within that of head.
    cut = before + written.index(b"written_bytes") - 3
    with append_only_file(server).open("r+b") as file:
        file.truncate(cut)
    server.start()
    with connect_redis(server.url) as redis:
        p = Partition.of(redis)
        with persisting(settings):
            assert p.record("ghost") is None and p.numbers("tea")[:2] == (100, 0)
            p.receive("mug", 5)
            wait_for_ledger(settings)
        server.kill()
        server.start()
        with persisting(settings):
            eventually("it is open", lambda: is_open(settings.redis_url))
            assert p.record("ghost") is None
            assert p.numbers("tea")[:2] == (100, 0)
            wait_for_ledger(settings)
    check_clean(settings)
