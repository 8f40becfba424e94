"""Who is frozen for a while, and wakes after Redis has lost its end and was opened anew, adds nothing and
changes nothing: relay and persister, held up at each of their steps.

A step is held up in its thread, by a gate before or after the method that does it; all else goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Event as Flag
from threading import current_thread
from typing import Any

import pytest
from confluent_kafka import Producer
from kafka_kit import messages, relaying, through_kafka
from kit import Partition, put_back, snapshot
from redis import Redis
from running import (
    all_acknowledged,
    check_clean,
    eventually,
    is_open,
    on_one_redis,
    persisting,
    rows,
    wait_for_ledger,
)

from engine import keys
from engine.events import from_json
from engine.partitions import read_head
from engine.settings import Settings
from persister import opening
from persister.ledger import Ledger
from persister.openings import Openings
from persister.outbox import Outbox
from persister.shipment import Shipment

pytestmark = on_one_redis


class Gate:
    """Holds up the first thread that comes to it once it is closed, until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self._closed = Flag()
        self._go_on = Flag()
        self.holds = Flag()

    def before(self, owner: Any, name: str) -> None:
        method = getattr(owner, name)

        def gated(*args: Any, **named: Any) -> Any:
            self._pass()
            return method(*args, **named)

        self._patch.setattr(owner, name, gated)

    def after(self, owner: Any, name: str) -> None:
        method = getattr(owner, name)

        def gated(*args: Any, **named: Any) -> Any:
            answer = method(*args, **named)
            self._pass()
            return answer

        self._patch.setattr(owner, name, gated)

    def close(self) -> None:
        self._closed.set()

    def open(self) -> None:
        self._go_on.set()

    def _pass(self) -> None:
        if self._closed.is_set() and not self.holds.is_set():
            self.holds.set()
            assert self._go_on.wait(60), f"nobody opened the gate for {current_thread().name}"


def sell(p: Partition, name: str, count: int) -> None:
    for number in range(count):
        p.hold(f"{name}-{number}", ("A", 1, "X"))


def ids(settings: Settings) -> list[str]:
    query = "SELECT body->>'reservation_id' FROM events WHERE type = 'reserve' ORDER BY seq"
    return [row[0] for row in rows(settings.postgres_url, query)]


RELAY_STEPS: dict[str, Callable[[Gate], None]] = {
    "before it sends what it has read": lambda gate: gate.before(Shipment, "send"),
    "before it commits": lambda gate: gate.before(Shipment, "_commit"),
    "before it acknowledges": lambda gate: gate.before(Outbox, "acknowledge"),
}


@pytest.mark.parametrize("step", RELAY_STEPS.values(), ids=RELAY_STEPS)
def test_given_a_relay_that_wakes_after_a_new_opening_then_nothing_of_it_enters(
    settings: Settings,
    redis: Redis,
    kafka_bootstrap: str,
    monkeypatch: pytest.MonkeyPatch,
    step: Callable[[Gate], None],
) -> None:
    settings = through_kafka(settings, kafka_bootstrap)
    gate = Gate(monkeypatch)
    step(gate)
    p = Partition(redis)
    p.receive("A", 1_000)
    with persisting(settings):
        with relaying(settings):
            sell(p, "first", 20)
            wait_for_ledger(settings)
            eventually("all is acknowledged", lambda: all_acknowledged(redis))
            before = snapshot(redis)
            gate.close()
            sell(p, "lost", 10)
            assert gate.holds.wait(30)
            put_back(redis, before)
            eventually("it is opened anew", lambda: is_open(settings.redis_url))
            sell(p, "after", 30)
            with relaying(settings):
                wait_for_ledger(settings)
                gate.open()
                sell(p, "later", 10)
                wait_for_ledger(settings)
        # The one that was frozen is all there is, and begins anew.
        with relaying(settings):
            sell(p, "last", 10)
            wait_for_ledger(settings)
            redis.hset(keys.head(0), "run_id", "")
            eventually("it is opened once more", lambda: is_open(settings.redis_url))
            assert p.hold("end", ("A", 1, "X")).status == "reserved"
            wait_for_ledger(settings)
    check_clean(settings)
    sold = ids(settings)
    assert [name for name in sold if not name.startswith("lost")] == [
        *[f"first-{n}" for n in range(20)],
        *[f"after-{n}" for n in range(30)],
        *[f"later-{n}" for n in range(10)],
        *[f"last-{n}" for n in range(10)],
        "end",
    ]
    # What was committed before the opening was healed, what was not never enters.
    committed = step is RELAY_STEPS["before it acknowledges"]
    assert bool([name for name in sold if name.startswith("lost")]) is committed
    assert len({from_json(body).reservation_id for body in messages(settings)}) == len(sold) + 1


