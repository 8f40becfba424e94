"""``holdfast db init`` and migrations: whose the tables are, who may apply what, and what is told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
import pytest
from psycopg.errors import InsufficientPrivilege
from role_kit import LOGINS, init, make_ledger, received, url_as
from running import (
    environment,
    eventually,
    holdfast,
    is_open,
    on_one_redis,
    persisting,
    rows,
)

from api.servers import PostgresServer
from engine.errors import LedgerError
from engine.settings import Settings
from persister import database, grants, roles
from persister.audit import audit
from persister.ledger import Ledger

NOT_OF_THE_OWNER = """
SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace
  AND relowner <> 'holdfast_owner'::regrole
UNION ALL SELECT proname::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace
  AND proowner <> 'holdfast_owner'::regrole
UNION ALL SELECT typname::text FROM pg_type WHERE typnamespace = 'public'::regnamespace
  AND typowner <> 'holdfast_owner'::regrole
"""


@pytest.fixture
def url(postgres_url: str) -> str:
    """The superuser's URL of a database with roles, logins and a ledger of two events."""
    return make_ledger(postgres_url)


@pytest.fixture
def fresh_server() -> Iterator[PostgresServer]:
    """A PostgreSQL where nobody has made the roles yet: they belong to the whole server."""
    with TemporaryDirectory(prefix="holdfast-postgres-") as directory:
        server = PostgresServer(Path(directory))
        server.start()
        yield server
        server.stop()


def test_init_by_the_databases_owner_makes_all_that_is_missing_and_the_second_time_nothing(
    fresh_server: PostgresServer,
) -> None:
    """No superuser is needed: the owner of the database with CREATEROLE will do."""
    with psycopg.connect(fresh_server.url, autocommit=True) as connection:
        connection.execute("CREATE ROLE admin LOGIN CREATEROLE")
        connection.execute("CREATE DATABASE shop OWNER admin")
    superuser = fresh_server.url.rsplit("/", 1)[0] + "/shop"
    environ = environment(HOLDFAST_POSTGRES_URL=url_as(superuser, "admin"))
    first = holdfast("db", "init", "--login", "writer=shop_writer", environ=environ)
    assert (first.returncode, first.stderr) == (0, "")
    names = [path.stem for _, path in database.migrations()]
    made = [f"made role {role}" for role in grants.ROLES]
    made += ["made login shop_writer", *[f"applied migration {name}" for name in names]]
    assert set(made) <= set(first.stdout.splitlines())
    assert rows(superuser, NOT_OF_THE_OWNER) == []
    can_log_in = "SELECT rolname, rolcanlogin, rolsuper FROM pg_roles WHERE rolname = ANY(%s)"
    assert set(rows(superuser, can_log_in, [*grants.ROLES, "shop_writer"])) == {
        *[(role, False, False) for role in grants.ROLES],
        ("shop_writer", True, False),
    }
    with database.connect(url_as(superuser, "shop_writer")) as connection:
        Ledger(connection, 0).write([received(1)])
    second = holdfast("db", "init", "--login", "writer=shop_writer", environ=environ)
    assert second.returncode == 0
    tables = len(rows(superuser, "SELECT FROM pg_tables WHERE schemaname = 'public'"))
    assert second.stdout.splitlines() == [
        f"set the grants of {tables} tables",
        "shop_writer is a member of holdfast_writer",
    ]
    assert rows(superuser, "SELECT seq FROM positions") == [(1,)]


def test_an_older_ledger_of_a_superuser_is_handed_over_as_it_is(postgres_url: str) -> None:
    with database.connect(postgres_url) as connection:
        database.migrate(connection)
        Ledger(connection, 0).write([received(1), received(2)])
    lines = init(postgres_url, *LOGINS)
    assert any(line.startswith("handed over to holdfast_owner:") for line in lines)
    assert rows(postgres_url, NOT_OF_THE_OWNER) == []
    with database.connect(url_as(postgres_url, "test_writer")) as connection:
        Ledger(connection, 0).write([received(3)])
    with database.connect(url_as(postgres_url, "test_reader")) as connection:
        report = audit(connection)
    assert (report.events, report.findings) == (3, [])


