"""Roles and logins of the PostgreSQL of the tests: they belong to the whole server, so one test may find
them made by another."""

from __future__ import annotations

from engine.events import Event, EventLine
from persister import database, roles
from persister.ledger import Ledger

LOGINS = [
    roles.Login(group="owner", name="test_owner"),
    roles.Login(group="writer", name="test_writer"),
    roles.Login(group="reader", name="test_reader"),
]


def url_as(url: str, name: str) -> str:
    """The same database for another login; the test servers trust whoever comes over loopback."""
    return url.replace("//postgres@", f"//{name}@")


def init(url: str, *logins: roles.Login) -> list[str]:
    with database.connect(url) as connection:
        return roles.init(connection, logins)


def received(seq: int) -> Event:
    line = EventLine("tea", "MAIN", 5, 5, 0, 0)
    return Event(
        version=1, partition=0, epoch=1, seq=seq, type="receive", at_ms=1_800_000_000_000 + seq,
        movement_id=f"m{seq}", lines=(line,),
    )  # fmt: skip


def make_ledger(url: str) -> str:
    """Roles, logins and a ledger of two events in the database of a superuser's URL; that URL."""
    init(url, *LOGINS)
    with database.connect(url_as(url, "test_writer")) as connection:
        Ledger(connection, 0).write([received(1), received(2)])
    return url
