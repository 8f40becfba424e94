"""A master that is cut off from its replica and lives on: what Redis prevents where it is told to, and what
becomes of the sales where it isn't."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from kit import Partition, reserve
from redis.exceptions import ResponseError
from running import (
    NO_POSTGRES,
    check_clean,
    environment,
    eventually,
    holdfast,
    is_open,
    open_by_hand,
    persisting,
    rows,
    served,
    wait_for_ledger,
)

from api.servers import RedisServer, choose_redis
from engine.engine import Engine
from engine.partitions import read_head
from engine.settings import Settings
from persister.persister import connect_redis

pytestmark = pytest.mark.anyio


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[RedisServer, RedisServer]]:
    """A master, and its replica that has caught up."""
    made = [
        RedisServer(choose_redis(), tmp_path / name, appendfsync="no")
        for name in ("master", "replica")
    ]
    for server in made:
        server.start()
    with connect_redis(made[0].url) as master, connect_redis(made[1].url) as replica:
        master.config_set("repl-diskless-sync-delay", 0)
        replica.slaveof("127.0.0.1", made[0].port)
        eventually("it follows", lambda: master.info("replication").get("slave0"))
        eventually("it is up", lambda: replica.info("replication")["master_link_status"] == "up")
    yield made[0], made[1]
    for server in made:
        server.stop()


def of(server: RedisServer, postgres_url: str) -> Settings:
    return Settings(redis_url=server.url, postgres_url=postgres_url)


def test_given_min_replicas_then_a_master_that_is_cut_off_refuses_and_changes_nothing(
    pair: tuple[RedisServer, RedisServer], postgres_url: str
) -> None:
    settings = of(pair[0], postgres_url)
    with connect_redis(pair[0].url) as redis, persisting(settings):
        redis.config_set("min-replicas-to-write", 1)
        redis.config_set("min-replicas-max-lag", 1)
        p = Partition.of(redis)
        p.receive("tea", 10)
        os.kill(pair[1].pid, signal.SIGSTOP)
        try:
            eventually(
                "the replica is late",
                lambda: not redis.info("replication")["min_slaves_good_slaves"],
            )
            seq = p.seq()
            with pytest.raises(ResponseError, match="NOREPLICAS"):
                p.one(reserve("r1", "tea"))
            assert p.seq() == seq and p.numbers("tea")[:2] == (10, 0)
        finally:
            os.kill(pair[1].pid, signal.SIGCONT)
        eventually("it is back", lambda: redis.info("replication")["min_slaves_good_slaves"])
        assert p.one(reserve("r1", "tea")).status == "reserved"


def test_without_it_both_sell_and_only_what_its_successor_sold_is_in_the_ledger(
    pair: tuple[RedisServer, RedisServer], postgres_url: str
) -> None:
    former, successor = of(pair[0], postgres_url), of(pair[1], postgres_url)
    with connect_redis(former.redis_url) as old, connect_redis(successor.redis_url) as new:
        with persisting(former):
            p = Partition.of(old)
            p.receive("tea", 10)
            wait_for_ledger(former)
            eventually("the replica has it", lambda: read_head(new, 0) == read_head(old, 0))
        new.slaveof()
        with persisting(successor):
            assert Partition.of(new).one(reserve("new", ("tea", 10))).status == "reserved"
            assert p.one(reserve("cut off", ("tea", 10))).status == "reserved"
            wait_for_ledger(successor)
        # It comes back with what it sold: nothing of that enters, and nothing more is sold there.
        with persisting(former, until_open=False):
            eventually("it is closed", lambda: not is_open(former.redis_url))
        with persisting(successor):
            wait_for_ledger(successor)
        check_clean(successor)
    query = "SELECT reservation_id, epoch FROM movements WHERE type = 'reserve'"
    assert rows(postgres_url, query) == [("new", 2)]


async def test_given_replicas_and_no_such_setting_then_the_start_says_so(
    pair: tuple[RedisServer, RedisServer], caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(redis_url=pair[0].url)
    word = "min-replicas-to-write is 0"
    with connect_redis(pair[0].url) as redis, caplog.at_level(logging.WARNING):
        redis.config_set("min-replicas-to-write", 1)
        await (await Engine.start(settings)).close()
        assert word not in caplog.text
        redis.config_set("min-replicas-to-write", 0)
        await (await Engine.start(settings)).close()
        assert word in caplog.text


@pytest.mark.parametrize("name", ["min-replicas-to-write", "min-replicas-max-lag"])
def test_given_replicas_and_no_such_setting_then_check_says_so_in_its_one_line(
    pair: tuple[RedisServer, RedisServer], name: str, tmp_path: Path
) -> None:
    """It sells, so the exit code stays 0. Of a service, and of Redis alone."""
    settings = Settings(redis_url=pair[0].url, postgres_url=NO_POSTGRES)
    open_by_hand(pair[0].url)
    with connect_redis(pair[0].url) as redis, served(settings, tmp_path / "log") as url:
        redis.config_set("min-replicas-max-lag", 10)
        for value, is_told in ((1, False), (0, True)):
            redis.config_set("min-replicas-to-write", 1)
            redis.config_set(name, value)
            for options in (["--url", url], []):
                done = holdfast("check", *options, environ=environment(settings))
                assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
                assert ("; but Redis has 1 replica and " in done.stdout) is is_told, done.stdout
            status = httpx.get(f"{url}/v1/status", trust_env=False).json()
            assert [f"{name} is 0" in risk for risk in status["redis"]["risks"]] == (
                [True] if is_told else []
            )
