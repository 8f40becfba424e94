"""``holdfast restore``: an empty Redis rebuilt from the ledger."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from api.cli_kit import data_dir_option, fail, json_option, json_text, settings_of_ledger
from api.terminal import tell
from engine.addresses import redis_fault, without_password
from persister.restore import restore


@click.command("restore")
@click.option(
    "--into", required=True, metavar="URL", help="An empty Redis, such as redis://127.0.0.1:6379/0."
)
@data_dir_option
@json_option
def restore_command(into: str, data_dir: Path | None, as_json: bool) -> None:
    """Rebuild an empty Redis from the ledger and open it: stock, live reservations with their
    deadlines, and what repeated calls are answered. Exit code 0 done, 2 could not be done."""
    if fault := redis_fault(into):
        fail(f"--into {without_password(into)}: {fault}")
    settings = settings_of_ledger(data_dir)
    with Console(stderr=True).status("restoring") as word:

        def show(what: str, done: int, total: int) -> None:
            of_all = f" of {total:,}" if total else ""
            word.update(f"restoring: {done:,}{of_all} {what}")

        restored = restore(settings, into, on_progress=show)
    if restored.without_kafka:
        tell(
            "this ledger was fed through Kafka, and no broker was named: what only Kafka may have is not"
            " restored; to be sure empty this Redis (redis-cli FLUSHDB), set HOLDFAST_KAFKA_BOOTSTRAP and"
            " restore again",
            err=True,
        )
    if as_json:
        click.echo(json_text(restored))
        return
    tell(
        f"restored {restored.stock_records:,} stock records and {restored.live_reservations:,} live"
        f" reservations from {restored.events_replayed:,} events in {restored.duration_ms / 1000:.1f} s"
    )
    tell(f"opened with epoch {restored.epoch}; to prove it run 'holdfast reconcile'")
