"""``holdfast ledger adopt``: this Redis belongs to this ledger from now on."""

from __future__ import annotations

import re
from pathlib import Path

import click

from api.cli_kit import data_dir_option, fail, settings_of_stack
from engine.model import LONG_TEXT_PATTERN, TEXT_PATTERN
from persister.adopt import adopt


@click.group("ledger")
def ledger_group() -> None:
    """Which ledger the events go to."""


@ledger_group.command("adopt")
@click.option("--by", required=True, metavar="NAME", help="Who says so; it is kept.")
@click.option("--reason", required=True, metavar="TEXT", help="Why; it is kept.")
@click.option("--dry-run", is_flag=True, help="Only tell what would be done.")
@data_dir_option
def adopt_command(by: str, reason: str, dry_run: bool, data_dir: Path | None) -> None:
    """Have Redis belong to this ledger, where it names another one: after the ledger was moved, or
    came back from a dump. Stop the persister first. Exit code 0 done, 2 could not be done."""
    for name, value, pattern in (
        ("--by", by, TEXT_PATTERN),
        ("--reason", reason, LONG_TEXT_PATTERN),
    ):
        if not re.match(pattern, value):
            longest = 128 if pattern is TEXT_PATTERN else 1000
            fail(
                f"{name} {value[:80]!r}: it must have 1 to {longest} characters, none of them a control"
                " character"
            )
    settings, _ = settings_of_stack(data_dir)
    adopted = adopt(settings, by=by, reason=reason, dry_run=dry_run)
    former = adopted.former or "no ledger"
    if adopted.former == adopted.ledger:
        click.echo(f"this Redis belongs to ledger {adopted.ledger} already; nothing was changed")
    elif not adopted.changed:
        click.echo(f"this Redis names {former}; it would belong to ledger {adopted.ledger}")
    else:
        click.echo(
            f"this Redis named {former}, and belongs to ledger {adopted.ledger} now; start the persister,"
            " and prove it by 'holdfast reconcile'"
        )
