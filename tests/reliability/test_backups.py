"""Each way of docs/backups.md, by the commands that stand there: PostgreSQL is lost and comes back, from a
dump, from a base backup and its archive, or as the standby that was promoted, and the ledger goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import msgspec
import psycopg
import pytest
from adopt_kit import trim
from backup_kit import (
    Postgres,
    Room,
    Traffic,
    at,
    beside,
    check_whole,
    drop,
    moving,
    room,
    sell,
    stopped,
)
from kafka_kit import through_kafka
from kit import Partition, confirm
from needed import missing
from redis import Redis
from role_kit import LOGINS, init, url_as
from running import (
    Up,
    all_acknowledged,
    check_clean,
    environment,
    eventually,
    holdfast,
    is_open,
    ledger_seq,
    persisting,
    rows,
    serving,
    variables,
    wait_for_ledger,
)

from api.servers import RedisServer, ServerError, choose_redis
from engine.settings import Settings
from persister import database
from persister.audit import audit
from persister.ownership import identity_of, owner_of
from persister.persister import connect_redis


@pytest.fixture(scope="module")
def empty() -> Iterator[Postgres]:
    """A PostgreSQL as it is first made, to be copied: that takes less than making one."""
    with TemporaryDirectory(prefix="holdfast-backups-") as directory:
        try:
            server = Postgres(Path(directory) / "empty")
            server.start()
        except ServerError as error:
            missing(f"PostgreSQL ({error})")
        server.stop()
        yield server


@pytest.fixture
def here(empty: Postgres) -> Iterator[Room]:
    with room(empty) as here:
        yield here


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    server = RedisServer(choose_redis(), tmp_path / "redis", appendfsync="no")
    server.start()
    with connect_redis(server.url) as redis:
        yield redis
    server.stop()


def url_of(redis: Redis) -> str:
    where = redis.connection_pool.connection_kwargs
    return f"redis://{where['host']}:{where['port']}/0"


@pytest.fixture(params=["direct", "kafka"])
def way(request: pytest.FixtureRequest) -> str:
    """How the events come to the ledger."""
    return str(request.param)


@pytest.fixture
def settings(redis: Redis, way: str, request: pytest.FixtureRequest) -> Settings:
    """Without a PostgreSQL. With Kafka nothing is kept in the outbox: what is read again comes from there."""
    direct = Settings(redis_url=url_of(redis), postgres_url="")
    if way == "direct":
        return direct
    through = through_kafka(direct, request.getfixturevalue("kafka_bootstrap"))
    return msgspec.structs.replace(through, outbox_keep_ms=0)


def test_given_a_dump_taken_under_traffic_then_what_came_since_is_read_from_kafka_or_taken_over(
    settings: Settings, redis: Redis, way: str, here: Room, postgres_url: str
) -> None:
    init(postgres_url, *LOGINS)
    old = at(settings, url_as(postgres_url, "test_writer"))
    old = msgspec.structs.replace(old, outbox_keep_ms=0)
    p = Partition.of(redis)
    with moving(old):
        p.receive("A", 1_000_000)
        with Traffic(old.redis_url) as traffic:
            eventually("some is in the ledger", lambda: ledger_seq(old) > 20)
            here.type("Dump", HOLDFAST_POSTGRES_URL=postgres_url)
            traffic.goes_on()
        p.hold("since", "A")
        trim(p, old)
    with database.connect(postgres_url) as connection:
        anchors = audit(connection).anchors
    drop(postgres_url)

    server = here.new_postgres("new")
    new_url = beside(server.url, "holdfast")
    heading = "Restore a dump" if way == "kafka" else "Without roles.sql"
    passwords = {"WRITER_PASSWORD": "w", "READER_PASSWORD": "r"}
    here.type(heading, ADMIN_URL=server.url, HOLDFAST_POSTGRES_URL=new_url, **passwords)
    login = "test_writer" if way == "kafka" else "shop_writer"
    new = at(settings, url_as(new_url, login))
    assert 20 < ledger_seq(new) < p.seq()
    with (
        psycopg.connect(new_url) as connection,
        pytest.raises(psycopg.errors.IntegrityConstraintViolation, match="append-only"),
    ):
        connection.execute("DELETE FROM events")

    before = p.dump()
    with persisting(new, until_open=False):
        why = eventually("it says why", lambda: stopped(new))
    with database.connect(new_url) as connection:
        names = (owner_of(redis, 0), identity_of(connection))
    assert names[0] != names[1] and all(name in why for name in names)
    assert p.dump() == before
    told = here.type("Say that it is the one", **variables(new))
    assert ("nothing is missing" if way == "kafka" else "missing for good") in told
    with moving(new):
        assert p.one(confirm("since")).status == "confirmed"
        p.hold("after", "A")
        wait_for_ledger(new)
    if way == "kafka":
        check_whole(new, p.seq())
        query = "SELECT reservation_id FROM movements WHERE type = 'confirm'"
        found = {each for (each,) in rows(new_url, query)}
        assert found == {*traffic.confirmed, "since"}
    check_clean(new)
    with database.connect(new_url) as connection:
        report = audit(connection, anchors=anchors)
    found = [finding.fault for finding in report.findings]
    assert (found, len(report.holes)) == (([], 0) if way == "kafka" else (["wrong_anchor"], 1))


def test_given_redis_and_postgres_are_gone_then_dump_and_kafka_have_it_all_and_the_dump_alone_what_it_has(
    settings: Settings, redis: Redis, way: str, here: Room, postgres_url: str
) -> None:
    old = at(settings, postgres_url)
    p = Partition.of(redis)
    with moving(old):
        p.receive("A", 1_000)
        p.hold("kept", "A")
        wait_for_ledger(old)
        here.type("Dump", HOLDFAST_POSTGRES_URL=postgres_url)
        sell(p, "since")
        wait_for_ledger(old)
    stock = p.numbers("A")[:3]
    drop(postgres_url)
    redis.flushall()
    new = at(settings, beside(postgres_url, "holdfast"))
    drop(new.postgres_url)
    admin = beside(postgres_url, "postgres")
    here.type("Restore a dump", ADMIN_URL=admin, HOLDFAST_POSTGRES_URL=new.postgres_url)
    here.type("Redis and PostgreSQL are gone", **variables(new))
    assert p.numbers("A")[:3] == (stock if way == "kafka" else (1_000, 1, 0))
    assert (p.record("since-0") is not None) is (way == "kafka")
    with moving(new):
        assert p.one(confirm("kept")).status == "confirmed"
        wait_for_ledger(new)
    check_whole(new, p.seq())
    drop(new.postgres_url)


@pytest.mark.parametrize("way", ["direct"], indirect=True)
def test_given_a_dump_then_it_is_checked_against_an_anchor_and_refused_by_the_redis_of_the_other(
    settings: Settings, redis: Redis, here: Room, postgres_url: str
) -> None:
    admin, check = (beside(postgres_url, name) for name in ("postgres", "check_backup"))
    own = at(settings, postgres_url)
    drop(check)
    with persisting(own):
        p = Partition.of(redis)
        p.receive("A", 1_000)
        wait_for_ledger(own)
        here.type("Check a backup", HOLDFAST_POSTGRES_URL=postgres_url)
        anchor = json.loads((here.backup / "anchor.json").read_text())
        sell(p, "before")
        wait_for_ledger(own)
        here.type("Dump", HOLDFAST_POSTGRES_URL=postgres_url)
        p.hold("since", "A")
        wait_for_ledger(own)
    told = here.type("Restore it to look at it", ADMIN_URL=admin, CHECK_URL=check)
    assert "0 findings" in told
    assert json.loads((here.backup / "anchor.json").read_text())["0"]["seq"] > anchor["0"]["seq"]
    with database.connect(postgres_url) as connection, database.connect(check) as copied:
        late = audit(connection).anchors
        assert [each.fault for each in audit(copied, anchors=late).findings] == ["wrong_anchor"]

    sell(p, "after")
    before = p.dump()
    copy = at(own, check)
    done = holdfast("reconcile", "--repair", "--by", "kim", environ=environment(copy))
    assert done.returncode == 2 and "belongs to ledger" in done.stderr, done.stderr
    with persisting(copy, until_open=False):
        assert "belongs to ledger" in eventually("it says why", lambda: stopped(copy))
    assert p.dump() == before
    drop(check)


@pytest.mark.parametrize(
    ("way", "until"), [("direct", "the end"), ("kafka", "a moment")], indirect=["way"]
)
def test_given_a_base_backup_and_its_archive_then_the_ledger_catches_up_by_itself(
    settings: Settings, redis: Redis, here: Room, until: str
) -> None:
    first = here.new_postgres("first")
    here.type("WAL archive", HOLDFAST_POSTGRES_URL=first.url)
    first.stop()
    first.start()
    own = at(settings, first.url)
    p = Partition.of(redis)
    with moving(own):
        p.receive("A", 1_000)
        wait_for_ledger(own)
        here.type("Base backup", HOLDFAST_POSTGRES_URL=first.url)
        sell(p, "before")
        wait_for_ledger(own)
        then = ledger_seq(own)
        ((moment,),) = rows(first.url, "SELECT now()::text")
        if until == "a moment":
            sell(p, "after the moment")
            wait_for_ledger(own)
        archive(first)
        sell(p, "not archived")
        wait_for_ledger(own)
        eventually("all is acknowledged", lambda: all_acknowledged(redis))
    first.kill()
    shutil.rmtree(first.directory)
    second = here.postgres("second", port=first.port)
    second.directory.mkdir()
    here.type("Recover", PGDATA=str(second.data))
    if until == "a moment":
        here.type("Recover to a moment", PGDATA=str(second.data), MOMENT=moment)
    second.start()
    eventually("it is recovered", lambda: not second.is_recovering())
    assert ledger_seq(own) == then < p.seq()
    sell(p, "meanwhile")
    with moving(own):
        wait_for_ledger(own)
    check_whole(own, p.seq())


def archive(server: Postgres) -> None:
    """All that was written so far."""
    ((segment,),) = rows(server.url, "SELECT pg_walfile_name(pg_switch_wal())")
    query = "SELECT last_archived_wal >= %s FROM pg_stat_archiver"
    eventually("it is archived", lambda: rows(server.url, query, segment)[0][0])


def follow(here: Room, primary: Postgres, standby: Postgres) -> None:
    standby.directory.mkdir()
    here.type("Standby", PRIMARY_URL=primary.url, PGDATA=str(standby.data))
    standby.start()


def detach(standby: Postgres) -> None:
    """It is read and receives nothing any more."""
    standby.run("ALTER SYSTEM SET primary_conninfo = ''", "SELECT pg_reload_conf()")
    query = "SELECT count(*) FROM pg_stat_wal_receiver"
    eventually("it receives nothing", lambda: rows(standby.url, query) == [(0,)])


def either(settings: Settings, one: Postgres, other: Postgres) -> Settings:
    """Whichever of the two is the primary."""
    hosts = f"127.0.0.1:{one.port},127.0.0.1:{other.port}"
    return at(settings, f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write")


def test_given_a_standby_that_was_behind_when_promoted_then_the_ledger_catches_up_by_itself(
    settings: Settings, redis: Redis, way: str, here: Room, tmp_path: Path
) -> None:
    """Nobody is told: persister and service have the addresses of both."""
    primary, standby = here.new_postgres("primary"), here.postgres("standby")
    own = either(settings, primary, standby)
    p = Partition.of(redis)
    with moving(own):
        p.receive("A", 1_000)
        wait_for_ledger(own)
        follow(here, primary, standby)
        sell(p, "before")
        wait_for_ledger(own)
        then = ledger_seq(own)
        eventually("it follows", lambda: ledger_seq(at(own, standby.url)) == then)
        detach(standby)
        sell(p, "lost")
        wait_for_ledger(own)
        eventually("all is acknowledged", lambda: all_acknowledged(redis))
        assert ledger_seq(at(own, standby.url)) == then
        with ExitStack() as ends:
            if way == "direct":
                service = ends.enter_context(serving(own, tmp_path / "serve.log"))
                movements = f"{service.url}/v1/movements?sku=A"
                assert is_answered(movements)
            primary.kill()
            here.type("Fail over", STANDBY_URL=standby.url)
            sell(p, "after")
            wait_for_ledger(own)
            if way == "direct":
                eventually("it tells movements", lambda: is_answered(movements))
    check_whole(own, p.seq())


def is_answered(url: str) -> bool:
    return httpx.get(url, trust_env=False, timeout=10).status_code == 200


@pytest.mark.parametrize("way", ["direct"], indirect=True)
def test_given_a_synchronous_standby_then_nothing_is_acknowledged_that_it_has_not(
    settings: Settings, redis: Redis, here: Room
) -> None:
    """Nothing is kept in the outbox, so what it lacked would be missing."""
    primary, standby = here.new_postgres("primary"), here.postgres("standby")
    impatient = msgspec.structs.replace(settings, outbox_keep_ms=0)
    own = either(impatient, primary, standby)
    p = Partition.of(redis)
    with moving(own):
        p.receive("A", 1_000)
        wait_for_ledger(own)
        follow(here, primary, standby)
        here.type("Synchronous standby", PRIMARY_URL=primary.url)
        sell(p, "before")
        wait_for_ledger(own)
        detach(standby)
        sell(p, "not at the standby")
        query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        eventually("the persister waits", lambda: rows(primary.url, query) != [(0,)])
        sell(p, "nobody else waits")
        assert is_open(own.redis_url)
        primary.kill()
        here.type("Fail over", STANDBY_URL=standby.url)
        wait_for_ledger(own)
    check_whole(own, p.seq())


def test_given_the_embedded_stack_without_its_postgres_then_the_dump_brings_it_back(
    tmp_path: Path, here: Room
) -> None:
    up = Up(tmp_path / "data")
    up.start()
    data = {"HOLDFAST_DATA_DIR": str(up.data_dir)}
    post(up, "movements", movement_id="m", type="receive", sku="A", location="X", quantity=9)
    reserved = {"order_id": "o", "lines": [{"sku": "A", "quantity": 2}]}
    post(up, "reservations", reservation_id="before", **reserved)
    wait_for_ledger(up.settings())
    here.type("Dump the embedded stack", **data)
    (up.data_dir / "postgres").rename(up.data_dir / "lost")
    up.kill("postgresql")
    post(up, "reservations", reservation_id="since", **reserved)
    log = up.data_dir / "logs" / "persister.log"
    eventually("it says why", lambda: "belongs to ledger" in log.read_text())
    here.type("Restore the embedded stack", **data)
    post(up, "reservations", reservation_id="after", **reserved)
    wait_for_ledger(up.settings())
    check_whole(up.settings(), 4)
    assert up.stop() == 0


def post(up: Up, path: str, **body: Any) -> None:
    answer = httpx.post(f"{up.url}/v1/{path}", json=body, trust_env=False)
    assert answer.status_code == 201, answer.text
