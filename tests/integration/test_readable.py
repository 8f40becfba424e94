"""What Kafka and the outbox have together, while a relay moves it from here to there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

import msgspec
import pytest
from kafka_kit import relaying, through_kafka
from kit import Partition
from redis import Redis
from running import eventually, on_one_redis, persisting, wait_for_ledger

from engine import keys
from engine.events import Event
from engine.settings import Settings
from persister import database
from persister.kafka_source import KafkaSource
from persister.ledger import Ledger, Position
from persister.readable import Readable, _in_both
from persister.sources import Unreadable


@pytest.mark.parametrize(
    ("some", "others", "both"),
    [
        ([], [range(1, 5)], []),
        ([range(1, 5)], [], []),
        ([range(1, 5)], [range(5, 9)], []),
        ([range(1, 5)], [range(1, 5)], [range(1, 5)]),
        ([range(1, 9)], [range(2, 3), range(4, 6), range(8, 12)], [range(2, 3), range(4, 6), range(8, 9)]),
        ([range(2, 4), range(6, 8)], [range(1, 10)], [range(2, 4), range(6, 8)]),
        ([range(1, 3), range(5, 7)], [range(2, 6)], [range(2, 3), range(5, 6)]),
    ],
)  # fmt: skip
def test_what_is_missing_twice(some: list[range], others: list[range], both: list[range]) -> None:
    assert _in_both(some, others) == _in_both(others, some) == both


@on_one_redis
def test_what_a_relay_moves_meanwhile_is_not_missing(
    settings: Settings, redis: Redis, kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time that Kafka is read to its end all goes there at once that the outbox had, and more is sold:
    more than one read of the outbox."""
    through = msgspec.structs.replace(through_kafka(settings, kafka_bootstrap), outbox_keep_ms=0)
    p = Partition.of(redis)
    with relaying(through), persisting(through):
        p.receive("A", 10_000)
        wait_for_ledger(through)
    number = count()

    def sell() -> None:
        for _ in range(150):
            p.hold(f"r{next(number)}", "A")

    read_rest = KafkaSource.rest
    ended: list[int] = []

    def rest(
        source: KafkaSource, on_unreadable: Callable[[Unreadable], None]
    ) -> Iterator[list[Event]]:
        yield from read_rest(source, on_unreadable)
        with relaying(through):
            eventually("all is in Kafka only", lambda: redis.xlen(keys.outbox(0)) == 0)
        sell()
        ended.append(p.seq())

    monkeypatch.setattr(KafkaSource, "rest", rest)
    sell()
    with database.connect(through.postgres_url) as connection:
        readable = Readable(through, redis, p.scripts, Ledger(connection, 0), lambda thing: None)
        found = readable.look(Position(1, 1))
    assert found.missing == [] and len(ended) == 2, "some seemed to be missing at the first look"
