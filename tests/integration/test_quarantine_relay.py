"""What the relay can't read is handed on to Kafka and handled there, or directly where it is too large."""

from __future__ import annotations

from hashlib import sha256

import msgspec
import pytest
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from engine import keys
from engine.events import from_json
from engine.settings import Settings
from persister import relay
from tests.kafka_kit import messages, relaying, through_kafka, watch_the_relay
from tests.kit import Partition, move, reserve
from tests.quarantine_kit import (
    check_audit,
    cli,
    discard,
    discards,
    listed,
    stopped_at,
    wait_until_stopped,
)
from tests.running import (
    all_acknowledged,
    check_clean,
    eventually,
    ledger_seq,
    on_one_redis,
    persisting,
    wait_for_ledger,
)

pytestmark = on_one_redis


@pytest.fixture
def settings(settings, kafka_bootstrap) -> Settings:
    """Nothing is kept once it was shipped: what is left in the outbox is what waits."""
    settings = msgspec.structs.replace(settings, outbox_keep_ms=0)
    return through_kafka(settings, kafka_bootstrap)


def test_given_an_entry_the_relay_can_not_read_then_it_is_handed_on_and_handled_there(
    settings, redis
):
    """Three holds in one script call are one entry; its bytes are damaged in Redis."""
    p = Partition(redis)
    p.receive("A", 1_000)
    p.send(*[reserve(f"R{n}", ("A", 1, "X")) for n in range(3)])
    p.hold("after", ("A", 1, "X"))
    entries = redis.xrange(keys.outbox(0))
    redis.delete(keys.outbox(0))
    raw = b"\x00\xff damaged \x1b[31m"
    for entry_id, fields in entries:
        redis.xadd(
            keys.outbox(0), {"events": raw} if entry_id == entries[1][0] else fields, id=entry_id
        )
    with relaying(settings), persisting(settings):
        wait_until_stopped(settings, 1)
        eventually("all is acknowledged", lambda: all_acknowledged(redis))
        (kept,) = listed(settings)
        assert "outbox entry 1-4, handed on by the relay" in kept["why"]
        assert (kept["seq"], kept["last_seq"], kept["stopped_here"]) == (1, 4, True)
        told = discard(settings, 1, by="Ann Müller", reason="a damaged entry [x]")
        assert "events 2 to 4" in told
        wait_for_ledger(settings)
    text = "quarantine 1 discarded by Ann Müller: a damaged entry [x]"
    assert discards(settings) == [(1, seq, text) for seq in (2, 3, 4)]
    handed_on = messages(settings)[1]
    assert msgspec.json.decode(handed_on)["wrapped"] == "outbox_entry_1"
    with pytest.raises(msgspec.ValidationError):
        from_json(handed_on)
    check_audit(settings)


def test_given_a_relay_too_old_to_read_an_entry_then_a_newer_persister_does(
    settings, redis, monkeypatch
):
    p = Partition(redis)
    p.receive("A", 1_000)
    p.send(*[reserve(f"R{n}", ("A", 1, "X")) for n in range(3)])

    def too_old(*_):
        raise ValueError("what is this?")

    with monkeypatch.context() as old:
        old.setattr("persister.outbox.read_entry", too_old)
        old.setattr("persister.messages.read_entry", too_old)
        with relaying(settings), persisting(settings):
            wait_until_stopped(settings, 1)
            done = cli(settings, "retry", "1")
            assert done.returncode == 0, done.stderr
            assert "can be read by this program: 1-1 receive" in done.stdout
            eventually("all is acknowledged", lambda: all_acknowledged(redis))
    with persisting(settings):
        wait_for_ledger(settings)
        eventually("it stands at nothing", lambda: not stopped_at(settings))
    assert ([each["state"] for each in listed(settings)], discards(settings)) == (["passed"], [])
    assert "is passed; there is nothing to handle" in cli(settings, "retry", "1").stderr
    check_clean(settings)


def test_given_an_entry_too_large_to_hand_on_then_the_persister_handles_it_directly(
    settings, redis
):
    p = Partition(redis)
    p.receive("A", 1_000)
    p.hold("R", ("A", 1, "X"))
    (first, fields), (second, _) = redis.xrange(keys.outbox(0))
    redis.delete(keys.outbox(0))
    redis.xadd(keys.outbox(0), fields, id=first)
    redis.xadd(keys.outbox(0), {"events": b"\xc1" * 1_000_000}, id=second)
    p.hold("after", ("A", 1, "X"))
    with relaying(settings), persisting(settings):
        eventually("the rest is in the ledger", lambda: ledger_seq(settings) == 1)
        eventually("what was before is trimmed", lambda: redis.xlen(keys.outbox(0)) == 2)
    direct = msgspec.structs.replace(settings, kafka_bootstrap="")
    with persisting(direct):
        wait_until_stopped(direct, 1)
        discard(direct, 1)
        wait_for_ledger(direct)
    assert discards(direct) == [(1, 2, "quarantine 1 discarded by ann: junk")]
    check_audit(direct)


