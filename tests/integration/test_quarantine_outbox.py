"""What can't be read in the outbox itself (no Kafka), what reconciliation says after a discard, and the
command line's refusals."""

from __future__ import annotations

import time
from base64 import b64decode
from typing import Any

import msgspec
import psycopg
import pytest
from kit import Partition, confirm, move, reserve
from redis import Redis
from running import (
    all_acknowledged,
    environment,
    eventually,
    holdfast,
    on_one_redis,
    persisting,
    wait_for_ledger,
)

from engine import keys
from engine.settings import Settings
from persister import database
from persister.ledger import Position
from persister.persister import connect_redis
from persister.runs import run
from persister.sources import OutboxSource
from tests.quarantine_kit import (
    OUTBOX,
    check_audit,
    cli,
    damage,
    discard,
    discards,
    events,
    listed,
    stopped_at,
    wait_until_stopped,
)
from tests.running import check_clean

pytestmark = on_one_redis


@pytest.fixture
def shop(redis: Redis) -> Partition:
    """Nothing is in the ledger yet. seq 1: received; 2 to 4 in one entry; 5; epoch 2: 6 and 7."""
    p = Partition(redis)
    p.receive("tea", 100)
    p.send(*[reserve(f"R{n}", ("tea", 1, "X")) for n in range(3)])
    p.hold("R3", ("tea", 1, "X"))
    p.open()
    p.hold("R4", ("tea", 1, "X"))
    p.hold("R5", ("tea", 1, "X"))
    return p


@pytest.mark.parametrize("damaged", [b"\x00", b"\n", b"\t", b"\x1f"])
def test_given_bytes_that_are_an_entry_and_can_not_be_stored_then_it_is_quarantined(
    settings: Settings, redis: Redis, damaged: bytes
) -> None:
    """PostgreSQL would refuse the batch again and again, and nobody could say what to pass over."""
    p = Partition(redis)
    p.receive("tea", 9)
    p.one(move("damage", "tea", 1, reason="water got in"))
    p.receive("mug", 1)
    entries = redis.xrange(OUTBOX)
    redis.delete(OUTBOX)
    for entry_id, fields in entries:
        body = fields[b"events"].replace(b"water got", b"water" + damaged + b"got")
        redis.xadd(OUTBOX, {"events": body}, id=entry_id)
    with persisting(settings):
        wait_until_stopped(settings, 1)
        (kept,) = listed(settings)
        assert "event 1-2: reason" in kept["why"] and "control character" in kept["why"]
        assert cli(settings, "retry", "1").returncode == 1
        discard(settings, 1)
        wait_for_ledger(settings)
    assert discards(settings) == [(1, 2, reason(1))]


def reason(number: int) -> str:
    return f"quarantine {number} discarded by ann: junk"


@pytest.mark.parametrize(
    ("seqs", "expected"),
    [
        ({1}, [(1, 1, 1)]),
        ({4}, [(1, 2, 1), (1, 3, 1), (1, 4, 1)]),
        ({4, 5}, [(1, 2, 1), (1, 3, 1), (1, 4, 1), (1, 5, 2)]),
        ({5, 6}, [(1, 5, 1), (2, 6, 2)]),
        ({7}, [(2, 7, 1)]),
        ({1, 4, 5, 6, 7}, [(1, 1, 1), (1, 2, 2), (1, 3, 2), (1, 4, 2), (1, 5, 3), (2, 6, 4), (2, 7, 5)]),
    ],
    ids=["first", "of three events", "two in a row", "over an opening", "last", "all"],
)  # fmt: skip
def test_given_it_is_discarded_then_each_event_it_stood_for_is_told(
    settings: Settings, redis: Redis, shop: Partition, seqs: set[int], expected: Any
) -> None:
    damage(redis, seqs)
    with persisting(settings):
        for number in range(1, len(seqs) + 1):
            wait_until_stopped(settings, number)
            discard(settings, number)
        wait_for_ledger(settings)
        eventually("all is acknowledged", lambda: all_acknowledged(redis))
        shop.hold("later", ("tea", 1, "X"))
        wait_for_ledger(settings)
    assert discards(settings) == [(epoch, seq, reason(number)) for epoch, seq, number in expected]
    assert [event.seq for event in events(settings)] == list(range(1, 9))
    assert stopped_at(settings) == 0
    check_audit(settings)


