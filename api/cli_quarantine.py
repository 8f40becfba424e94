"""``holdfast quarantine``: what the persister could not read; look again, or discard it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table

from api.cli_kit import (
    check_text,
    data_dir_option,
    fail,
    json_option,
    json_text,
    settings_of_ledger,
)
from api.schema import rfc3339
from api.terminal import cell, tell
from engine.model import LONG_TEXT_PATTERN, TEXT_PATTERN
from persister import database
from persister.outbox import plain
from persister.quarantine import Item, discard, item, items

_WIDE = 200
_BYTES_SHOWN = 32


@click.group("quarantine")
def quarantine_group() -> None:
    """Events that can't be read: the partition stands at them until they are handled."""


@quarantine_group.command("list")
@click.option("--all", "with_ended", is_flag=True, help="Those discarded or passed, too.")
@data_dir_option
@json_option
def list_command(with_ended: bool, data_dir: Path | None, as_json: bool) -> None:
    """What could not be read. Exit code 0 nothing is open, 1 something is, 2 could not look."""
    settings = settings_of_ledger(data_dir)
    with database.connect(settings.postgres_url) as connection:
        found = items(connection)
    count = sum(each.state == "open" for each in found)
    shown = [each for each in found if with_ended or each.state == "open"]
    if as_json:
        click.echo(json_text({"open": count, "quarantine": [_content(each) for each in shown]}))
    else:
        print_items(shown, Console())
        tell(f"{count} open")
    sys.exit(1 if count else 0)


@quarantine_group.command("retry")
@click.argument("quarantine_id", metavar="ID", type=click.IntRange(1, 2**63 - 1))
@data_dir_option
def retry_command(quarantine_id: int, data_dir: Path | None) -> None:
    """Can this program read it? After an upgrade, say. Exit code 0 yes, 1 no, 2 could not look or
    there is nothing to handle."""
    settings = settings_of_ledger(data_dir)
    with database.connect(settings.postgres_url) as connection:
        found = item(connection, quarantine_id)
    if found.state != "open":
        fail(f"quarantine {quarantine_id} is {found.state}; there is nothing to handle")
    try:
        events = found.read()
    except ValueError as error:
        tell(
            f"quarantine {quarantine_id} can't be read by this program either: {error}",
            "The persister looks again twice a second. Start a version that can read it, or discard it:"
            f" holdfast quarantine discard {quarantine_id} --by WHO --reason WHY",
        )
        sys.exit(1)
    told = ", ".join([f"{event.epoch}-{event.seq} {plain(event.type)}" for event in events[:5]])
    more = f" and {len(events) - 5} more" if len(events) > 5 else ""
    tell(
        f"quarantine {quarantine_id} can be read by this program: {told}{more}",
        "Nothing is to be done but to run the persister of this version: it looks again twice a second"
        " and goes on by itself.",
    )


@quarantine_group.command("discard")
@click.argument("quarantine_id", metavar="ID", type=click.IntRange(1, 2**63 - 1))
@click.option("--by", required=True, metavar="WHO", help="Your name; 1 to 128 characters.")
@click.option("--reason", required=True, metavar="WHY", help="1 to 1,000 characters.")
@data_dir_option
def discard_command(quarantine_id: int, by: str, reason: str, data_dir: Path | None) -> None:
    """Give up what the persister stands at; the ledger keeps who and why for good. Exit code 0 done,
    2 could not be done."""
    check_text("--by", by, TEXT_PATTERN, 128)
    check_text("--reason", reason, LONG_TEXT_PATTERN, 1_000)
    settings = settings_of_ledger(data_dir)
    with database.connect(settings.postgres_url) as connection:
        found = discard(connection, quarantine_id, by=by, reason=reason)
    tell(
        f"discarded quarantine {quarantine_id} ({found.where}), which stands for {found.stands_for}.",
        "The persister passes it over within a second or so and writes an event of type discard, with"
        " this name and reason, for each event that is missing there.",
        "If it told of a change, Redis has that change and the ledger doesn't. Once the ledger goes on,"
        " run 'holdfast reconcile': it names what differs.",
    )


def _first_bytes(raw: bytes) -> str:
    """As a terminal can show them."""
    return repr(raw[:_BYTES_SHOWN])[2:-1] + ("…" if len(raw) > _BYTES_SHOWN else "")


def _content(found: Item) -> dict[str, Any]:
    """An item as JSON has it; ``raw`` is base64."""
    content: dict[str, Any] = msgspec.to_builtins(found)
    for name in ("first_seen_at", "discarded_at"):
        moment = getattr(found, name)
        content[name] = None if moment is None else rfc3339(int(moment.timestamp() * 1000))
    return content


def print_items(found: list[Item], console: Console) -> None:
    if not found:
        return
    if not console.is_terminal:
        console.width = _WIDE
    names = ("id", "partition", "where", "stands for", "why", "since", "bytes", "begins with")
    table = Table(*names, "state", box=None, pad_edge=False)
    for column in (2, 4):
        table.columns[column].overflow = "fold"
    for each in found:
        state = each.state
        if each.discarded_by is not None:
            state = f"discarded by {each.discarded_by}: {each.reason}"
        elif each.stopped_here:
            state = "open, stopped here"
        values = (
            each.quarantine_id,
            each.partition,
            each.where,
            each.stands_for,
            each.why,
            rfc3339(int(each.first_seen_at.timestamp() * 1000)),
            f"{len(each.raw):,}",
            _first_bytes(each.raw),
            state,
        )
        table.add_row(*[cell(value) for value in values])
    console.print(table, highlight=False)
