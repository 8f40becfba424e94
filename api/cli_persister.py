"""``holdfast persister`` and ``holdfast relay``: the way of events to the ledger."""

from __future__ import annotations

import click

from api.cli_kit import collect_seldom, on_end, read_settings
from api.logs import log_to_stderr
from persister.persister import Persister
from persister.relay import Relay


@click.command("persister")
def persister_command() -> None:
    """Open the partition and move events into the PostgreSQL ledger: from Kafka where
    HOLDFAST_KAFKA_BOOTSTRAP is set, else from the outbox itself."""
    log_to_stderr()
    collect_seldom()
    worker = Persister(read_settings())
    on_end(worker.stop)
    worker.run()


@click.command("relay")
def relay_command() -> None:
    """Move events from the outbox to Kafka (HOLDFAST_KAFKA_BOOTSTRAP)."""
    log_to_stderr()
    collect_seldom()
    worker = Relay(read_settings())
    on_end(worker.stop)
    worker.run()