def test_the_bytes_of_what_was_passed_over_count_as_trimmed(redis: Redis, shop: Partition) -> None:
    """They are what the limit of the outbox goes by."""
    damage(redis, {1})
    sizes = [len(fields[b"events"]) for _, fields in redis.xrange(OUTBOX)]
    settings = Settings(outbox_keep_ms=0)
    source, start = OutboxSource(redis, shop.scripts, settings, 0), Position(0, 0)
    source.begin(start)
    unreadable = source.read(start, 0).unreadable
    assert unreadable
    source.pass_over(unreadable)
    assert [event.seq for event in source.read(start, 0).events] == [2, 3, 4, 5, 6, 7]
    source.committed(Position(1, 5), time.monotonic())
    assert redis.xlen(OUTBOX) == 2
    assert int(shop.head()["acknowledged_bytes"]) == sum(sizes[:3])
    assert int(shop.head()["trimmed_bytes"]) == sum(sizes[:3])


def test_what_is_kept_is_all_there_was(settings: Settings, redis: Redis, shop: Partition) -> None:
    damage(redis, {5}, b"\x92\xa1\x00\x1b[2J")
    entry_id = redis.xrange(OUTBOX)[0][0]
    entries = redis.xrange(OUTBOX)
    redis.delete(OUTBOX)
    for each, fields in entries:
        redis.xadd(OUTBOX, {"other": b"\x00"} if each == entry_id else fields, id=each)
    with persisting(settings):
        wait_until_stopped(settings, 1)
        discard(settings, 1)
        wait_until_stopped(settings, 2)
        table = cli(settings, "list", "--all").stdout
        first, second = listed(settings)
        again = cli(settings, "retry", "2")
    assert (first["source"], first["place"], first["state"]) == ("outbox", "1-1", "discarded")
    assert (first["discarded_by"], first["reason"]) == ("ann", "junk")
    assert first["why"] == "it has no field 'events'"
    assert msgspec.msgpack.decode(b64decode(first["raw"])) == [[b"other", b"\0"]]
    assert (second["epoch"], second["seq"], second["last_seq"]) == (1, 4, 5)
    assert second["raw"] == "kqEAG1sySg=="
    assert "outbox entry 1-5  event 5" in table
    assert r"\x92\xa1\x00\x1b[2J" in table
    assert not set(table) & {"\x00", "\x1b"}
    assert (again.returncode, "can't be read by this program either" in again.stdout) == (1, True)


def test_the_same_bytes_elsewhere_and_other_bytes_there_are_not_passed_over(
    settings: Settings, redis: Redis, shop: Partition
) -> None:
    damage(redis, {4, 5}, b"junk")
    with persisting(settings):
        wait_until_stopped(settings, 1)
    discard(settings, 1)
    damage(redis, {4}, b"other junk")
    with persisting(settings):
        wait_until_stopped(settings, 2)
        discard(settings, 2)
        wait_until_stopped(settings, 3)
    assert discards(settings) == [(1, seq, reason(2)) for seq in (2, 3, 4)] or not discards(
        settings
    )
    assert [each["place"] for each in listed(settings)] == ["1-4", "1-4", "1-5"]


def test_given_the_entry_can_be_read_again_then_it_goes_on_by_itself(
    settings: Settings, redis: Redis, shop: Partition
) -> None:
    was = damage(redis, {4})
    with persisting(settings):
        wait_until_stopped(settings, 1)
        damage(redis, {4}, was[4])
        wait_for_ledger(settings)
    (kept,) = listed(settings)
    assert kept["state"] == "passed"
    assert discards(settings) == []
    refused = cli(settings, "discard", "1", "--by", "ann", "--reason", "late")
    assert (refused.returncode, "the ledger has gone past it" in refused.stderr) == (2, True)
    check_clean(settings)


def test_given_a_discard_before_the_program_that_can_read_it_then_the_event_is_written(
    settings: Settings, redis: Redis, shop: Partition
) -> None:
    was = damage(redis, {4})
    with persisting(settings):
        wait_until_stopped(settings, 1)
    discard(settings, 1)
    damage(redis, {4}, was[4])
    with persisting(settings):
        wait_for_ledger(settings)
    assert discards(settings) == []
    check_clean(settings)


REFUSED = [
    (["discard", "7", "--by", "a", "--reason", "b"], "there is no quarantine 7"),
    (["retry", "7"], "there is no quarantine 7"),
    (["discard", "0", "--by", "a", "--reason", "b"], "0 is not in the range"),
    (["discard", "1", "--reason", "b"], "Missing option '--by'"),
    (["discard", "1", "--by", "a"], "Missing option '--reason'"),
    (["discard", "1", "--by", "", "--reason", "b"], "--by is ''"),
    (["discard", "1", "--by", "  ", "--reason", "b"], "--by is '  '"),
    (["discard", "1", "--by", "a\nb", "--reason", "b"], r"--by is 'a\nb'"),
    (["discard", "1", "--by", "a\x85", "--reason", "b"], r"--by is 'a\x85'"),
    (["discard", "1", "--by", "a" * 129, "--reason", "b"], "must be 1 to 128 characters"),
    (["discard", "1", "--by", "a", "--reason", "b" * 1001], "must be 1 to 1,000 characters"),
    (["discard", "1", "--by", "a", "--reason", "\x1b[2J"], r"--reason is '\x1b[2J'"),
    (["discard", "1", "--by", "a", "--reason", "b"], "is not stopped at quarantine 1 now"),
]


