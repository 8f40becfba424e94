"""What can't be read in Kafka stops the partition, is kept, and is passed over once it is discarded."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event as Flag
from threading import Thread

import msgspec
import pytest
from redis import Redis

from engine import keys
from engine.errors import LedgerError
from engine.settings import Settings
from persister import database, quarantine, sieve
from persister.kafka import ensure_topic
from persister.kafka_source import KafkaSource
from persister.ledger import Ledger
from tests.kafka_kit import messages, produce, relaying, through_kafka
from tests.kit import Partition, reserve
from tests.quarantine_kit import (
    check_audit,
    discards,
    events,
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
    rows,
    wait_for_ledger,
)

pytestmark = on_one_redis
JUNK, OTHER = b"junk", b'{"version":1,"order":"a stranger\'s"}'
EVENTS = 5


@pytest.fixture
def settings(settings, kafka_bootstrap) -> Settings:
    return through_kafka(settings, kafka_bootstrap)


Stream = Sequence[int | bytes | tuple[int, Callable[[bytes], bytes]]]


def composed(settings: Settings, redis: Redis, stream: Stream) -> Settings:
    """Five real events, and another topic with this in it: a number stands for the event of that seq,
    bytes for themselves, a pair for an event changed on its way."""
    p = Partition(redis)
    p.receive("A", 1_000)
    for number in range(EVENTS - 1):
        p.hold(f"R{number}", ("A", 1, "X"))
    with relaying(settings):
        eventually("all is in Kafka", lambda: all_acknowledged(redis))
    real = messages(settings)
    other = msgspec.structs.replace(settings, kafka_topic=f"test.{uuid.uuid4().hex}")
    ensure_topic(other)
    bodies = []
    for each in stream:
        if isinstance(each, tuple):
            bodies.append(each[1](real[each[0] - 1]))
        else:
            bodies.append(real[each - 1] if isinstance(each, int) else each)
    produce(other, *bodies)
    return other


def discard_now(settings: Settings, number: int) -> None:
    with database.connect(settings.postgres_url) as connection:
        quarantine.discard(connection, number, by=f"by{number}", reason="why")


def changed(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def change(body: bytes) -> bytes:
        assert body.count(old) == 1
        return body.replace(old, new)

    return change


def word(number: int) -> str:
    return f"quarantine {number} discarded by by{number}: why"


def goes_on(settings: Settings) -> bool:
    found = rows(settings.postgres_url, "SELECT seq, stopped, quarantine_id FROM positions")
    return found == [(EVENTS, None, None)]


@pytest.mark.parametrize(
    ("stream", "count", "missing"),
    [
        ([1, 2, JUNK, 3, 4, 5], 1, []),
        ([1, 2, JUNK, 4, 5], 1, [3]),
        ([1, JUNK, OTHER, 4, 5], 2, [2, 3]),
        ([1, JUNK, JUNK, 4, 5], 2, [2, 3]),
        ([JUNK, 2, 3, 4, 5], 1, [1]),
        ([1, 2, 3, 4, 5, JUNK], 1, []),
        ([1, 2, 3, 4, JUNK], 1, [5]),
        ([1, 2, 3, JUNK, JUNK], 2, [4, 5]),
        ([1, JUNK, 3, OTHER, 4, 5], 2, [2]),
        ([1, 2, JUNK, 1, 2, 4, 5], 1, [3]),
        ([1, 2, JUNK, 4, 2, 3, 4, 5], 1, [3]),
        ([1, 2, b"", 4, 5], 1, [3]),
        ([1, 2, b'{"x":' + b"[" * 200_000, 4, 5], 1, [3]),
        ([1, 2, (3, changed(b'"version":2', b'"version":3')), 4, 5], 1, [3]),
        ([1, 2, (3, changed(b'"partition":0', b'"partition":7')), 4, 5], 1, [3]),
        ([1, 2, (3, changed(b'"order_id":"', b'"order_id":"\\u0000')), 4, 5], 1, [3]),
        ([1, 2, (3, changed(b'"sku":"A"', b'"sku":"A\\tB"')), 4, 5], 1, [3]),
        ([1, 2, (3, changed(b'"quantity":1', b'"quantity":-1')), 4, 5], 1, [3]),
        ([1, 2, (3, changed(b'"held_delta":1', b'"held_delta":' + b"9" * 40)), 4, 5], 1, [3]),
        ([1, 2, (3, changed(b'"at_ms":', b'"at_ms":' + b"9" * 20)), 4, 5], 1, [3]),
        ([1, 2, (3, changed(b'"seq":3', b'"seq":' + b"9" * 40)), 4, 5], 1, [3]),
    ],
    ids=["junk in between", "stood for an event", "two in a row", "the same twice in a row", "first",
         "junk at the end", "an event at the end", "two at the end", "one of each", "old ones come twice",
         "it comes after all", "empty", "nested too deep",
         "another version", "another partition", "a NUL", "a tab",
         "a negative quantity", "a huge delta", "a time out of range", "a huge seq"],
)  # fmt: skip
def test_given_it_is_discarded_then_the_ledger_goes_on_and_tells_what_is_missing(
    settings, redis, stream, count, missing
):
    settings = composed(settings, redis, stream)
    with persisting(settings, until_open=False):
        for number in range(1, count + 1):
            wait_until_stopped(settings, number)
            discard_now(settings, number)
        eventually("the ledger goes on", lambda: goes_on(settings))
    assert discards_by_seq(settings) == missing
    assert rows(settings.postgres_url, "SELECT kafka_offset FROM positions") == [(len(stream),)]
    assert len(listed(settings)) == count
    check_audit(settings)
    if not missing:
        check_clean(settings)
    # A start anew reads nothing twice, and stands at nothing.
    with persisting(settings, until_open=False) as again:
        assert goes_on(settings)
        again.stop()
    assert discards_by_seq(settings) == missing


def discards_by_seq(settings: Settings) -> list[int]:
    return [seq for _, seq, _ in discards(settings)]


def test_each_discard_event_names_its_own_item_and_keeps_epoch_and_order(settings, redis):
    settings = composed(settings, redis, [1, JUNK, OTHER, 4, 5])
    with persisting(settings, until_open=False):
        for number in (1, 2):
            wait_until_stopped(settings, number)
            discard_now(settings, number)
        eventually("the ledger goes on", lambda: goes_on(settings))
    assert discards(settings) == [(1, 2, word(1)), (1, 3, word(2))]
    assert [event.seq for event in events(settings)] == [1, 2, 3, 4, 5]


def test_given_a_discarded_event_comes_after_all_then_it_stays_discarded(settings, redis, caplog):
    """A relay that was killed sends again; the ledger has told the seq already."""
    other = composed(settings, redis, [1, 2, JUNK, 4, 5])
    with persisting(other, until_open=False):
        wait_until_stopped(other, 1)
        discard_now(other, 1)
        eventually("the ledger goes on", lambda: goes_on(other))
        produce(other, messages(settings)[2])
        eventually("it is told", lambda: "event 1-3 came after all" in caplog.text)
        Partition(redis).hold("later", ("A", 1, "X"))
        with relaying(other):
            eventually("the ledger goes on", lambda: ledger_seq(other) == EVENTS + 1)
    assert discards(other) == [(1, 3, word(1))]
    check_audit(other)


def test_given_more_was_discarded_than_is_missing_then_the_event_names_all(settings, redis):
    """An unreadable message that its relay sent twice stands for one event."""
    settings = composed(settings, redis, [1, 2, JUNK, JUNK, 4, 5])
    with persisting(settings, until_open=False):
        for number in (1, 2):
            wait_until_stopped(settings, number)
            discard_now(settings, number)
        eventually("the ledger goes on", lambda: goes_on(settings))
    assert discards(settings) == [(1, 3, f"one of: {word(1)}; {word(2)}")]
    check_audit(settings)


@pytest.mark.parametrize(
    ("stream", "says"),
    [([1, JUNK, 4, 5], "after event 1-1 came 1-4"), ([1, 2, 3, JUNK], "more is missing than")],
    ids=["in between", "at the end"],
)
def test_given_more_is_missing_than_was_discarded_then_it_stops(settings, redis, stream, says):
    settings = composed(settings, redis, stream)
    redis.xtrim(keys.outbox(0), maxlen=0)
    with persisting(settings, until_open=False):
        wait_until_stopped(settings, 1)
        discard_now(settings, 1)
        eventually(
            "it stops at the gap",
            lambda: rows(
                settings.postgres_url,
                "SELECT 1 FROM positions WHERE stopped LIKE %s",
                f"%{says}%",
            ),
        )
    assert discards(settings) == []


def test_given_an_old_discard_then_it_explains_no_later_gap(settings, redis):
    """The topic is read from its beginning at a gap, and there the junk comes again."""
    other = composed(settings, redis, [1, JUNK, 2, 3])
    redis.xtrim(keys.outbox(0), maxlen=0)
    with persisting(other, until_open=False):
        wait_until_stopped(other, 1)
        discard_now(other, 1)
        eventually("the ledger goes on", lambda: ledger_seq(other) == 3)
        produce(other, messages(settings)[4])
        eventually("it stops", lambda: "after event 1-3 came 1-5" in word_of(other))
    assert discards_by_seq(other) == []


def test_given_the_next_event_is_still_in_the_outbox_then_it_waits_and_says_so(settings, redis):
    other = composed(settings, redis, [1, 2, 3, 4, 5, JUNK])
    Partition(redis).hold("late", ("A", 1, "X"))
    with persisting(other, until_open=False):
        wait_until_stopped(other, 1)
        discard_now(other, 1)
        eventually("it waits", lambda: "next one will tell" in word_of(other))
        assert ledger_seq(other) == EVENTS
        with relaying(other):
            eventually("the ledger goes on", lambda: ledger_seq(other) == EVENTS + 1)
    assert discards(other) == []
    check_clean(other)


def word_of(settings: Settings) -> str:
    return rows(settings.postgres_url, "SELECT coalesce(stopped, '') FROM positions")[0][0]


def test_what_is_written_once_while_the_persister_looks_again_and_again(settings, redis, caplog):
    settings = composed(settings, redis, [1, 2, JUNK, 3, 4, 5])
    looks = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sieve, "keep", lambda *a: looks.append(1) or quarantine.keep(*a))
        with persisting(settings, until_open=False):
            eventually("it looks again", lambda: len(looks) > 3)
            # The word stands all the time, also while it looks again.
            assert all(stopped_at(settings) == 1 for _ in range(200))
    query = "SELECT quarantine_id, source, place, raw, epoch, seq, last_seq FROM quarantine"
    assert rows(settings.postgres_url, query) == [(1, "kafka", "2", JUNK, 1, 2, None)]
    critical = [record for record in caplog.records if record.levelname == "CRITICAL"]
    assert any("holdfast quarantine discard 1" in record.message for record in critical)


@pytest.mark.parametrize("where", ["row written", "discarded", "committed"])
def test_given_deaths_on_the_way_then_each_event_is_there_once(settings, redis, monkeypatch, where):
    settings = composed(settings, redis, [1, 2, JUNK, OTHER, 5])
    deaths = []

    def dying(function, before):
        def die_first(*arguments):
            if before and len(deaths) < 3:
                deaths.append(where)
                raise RuntimeError("killed")
            answer = function(*arguments)
            if not before and len(deaths) < 3:
                deaths.append(where)
                raise RuntimeError("killed")
            return answer

        return die_first

    if where == "row written":
        monkeypatch.setattr(sieve, "keep", dying(quarantine.keep, before=False))
    with persisting(settings, until_open=False):
        for number in (1, 2):
            wait_until_stopped(settings, number)
            if where == "discarded" and number == 2:
                monkeypatch.setattr(Ledger, "write", dying(Ledger.write, before=True))
            if where == "committed" and number == 2:
                monkeypatch.setattr(KafkaSource, "committed", dying(KafkaSource.committed, False))
            discard_now(settings, number)
        eventually("the ledger goes on", lambda: goes_on(settings))
        assert len(deaths) == 3
    assert discards_by_seq(settings) == [3, 4]
    assert len(listed(settings)) == 2
    check_audit(settings)


def test_of_two_who_discard_at_once_the_second_waits_and_is_refused(settings, redis):
    settings = composed(settings, redis, [1, 2, JUNK, 4, 5])
    waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    with (
        persisting(settings, until_open=False),
        ThreadPoolExecutor(1) as pool,
        database.connect(settings.postgres_url) as connection,
    ):
        wait_until_stopped(settings, 1)
        with connection.transaction():
            quarantine.discard(connection, 1, by="by1", reason="why")
            second = pool.submit(discard_now, settings, 1)
            eventually("the second waits", lambda: rows(settings.postgres_url, waiting))
        with pytest.raises(LedgerError, match="discarded already, by by1"):
            second.result(30)
        eventually("the ledger goes on", lambda: goes_on(settings))
    assert discards(settings) == [(1, 3, word(1))]


def test_given_junk_under_traffic_and_somebody_who_discards_at_once_then_nothing_is_lost(
    settings, redis
):
    p = Partition(redis)
    p.receive("A", 100_000)
    ensure_topic(settings)
    ended = Flag()

    def handle() -> None:
        while not ended.is_set():
            number = stopped_at(settings)
            if number:
                try:
                    discard_now(settings, number)
                except LedgerError as error:  # it was discarded a moment ago
                    assert "already" in str(error) or "not stopped" in str(error)

    handler = Thread(target=handle)
    with relaying(settings), persisting(settings):
        handler.start()
        for turn in range(5):
            for number in range(20):
                p.send(*[reserve(f"R{turn}-{number}-{n}", ("A", 1, "X")) for n in range(20)])
            produce(settings, b"junk %d" % turn)
        wait_for_ledger(settings)
        eventually("all junk is handled", lambda: states(settings) == ["discarded"] * 5)
        ended.set()
        handler.join()
        eventually("it stands at nothing", lambda: not stopped_at(settings))
    assert discards(settings) == []
    check_clean(settings)


def states(settings: Settings) -> list[str]:
    return [each["state"] for each in listed(settings)]
