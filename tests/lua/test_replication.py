"""Replicas that come and go, and a server that becomes one and is promoted again: is it still open?

What changes the replication id only closes nothing; what changes the data does, for good.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kit import WRITES, Partition, move, open_now, reserve
from needed import SERVERS, missing
from redis import Redis
from redis.exceptions import ReadOnlyError
from running import eventually

from api.servers import RedisServer, find_redis_binaries
from engine.model import GetStock
from engine.partitions import read_head, read_server
from persister.persister import connect_redis


@pytest.fixture(scope="module", params=SERVERS)
def servers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[RedisServer, RedisServer]]:
    binaries = {binary.name: binary for binary in find_redis_binaries()}
    if request.param not in binaries:
        missing(f"a {request.param} server")
    made = [
        RedisServer(binaries[request.param], tmp_path_factory.mktemp(name), appendfsync="no")
        for name in ("first", "second")
    ]
    for server in made:
        server.start()
    yield made[0], made[1]
    for server in made:
        server.stop()


@pytest.fixture
def pair(servers: tuple[RedisServer, RedisServer]) -> Iterator[tuple[Redis, Redis]]:
    """Two masters, the first with an open partition and some stock, none with a backlog or a second id."""
    with connect_redis(servers[0].url) as first, connect_redis(servers[1].url) as second:
        for redis in (first, second):
            redis.slaveof()
            redis.config_set("repl-backlog-ttl", 1)
            redis.config_set("repl-diskless-sync-delay", 0)
        for redis in (first, second):
            forget_replicas(redis)
            redis.flushall()
        p = Partition(first)
        p.receive("A", 10)
        yield first, second


def forget_replicas(redis: Redis) -> None:
    """Wait until it has let go of its backlog, and with it of its second id."""
    eventually(
        "the backlog is gone",
        lambda: not redis.info("replication")["repl_backlog_active"],
    )


def follow(replica: Redis, master: Redis) -> None:
    """Make one a replica of the other, and wait until it has its data."""
    replica.slaveof("127.0.0.1", master.connection_pool.connection_kwargs["port"])
    eventually(
        "it has caught up", lambda: replica.info("replication")["master_link_status"] == "up"
    )
    eventually("it has the head", lambda: read_head(replica, 0) == read_head(master, 0))


def replid(redis: Redis) -> str:
    return str(redis.info("replication")["master_replid"])


def is_open(redis: Redis) -> bool:
    """As the scripts see it, and as Python does."""
    status = Partition.of(redis).one(GetStock("A")).status
    told = read_head(redis, 0).is_open_on(read_server(redis))
    assert (status != "partition_closed") is told
    return told


def sweep(redis: Redis) -> object:
    return Partition.of(redis).script("expire", WRITES, 500, 1_000)


def test_given_a_first_replica_that_attaches_and_leaves_then_it_stays_open(
    pair: tuple[Redis, Redis],
) -> None:
    first, second = pair
    ids = [replid(first)]
    follow(second, first)
    ids.append(replid(first))
    assert is_open(first)
    assert not is_open(second)
    second.slaveof()
    forget_replicas(first)
    ids.append(replid(first))
    assert len(set(ids)) == 3, "the id did not change: this test tests nothing"
    assert is_open(first)
    assert Partition.of(first).one(move("receive", "A", 1)).status == "applied"
    assert read_head(first, 0).epoch == "1"


@pytest.mark.parametrize("noticed_by", ["sweeper", "trimmer"])
def test_given_a_server_that_was_a_replica_and_is_promoted_then_it_is_closed_for_good(
    pair: tuple[Redis, Redis], noticed_by: str
) -> None:
    """The first one's last sale never reached the second, whose data the first one gets."""
    first, second = pair
    follow(second, first)
    second.slaveof()
    assert Partition.of(first).one(reserve("lost", ("A", 10))).status == "reserved"
    follow(first, second)
    assert not is_open(first)
    assert first.get("hf:{0}:reservation:lost") is None, "it lost nothing: this test tests nothing"
    first.slaveof()
    assert read_head(first, 0).run_id == read_server(first).run_id
    assert not is_open(first)
    p = Partition.of(first)
    assert p.one(reserve("again", ("A", 10))).status == "partition_closed"
    if noticed_by == "sweeper":
        assert sweep(first) == b"partition_closed"
    else:
        assert p.script("trim", WRITES, "relay:1", 3000, "", "", 0, 0, "", "", 0, 0)[0] == b"kept"
    # What told it is gone after a while without replicas: it is closed all the same.
    forget_replicas(first)
    assert read_server(first).is_own_line
    assert not is_open(first)
    open_now(first)
    assert is_open(first)


def test_given_a_replica_then_the_sweeper_changes_nothing_there(pair: tuple[Redis, Redis]) -> None:
    first, second = pair
    follow(second, first)
    try:
        assert sweep(second) == b"partition_closed"
    except ReadOnlyError:  # from Redis 7 on it isn't even begun
        assert not is_open(second)
    assert read_head(second, 0) == read_head(first, 0)