def stocked(p: Partition, lines: int, locations: int) -> list[str]:
    """Skus with a unit at each of so many locations; their names can't be compressed."""
    skus = [f"{i:04d}-{sha256(str(i).encode()).hexdigest()[:55]}" for i in range(lines)]
    places = [f"{i:02d}-{'warehouse' * 6}" for i in range(locations)]
    moves = [move("receive", sku, 1, place) for sku in skus for place in places]
    for start in range(0, len(moves), 500):
        p.send(*moves[start : start + 500])
    return skus


def take_all(p: Partition, skus: list[str], locations: int) -> None:
    """One reserve, each of its lines split over all locations: one event with all of them."""
    lines = [(sku, locations, None) for sku in skus]
    assert p.one(reserve("big", *lines)).status == "reserved"


def test_an_event_of_more_than_a_million_bytes_goes_through_kafka(settings, redis):
    p = Partition(redis)
    take_all(p, stocked(p, 1_000, 6), 6)
    assert len(p.events()[-1].to_json()) > 1_100_000
    with relaying(settings), persisting(settings):
        wait_for_ledger(settings)
        eventually("all is acknowledged", lambda: all_acknowledged(redis))
    check_clean(settings)


def limit(settings: Settings, size: int) -> None:
    admin = AdminClient({"bootstrap.servers": settings.kafka_bootstrap})
    topic = ConfigResource(ResourceType.TOPIC, settings.kafka_topic)
    to = ConfigEntry("max.message.bytes", str(size), incremental_operation=AlterConfigOpType.SET)
    topic.add_incremental_config(to)
    admin.incremental_alter_configs([topic])[topic].result()


def test_given_a_topic_that_takes_less_then_the_relay_says_what_to_do_and_goes_on_after_it(
    settings, redis, caplog, monkeypatch
):
    p = Partition(redis)
    skus = stocked(p, 500, 2)
    with relaying(settings), persisting(settings):
        eventually("all is acknowledged", lambda: all_acknowledged(redis))
    limit(settings, 20_000)
    for number in range(9):  # in a try each, with the pause between, they would take too long
        p.one(move("receive", f"before-{number}", 1))
    take_all(p, skus, 2)
    p.one(move("receive", "after", 1))
    with relaying(settings), persisting(settings):
        said = f"an event of outbox entry 1-{p.seq() - 1} is too large for topic"
        eventually("it is said", lambda: said in caplog.text)
        assert "max.message.bytes=67108864" in caplog.text
        eventually("what is before it is trimmed", lambda: len(p.events()) == 2)
        sent = len(messages(settings))
        monkeypatch.setattr(relay, "STOPPED_PAUSE_S", 0.1)
        watch_the_relay(p)
        assert len(messages(settings)) == sent, "nothing is sent again and again"
        limit(settings, 64 * 1024 * 1024)
        wait_for_ledger(settings)
    check_clean(settings)


def test_given_what_is_too_large_stands_first_then_nothing_behind_it_is_taken_for_it(
    settings, redis, caplog, monkeypatch
):
    """A broker takes the second batch of a producer it doesn't know, although it has refused the first:
    one acknowledgement too many would trim an event that is nowhere else."""
    monkeypatch.setattr(relay, "STOPPED_PAUSE_S", 0.1)
    p = Partition(redis)
    skus = stocked(p, 1_000, 6)
    with relaying(settings), persisting(settings):
        eventually("all is acknowledged", lambda: all_acknowledged(redis))
        wait_for_ledger(settings)
    limit(settings, 100_000)
    take_all(p, skus, 6)
    for number in range(6):
        p.one(move("receive", f"after-{number}", 1))
    sent = len(messages(settings))
    with relaying(settings):
        said = f"an event of outbox entry 1-{p.seq() - 6} is too large for topic"
        eventually("it is said", lambda: said in caplog.text)
        watch_the_relay(p)
        assert len(messages(settings)) == sent
    assert len(p.events()) == 7
    assert int(p.head()["lease_until_ms"]) <= redis.time()[0] * 1000 + 1000, (
        "the lease is given back"
    )
    limit(settings, 64 * 1024 * 1024)
    with relaying(settings), persisting(settings):
        wait_for_ledger(settings)
    check_clean(settings)
