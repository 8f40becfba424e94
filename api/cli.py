"""The command line: ``holdfast up``, ``serve``, ``sweeper``, ``persister``, ``reconcile``, …

Exit codes everywhere: 0 done, 1 done and something is wrong, 2 could not be done (one line says why).
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import click
import psycopg
import uvicorn
import uvloop
from redis.exceptions import RedisError
from rich.console import Console

from api import local, orders, replay
from api.address import check_exposure, listen
from api.app import make_app
from api.cli_adopt import ledger_group
from api.cli_db import db_group
from api.cli_kit import (
    data_dir_option,
    fail,
    json_option,
    json_text,
    read_settings,
    settings_of_stack,
)
from api.cli_ledger import audit_command
from api.cli_quarantine import quarantine_group
from api.cli_reconcile import print_report, reconcile_command, report_content, run_reconcile
from api.cli_restore import restore_command
from api.replay_summary import print_summary, progress
from api.servers import ServerError
from api.transport import Protocol
from engine.engine import Engine
from engine.errors import HoldfastError
from engine.expiry import sweep_until
from engine.partitions import read_head
from engine.settings import Settings
from persister import database
from persister.ledger import Ledger
from persister.persister import Persister, connect_redis
from persister.relay import Relay

LEDGER_PATIENCE_S = 60.0


@click.group()
@click.version_option(package_name="holdfast", prog_name="holdfast")
def cli() -> None:
    """Holdfast, a stock reservation engine."""


cli.add_command(reconcile_command)
cli.add_command(audit_command)
cli.add_command(db_group)
cli.add_command(ledger_group)
cli.add_command(restore_command)
cli.add_command(quarantine_group)


@cli.command()
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
def up(
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
    options = local.Options(
        host=host,
        port=port,
        workers=workers,
        data_dir=local.data_dir_from(os.environ, data_dir),
        demo=demo,
        kafka=kafka,
        allow_unauthenticated=allow_unauthenticated,
    )
    sys.exit(local.up(options, os.environ))


@cli.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535))
@click.option("--fd", type=int, help="Serve on this inherited listening socket instead.")
@click.option("--allow-unauthenticated", is_flag=True)
def serve(host: str, port: int, fd: int | None, allow_unauthenticated: bool) -> None:
    """Serve HTTP on Redis and PostgreSQL that run already (HOLDFAST_REDIS_URL, …)."""
    _log_to_stderr()
    settings = read_settings()
    if fd is None:
        check_exposure(host, allow_unauthenticated)
        listener = listen(host, port)
    else:
        listener = socket.socket(fileno=fd)
    config = uvicorn.Config(
        make_app(settings),
        loop="uvloop",
        http=Protocol,
        ws="none",
        access_log=False,
        proxy_headers=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=5,
    )
    _collect_seldom()
    _on_end(lambda: None)  # uvicorn raises the signal again once it has ended: exit with 0
    uvicorn.Server(config).run(sockets=[listener])


def _collect_seldom() -> None:
    """Cyclic garbage is rare here, and looking for it at the usual rate took a fifth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


@cli.command()
def sweeper() -> None:
    """Give back the units of overdue reservations, five times a second."""
    _log_to_stderr()
    settings = read_settings()

    async def run() -> None:
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(signum, stopping.set)
        engine = await Engine.start(settings)
        await sweep_until(stopping, engine, settings.sweep_interval_ms, settings.partitions)
        await engine.close()

    uvloop.run(run())


@cli.command()
def persister() -> None:
    """Open the partition and move events into the PostgreSQL ledger: from Kafka where
    HOLDFAST_KAFKA_BOOTSTRAP is set, else from the outbox itself."""
    _log_to_stderr()
    _collect_seldom()
    worker = Persister(read_settings())
    _on_end(worker.stop)
    worker.run()


@cli.command()
def relay() -> None:
    """Move events from the outbox to Kafka (HOLDFAST_KAFKA_BOOTSTRAP)."""
    _log_to_stderr()
    _collect_seldom()
    worker = Relay(read_settings())
    _on_end(worker.stop)
    worker.run()


@cli.command()
@data_dir_option
def env(data_dir: Path | None) -> None:
    """Print the environment variables of a running stack: eval "$(holdfast env)"."""
    settings, servers = settings_of_stack(data_dir)
    click.echo(f"export HOLDFAST_REDIS_URL='{settings.redis_url}'")
    click.echo(f"export HOLDFAST_POSTGRES_URL='{settings.postgres_url}'")
    if settings.kafka_bootstrap:
        click.echo(f"export HOLDFAST_KAFKA_BOOTSTRAP='{settings.kafka_bootstrap}'")
    if servers.http_url:
        click.echo(f"export HOLDFAST_URL='{servers.http_url}'")


@cli.command("replay")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--url", help="The running service; else the stack on the data directory.")
@click.option(
    "--stock-ratio", default="1.0", show_default=True, help="Opening stock per unit sold."
)
@click.option("--location", default="MAIN", show_default=True)
@click.option("--concurrency", default=256, show_default=True, type=click.IntRange(1, 2000))
@data_dir_option
@json_option
def replay_command(
    file: Path,
    url: str | None,
    stock_ratio: str,
    location: str,
    concurrency: int,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Play a file of real orders through the HTTP API, then prove that the ledger agrees."""
    ratio = _ratio(stock_ratio)
    plan = orders.read_plan(file, ratio=ratio)
    settings, servers = settings_of_stack(data_dir)
    url = url or servers.http_url
    if url is None:
        fail("no service runs on this data directory; start one with 'holdfast up' or give --url")
    with progress(plan, Console(stderr=True)) as on_progress:
        summary = uvloop.run(
            replay.run(
                plan, url=url, location=location, concurrency=concurrency, on_progress=on_progress
            )
        )
    if not as_json:
        print_summary(summary, Console())
    _wait_for_ledger(settings, Console(stderr=True))
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


def _wait_for_ledger(settings: Settings, console: Console) -> None:
    """Wait while the ledger comes nearer to Redis; reconcile says if it stopped."""
    with (
        database.connect(settings.postgres_url) as connection,
        connect_redis(settings.redis_url) as redis,
        console.status("waiting for the ledger") as word,
    ):
        nearest, moved_at = sys.maxsize, time.monotonic()
        while time.monotonic() - moved_at < LEDGER_PATIENCE_S:
            behind = read_head(redis, 0).position[1] - Ledger(connection, 0).position().seq
            if behind <= 0:
                return
            if behind < nearest:
                nearest, moved_at = behind, time.monotonic()
            word.update(f"waiting for the ledger: {behind:,} events to go")
            time.sleep(0.1)


def _on_end(action: Callable[[], None]) -> None:
    """Call ``action`` on SIGINT and SIGTERM."""

    def handler(signum: int, frame: Any) -> None:
        action()

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, handler)


def _log_to_stderr() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    logging.Formatter.converter = time.gmtime


def run() -> None:
    """Run the command line: no traceback ever reaches a user for what can go wrong around us."""
    try:
        cli(standalone_mode=True)
    except (HoldfastError, ServerError, orders.OrderFileError, replay.ReplayError) as error:
        fail(error)
    except RedisError as error:
        fail(f"Redis: {' '.join(str(error).split())}")
    except psycopg.Error as error:
        fail(f"PostgreSQL: {' '.join(str(error).split())}")
    except OSError as error:
        fail(error)
    except Exception as error:
        if os.environ.get("HOLDFAST_TRACEBACK"):
            raise
        fail(f"unexpected {error!r}; HOLDFAST_TRACEBACK=1 shows where, please report it")


if __name__ == "__main__":
    run()
