"""What a role, a database or the environment sets otherwise changes nothing: each connection sets its own."""

from __future__ import annotations

import psycopg
import pytest
from ledger_kit import receipt, write
from running import in_process, rows

from api.ledger_reader import LedgerReader
from engine.errors import LedgerError
from engine.settings import Settings
from persister import database
from persister.audit import audit

pytestmark = pytest.mark.anyio

#: Name → a value that would do harm, and ours.
HOSTILE = {
    "statement_timeout": ("1s", "0"),
    "lock_timeout": ("1s", "0"),
    "idle_in_transaction_session_timeout": ("1s", "0"),
    "idle_session_timeout": ("1s", "0"),
    "transaction_timeout": ("1s", "0"),
    "datestyle": ("German, DMY", "ISO, YMD"),
    "timezone": ("FOO+3:21", "UTC"),
    "bytea_output": ("escape", "hex"),
    "search_path": ("elsewhere, pg_catalog, public", "public"),
    "default_transaction_isolation": ("serializable", "read committed"),
    "default_transaction_read_only": ("on", "off"),
    "synchronous_commit": ("off", "on"),
}
#: What a reader has otherwise.
READER = {"statement_timeout": "3s", "default_transaction_read_only": "on"}


def make_hostile(url: str) -> list[str]:
    """The database's settings; the names of those that this server knows."""
    names = []
    with psycopg.connect(url, autocommit=True) as connection:
        database_name = connection.info.dbname
        connection.execute("CREATE SCHEMA elsewhere")
        # A stranger's table of that name, in front of ours.
        connection.execute("CREATE TABLE elsewhere.positions (partition integer)")
        for name, (value, _) in HOSTILE.items():
            known = "SELECT 1 FROM pg_settings WHERE lower(name) = %s"
            if connection.execute(known, [name]).fetchone():
                listed = value if name == "search_path" else f"'{value}'"
                connection.execute(f"ALTER DATABASE {database_name} SET {name} = {listed}")
                names.append(name)
    assert len(names) >= len(HOSTILE) - 2, (
        "all but transaction_timeout, of 17, and idle_session_timeout, of 14"
    )
    return names


async def test_each_connection_has_settings_of_its_own(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = make_hostile(postgres_url)
    monkeypatch.setenv("PGDATESTYLE", "SQL, DMY")
    monkeypatch.setenv("PGTZ", "Asia/Kathmandu")
    with database.connect(postgres_url) as connection:
        for name in names:
            assert connection.execute(f"SHOW {name}").fetchone() == (HOSTILE[name][1],), name
        connection.rollback()
        assert connection.execute("SHOW search_path").fetchone() == ("public",)
    reader = LedgerReader(postgres_url)
    await reader.open()
    async with reader._pool.connection() as pooled:
        for name in names:
            row = await (await pooled.execute(f"SHOW {name}")).fetchone()
            assert row is not None
            assert list(row.values()) == [READER.get(name, HOSTILE[name][1])], name
    await reader.close()


async def test_a_ledger_in_a_hostile_database_is_written_read_and_audited(
    postgres_url: str,
) -> None:
    make_hostile(postgres_url)
    write(postgres_url, receipt(1), receipt(2))
    assert rows(postgres_url, "SELECT count(*) FROM public.movements") == [(2,)]
    async with in_process(
        Settings(redis_url="redis://127.0.0.1:1/0", postgres_url=postgres_url)
    ) as client:
        movements = (await client.get("/v1/movements")).json()["movements"]
    assert [each["occurred_at"] for each in movements] == [
        "2027-01-15T08:00:01.000Z",
        "2027-01-15T08:00:02.000Z",
    ]
    with database.connect(postgres_url) as connection:
        assert audit(connection).findings == []


async def test_the_schema_is_public_or_what_the_url_names_and_no_second_ledger_is_made_unasked(
    postgres_url: str,
) -> None:
    """An older program looked where the role's search_path led."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA shop")
    named = postgres_url + "?options=-csearch_path%3Dshop"
    write(named, receipt(1))
    assert rows(postgres_url, "SELECT count(*) FROM shop.events") == [(1,)]
    async with in_process(
        Settings(redis_url="redis://127.0.0.1:1/0", postgres_url=named)
    ) as client:
        assert len((await client.get("/v1/movements")).json()["movements"]) == 1
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {connection.info.dbname} SET search_path = shop")
    with pytest.raises(LedgerError, match="schema shop has one"):
        write(postgres_url, receipt(1))
    assert rows(postgres_url, "SELECT to_regclass('public.events')") == [(None,)]
    write(postgres_url + "?options=-csearch_path%3Dpublic", receipt(1))
    write(postgres_url, receipt(2))
    assert rows(postgres_url, "SELECT count(*) FROM public.events") == [(2,)]
