"""``holdfast up``: the embedded stack, Redis, PostgreSQL, Kafka where wanted, and our own processes.

Everything lives in one data directory: redis/, postgres/, kafka/, logs/, stack.json and lock.
Whatever else is there is left alone.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from api.address import check_exposure
from api.cli_kit import data_dir_option, read_settings
from api.local import data_dir_from
from api.stack import Options, Stack


@click.command("up")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(1, 65535))
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 64))
@data_dir_option
@click.option("--demo", is_flag=True, help="Put a small catalogue with stock in.")
@click.option("--kafka", is_flag=True, help="Move events through a Kafka broker, started here too.")
@click.option(
    "--allow-unauthenticated",
    is_flag=True,
    help="Listen on an address that others can reach although no keys are configured.",
)
def up_command(
    host: str,
    port: int,
    workers: int,
    data_dir: Path | None,
    demo: bool,
    kafka: bool,
    allow_unauthenticated: bool,
) -> None:
    """Start Redis, PostgreSQL, the service, the sweeper and the persister; Ctrl-C stops all.

    With --kafka also a broker and the relay: events then go from the outbox through Kafka to the
    ledger. Servers that HOLDFAST_REDIS_URL, HOLDFAST_POSTGRES_URL and HOLDFAST_KAFKA_BOOTSTRAP name are
    used instead of ones started here (the last means --kafka).
    """
    read_settings()
    options = Options(
        host=host,
        port=port,
        workers=workers,
        data_dir=data_dir_from(os.environ, data_dir),
        demo=demo,
        kafka=kafka,
        allow_unauthenticated=allow_unauthenticated,
    )
    check_exposure(host, allow_unauthenticated)
    sys.exit(Stack(options, os.environ).run())
