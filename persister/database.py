"""PostgreSQL: connections, migrations, values for COPY."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import psycopg

from engine.addresses import postgres_fault, without_password
from engine.errors import LedgerError
from persister import grants
from persister.queries import QUERIES as QUERIES
from persister.queries import migrations as migrations

_MIGRATION_LOCK = 1215193669

#: That a server's host has vanished is noticed after 15 s; TCP alone would try for 15 minutes. (The other
#: way round the query ``lock_partition`` tells the server, which else keeps a lease for two hours.)
NOTICE_A_DEAD_HOST: dict[str, Any] = {
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}

Connection = psycopg.Connection[tuple[Any, ...]]


def connect(url: str) -> Connection:
    """A connection with explicit transactions, whose settings are its own (query ``session``).
    LedgerError where the server can't be reached."""
    if fault := postgres_fault(url):
        raise LedgerError(f"HOLDFAST_POSTGRES_URL is {without_password(url)}: {fault}")
    try:
        connection = psycopg.connect(
            url,
            autocommit=True,  # or a rollback would take the settings back
            connect_timeout=3,
            application_name="holdfast",
            client_encoding="UTF8",
            **NOTICE_A_DEAD_HOST,
        )
        try:
            connection.execute(QUERIES["session"])
            connection.autocommit = False
        except psycopg.Error:
            connection.close()
            raise
        return connection
    except psycopg.OperationalError as error:
        raise LedgerError(f"PostgreSQL can't be reached: {_one_line(error)}") from None
    except psycopg.ProgrammingError:  # it may repeat what it can't read
        shown = without_password(url)
        raise LedgerError(f"HOLDFAST_POSTGRES_URL is {shown}: it can't be read") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def migrate(connection: Connection) -> list[str]:
    """Bring the schema up to date, in one transaction; the names of what was applied.

    Safe to call from many processes at once. Where nothing is to be applied, reading is all the right
    it takes. A ledger that ``holdfast db init`` has given to its owner is changed as that owner, and
    what is new gets its grants. LedgerError where the schema is newer than this program, where this
    login may not apply what is missing, or where the ledger is in another schema of the database.
    """
    with connection.transaction():
        pending = _pending(connection)
        if not pending:
            return []
        if len(pending) == len(migrations()):
            _refuse_a_second_ledger(connection)
        try:
            with connection.transaction():
                return _apply(connection)
        except psycopg.errors.InsufficientPrivilege as error:
            names = ", ".join(path.stem for _, path in pending)
            raise LedgerError(
                f"the ledger lacks {names}, and this login may not apply that"
                f" ({_one_line(error)}); run 'holdfast db init' with an owner's HOLDFAST_POSTGRES_URL"
            ) from None


def _apply(connection: Connection) -> list[str]:
    of_owner = grants.owners(connection).get("schema_migrations") == grants.OWNER
    if of_owner:
        connection.execute(QUERIES["become"], {"role": grants.OWNER})
    connection.execute("SELECT pg_advisory_xact_lock(%s)", [_MIGRATION_LOCK])
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise LedgerError(
            f"the database's encoding is {encoding}; it must be UTF8, or not every order could be"
            " written: create the database anew with ENCODING 'UTF8'"
        )
    connection.execute(
        "CREATE TABLE IF NOT EXISTS schema_migrations (version integer PRIMARY KEY,"
        " name text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
    )
    pending = _pending(connection)  # another process may have been first
    for version, path in pending:
        connection.execute(path.read_text(encoding="utf-8"))
        connection.execute(
            "INSERT INTO schema_migrations (version, name) VALUES (%s, %s)", [version, path.stem]
        )
    if of_owner:
        grants.grant(connection)
    return [path.stem for _, path in pending]


def _pending(connection: Connection) -> list[tuple[int, Path]]:
    """The migrations that are still to be applied. LedgerError where the schema is newer."""
    there = connection.execute(QUERIES["has_migrations"]).fetchone()
    known = set()
    if there and there[0]:
        known = {row[0] for row in connection.execute(QUERIES["known_migrations"])}
    available = migrations()
    newer = known - {version for version, _ in available}
    if newer:
        raise LedgerError(
            f"the ledger's schema has migration {max(newer)}, which this program does not know;"
            " run the newer program that made it"
        )
    return [(version, path) for version, path in available if version not in known]


def _refuse_a_second_ledger(connection: Connection) -> None:
    """Before one is made where nobody asked for it: an older program looked where the role's
    search_path led, and an empty ledger would stand beside the one that Redis belongs to."""
    found = [row[0] for row in connection.execute(QUERIES["ledgers_elsewhere"])]
    if found:
        raise LedgerError(
            f"schema public of this database has no ledger, but schema {found[0]} has one. To use that,"
            f" append '?options=-csearch_path%3D{found[0]}' to HOLDFAST_POSTGRES_URL; for a new ledger in"
            " public append '?options=-csearch_path%3Dpublic'"
        )


_NULL = "\\N"


def copy_text(value: str | None) -> str:
    """A value in a COPY row. Control characters never get past the door, so only `\\` is escaped."""
    return _NULL if value is None else value.replace("\\", "\\\\")


@lru_cache(maxsize=4096)  # the events of one script call share their moment
def copy_time(ms: int) -> str:
    """A moment in ms since 1970 in a COPY row."""
    moment = datetime.fromtimestamp(ms // 1000, UTC)
    return f"{moment:%Y-%m-%d %H:%M:%S}.{ms % 1000:03}+00"
