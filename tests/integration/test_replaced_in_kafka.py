"""What a replaced opening produced stands in the topic, before the lawful events of its seqs: a ledger that
comes back from a dump which is older than the next opening takes none of it."""

from __future__ import annotations

import json

import msgspec
import pytest
from adopt_kit import adopt, older_copy
from kafka_kit import messages, produce, relaying, through_kafka
from kit import Partition
from redis import Redis
from running import (
    check_clean,
    eventually,
    is_open,
    on_one_redis,
    open_anew,
    persisting,
    rows,
    stopped,
    wait_for_ledger,
)

from engine import keys
from engine.settings import Settings
from persister.kafka import ensure_topic
from persister.restore import restore

pytestmark = on_one_redis
CUT_OFF = "SELECT count(*) FROM events WHERE body->>'movement_id' = 'cut-off'"


def cut_off(
    settings: Settings, redis: Redis, bootstrap: str
) -> tuple[Partition, Settings, Settings]:
    """The partition, settings with a dump of before its second opening, and with one of after it: in the
    topic stands, after event 1-1, a 1-2 of a master that was cut off, then 2-2 to 2-4."""
    through = msgspec.structs.replace(through_kafka(settings, bootstrap), outbox_keep_ms=0)
    p = Partition.of(redis)
    with relaying(through), persisting(through):
        p.receive("A", 100)
        wait_for_ledger(through)
    older = older_copy(through)
    with relaying(through), persisting(through):
        open_anew(through, redis)
    newer = older_copy(through, "newer")
    first = json.loads(messages(through)[0])
    produce(through, json.dumps(first | {"seq": 2, "movement_id": "cut-off"}).encode())
    with relaying(through), persisting(through):
        for name in ("r1", "r2", "r3"):
            p.hold(name, "A")
        wait_for_ledger(through)
        eventually("nothing is kept", lambda: redis.xlen(keys.outbox(0)) == 0)
    check_clean(through)
    sent = [json.loads(body) for body in messages(through)]
    places = [(each["epoch"], each["seq"]) for each in sent]
    assert places == [(1, 1), (1, 2), (2, 2), (2, 3), (2, 4)]
    return p, older, newer


def check_lawful(settings: Settings) -> None:
    check_clean(settings)
    assert rows(settings.postgres_url, CUT_OFF) == [(0,)]


@pytest.mark.parametrize("dump", ["older", "newer"])
def test_the_persister_reads_on_from_a_dump(
    settings: Settings, redis: Redis, kafka_bootstrap: str, dump: str
) -> None:
    p, older, newer = cut_off(settings, redis, kafka_bootstrap)
    ledger = older if dump == "older" else newer
    assert "nothing is missing: all that the ledger has not yet" in adopt(ledger)
    for name in ("first", "second"):  # what one was told by the events, the next one has noted
        with relaying(ledger), persisting(ledger):
            p.hold(name, "A")
            wait_for_ledger(ledger)
    check_lawful(ledger)
    noted = "SELECT epoch, first_seq FROM openings ORDER BY epoch"
    assert rows(ledger.postgres_url, noted) == [(1, 1), (2, 2)]


def test_given_a_late_one_of_the_replaced_opening_then_it_stays_out(
    settings: Settings, redis: Redis, kafka_bootstrap: str
) -> None:
    """The ledger was told of the opening by its events only."""
    p, older, _ = cut_off(settings, redis, kafka_bootstrap)
    adopt(older)
    with persisting(older):
        wait_for_ledger(older)
    first = json.loads(messages(older)[0])
    produce(older, json.dumps(first | {"seq": 3, "movement_id": "cut-off"}).encode())
    with relaying(older), persisting(older):
        p.hold("again", "A")
        wait_for_ledger(older)
        assert not stopped(older)
    check_lawful(older)


def test_a_restore_reads_on_from_a_dump(
    settings: Settings, redis: Redis, kafka_bootstrap: str
) -> None:
    p, older, _ = cut_off(settings, redis, kafka_bootstrap)
    seq = p.seq()
    redis.flushdb()
    assert restore(older, older.redis_url).seq == seq
    assert is_open(older.redis_url)
    check_lawful(older)


def test_an_adoption_notes_a_hole_where_only_the_replaced_one_is_left(
    settings: Settings, redis: Redis, kafka_bootstrap: str
) -> None:
    """Of seq 3 the topic lost the lawful event, and kept one of the master that was cut off."""
    _, older, _ = cut_off(settings, redis, kafka_bootstrap)
    sent = messages(older)
    left = msgspec.structs.replace(older, kafka_topic=f"{older.kafka_topic}.left")
    late = json.dumps(json.loads(sent[0]) | {"seq": 3, "movement_id": "cut-off"}).encode()
    ensure_topic(left)
    produce(left, sent[0], sent[2], late, sent[4])
    told = adopt(left)
    assert "event 3 is missing for good" in told, told
    with relaying(left), persisting(left):
        wait_for_ledger(left)
    check_lawful(left)
