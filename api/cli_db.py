"""Commands on the database itself: ``holdfast db init``."""

from __future__ import annotations

import os
from pathlib import Path

import click

from api.cli_kit import data_dir_option, fail, settings_of_ledger
from api.terminal import tell
from persister import database, roles

PASSWORD = "HOLDFAST_DB_PASSWORD"


@click.group("db")
def db_group() -> None:
    """Set up the PostgreSQL database of the ledger."""


@db_group.command("init")
@data_dir_option
@click.option(
    "--login",
    "logins",
    multiple=True,
    metavar="GROUP=NAME",
    help="Make (or keep) a login: owner=NAME, writer=NAME or reader=NAME. Its password is that in"
    f" {PASSWORD}, if there is one.",
)
def init_command(data_dir: Path | None, logins: tuple[str, ...]) -> None:
    """Make the roles holdfast_owner, _writer and _reader, apply the migrations as the owner, and set
    every grant. HOLDFAST_POSTGRES_URL names a superuser, or the database's owner with CREATEROLE.
    Exit code 0 done, 2 could not be done."""
    wanted = [_login(text) for text in logins]
    password = os.environ.get(PASSWORD, "")
    if password and len(wanted) > 1:
        fail(f"{PASSWORD} is one password; make one --login at a time with it")
    if password and not wanted:
        fail(f"{PASSWORD} is set, but no --login is named that it could belong to")
    with database.connect(settings_of_ledger(data_dir).postgres_url) as connection:
        for line in roles.init(connection, wanted, password):
            tell(line)


def _login(text: str) -> roles.Login:
    group, _, name = text.partition("=")
    if group not in roles.GROUPS or not name:
        fail(f"--login {text!r}: it must be owner=NAME, writer=NAME or reader=NAME")
    return roles.Login(group=group, name=name)
