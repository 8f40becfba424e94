"""``holdfast replay``: play a file of orders, then reconcile."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path

import click
import uvloop
from rich.console import Console

from api import orders, replay
from api.cli_kit import data_dir_option, fail, json_option, json_text, settings_of_stack
from api.cli_reconcile import print_report, report_content, run_reconcile
from api.order_ids import ID, NAMESPACE
from api.replay_known import events_behind, what_is_new
from api.replay_summary import Known, print_summary, progress
from api.terminal import cell
from engine.settings import Settings
from persister import database
from persister.persister import connect_redis


@click.command("replay")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--url", help="The running service; else the stack on the data directory.")
@click.option(
    "--stock-ratio", default="1.0", show_default=True, help="Opening stock per unit sold."
)
@click.option("--location", default="MAIN", show_default=True)
@click.option(
    "--namespace", default="", help="Of the invoice numbers, where two shops have the same ones."
)
@click.option(
    "--charge-codes",
    default="",
    metavar="CODES",
    help="Stock codes that are no goods, with commas between; with + in front, besides the usual ones.",
)
@click.option("--partial", is_flag=True, help="Play invoices with a broken line without that line.")
@click.option("--concurrency", default=256, show_default=True, type=click.IntRange(1, 2000))
@data_dir_option
@json_option
@click.pass_context
def replay_command(
    context: click.Context,
    file: Path,
    url: str | None,
    stock_ratio: str,
    location: str,
    namespace: str,
    charge_codes: str,
    partial: bool,
    concurrency: int,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Play a file of real orders through the HTTP API, then prove that the ledger agrees.

    What was played before, from this or any other file, is known by its invoice number and not played
    again. Exit code 0: all of the file is played; 1: lines that can't be used, nothing played, or
    differences; 2: it could not be done.
    """
    if not ID.fullmatch(location):
        fail(f"--location {location!r}: letters, digits and ._~- only, 64 at most")
    if namespace and not NAMESPACE.fullmatch(namespace):
        fail(f"--namespace {namespace!r}: letters, digits and ._- only, 16 at most")
    if url is not None:
        replay.check_url(url)
    given = context.get_parameter_source("charge_codes") != click.core.ParameterSource.DEFAULT
    codes = orders.parse_charge_codes(charge_codes) if given else orders.CHARGE_CODES
    ratio, console = _ratio(stock_ratio), Console(stderr=True)
    with console.status(cell(f"reading {file.name}")):
        plan = orders.read_plan(
            file,
            ratio=ratio,
            location=location,
            namespace=namespace,
            charge_codes=codes,
            partial=partial,
        )
    settings, servers = settings_of_stack(data_dir)
    url = url or servers.http_url
    if url is None:
        fail("no service runs on this data directory; start one with 'holdfast up' or give --url")
    _tell_format(plan, console)
    new, known = _what_is_new(plan, settings, console)
    with progress(new, console) as on_progress:
        played = uvloop.run(
            replay.run(new, url=url, concurrency=concurrency, on_progress=on_progress)
        )
    summary = played.with_known(known)
    if not as_json:
        print_summary(summary, Console())
    _wait_for_ledger(settings, console)
    report = run_reconcile(settings, "replay")
    if as_json:
        click.echo(json_text({"replay": summary, "reconciliation": report_content(report)}))
    else:
        print_report(report, Console())
    sys.exit(0 if report.clean and summary.exit_code == 0 else 1)


def _ratio(text: str) -> Fraction:
    try:
        return orders.parse_ratio(text)
    except ValueError as error:
        fail(f"--stock-ratio: {error}")


def _tell_format(plan: orders.Plan, console: Console) -> None:
    """Say what the file was taken for, where it isn't the usual."""
    file = plan.format
    if (file.encoding, file.delimiter) != ("UTF-8", "comma") or file.line_ends == "CR":
        told = f"replay: read as {file.encoding}, {file.delimiter} between fields"
        console.print(cell(f"{told}, lines end with {file.line_ends}"))


def _what_is_new(
    plan: orders.Plan, settings: Settings, console: Console
) -> tuple[orders.Plan, Known]:
    behind, stopped = _wait_for_ledger(settings, console)
    if behind:
        why = f"has stopped: {stopped}" if stopped else "comes no nearer"
        fail(
            f"the ledger is {behind:,} events behind and {why}; what was played before can't be known"
            " until it has caught up"
        )
    with (
        database.connect(settings.postgres_url) as connection,
        console.status("looking for what was played before"),
    ):
        return what_is_new(plan, connection)


def _wait_for_ledger(settings: Settings, console: Console) -> tuple[int, str]:
    """How many events the ledger is still behind, 0 as a rule, and why it has stopped."""
    with (
        database.connect(settings.postgres_url) as connection,
        connect_redis(settings.redis_url) as redis,
        console.status("waiting for the ledger") as word,
    ):
        return events_behind(
            redis,
            connection,
            settings.partitions,
            lambda behind: word.update(f"waiting for the ledger: {behind:,} events to go"),
        )
