"""Three roles, each with just its rights: the persister works as the writer, all that reads as the
reader, and neither can change what the ledger keeps."""

from __future__ import annotations

import psycopg
import pytest
from psycopg.errors import InsufficientPrivilege, IntegrityConstraintViolation
from role_kit import LOGINS, init, make_ledger, url_as
from running import (
    in_process,
    on_one_redis,
    persisting,
    rows,
    wait_for_ledger,
)

from engine.settings import Settings
from persister import database, grants
from persister.audit import audit
from persister.ledger import Ledger
from persister.persister import connect_redis
from persister.reconcile import reconcile

RIGHTS = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER")


@pytest.fixture
def url(postgres_url: str) -> str:
    """The superuser's URL of a database with roles, logins and a ledger of two events."""
    return make_ledger(postgres_url)


def test_every_table_of_the_schema_stands_in_the_table_of_rights(url: str) -> None:
    """Whoever adds a table decides there who may write to it."""
    tables = {
        row[0] for row in rows(url, "SELECT tablename FROM pg_tables WHERE schemaname='public'")
    }
    assert tables <= set(grants.WRITES)


@pytest.mark.parametrize("granted", [False, True], ids=["as made", "after somebody granted more"])
def test_writer_and_reader_have_just_the_rights_of_the_table(url: str, granted: bool) -> None:
    if granted:
        with psycopg.connect(url) as connection:
            connection.execute("GRANT ALL ON events, positions TO holdfast_writer, PUBLIC")
            connection.execute("GRANT UPDATE (body) ON events TO holdfast_writer")
            connection.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
        init(url)
    there = rows(url, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    for (table,) in there:
        for login, more in (("test_writer", grants.WRITES[table]), ("test_reader", ())):
            query = "SELECT has_table_privilege(%s, %s, %s)"
            found = {right for right in RIGHTS if rows(url, query, login, table, right)[0][0]}
            assert found == {"SELECT", *more}, (login, table)
            columns = "SELECT has_any_column_privilege(%s, %s, 'UPDATE')"
            assert rows(url, columns, login, table)[0][0] == ("UPDATE" in more)
    for login in ("test_writer", "test_reader"):
        query = "SELECT has_schema_privilege(%s, 'public', 'CREATE')"
        assert rows(url, query, login) == [(False,)]


LEDGER = ("events", "movements")
CHANGES = (
    "UPDATE {} SET seq = seq",
    "DELETE FROM {}",
    "TRUNCATE {}",
)
DEFINITIONS = (
    "ALTER TABLE {0} DISABLE TRIGGER {0}_append_only",
    "ALTER TABLE {} DISABLE TRIGGER ALL",
    "ALTER TABLE {} OWNER TO test_writer",
    "DROP TABLE {}",
    "DROP TRIGGER {0}_append_only ON {0}",
    "CREATE TRIGGER mine BEFORE INSERT ON {} FOR EACH ROW EXECUTE FUNCTION refuse_change()",
    "CREATE RULE mine AS ON INSERT TO {} DO INSTEAD NOTHING",
    "SET session_replication_role = replica; UPDATE {} SET seq = seq",
    "SET ROLE holdfast_owner; DELETE FROM {}",
)


@pytest.mark.parametrize("table", LEDGER)
@pytest.mark.parametrize("statement", [*CHANGES, *DEFINITIONS])
@pytest.mark.parametrize("login", ["test_writer", "test_reader"])
def test_writer_and_reader_lack_the_right_to_change_the_ledger(
    url: str, login: str, table: str, statement: str
) -> None:
    with (
        psycopg.connect(url_as(url, login), autocommit=True) as connection,
        pytest.raises(InsufficientPrivilege),
    ):
        connection.execute(statement.format(table))


@pytest.mark.parametrize("table", LEDGER)
@pytest.mark.parametrize("statement", CHANGES)
def test_the_owner_has_the_right_and_the_trigger_refuses(
    url: str, table: str, statement: str
) -> None:
    with psycopg.connect(url_as(url, "test_owner"), autocommit=True) as connection:
        connection.execute("SET ROLE holdfast_owner")
        with pytest.raises(IntegrityConstraintViolation, match="append-only"):
            connection.execute(statement.format(table))


def test_the_reader_can_write_nothing_at_all(url: str) -> None:
    statements = [
        "CREATE TABLE mine ()",
        "CREATE TEMPORARY TABLE mine ()",
        "CREATE SCHEMA mine",
        "SET ROLE holdfast_writer",
        "SET ROLE holdfast_owner",
    ]
    for (table,) in rows(url, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"):
        statements += [f"INSERT INTO {table} DEFAULT VALUES", f"DELETE FROM {table}"]
        statements += [f"TRUNCATE {table}", f"DROP TABLE {table}", f"COPY {table} FROM STDIN"]
        statements += [f"SELECT 1 FROM {table} FOR UPDATE"]
    with psycopg.connect(url_as(url, "test_reader"), autocommit=True) as connection:
        for statement in statements:
            with pytest.raises(InsufficientPrivilege):
                connection.execute(statement)


@pytest.mark.anyio
@on_one_redis
async def test_the_persister_works_as_the_writer_and_api_audit_and_reconcile_as_the_reader(
    settings: Settings,
) -> None:
    init(settings.postgres_url, *LOGINS)
    writing = Settings(
        redis_url=settings.redis_url, postgres_url=url_as(settings.postgres_url, "test_writer")
    )
    reading = Settings(
        redis_url=settings.redis_url, postgres_url=url_as(settings.postgres_url, "test_reader")
    )
    receive = {"op": "movement", "movement_id": "m", "type": "receive", "sku": "tea"}
    part = {"lines": [{"sku": "tea", "quantity": 1}], "request_id": "q"}
    for_order = {"order_id": "o", "lines": [{"sku": "tea", "quantity": 2}]}
    operations = [
        [receive | {"location": "A", "quantity": 50}],
        [{"op": "reserve", "reservation_id": name, **for_order} for name in "abcd"],
        [{"op": "confirm", "reservation_id": "a"}, {"op": "extend", "reservation_id": "b"}],
        [{"op": "release", "reservation_id": "b", **part}],
        [{"op": "confirm", "reservation_id": "c", **part}],
    ]
    operations[2][1]["ttl_seconds"] = 3600
    with persisting(writing):
        async with in_process(reading) as client:
            for batch in operations:
                answer = await client.post("/v1/batch", json={"operations": batch})
                assert answer.status_code == 200, answer.text
                wait_for_ledger(settings)
            trail = (await client.get("/v1/movements?sku=tea")).json()
            status = (await client.get("/v1/status")).json()
        with database.connect(reading.postgres_url) as connection:
            report = audit(connection)
            with connect_redis(reading.redis_url) as redis:
                reconciled = reconcile(redis, connection)
    assert len(trail["movements"]) == 8
    assert "ledger" in str(status)
    assert (report.events, report.findings) == (9, [])
    assert (reconciled.checked, reconciled.differences) == (1, [])
    with database.connect(writing.postgres_url) as connection:
        ledger = Ledger(connection, 0)
        ledger.stop("why")
        ledger.go_on()


@pytest.mark.anyio
@on_one_redis
async def test_an_api_that_nobody_let_in_says_503_and_why(settings: Settings) -> None:
    """Given a ledger made by a superuser, and no db init on this database."""
    with database.connect(settings.postgres_url) as connection:
        database.migrate(connection)
    with psycopg.connect(settings.postgres_url) as connection:
        connection.execute("DROP ROLE IF EXISTS test_stranger")
        connection.execute("CREATE ROLE test_stranger LOGIN")
    stranger = Settings(
        redis_url=settings.redis_url, postgres_url=url_as(settings.postgres_url, "test_stranger")
    )
    async with in_process(stranger) as client:
        answer = await client.get("/v1/movements")
    assert answer.status_code == 503
    assert "permission denied" in answer.json()["detail"]
