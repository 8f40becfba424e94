"""``holdfast db init``: the roles of the ledger, its tables in the owner's hands, and logins for both.

Everything happens in one transaction, as often as one likes: what is right already is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import psycopg
from psycopg.sql import SQL, Identifier, Literal

from engine.errors import LedgerError
from persister import grants
from persister.database import Connection, migrate
from persister.grants import OWNER, READER, ROLES, WRITER
from persister.queries import QUERIES

#: What a login can be, as `--login` names it.
GROUPS = {"owner": OWNER, "writer": WRITER, "reader": READER}
LOCK_TIMEOUT = "10s"


class Login(msgspec.Struct, frozen=True, kw_only=True):
    """A login role to be made or kept: ``group`` is a key of GROUPS."""

    group: str
    name: str


class _Rights(NamedTuple):
    """What the login that runs db init is and may."""

    login: str
    superuser: bool
    database: str
    schema: str | None
    owns_database: bool
    owns_schema: bool | None


def init(connection: Connection, logins: Sequence[Login] = (), password: str = "") -> list[str]:
    """Set up roles, schema, grants and logins; what was done, a line each.

    1. Make the group roles that are missing.
    2. Let them into the database and the schema, and take from PUBLIC the right to make tables there.
    3. Hand tables of an older ledger over to the owner, with their sequences and trigger functions.
    4. Apply the migrations as the owner, and bring the grants of every table in order.
    5. Make or keep the logins; where ``password`` is given it becomes theirs (kept as SCRAM only).

    LedgerError, and nothing changed, where the connection's login lacks a right for what is missing
    (a superuser or the database's owner with CREATEROLE has them all), or where another transaction
    holds a table for more than 10 s.
    """
    try:
        with connection.transaction():
            return _Init(connection).run(logins, password)
    except psycopg.errors.InsufficientPrivilege as error:
        raise LedgerError(
            f"db init lacks a right ({' '.join(str(error).split())}); run it with the"
            " HOLDFAST_POSTGRES_URL of a superuser, or of the database's owner with CREATEROLE"
        ) from None
    except psycopg.errors.LockNotAvailable:
        raise LedgerError(
            f"a table of the ledger was in use for more than {LOCK_TIMEOUT}; nothing was changed:"
            " wait until a running audit has ended, and try again"
        ) from None


class _Init:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._done: list[str] = []
        self._rights = _Rights(*self._row("my_rights"))

    def run(self, logins: Sequence[Login], password: str) -> list[str]:
        self._connection.execute(QUERIES["lock_timeout"], {"timeout": LOCK_TIMEOUT})
        if self._rights.schema is None:
            raise LedgerError("the search_path names no schema that is there; set it in the URL")
        self._make_roles()
        self._open_schema(Identifier(self._rights.schema))
        self._hand_over()
        self._become(OWNER)
        applied = migrate(self._connection)
        self._done += [f"applied migration {name}" for name in applied]
        self._become(OWNER)
        grants.grant(self._connection)
        self._done.append(f"set the grants of {len(grants.owners(self._connection))} tables")
        self._become("none")
        for login in logins:
            self._login(login, password)
        return self._done

    def _row(self, query: str, **values: object) -> tuple[Any, ...]:
        row = self._connection.execute(QUERIES[query], values).fetchone()
        return row or ()

    def _become(self, role: str) -> None:
        self._connection.execute(QUERIES["become"], {"role": role})

    def _make_roles(self) -> None:
        rows = self._connection.execute(QUERIES["roles_there"], {"names": list(ROLES)})
        there = {row[0] for row in rows}
        for role in ROLES:
            if role not in there:
                self._connection.execute(SQL("CREATE ROLE {} NOLOGIN").format(Identifier(role)))
                self._done.append(f"made role {role}")
        # Before 16 membership was the right to become a role; since then it can be without that.
        right = "SET" if self._connection.info.server_version >= 160_000 else "MEMBER"
        if not self._row("may_become_owner", right=right)[0]:
            owner, me = Identifier(OWNER), Identifier(self._rights.login)
            self._connection.execute(SQL("GRANT {} TO {}").format(owner, me))
            self._done.append(f"made {self._rights.login} a member of {OWNER}")

    def _open_schema(self, schema: Identifier) -> None:
        """Where this login may not, it must have been done before."""
        owner, writer, reader = map(Identifier, ROLES)
        if self._rights.owns_schema:
            for text in (
                "GRANT USAGE, CREATE ON SCHEMA {schema} TO {owner}",
                "GRANT USAGE ON SCHEMA {schema} TO {writer}, {reader}",
                "REVOKE CREATE ON SCHEMA {schema} FROM PUBLIC, {writer}, {reader}",
            ):
                self._connection.execute(
                    SQL(text).format(schema=schema, owner=owner, writer=writer, reader=reader)
                )
        elif not self._row("roles_reach_schema")[0]:
            raise LedgerError(
                f"{self._rights.login} may not let the roles into schema {self._rights.schema}: run"
                " db init with the URL of a superuser, or of the database's owner with CREATEROLE"
            )
        if self._rights.owns_database:
            database = Identifier(self._rights.database)
            for text in (
                "GRANT CONNECT ON DATABASE {database} TO {owner}, {writer}, {reader}",
                "REVOKE TEMPORARY ON DATABASE {database} FROM PUBLIC",
            ):
                self._connection.execute(
                    SQL(text).format(database=database, owner=owner, writer=writer, reader=reader)
                )

    def _hand_over(self) -> None:
        """Tables (their sequences go along) and trigger functions that somebody else still owns."""
        tables = grants.owners(self._connection)
        if "schema_migrations" not in tables:
            return  # no ledger yet: what has such a name is not ours
        owner = Identifier(OWNER)
        others = [table for table, by in tables.items() if by != OWNER]
        for table in others:
            self._connection.execute(
                SQL("ALTER TABLE {} OWNER TO {}").format(Identifier(table), owner)
            )
        if others:
            self._done.append(f"handed over to {OWNER}: {', '.join(others)}")
        for function, by in grants.trigger_functions(self._connection).items():
            if by != OWNER:
                self._connection.execute(
                    SQL("ALTER FUNCTION {}() OWNER TO {}").format(Identifier(function), owner)
                )

    def _login(self, login: Login, password: str) -> None:
        group = GROUPS[login.group]
        if login.name in ROLES:
            raise LedgerError(
                f"{login.name} is the group itself; give the login a name of its own,"
                f" such as {login.name}_1"
            )
        name = Identifier(login.name)
        found = self._row("login", name=login.name)
        if not found:
            self._connection.execute(SQL("CREATE ROLE {} LOGIN INHERIT").format(name))
            self._done.append(f"made login {login.name}")
        elif found[0] is False or found[1]:
            why = "is a superuser" if found[1] else "may not log in"
            raise LedgerError(f"role {login.name} is there already and {why}; choose another name")
        if not self._row("is_member", name=login.name, group=group)[0]:
            self._connection.execute(SQL("GRANT {} TO {}").format(Identifier(group), name))
        if not self._row("is_member", name=login.name, group=group)[0]:
            raise LedgerError(
                f"login {login.name} does not inherit the rights of {group}: it is NOINHERIT;"
                " choose another name"
            )
        self._done.append(f"{login.name} is a member of {group}")
        if password:
            kept = self._connection.pgconn.encrypt_password(
                password.encode(), login.name.encode(), b"scram-sha-256"
            ).decode()
            self._connection.execute(SQL("ALTER ROLE {} PASSWORD {}").format(name, Literal(kept)))
            self._done.append(f"set the password of {login.name}")