def test_given_a_producer_without_a_transaction_then_its_late_events_are_dropped_by_the_ledger(
    settings: Settings, redis: Redis, kafka_bootstrap: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A relay of a master that is cut off and sells on has its own producer: the openings tell."""
    settings = through_kafka(settings, kafka_bootstrap)
    p = Partition(redis)
    p.receive("A", 1_000)
    with persisting(settings):
        with relaying(settings):
            sell(p, "first", 20)
            wait_for_ledger(settings)
        before = snapshot(redis)
        sell(p, "cut-off", 10)
        late = [event.to_json() for event in p.events() if event.seq > 21]
        assert len(late) == 10
        put_back(redis, before)
        eventually("it is opened anew", lambda: is_open(settings.redis_url))
        assert read_head(redis, 0).epoch == "2"
        producer = Producer({"bootstrap.servers": settings.kafka_bootstrap})
        for body in late:
            producer.produce(settings.kafka_topic, body, partition=0)
        producer.flush(10)
        with relaying(settings):
            sell(p, "after", 30)
            wait_for_ledger(settings)
            for body in late:
                producer.produce(settings.kafka_topic, body, partition=0)
            producer.flush(10)
            sell(p, "later", 10)
            wait_for_ledger(settings)
        eventually("it is said", lambda: "an opening that had been replaced" in caplog.text)
    check_clean(settings)
    assert [name for name in ids(settings) if name.startswith("cut-off")] == []


PERSISTER_STEPS: dict[str, Callable[[Gate], None]] = {
    "before it writes what it has read": lambda gate: gate.before(Ledger, "write"),
    "before it acknowledges": lambda gate: gate.before(Outbox, "acknowledge"),
    "before it closes": lambda gate: gate.before(opening, "close_partition"),
    "before it heals": lambda gate: gate.before(opening, "heal"),
    "before it notes the opening": lambda gate: gate.before(Openings, "note"),
    "before it opens": lambda gate: gate.before(opening, "open_partition"),
    "before it notes that it has opened": lambda gate: gate.after(opening, "open_partition"),
}


@pytest.mark.parametrize("step", PERSISTER_STEPS.values(), ids=PERSISTER_STEPS)
def test_given_a_persister_that_wakes_after_another_took_over_then_it_changes_nothing(
    settings: Settings,
    redis: Redis,
    monkeypatch: pytest.MonkeyPatch,
    step: Callable[[Gate], None],
) -> None:
    """Its session in PostgreSQL is gone meanwhile, and with it the lease."""
    gate = Gate(monkeypatch)
    step(gate)
    p = Partition(redis)
    p.receive("A", 1_000)
    with persisting(settings):
        sell(p, "first", 20)
        wait_for_ledger(settings)
        before = snapshot(redis)
        sell(p, "second", 20)
        wait_for_ledger(settings)
        # It acknowledges all the time, so it may be held up there only once it has opened.
        in_time = step in (
            PERSISTER_STEPS["before it writes what it has read"],
            PERSISTER_STEPS["before it acknowledges"],
        )
        if not in_time:
            gate.close()
        put_back(redis, before)
        if step is PERSISTER_STEPS["before it closes"]:
            redis.hset(keys.head(0), "run_id", redis.info("server")["run_id"])
        if in_time:
            eventually("it is opened anew", lambda: is_open(settings.redis_url))
            gate.close()
            sell(p, "read", 5)
        assert gate.holds.wait(30), "nobody came to the gate: this test tests nothing"
        end = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'holdfast'"
            " AND datname = current_database()"
        )
        rows(settings.postgres_url, end)
        with persisting(settings):
            if step is PERSISTER_STEPS["before it closes"]:
                eventually("it is opened anew", lambda: read_head(redis, 0).epoch == "2")
            sell(p, "third", 20)
            wait_for_ledger(settings)
            at = read_head(redis, 0)
            gate.open()
            sell(p, "fourth", 20)
            wait_for_ledger(settings)
            now = read_head(redis, 0)
            assert (now.epoch, now.run_id) == (at.epoch, at.run_id)
    check_clean(settings)
    sold = ids(settings)
    assert len(sold) == len(set(sold)) >= 80
