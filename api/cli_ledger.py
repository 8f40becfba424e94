"""Commands on the ledger: ``holdfast audit``."""

from __future__ import annotations

import re
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import msgspec
from rich.console import Console

from api.cli_kit import data_dir_option, fail, json_option, json_text, settings_of_ledger
from api.moments import moment
from api.schema import rfc3339
from api.terminal import tell
from persister import database, holes
from persister.anchors import read_anchors, write_anchors
from persister.audit import audit


@click.command("audit")
@data_dir_option
@json_option
@click.option(
    "--anchor",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Check against the chain's heads in this file (if it is there), then write the new ones.",
)
@click.option(
    "--since",
    metavar="TIME",
    help="Read only the events since a date (2026-11-01), a time (2026-11-01T08:00:00Z), or for a"
    " while back from now (90m, 24h, 7d).",
)
def audit_command(
    data_dir: Path | None, as_json: bool, anchor: Path | None, since: str | None
) -> None:
    """Prove that the ledger is whole and unchanged. Exit code 0 clean, 1 something wrong, 2 could
    not run."""
    since_ms = None if since is None else _since_ms(since)
    settings = settings_of_ledger(data_dir)
    earlier = read_anchors(anchor) if anchor else {}
    console = Console(stderr=True)
    with (
        database.connect(settings.postgres_url) as connection,
        console.status("reading the ledger") as word,
    ):
        report = audit(
            connection,
            anchors=earlier,
            since_ms=since_ms,
            on_progress=lambda events: word.update(f"{events:,} events read"),
        )
    if as_json:
        content = {"clean": report.clean, **msgspec.to_builtins(report, str_keys=True)}
        del content["since_ms"]
        content["since"] = None if since_ms is None else rfc3339(since_ms)
        click.echo(json_text(content))
    else:
        for finding in report.findings:
            at = "" if finding.partition is None else f"partition {finding.partition}, "
            tell(f"{finding.fault}: {at}{finding.where}: {finding.detail}")
        for hole in report.holes:
            tell(holes.tell(hole))
        for unchecked in report.unchecked:
            tell(f"not checked: {unchecked}")
        for partition, standing in report.positions.items():
            told = f"stopped: {standing.stopped}" if standing.stopped else "not stopped"
            tell(f"partition {partition}: at event {standing.epoch}-{standing.seq}, {told}")
        count = len(report.findings)
        part = "" if since_ms is None else f" since {rfc3339(since_ms)}"
        tell(f"audited {report.events:,} events{part}: {count} finding{'' if count == 1 else 's'}")
    if anchor and report.clean:
        write_anchors(anchor, report.anchors)
    sys.exit(0 if report.clean else 1)


_WHILES_MS = {"m": 60_000, "h": 3_600_000, "d": 86_400_000}
_WHILE = re.compile(r"(\d{1,6})([mhd])")


def _since_ms(text: str) -> int:
    """A date or time as RFC 3339 has it, or a while back from now, in ms since 1970."""
    found = _WHILE.fullmatch(text)
    if found:
        ms = int(time.time() * 1000) - int(found[1]) * _WHILES_MS[found[2]]
        return max(0, ms)
    found_moment = moment(text)
    if found_moment is None:
        fail(f"--since {text!r}: it must be such as 2026-11-01, 2026-11-01T08:00:00Z, 24h or 7d")
    return max(0, (found_moment - datetime.fromtimestamp(0, UTC)) // timedelta(milliseconds=1))
