"""``holdfast reconcile``: once, daily, with repair; told as a table, as JSON, as a page."""

from __future__ import annotations

import logging
import re
import signal
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import msgspec
import psycopg
from jinja2 import Environment, FileSystemLoader
from redis.exceptions import RedisError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from api.cli_kit import data_dir_option, fail, json_option, json_text, settings_of_stack
from engine.errors import HoldfastError
from engine.settings import Settings
from persister import database
from persister.differences import Counters, Hold, Report
from persister.persister import connect_redis
from persister.runs import run

log = logging.getLogger("holdfast.reconcile")

_WIDE = 200


@click.command("reconcile")
@data_dir_option
@json_option
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the report as a page to this file too.",
)
@click.option("--repair", "mend", is_flag=True, help="Mend what can be, by events; look again.")
@click.option("--dry-run", is_flag=True, help="Tell what a repair would do; change nothing.")
@click.option("--daily-at", metavar="HH:MM", help="Now, and then every day at this time (UTC).")
@click.option("--trigger", default="command line", hidden=True)
def reconcile_command(
    data_dir: Path | None,
    as_json: bool,
    html: Path | None,
    mend: bool,
    dry_run: bool,
    daily_at: str | None,
    trigger: str,
) -> None:
    """Prove that Redis and the ledger agree. Exit code 0 clean, 1 differences (that are left after
    a repair), 2 could not run."""
    if daily_at is not None:
        if mend or dry_run or as_json:
            fail("--daily-at goes with --html only: a repair is for somebody who looks at it")
        at = _time_of_day(daily_at)
        settings, _ = settings_of_stack(data_dir)
        _run_daily(settings, at, html)
        return
    settings, _ = settings_of_stack(data_dir)
    report = run_reconcile(settings, trigger, mend=mend and not dry_run, dry_run=dry_run)
    if html:
        write_page(report, html)
    if as_json:
        click.echo(json_text(report_content(report)))
    else:
        print_report(report, Console())
    sys.exit(0 if report.clean else 1)


def run_reconcile(
    settings: Settings, trigger: str, *, mend: bool = False, dry_run: bool = False
) -> Report:
    """One run on the servers of these settings."""
    with (
        database.connect(settings.postgres_url) as connection,
        connect_redis(settings.redis_url) as redis,
    ):
        return run(
            redis,
            connection,
            trigger=trigger,
            mend=mend,
            dry_run=dry_run,
            retention_ms=settings.retention_ms,
        )


def report_content(report: Report) -> dict[str, Any]:
    """A report as JSON has it."""
    return {"clean": report.clean, **msgspec.to_builtins(report)}


def _side(side: Counters | Hold | None) -> str:
    if side is None:
        return "—"
    if isinstance(side, Counters):
        return (
            f"{side.on_hand:,} on hand, {side.held:,} held, {side.quarantined:,} quarantined"
            f" at {side.seq}"
        )
    units = sum(left for _, _, left in side.lines)
    return f"{side.status}, {units:,} units left at {side.seq}"


def summary_line(report: Report) -> str:
    """What a run came to, in one line."""
    count = len(report.differences)
    return (
        f"reconciled {report.checked:,} stock records and {report.reservations_checked:,} live"
        f" reservations in {report.duration_ms / 1000:.1f} s:"
        f" {count} difference{'' if count == 1 else 's'}"
    )


def print_report(report: Report, console: Console) -> None:
    """For a person: what was repaired, what differs, the sum of it."""
    if not console.is_terminal:
        console.width = _WIDE
    for each in report.repaired:
        what = f"reservation {each.reservation_id}" if each.reservation_id else each.sku
        told = f" (event {each.event})" if each.event else ""
        console.print(
            f"{each.kind} {what} {each.location}".rstrip() + f": {each.outcome}{told}",
            highlight=False,
            markup=False,
            emoji=False,
        )
    if report.differences:
        table = Table("kind", "what", "Redis", "ledger", "detail", box=None, pad_edge=False)
        for name in (0, 1):
            table.columns[name].overflow = "fold"
            table.columns[name].min_width = 18
        for each_difference in report.differences:
            # As Text: a key may look like markup, or like the name of an emoji.
            table.add_row(
                Text(each_difference.kind, style="red"),
                Text(each_difference.what),
                _side(each_difference.redis),
                _side(each_difference.ledger),
                Text(each_difference.detail),
            )
        console.print(table, highlight=False)
    if report.not_kept:
        console.print(f"this run could not be kept: {report.not_kept}", highlight=False)
    console.print(summary_line(report), highlight=False)


def write_page(report: Report, path: Path) -> None:
    """Write a report as a page that needs nothing else, in one step."""
    pages = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    text = pages.get_template("reconciliation.html").render(
        report=report, side=_side, summary=summary_line(report)
    )
    new = path.with_name(path.name + ".new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def _time_of_day(text: str) -> tuple[int, int]:
    if not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", text):
        fail(f"--daily-at is {text!r}; it must be a time of day such as 03:00 (UTC)")
    return int(text[:2]), int(text[3:])


def seconds_until(at: tuple[int, int], now: datetime) -> float:
    """From ``now`` (UTC) to the next time it is that late."""
    then = now.replace(hour=at[0], minute=at[1], second=0, microsecond=0)
    if then <= now:
        then += timedelta(days=1)
    return (then - now).total_seconds()


def _run_daily(settings: Settings, at: tuple[int, int], html: Path | None) -> None:
    """At once, then every day; a run that can't be made is told and tried again the next day."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    stopping = threading.Event()

    def stop(signum: int, frame: Any) -> None:
        stopping.set()
        raise SystemExit(0)

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, stop)
    while not stopping.is_set():
        try:
            report = run_reconcile(settings, "daily")
            first = f"; the first: {report.differences[0].detail}" if report.differences else ""
            kept = f" (not kept: {report.not_kept})" if report.not_kept else ""
            level = logging.INFO if report.clean else logging.ERROR
            log.log(level, "%s%s%s", summary_line(report), first, kept)
            if html:
                write_page(report, html)
        except (HoldfastError, RedisError, OSError, psycopg.Error) as error:
            log.error("could not reconcile: %s", " ".join(str(error).split()))
        stopping.wait(seconds_until(at, datetime.now(UTC)))
