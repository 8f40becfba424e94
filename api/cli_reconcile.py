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

from api.cli_kit import (
    check_text,
    data_dir_option,
    fail,
    json_option,
    json_text,
    settings_of_stack,
)
from api.logs import log_to_stderr
from api.terminal import cell
from engine.addresses import why
from engine.errors import HoldfastError
from engine.model import TEXT_PATTERN
from engine.settings import Settings
from persister import database
from persister.differences import Counters, Hold, Report
from persister.holes import tell
from persister.persister import connect_redis
from persister.runs import run

log = logging.getLogger("holdfast.reconcile")

_WIDE = 200
_ROWS_MAX = 20


@click.command("reconcile")
@data_dir_option
@json_option
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the report as a page to this file too.",
)
@click.option("--repair", "mend", is_flag=True, help="Mend what can be, by events; look again.")
@click.option(
    "--by", metavar="NAME", help="Who asks for the repair; 1 to 128 characters, kept for good."
)
@click.option("--dry-run", is_flag=True, help="Tell what a repair would do; change nothing.")
@click.option("--daily-at", metavar="HH:MM", help="Now, and then every day at this time (UTC).")
@click.option("--trigger", default="command line", hidden=True)
def reconcile_command(
    data_dir: Path | None,
    as_json: bool,
    html: Path | None,
    mend: bool,
    by: str | None,
    dry_run: bool,
    daily_at: str | None,
    trigger: str,
) -> None:
    """Prove that Redis and the ledger agree. Exit code 0 clean, 1 differences (that are left after
    a repair), 2 could not run."""
    if daily_at is not None:
        if mend or by is not None or dry_run or as_json:
            fail("--daily-at goes with --html only: a repair is for somebody who looks at it")
        at = _time_of_day(daily_at)
        settings, _ = settings_of_stack(data_dir)
        _run_daily(settings, at, html)
        return
    repair_by = _repair_by(mend and not dry_run, by)
    settings, _ = settings_of_stack(data_dir)
    report = run_reconcile(settings, trigger, repair_by=repair_by, dry_run=dry_run)
    if html:
        write_page(report, html)
    if as_json:
        click.echo(json_text(report_content(report)))
    else:
        print_report(report, Console())
    sys.exit(0 if report.clean else 1)


def _repair_by(mend: bool, by: str | None) -> str | None:
    """Who is to be kept as the one who asked for a repair; None where nothing is to be repaired."""
    if by is not None:
        check_text("--by", by, TEXT_PATTERN, 128)
    if mend and by is None:
        fail("--repair needs --by NAME: the events of a repair and the run keep who asked for it")
    return by if mend else None


def run_reconcile(
    settings: Settings, trigger: str, *, repair_by: str | None = None, dry_run: bool = False
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
            repair_by=repair_by,
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
    """For a person: what was repaired, what differs, the sum of it. On a terminal 20 rows of each at
    most, the rest counted."""
    most = _ROWS_MAX
    if not console.is_terminal:
        console.width = _WIDE
        most = max(len(report.repaired), len(report.differences))
    for each in report.repaired[:most]:
        what = f"reservation {each.reservation_id}" if each.reservation_id else each.sku
        told = f" (event {each.event})" if each.event else ""
        console.print(
            cell(f"{each.kind} {what} {each.location}".rstrip() + f": {each.outcome}{told}")
        )
    _print_more(console, len(report.repaired) - most, "repairs")
    if report.differences:
        table = Table("kind", "what", "Redis", "ledger", "detail", box=None, pad_edge=False)
        for name in (0, 1):
            table.columns[name].overflow = "fold"
            table.columns[name].min_width = 18
        for each_difference in report.differences[:most]:
            table.add_row(
                cell(each_difference.kind, "red"),
                cell(each_difference.what),
                cell(_side(each_difference.redis)),
                cell(_side(each_difference.ledger)),
                cell(each_difference.detail),
            )
        console.print(table, highlight=False)
    _print_more(console, len(report.differences) - most, "differences")
    for hole in report.holes:
        console.print(cell(tell(hole)))
    if report.not_kept:
        console.print(cell(f"this run could not be kept: {report.not_kept}"))
    console.print(cell(summary_line(report)))


def _print_more(console: Console, count: int, what: str) -> None:
    if count > 0:
        console.print(cell(f"… and {count:,} more {what}: --json and --html FILE have all"))


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
    log_to_stderr()
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
            log.error("could not reconcile: %s", why(error))
        stopping.wait(seconds_until(at, datetime.now(UTC)))
