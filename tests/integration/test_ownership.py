"""A Redis belongs to one ledger: another one, or a copy of it, moves nothing there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import psycopg
import pytest
from kit import Partition
from redis import Redis
from running import (
    check_clean,
    environment,
    eventually,
    holdfast,
    on_one_redis,
    persisting,
    rows,
    stopped,
    wait_for_ledger,
)

from api.servers import PostgresServer
from engine import keys
from engine.scripts import Scripts
from engine.settings import Settings
from persister import database
from persister.ownership import Claim, OtherLedger, OtherWriter, Ownership, owner_of

pytestmark = on_one_redis
HEAD = keys.head(0)


def clone_of(settings: Settings) -> Settings:
    """The same Redis, and a copy of the database beside it."""
    base, name = settings.postgres_url.rsplit("/", 1)
    with psycopg.connect(f"{base}/postgres", autocommit=True) as admin:
        admin.execute(f"DROP DATABASE IF EXISTS {name}_copy WITH (FORCE)")
        admin.execute(f"CREATE DATABASE {name}_copy TEMPLATE {name}")
    return msgspec.structs.replace(settings, postgres_url=f"{base}/{name}_copy")


def adopt(settings: Settings, *options: str) -> str:
    done = holdfast(
        *("ledger", "adopt", "--by", "kim", "--reason", "the other one is gone", *options),
        environ=environment(settings),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def shop(settings: Settings, redis: Redis) -> Partition:
    """An open partition, all of it in its ledger."""
    with persisting(settings):
        p = Partition.of(redis)
        p.receive("tea", 100)
        p.hold("r1", "tea")
        wait_for_ledger(settings)
    return p


def test_given_a_copy_of_the_ledger_then_it_is_refused_with_both_names_and_nothing_is_moved(
    settings: Settings, shop: Partition
) -> None:
    copy = clone_of(settings)
    shop.hold("r2", "tea")
    before = shop.dump()
    with persisting(copy, until_open=False):
        why = eventually("it says why", lambda: stopped(copy))
    ours = owner_of(shop.redis, 0)
    assert ours in why and "'holdfast ledger adopt'" in why
    others = [word.strip(",;") for word in why.split() if word.count(".") == 2 and ours not in word]
    assert len(others) == 1 and others[0].split(".")[:2] == ours.split(".")[:2]
    assert shop.dump() == before
    with persisting(settings):
        wait_for_ledger(settings)
    check_clean(settings)


def test_given_a_copy_of_the_ledger_then_reconcile_compares_and_repairs_nothing(
    settings: Settings, shop: Partition
) -> None:
    copy = clone_of(settings)
    shop.redis.hincrby(keys.stock(0, "tea", "MAIN"), "held", 5)
    before = shop.dump()
    done = holdfast("reconcile", "--repair", "--by", "kim", environ=environment(copy))
    assert done.returncode == 2 and "belongs to ledger" in done.stderr, done.stderr
    assert shop.dump() == before


def test_given_it_is_adopted_then_it_is_the_one_and_the_other_is_refused(
    settings: Settings, shop: Partition
) -> None:
    copy = clone_of(settings)
    shop.hold("r2", "tea")
    before = shop.dump()
    assert "it would belong to ledger" in adopt(copy, "--dry-run")
    assert shop.dump() == before
    assert "belongs to ledger" in adopt(copy)
    assert "already; nothing was changed" in adopt(copy)
    query = "SELECT adopted_by, reason, seq FROM adoptions"
    assert rows(copy.postgres_url, query) == [("kim", "the other one is gone", 3)]
    with persisting(copy):
        wait_for_ledger(copy)
        shop.hold("r3", "tea")
        wait_for_ledger(copy)
    check_clean(copy)
    with persisting(settings, until_open=False):
        assert owner_of(shop.redis, 0) in eventually("it says why", lambda: stopped(settings))


@pytest.mark.parametrize("option", [("--by", ""), ("--reason", "a\x07"), ("--by", "x" * 129)])
def test_given_no_proper_name_or_reason_then_one_line_says_so(
    settings: Settings, option: tuple[str, str]
) -> None:
    given = {"--by": "kim", "--reason": "why"} | dict([option])
    words = [word for pair in given.items() for word in pair]
    done = holdfast("ledger", "adopt", *words, environ=environment(settings))
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "characters, none of them a control character" in done.stderr


def test_given_another_outbox_then_it_is_not_adopted(settings: Settings, shop: Partition) -> None:
    copy = clone_of(settings)
    shop.redis.hset(HEAD, mapping={"epoch": 1, "seq": 1})
    shop.redis.delete(keys.outbox(0))
    shop.receive("tea", 7)
    before = shop.dump()
    done = holdfast(
        *("ledger", "adopt", "--by", "kim", "--reason", "why"), environ=environment(copy)
    )
    assert done.returncode == 2 and "its outbox is not this ledger's" in done.stderr
    assert shop.dump() == before


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    with TemporaryDirectory(prefix="holdfast-own-postgres-") as directory:
        server = PostgresServer(Path(directory) / "first")
        server.start()
        yield server
        server.stop()


def test_given_an_exact_copy_of_the_server_then_it_waits_while_the_other_one_beats(
    settings: Settings,
    redis: Redis,
    own_postgres: PostgresServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As by pg_basebackup: it has the same identity, and knows the beats of then."""
    own = msgspec.structs.replace(settings, postgres_url=own_postgres.url)
    copied = PostgresServer(own_postgres.directory.parent / "second")
    with persisting(own):
        p = Partition.of(redis)
        p.receive("tea", 100)
        wait_for_ledger(own)
        own_postgres.stop()
        shutil.copytree(own_postgres.directory, copied.directory)
        at_copy = redis.hget(HEAD, "beat")
        own_postgres.start()
        eventually("the first one beats on", lambda: redis.hget(HEAD, "beat") != at_copy)
        copied.start()
        try:
            other = msgspec.structs.replace(own, postgres_url=copied.url)
            with persisting(other, until_open=False):
                eventually("the copy waits", lambda: "or this is the copy; waiting" in caplog.text)
                p.hold("r1", "tea")
                wait_for_ledger(own)
            assert rows(copied.url, "SELECT seq FROM positions") == [(1,)]
        finally:
            copied.stop()
    check_clean(own)


