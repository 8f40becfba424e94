"""Commands on the ledger: ``holdfast reconcile``, ``audit``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console

from api.cli_kit import data_dir_option, json_option, json_text, settings_of_stack
from engine.settings import Settings
from persister import database
from persister.audit import audit, read_anchors, write_anchors
from persister.persister import connect_redis
from persister.reconcile import Report, reconcile


@click.command("reconcile")
@data_dir_option
@json_option
def reconcile_command(data_dir: Path | None, as_json: bool) -> None:
    """Prove that Redis and the ledger agree. Exit code 0 clean, 1 differences, 2 could not run."""
    settings, _ = settings_of_stack(data_dir)
    report = run_reconcile(settings)
    if as_json:
        click.echo(json_text(report_content(report)))
    else:
        print_report(report, Console())
    sys.exit(0 if report.clean else 1)


def run_reconcile(settings: Settings) -> Report:
    with (
        database.connect(settings.postgres_url) as connection,
        connect_redis(settings.redis_url) as redis,
    ):
        return reconcile(redis, connection)


def report_content(report: Report) -> dict[str, Any]:
    return {"clean": report.clean, **msgspec.to_builtins(report)}


def print_report(report: Report, console: Console) -> None:
    for difference in report.differences:
        console.print(
            f"[red]{difference.kind}[/red] {difference.sku} at {difference.location}:"
            f" {difference.detail}",
            highlight=False,
        )
    count = len(report.differences)
    console.print(
        f"reconciled {report.checked:,} stock records in {report.duration_ms / 1000:.1f} s:"
        f" {count} difference{'' if count == 1 else 's'}",
        highlight=False,
    )


@click.command("audit")
@data_dir_option
@json_option
@click.option(
    "--anchor",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Check against the chain's heads in this file (if it is there), then write the new ones.",
)
def audit_command(data_dir: Path | None, as_json: bool, anchor: Path | None) -> None:
    """Prove that the ledger is whole and unchanged. Exit code 0 clean, 1 something wrong, 2 could
    not run."""
    settings, _ = settings_of_stack(data_dir)
    earlier = read_anchors(anchor) if anchor else {}
    console = Console(stderr=True)
    with (
        database.connect(settings.postgres_url) as connection,
        console.status("reading the ledger") as word,
    ):
        report = audit(
            connection,
            anchors=earlier,
            on_progress=lambda events: word.update(f"{events:,} events read"),
        )
    if as_json:
        click.echo(json_text({"clean": report.clean, **msgspec.to_builtins(report, str_keys=True)}))
    else:
        for finding in report.findings:
            click.echo(
                f"{finding.fault}: partition {finding.partition}, {finding.where}: {finding.detail}"
            )
        count = len(report.findings)
        click.echo(f"audited {report.events:,} events: {count} finding{'' if count == 1 else 's'}")
    if anchor and report.clean:
        write_anchors(anchor, report.anchors)
    sys.exit(0 if report.clean else 1)
