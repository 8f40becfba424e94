"""Commands on the ledger: ``holdfast audit``."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import msgspec
from rich.console import Console

from api.cli_kit import data_dir_option, json_option, json_text, settings_of_stack
from persister import database
from persister.audit import audit, read_anchors, write_anchors


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
