"""A Kafka that lost its last messages (a single broker's power cut), or all of them: what the ledger had not
yet is read from what the outbox still keeps."""

from __future__ import annotations

import msgspec
import pytest
from adopt_kit import adopt
from kafka_kit import relaying, through_kafka
from kit import Partition, confirm
from redis import Redis
from running import (
    all_acknowledged,
    check_clean,
    check_gapless,
    eventually,
    is_open,
    on_one_redis,
    persisting,
    rows,
    stopped,
    wait_for_ledger,
)

from engine import keys
from engine.settings import Settings

pytestmark = on_one_redis


def lose_kafka(settings: Settings, redis: Redis, bootstrap: str) -> tuple[Partition, Settings]:
    """What was sold since the ledger's event 1 is in Kafka, which is lost: the partition, and settings of
    an empty one."""
    lost = through_kafka(settings, bootstrap)
    p = Partition.of(redis)
    with relaying(lost):
        with persisting(lost):
            p.receive("A", 100)
            wait_for_ledger(lost)
        for number in range(5):
            p.hold(f"r{number}", "A")
        eventually("all is in Kafka", lambda: all_acknowledged(redis))
    return p, through_kafka(settings, bootstrap)


@pytest.mark.parametrize("sells_on", [True, False], ids=["sells on", "a quiet minute"])
@pytest.mark.parametrize("restarted", [False, True], ids=["as it was", "restarted"])
def test_given_kafka_lost_what_the_ledger_had_not_then_it_is_read_from_what_the_outbox_keeps(
    settings: Settings, redis: Redis, kafka_bootstrap: str, restarted: bool, sells_on: bool
) -> None:
    """``restarted``: and Redis, as after a power cut of the machine that has all of them. In a quiet minute
    no next event shows the gap before what is kept is taken away."""
    p, anew = lose_kafka(settings, redis, kafka_bootstrap)
    if restarted:
        redis.hset(keys.head(0), "run_id", "")
    assert "nothing is missing" in adopt(anew, "--dry-run")
    with relaying(anew), persisting(anew):
        if sells_on:
            assert p.one(confirm("r4")).status == "confirmed"
        wait_for_ledger(anew)
        p.hold("after", "A")
        wait_for_ledger(anew)
    check_clean(anew)
    check_gapless(anew, p.seq())


def test_given_nothing_more_is_sold_and_it_is_kept_no_longer_then_the_partition_stops_all_the_same(
    settings: Settings, redis: Redis, kafka_bootstrap: str
) -> None:
    keeps_nothing = msgspec.structs.replace(settings, outbox_keep_ms=0)
    p, anew = lose_kafka(keeps_nothing, redis, kafka_bootstrap)
    with relaying(anew), persisting(anew):
        why = eventually("it stops", lambda: stopped(anew))
        assert "has acknowledged more than event 1-1 and has nothing after it" in why
        assert is_open(anew.redis_url)
    assert "events 2 to 6 are missing for good" in adopt(anew)
    with relaying(anew), persisting(anew):
        assert p.one(confirm("r1")).status == "confirmed"
        wait_for_ledger(anew)
        assert not stopped(anew)
    check_clean(anew)


def test_given_the_outbox_keeps_it_no_longer_then_the_partition_stops_and_says_so(
    settings: Settings, redis: Redis, kafka_bootstrap: str
) -> None:
    keeps_nothing = msgspec.structs.replace(settings, outbox_keep_ms=0)
    p, anew = lose_kafka(keeps_nothing, redis, kafka_bootstrap)
    assert redis.xlen(keys.outbox(0)) == 0
    with relaying(anew), persisting(anew):
        p.hold("after", "A")
        why = eventually("it stops", lambda: stopped(anew))
        assert "after event 1-1 came 1-7" in why and is_open(anew.redis_url)
    assert rows(anew.postgres_url, "SELECT max(seq) FROM events") == [(1,)]


def test_given_a_closed_partition_then_its_outbox_is_not_believed_until_somebody_adopts_it(
    settings: Settings, redis: Redis, kafka_bootstrap: str
) -> None:
    """This Redis may be another one, or an older one that went on by itself."""
    p, anew = lose_kafka(settings, redis, kafka_bootstrap)
    with relaying(anew):
        p.hold("after", "A")
        eventually("that is in Kafka, too", lambda: all_acknowledged(redis))
    redis.hset(keys.head(0), "run_id", "")
    with persisting(anew, until_open=False):
        why = eventually("it stops", lambda: stopped(anew))
    assert "after event 1-1 came 1-7" in why and not is_open(anew.redis_url)
    assert rows(anew.postgres_url, "SELECT max(seq) FROM events") == [(1,)]

    for options in ("--dry-run",), ():
        told = adopt(anew, *options)
        assert "nothing is missing: what Kafka lacks the outbox still has" in told
    assert is_open(anew.redis_url)
    with relaying(anew), persisting(anew):
        assert p.one(confirm("r1")).status == "confirmed"
        wait_for_ledger(anew)
    check_clean(anew)
    check_gapless(anew, p.seq())
    assert "nothing was changed" in adopt(anew)


def test_given_kafka_is_gone_for_good_and_the_outbox_keeps_all_then_adopting_opens_without_it(
    settings: Settings, redis: Redis, kafka_bootstrap: str
) -> None:
    """Direct reading alone refuses: Redis was restarted, and what it may have lost was in Kafka only."""
    p, _ = lose_kafka(settings, redis, kafka_bootstrap)
    redis.hset(keys.head(0), "run_id", "")
    told = adopt(settings, "--without-kafka")
    assert "nothing is missing: what Kafka lacks the outbox still has" in told
    assert is_open(settings.redis_url)
    with persisting(settings):
        assert p.one(confirm("r1")).status == "confirmed"
        wait_for_ledger(settings)
    check_clean(settings)
