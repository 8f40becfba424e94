"""A reserve of nothing is refused with what every reserve would be, and changes nothing: the probe behind
``selling``."""

import pytest
from kit import Partition, reserve
from redis.exceptions import ResponseError

from engine import keys
from engine.engine import _operations
from engine.model import Reserve
from engine.selling import status_for_all
from engine.settings import Settings


def ask(p: Partition, settings: Settings) -> str | None:
    """What the probe is told, as Engine.why_not_selling asks it; None where a reserve is decided."""
    operation = _operations(0, settings)[Reserve]
    try:
        reply = p.script(
            operation.script, list(operation.keys), *operation.pack([]), *operation.arguments
        )
    except ResponseError as error:
        reply = error
    return status_for_all(reply)


@pytest.fixture
def p(redis):
    """r1 holds 5 of 10, and is overdue."""
    p = Partition(redis)
    p.receive("A", 10)
    p.hold("r1", ("A", 5), ttl_ms=1_000)
    p.make_due("r1")
    return p


def close(p: Partition) -> Settings:
    p.redis.hset(keys.head(0), "run_id", "another")
    return Settings()


def fill(p: Partition) -> Settings:
    p.fill()
    return Settings()


def fill_backlog(p: Partition) -> Settings:
    return Settings(outbox_max_events=1)


def follow_another(p: Partition) -> Settings:
    p.redis.replicaof("127.0.0.1", 1)
    return Settings()


SITUATIONS = {
    "open": (lambda p: Settings(), None),
    "partition_closed": (close, "partition_closed"),
    "store_full": (fill, "store_full"),
    "backlog_full": (fill_backlog, "backlog_full"),
    "a replica": (follow_another, "unavailable"),
}


@pytest.mark.parametrize(("make", "told"), SITUATIONS.values(), ids=SITUATIONS)
def test_given_a_situation_then_nothing_is_refused_as_a_reserve_is_and_nothing_changes(
    p, make, told
):
    settings = make(p)
    try:
        before, fill_of_aof = p.dump(), p.redis.info("replication")["master_repl_offset"]
        assert ask(p, settings) == told
        assert p.dump() == before
        assert p.redis.info("replication")["master_repl_offset"] == fill_of_aof
        if told != "unavailable":
            p.settings = settings
            assert p.one(reserve("r2", "A")).status == (told or "reserved")
    finally:
        p.redis.replicaof("NO", "ONE")