def test_what_another_program_has_in_the_schema_is_left_alone(postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as connection:
        connection.execute("CREATE TABLE quarantined_by_another_program (id bigserial)")
    init(postgres_url)
    query = "SELECT tableowner FROM pg_tables WHERE tablename = 'quarantined_by_another_program'"
    assert rows(postgres_url, query) == [("postgres",)]


@pytest.mark.parametrize("login", ["test_writer", "test_reader"])
def test_migrate_needs_no_right_where_nothing_is_pending_and_says_what_to_do_where_something_is(
    url: str, login: str
) -> None:
    with database.connect(url_as(url, login)) as connection:
        assert database.migrate(connection) == []
        with psycopg.connect(url) as superuser:
            superuser.execute("DELETE FROM schema_migrations WHERE version = 2")
        with pytest.raises(LedgerError, match=r"lacks 0002_proof.*holdfast db init") as error:
            database.migrate(connection)
        assert "\n" not in str(error.value)


def test_migrate_in_a_database_without_a_ledger_says_the_same_to_who_may_not(
    postgres_url: str,
) -> None:
    with psycopg.connect(postgres_url) as connection:
        connection.execute("DROP ROLE IF EXISTS test_stranger")
        connection.execute("CREATE ROLE test_stranger LOGIN")
    with (
        database.connect(url_as(postgres_url, "test_stranger")) as connection,
        pytest.raises(LedgerError, match=r"lacks 0001_ledger.*holdfast db init"),
    ):
        database.migrate(connection)


@on_one_redis
def test_a_persister_that_may_not_migrate_waits_and_goes_on_once_that_is_done(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    init(settings.postgres_url, *LOGINS)
    with psycopg.connect(settings.postgres_url) as superuser:
        superuser.execute("DELETE FROM schema_migrations WHERE version = 2")
    writing = Settings(
        redis_url=settings.redis_url, postgres_url=url_as(settings.postgres_url, "test_writer")
    )
    with persisting(writing, until_open=False):
        eventually("it says what to do", lambda: "run 'holdfast db init'" in caplog.text)
        assert not is_open(settings.redis_url)
        with psycopg.connect(settings.postgres_url) as superuser:
            superuser.execute("INSERT INTO schema_migrations VALUES (2, '0002_proof')")
        eventually("the partition is open", lambda: is_open(settings.redis_url))


@pytest.mark.parametrize("login", ["postgres", "test_owner"])
@pytest.mark.parametrize("by_init", [True, False], ids=["db init", "persister"])
def test_a_later_migration_is_applied_as_the_owner_and_gets_its_grants(
    url: str, login: str, by_init: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by an owner's login that may make no roles, and by a persister that may migrate."""
    later = tmp_path / "9000_later.sql"
    later.write_text("CREATE TABLE later (id bigint GENERATED BY DEFAULT AS IDENTITY)")
    known = database.migrations()
    monkeypatch.setattr(database, "migrations", lambda: [*known, (9000, later)])
    monkeypatch.setitem(grants.WRITES, "later", ("INSERT",))
    with database.connect(url_as(url, login)) as connection:
        if by_init:
            assert "applied migration 9000_later" in roles.init(connection)
        else:
            assert database.migrate(connection) == ["9000_later"]
        assert connection.execute("SELECT current_user").fetchone() == (login,)
    assert rows(url, NOT_OF_THE_OWNER) == []
    with psycopg.connect(url_as(url, "test_writer"), autocommit=True) as connection:
        connection.execute("SELECT nextval('later_id_seq')")
        connection.execute("INSERT INTO later DEFAULT VALUES")
        with pytest.raises(InsufficientPrivilege):
            connection.execute("DELETE FROM later")
    with psycopg.connect(url_as(url, "test_reader")) as connection:
        assert connection.execute("SELECT count(*) FROM later").fetchone() == (1,)


def test_a_password_is_kept_as_scram_and_never_printed(url: str) -> None:
    environ = environment(HOLDFAST_POSTGRES_URL=url, HOLDFAST_DB_PASSWORD="s3cret-word")
    answer = holdfast("db", "init", "--login", "reader=test_locked", environ=environ)
    assert answer.returncode == 0
    assert "set the password of test_locked" in answer.stdout
    assert "s3cret-word" not in answer.stdout + answer.stderr
    query = "SELECT rolpassword FROM pg_authid WHERE rolname = 'test_locked'"
    assert rows(url, query)[0][0].startswith("SCRAM-SHA-256$4096:")


@pytest.mark.parametrize(
    ("arguments", "more", "why"),
    [
        (["--login", "boss=x"], {}, "owner=NAME, writer=NAME or reader=NAME"),
        (["--login", "writer="], {}, "owner=NAME, writer=NAME or reader=NAME"),
        (["--login", "writer=holdfast_writer"], {}, "a name of its own"),
        (["--login", "writer=postgres"], {}, "is a superuser"),
        (["--login", "writer=pg_x"], {}, "reserved"),
        (["--login", "reader=a", "--login", "writer=b"], {"HOLDFAST_DB_PASSWORD": "x"}, "one"),
        ([], {"HOLDFAST_DB_PASSWORD": "x"}, "no --login"),
        ([], {"HOLDFAST_POSTGRES_URL": "postgresql://test_reader@"}, "lacks a right"),
        ([], {"HOLDFAST_POSTGRES_URL": "postgresql://x@127.0.0.1:1/x"}, "can't be reached"),
    ],
)
def test_what_can_not_be_done_is_one_line_and_exit_code_2(
    url: str, arguments: list[str], more: dict[str, str], why: str
) -> None:
    if more.get("HOLDFAST_POSTGRES_URL", "").endswith("@"):
        more = {"HOLDFAST_POSTGRES_URL": url_as(url, "test_reader")}
    environ = environment(**({"HOLDFAST_POSTGRES_URL": url} | more))
    refused = holdfast("db", "init", *arguments, environ=environ)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert why in refused.stderr and len(refused.stderr.splitlines()) == 1


def test_a_login_that_inherits_nothing_is_refused_and_nothing_changed(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("DROP ROLE IF EXISTS test_aloof")
        connection.execute("CREATE ROLE test_aloof LOGIN NOINHERIT")
    with pytest.raises(LedgerError, match="NOINHERIT"):
        init(url, roles.Login(group="writer", name="test_aloof"))
    member = "SELECT pg_has_role('test_aloof'::name, 'holdfast_writer'::name, 'MEMBER')"
    assert rows(url, member) == [(False,)]
