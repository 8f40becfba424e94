"""PostgreSQL: connections, named queries, migrations. The only place that reads ``sql/``."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import psycopg

from engine.errors import LedgerError

SQL = Path(__file__).parent / "sql"
_MIGRATION_LOCK = 1215193669

Connection = psycopg.Connection[tuple[Any, ...]]


def _load_queries() -> dict[str, str]:
    text = (SQL / "queries.sql").read_text(encoding="utf-8")
    blocks = re.split(r"^-- name: (\w+)\n", text, flags=re.MULTILINE)[1:]
    return {name: block.strip() for name, block in zip(blocks[::2], blocks[1::2], strict=True)}


#: The queries of ``sql/queries.sql`` by name; written by us, so no text of a user is ever in one.
QUERIES = _load_queries()


def connect(url: str) -> Connection:
    """A connection with explicit transactions. LedgerError where the server can't be reached."""
    try:
        return psycopg.connect(
            url, connect_timeout=3, application_name="holdfast", client_encoding="UTF8"
        )
    except psycopg.OperationalError as error:
        raise LedgerError(f"PostgreSQL can't be reached: {_one_line(error)}") from None
    except psycopg.ProgrammingError as error:
        raise LedgerError(f"HOLDFAST_POSTGRES_URL can't be read: {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def migrations() -> list[tuple[int, Path]]:
    """The numbered migrations, in order."""
    return sorted((int(path.name[:4]), path) for path in (SQL / "migrations").glob("*.sql"))


def migrate(connection: Connection) -> list[str]:
    """Bring the schema up to date, in one transaction; the names of what was applied.

    Safe to call from many processes at once. LedgerError where the schema is newer than this program.
    """
    with connection.transaction():
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
        known = {row[0] for row in connection.execute("SELECT version FROM schema_migrations")}
        available = migrations()
        newer = known - {version for version, _ in available}
        if newer:
            raise LedgerError(
                f"the ledger's schema has migration {max(newer)}, which this program does not know;"
                " run the newer program that made it"
            )
        applied = []
        for version, path in available:
            if version not in known:
                connection.execute(path.read_text(encoding="utf-8"))
                connection.execute(
                    "INSERT INTO schema_migrations (version, name) VALUES (%s, %s)",
                    [version, path.stem],
                )
                applied.append(path.stem)
    return applied


_NULL = "\\N"


def copy_text(value: str | None) -> str:
    """A value in a COPY row. Control characters never get past the door, so only `\\` is escaped."""
    return _NULL if value is None else value.replace("\\", "\\\\")


@lru_cache(maxsize=4096)  # the events of one script call share their moment
def copy_time(ms: int) -> str:
    """A moment in ms since 1970 in a COPY row."""
    moment = datetime.fromtimestamp(ms // 1000, UTC)
    return f"{moment:%Y-%m-%d %H:%M:%S}.{ms % 1000:03}+00"