def test_a_successor_knows_the_beat_that_it_finds_and_nobody_else_does(
    settings: Settings, shop: Partition
) -> None:
    """Whoever was killed gave nothing back; what he had noted and not yet written counts, too."""
    scripts = Scripts.for_server(shop.redis.info("server"))
    with database.connect(settings.postgres_url) as connection:
        for _ in range(3):
            killed = Ownership(shop.redis, scripts, connection, 0)
            killed.keep()
        # Redis refused his last beats.
        shop.redis.rename(HEAD, "away")
        shop.redis.set(HEAD, "not a hash")
        for _ in range(3):
            with pytest.raises(Exception, match="WRONGTYPE"):
                Ownership(shop.redis, scripts, connection, 0).keep()
        shop.redis.delete(HEAD)
        shop.redis.rename("away", HEAD)
        # What could not be noted is not written either: nobody would know it.
        written = shop.redis.hget(HEAD, "beat")
        connection.execute("ALTER TABLE beats RENAME TO away")
        connection.commit()
        with pytest.raises(psycopg.errors.UndefinedTable):
            killed.keep(Claim.FREE)
        connection.execute("ALTER TABLE away RENAME TO beats")
        connection.commit()
        assert shop.redis.hget(HEAD, "beat") == written
        successor = Ownership(shop.redis, scripts, connection, 0)
        successor.keep()
        beat = shop.redis.hget(HEAD, "beat")
        shop.redis.hset(HEAD, "beat", "a stranger's")
        with pytest.raises(OtherWriter, match="a stranger's writes a ledger"):
            successor.keep(Claim.FREE)
        assert shop.redis.hget(HEAD, "beat") == b"a stranger's" != beat
        shop.redis.hincrby(HEAD, "beat_ms", -10_000)
        successor.keep(Claim.FREE)
        shop.redis.hset(HEAD, "ledger", "another")
        with pytest.raises(OtherLedger, match="belongs to ledger another"):
            successor.keep(Claim.FREE)
        assert shop.redis.hget(HEAD, "ledger") == b"another"
