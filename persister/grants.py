"""Who may do what in the ledger: the roles, and one table of rights that every table stands in.

``holdfast_owner`` owns all of it and applies the migrations, ``holdfast_writer`` is the persister's,
``holdfast_reader`` reads. Nobody but the owner can change what events and movements keep, and the
owner only after switching off their triggers.
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.sql import SQL, Composed, Identifier

from persister.queries import QUERIES

OWNER, WRITER, READER = "holdfast_owner", "holdfast_writer", "holdfast_reader"
ROLES = (OWNER, WRITER, READER)

#: The writer's rights on each table beyond SELECT, which the reader has too. A table that isn't there
#: (yet) is passed over; one that isn't here fails tests/integration/test_roles.py.
WRITES: dict[str, tuple[str, ...]] = {
    "schema_migrations": (),
    "events": ("INSERT",),
    "movements": ("INSERT",),
    "positions": ("INSERT", "UPDATE"),
    "openings": ("INSERT", "UPDATE"),
    "ledger_identity": (),
    "beats": ("INSERT", "UPDATE"),
    "adoptions": ("INSERT",),
    "holes": ("INSERT",),
    "balances": ("INSERT", "UPDATE"),
    "live_reservations": ("INSERT", "UPDATE", "DELETE"),
    "reconciliations": ("INSERT",),
    "quarantine": ("INSERT",),
    "quarantine_discards": ("INSERT",),
}

#: Tables that nobody may change, not even their owner: each has a trigger that refuses it.
APPEND_ONLY = ("events", "movements", "quarantine", "quarantine_discards", "adoptions", "holes")


def owners(connection: psycopg.Connection[Any]) -> dict[str, str]:
    """Who owns each of Holdfast's tables that are there, in the schema that new tables go to."""
    return dict(connection.execute(QUERIES["owners"], {"tables": list(WRITES)}).fetchall())


def grant(connection: psycopg.Connection[Any]) -> None:
    """Give writer and reader just their rights on every table that is there, in the transaction that
    runs. What they or PUBLIC had beyond those is taken back. By the owner of the tables only.
    """
    writer, reader = Identifier(WRITER), Identifier(READER)

    def run(text: Composed) -> None:
        connection.execute(text)

    for name in owners(connection):
        table = Identifier(name)
        run(SQL("REVOKE ALL ON TABLE {} FROM PUBLIC, {}, {}").format(table, writer, reader))
        run(SQL("GRANT SELECT ON TABLE {} TO {}, {}").format(table, writer, reader))
        if WRITES[name]:
            rights = SQL(", ").join([SQL(right) for right in WRITES[name]])
            run(SQL("GRANT {} ON TABLE {} TO {}").format(rights, table, writer))
        for (sequence,) in connection.execute(QUERIES["sequences_of"], {"table": name}).fetchall():
            run(SQL("GRANT USAGE ON SEQUENCE {} TO {}").format(Identifier(sequence), writer))
    # A trigger runs its function without any right on it.
    for function in trigger_functions(connection):
        run(SQL("REVOKE ALL ON FUNCTION {}() FROM PUBLIC").format(Identifier(function)))


def trigger_functions(connection: psycopg.Connection[Any]) -> dict[str, str]:
    """The functions behind the triggers of Holdfast's tables, and who owns them."""
    return dict(
        connection.execute(QUERIES["trigger_functions"], {"tables": list(WRITES)}).fetchall()
    )
