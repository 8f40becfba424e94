"""``holdfast ledger adopt``: this Redis belongs to this ledger from now on."""

from __future__ import annotations

import re
from pathlib import Path

import click
from rich.console import Console

from api.cli_kit import data_dir_option, fail, settings_of_stack
from api.terminal import tell
from engine.model import LONG_TEXT_PATTERN, TEXT_PATTERN
from persister import holes
from persister.adopt import Adopted, adopt


@click.group("ledger")
def ledger_group() -> None:
    """Which ledger the events go to."""


@ledger_group.command("adopt")
@click.option("--by", required=True, metavar="NAME", help="Who says so; it is kept.")
@click.option("--reason", required=True, metavar="TEXT", help="Why; it is kept.")
@click.option("--dry-run", is_flag=True, help="Only tell what would be done.")
@click.option(
    "--without-kafka",
    is_flag=True,
    help="Kafka was used and is gone for good, with all that it had.",
)
@data_dir_option
def adopt_command(
    by: str, reason: str, dry_run: bool, without_kafka: bool, data_dir: Path | None
) -> None:
    """Have Redis belong to this ledger, where it names another one, and take over from Redis what
    the ledger has lost for good: after it was moved, came back from an older dump, or lost events on
    the way. Reads all that Kafka and the outbox still have first. Stop the persister before; run it
    again where it was broken off. Exit code 0 done, 2 could not be done."""
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
    console = Console(stderr=True)
    with console.status("reading what is left of the events") as word:
        adopted = adopt(
            settings,
            by=by,
            reason=reason,
            dry_run=dry_run,
            without_kafka=without_kafka,
            on_progress=lambda what, count: word.update(f"{count:,} {what}"),
        )
    _tell_owner(adopted, dry_run=dry_run)
    _tell_missing(adopted, dry_run=dry_run)
    if not dry_run and (adopted.changed or adopted.epoch):
        tell("start the persister, and prove it by 'holdfast reconcile' and 'holdfast audit'")


def _tell_owner(adopted: Adopted, *, dry_run: bool) -> None:
    former = adopted.former or "no ledger"
    if adopted.former == adopted.ledger:
        does_more = adopted.missing or adopted.goes_on or adopted.from_outbox
        nothing = "" if does_more else "; nothing was changed"
        tell(f"this Redis belongs to ledger {adopted.ledger} already{nothing}")
    elif dry_run:
        tell(f"this Redis names {former}; it would belong to ledger {adopted.ledger}")
    else:
        tell(f"this Redis named {former}, and belongs to ledger {adopted.ledger} now")


def _tell_missing(adopted: Adopted, *, dry_run: bool) -> None:
    if adopted.goes_on:
        tell("an adoption was begun before" + ("" if dry_run else ", and was finished now"))
    if dry_run and adopted.missing:
        for each in adopted.missing:
            tell(f"events {each[0]:,} to {each[-1]:,} can't be read anywhere any more")
        tell("they would be noted as missing, and what they had changed taken over from Redis")
    elif adopted.from_outbox:
        word = "would be" if dry_run else "was"
        tell(
            f"nothing is missing: what Kafka lacks the outbox still has, and {word} read from there"
        )
    elif not adopted.missing and not adopted.goes_on:
        tell("nothing is missing: all that the ledger has not yet can be read by a persister")
    for hole in adopted.holes:
        tell(holes.tell(hole))
    if adopted.epoch:
        tell(
            f"took over {adopted.reservations:,} reservations and {adopted.stock_records:,} stock records;"
            f" opened into epoch {adopted.epoch}"
        )
    if adopted.unreadable:
        tell(
            f"{len(adopted.unreadable):,} records of Redis can't be read and were left, the first:"
            f" {adopted.unreadable[0]}; see 'holdfast reconcile --repair --by NAME'"
        )