def test_what_the_command_line_refuses(settings: Settings, redis: Redis, shop: Partition) -> None:
    """Given something in quarantine, and a partition that is stopped by something else by now."""
    damage(redis, {4})
    with persisting(settings):
        wait_until_stopped(settings, 1)
    with psycopg.connect(settings.postgres_url) as connection:
        connection.execute("UPDATE positions SET quarantine_id = NULL, stopped = 'another cause'")
    for arguments, says in REFUSED:
        done = cli(settings, *arguments)
        assert (done.returncode, done.stdout) == (2, ""), arguments
        assert says in done.stderr
        assert "Traceback" not in done.stderr
    assert listed(settings)[0]["state"] == "open"


def test_the_longest_names_and_reasons_go_in_and_a_second_discard_is_refused(
    settings: Settings, redis: Redis, shop: Partition
) -> None:
    damage(redis, {5})
    by, why = "ä" * 128, "☕" * 1000
    with persisting(settings):
        wait_until_stopped(settings, 1)
        discard(settings, 1, by, why)
        wait_for_ledger(settings)
        again = cli(settings, "discard", "1", "--by", "bob", "--reason", "me too")
    assert again.returncode == 2
    assert f"discarded already, by {by}" in again.stderr
    assert discards(settings) == [(1, 5, f"quarantine 1 discarded by {by}: {why}")]
    check_audit(settings)


def test_given_no_ledger_or_none_with_a_quarantine_then_it_is_said(settings: Settings) -> None:
    for _ in range(2):
        done = cli(settings, "list")
        assert done.returncode == 2
        assert "the ledger has no quarantine yet" in done.stderr
        with psycopg.connect(settings.postgres_url) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS positions (partition integer)")


def check(settings: Settings, repair_by: str | None = None) -> Any:
    with (
        connect_redis(settings.redis_url) as redis,
        database.connect(settings.postgres_url) as connection,
    ):
        return run(redis, connection, trigger="test", repair_by=repair_by, retention_ms=60_000)


def kinds(report: Any) -> list[tuple[str, str]]:
    return [(each.kind, each.reservation_id or each.sku) for each in report.differences]


@pytest.mark.parametrize(
    ("what", "found", "numbers", "left"),
    [
        ("receive", [("missing_in_ledger", "tea")], (100, 4), []),
        ("receive of a new sku", [("missing_in_ledger", "mug")], (100, 4), []),
        (
            "reserve",
            [("orphan_reservation", "new"), ("missing_in_ledger", "tea")],
            (100, 4),
            [],
        ),
        (
            "confirm",
            [("missing_in_ledger", "R"), ("missing_in_ledger", "tea")],
            (100, 4),
            [("missing_in_ledger", "R")],
        ),
        ("reserve, traffic behind it", [("orphan_reservation", "new"), ("leaked_hold", "tea")], (100, 5), []),
    ],
)  # fmt: skip
def test_after_a_discard_reconciliation_names_what_differs_and_repair_mends_what_it_can(
    settings: Settings, redis: Redis, what: str, found: Any, numbers: Any, left: Any
) -> None:
    """Given 100 units of tea, 4 of them held by R; the ledger has all of that."""
    p = Partition(redis)
    p.receive("tea", 100)
    p.hold("R", ("tea", 4, "X"))
    with persisting(settings):
        wait_for_ledger(settings)
    command: Any = {
        "receive": move("receive", "tea", 10, "X", movement_id="m"),
        "receive of a new sku": move("receive", "mug", 10, "X", movement_id="m"),
        "confirm": confirm("R"),
    }.get(what, reserve("new", ("tea", 7, "X")))
    p.one(command)
    damage(redis, {p.seq()})
    if "traffic" in what:
        p.hold("later", ("tea", 1, "X"))
    with persisting(settings):
        wait_until_stopped(settings, 1)
        assert "holdfast reconcile" in discard(settings, 1)
        wait_for_ledger(settings)
        assert len(discards(settings)) == 1
        assert sorted(kinds(check(settings))) == sorted(found)
        mended = check(settings, repair_by="kim")
        assert kinds(mended) == left
        assert p.numbers("tea")[:2] == numbers
        if not left:
            check_clean(settings)
    check_audit(settings)
    if what == "reserve":
        told = holdfast("reconcile", environ=environment(settings))
        assert (told.returncode, "0 differences" in told.stdout) == (0, True)
        assert redis.exists(keys.reservation(0, "new"))
