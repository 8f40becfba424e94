"""A ledger that falls back by seconds (the failover to an asynchronous standby, a restored snapshot) catches
up by itself: from what the outbox keeps, or from Kafka. PostgreSQL is really put back: the data directory of
a stopped server is copied, and put in the place of the later one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import psycopg
import pytest
from kafka_kit import messages, relaying, through_kafka
from kit import Partition, confirm
from redis import Redis
from running import (
    all_acknowledged,
    check_clean,
    eventually,
    ledger_seq,
    on_one_redis,
    open_anew,
    persisting,
    rows,
    stopped,
    wait_for_ledger,
)

from api.servers import PostgresServer
from engine import keys
from engine.events import read_entry
from engine.partitions import read_head
from engine.settings import Settings
from persister import database
from persister.openings import Openings

pytestmark = on_one_redis
OUTBOX = keys.outbox(0)


class Fallible:
    """A PostgreSQL of its own, which can be taken back to what it was at the last ``remember``."""

    def __init__(self, directory: Path) -> None:
        self.server = PostgresServer(directory / "now")
        self._then = directory / "then"
        self.server.start()

    def remember(self) -> None:
        self.server.stop()
        shutil.rmtree(self._then, ignore_errors=True)
        shutil.copytree(self.server.directory, self._then)
        self.server.start()

    def fall_back(self) -> None:
        self.server.stop()
        shutil.rmtree(self.server.directory)
        shutil.copytree(self._then, self.server.directory)
        self.server.start()


@pytest.fixture
def fallible() -> Iterator[Fallible]:
    with TemporaryDirectory(prefix="holdfast-fallible-") as directory:
        fallible = Fallible(Path(directory))
        yield fallible
        fallible.server.stop()


@pytest.fixture
def own(settings: Settings, fallible: Fallible) -> Settings:
    return msgspec.structs.replace(settings, postgres_url=fallible.server.url)


def sell(p: Partition, name: str, count: int = 20) -> None:
    for number in range(count):
        p.hold(f"{name}-{number}", ("A", 1, "X"))
        if number % 2:
            p.one(confirm(f"{name}-{number}"))


def events_in(settings: Settings) -> list[tuple[int, int]]:
    return rows(settings.postgres_url, "SELECT epoch, seq FROM events ORDER BY seq")


def in_outbox(redis: Redis) -> list[int]:
    found = []
    for entry_id, fields in redis.xrange(OUTBOX):
        found += [each.seq for each in read_entry(0, entry_id.decode(), fields[b"events"])]
    return found


@pytest.mark.parametrize("way", ["direct", "kafka"])
@pytest.mark.parametrize("persister", ["goes on", "is stopped meanwhile"])
def test_given_a_ledger_that_fell_back_then_it_catches_up_by_itself(
    own: Settings,
    redis: Redis,
    fallible: Fallible,
    kafka_bootstrap: str,
    caplog: pytest.LogCaptureFixture,
    way: str,
    persister: str,
) -> None:
    """It knows one opening, and was in its second and third by then: neither is Redis behind, nor does an
    event of theirs fail to enter, and no epoch is given twice."""
    settings = own if way == "direct" else through_kafka(own, kafka_bootstrap)
    with ExitStack() as ends:
        if way == "kafka":
            ends.enter_context(relaying(settings))
        with persisting(settings):
            p = Partition.of(redis)
            p.receive("A", 1_000)
            sell(p, "before")
            wait_for_ledger(settings)
            fallible.remember()
            then = ledger_seq(settings)
            sell(p, "first")
            open_anew(settings, redis)
            sell(p, "second")
            open_anew(settings, redis)
            sell(p, "third")
            wait_for_ledger(settings)
            eventually("all is acknowledged", lambda: all_acknowledged(redis))
            told = events_in(settings)
            head = read_head(redis, 0)
            if persister == "goes on":
                fallible.fall_back()
                assert ledger_seq(settings) == then < p.seq()
                wait_for_ledger(settings)
        if persister != "goes on":
            fallible.fall_back()
            assert ledger_seq(settings) == then
            sell(p, "meanwhile")
        with persisting(settings):
            wait_for_ledger(settings)
            now = read_head(redis, 0)
            assert (now.epoch, now.run_id) == (head.epoch, head.run_id), "it was opened for nothing"
            open_anew(settings, redis)
            sell(p, "fourth")
            wait_for_ledger(settings)
    found = events_in(settings)
    assert found[: len(told)] == told
    assert [epoch for epoch, _ in found] == sorted(epoch for epoch, _ in found)
    assert found[-1] == (4, p.seq()) and [seq for _, seq in found] == list(range(1, p.seq() + 1))
    assert "an opening that had been replaced" not in caplog.text
    assert "behind the ledger's" not in caplog.text
    assert ("it fell back" in caplog.text) is (way == "direct")
    check_clean(settings)
    if way == "kafka":
        assert len(messages(settings)) == p.seq(), "the relay sends nothing for it"


def test_given_a_restart_of_redis_and_a_ledger_that_fell_back_then_both_are_mended(
    own: Settings, redis: Redis, fallible: Fallible
) -> None:
    """The whole machine went down: the partition is opened before the ledger has caught up. Of the second
    opening it knows only that its epoch was given."""
    with persisting(own):
        p = Partition.of(redis)
        p.receive("A", 1_000)
        sell(p, "first")
        wait_for_ledger(own)
    with database.connect(own.postgres_url) as connection:
        openings = Openings(connection, 0)
        noted = openings.note(above=1, first_seq=p.seq() + 1, run_id=redis.info("server")["run_id"])
    fallible.remember()
    with database.connect(own.postgres_url) as connection:
        Openings(connection, 0).use(noted)
    p.open()
    assert read_head(redis, 0).epoch == str(noted) == "2"
    with persisting(own):
        sell(p, "second")
        wait_for_ledger(own)
        open_anew(own, redis)
        sell(p, "third")
        wait_for_ledger(own)
    fallible.fall_back()
    redis.hset(keys.head(0), "run_id", "")
    with persisting(own):
        sell(p, "fourth")
        wait_for_ledger(own)
    epochs = sorted({epoch for epoch, _ in events_in(own)})
    assert epochs == [1, 2, 3, 4]
    assert [seq for _, seq in events_in(own)] == list(range(1, p.seq() + 1))
    check_clean(own)


def test_given_a_ledger_that_fell_back_then_nothing_it_lacks_is_taken_away_before_it_has_it(
    own: Settings, redis: Redis, fallible: Fallible
) -> None:
    """What a former persister left counts as kept only as far as the ledger has it; in head the rest waits
    again, so a relay that takes over would send it."""
    with persisting(own):
        p = Partition.of(redis)
        p.receive("A", 1_000)
        sell(p, "first")
        wait_for_ledger(own)
        fallible.remember()
        then = ledger_seq(own)
        sell(p, "second")
        wait_for_ledger(own)
        eventually("all is acknowledged", lambda: all_acknowledged(redis))
    fallible.fall_back()
    # It stands at the first event that it lacks: that can't be read.
    entries = redis.xrange(OUTBOX)
    redis.delete(OUTBOX)
    for entry_id, fields in entries:
        is_it = entry_id == b"1-%d" % (then + 1)
        redis.xadd(OUTBOX, {"events": b"\xc1"} if is_it else fields, id=entry_id)
    impatient = msgspec.structs.replace(own, outbox_keep_ms=0)
    with persisting(impatient, until_open=False):
        eventually(
            "what the ledger has is gone", lambda: len(redis.xrange(OUTBOX)) == p.seq() - then
        )
        assert eventually("it stops there", lambda: stopped(own))
        assert p.head()["acknowledged_seq"] == str(then)
        assert len(redis.xrange(OUTBOX)) == p.seq() - then
    redis.delete(OUTBOX)
    for entry_id, fields in entries:
        redis.xadd(OUTBOX, fields, id=entry_id)
    with persisting(impatient):
        wait_for_ledger(own)
        eventually("nothing is kept", lambda: redis.xlen(OUTBOX) == 0)
    check_clean(own)


def test_given_more_lost_than_is_kept_then_it_stops_and_says_what_is_missing(
    own: Settings, redis: Redis, fallible: Fallible
) -> None:
    """As without anything kept: never a gap without a word."""
    with persisting(own):
        p = Partition.of(redis)
        p.receive("A", 1_000)
        wait_for_ledger(own)
        fallible.remember()
        sell(p, "first")
        wait_for_ledger(own)
    redis.xtrim(OUTBOX, minid="1-9", approximate=False)
    fallible.fall_back()
    with persisting(own, until_open=False):
        why = eventually("it stops", lambda: stopped(own))
    assert "after event 1-1 came 1-9" in why
    with psycopg.connect(own.postgres_url) as connection:
        assert connection.execute("SELECT max(seq) FROM events").fetchone() == (1,)
