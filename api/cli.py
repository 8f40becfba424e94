"""The command line: ``holdfast up``, ``serve``, ``sweeper``, ``persister``, ``reconcile``, …

Exit codes everywhere: 0 done, 1 done and something is wrong, 2 could not be done (one line says why).
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import click
import psycopg
import uvicorn
import uvloop
from redis.exceptions import RedisError

from api import local, orders, replay
from api.address import check_exposure, listen
from api.app import make_app
from api.cli_adopt import ledger_group
from api.cli_check import check_command
from api.cli_db import db_group
from api.cli_kit import (
    data_dir_option,
    fail,
    read_settings,
    settings_of_stack,
)
from api.cli_ledger import audit_command
from api.cli_quarantine import quarantine_group
from api.cli_reconcile import reconcile_command
from api.cli_replay import replay_command
from api.cli_restore import restore_command
from api.connections import Connections
from api.hosts import Hosts
from api.logs import log_to_stderr
from api.servers import ServerError
from engine.addresses import why
from engine.engine import Engine
from engine.errors import HoldfastError
from engine.expiry import sweep_until
from persister.persister import Persister
from persister.relay import Relay


@click.group()
@click.version_option(package_name="holdfast", prog_name="holdfast")
def cli() -> None:
    """Holdfast, a stock reservation engine."""


cli.add_command(check_command)
cli.add_command(reconcile_command)
cli.add_command(audit_command)
cli.add_command(db_group)
cli.add_command(ledger_group)
cli.add_command(restore_command)
cli.add_command(quarantine_group)
cli.add_command(replay_command)


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
    log_to_stderr()
    settings = read_settings()
    if fd is None:
        check_exposure(host, allow_unauthenticated)
        listener = listen(host, port)
    else:
        listener = socket.socket(fileno=fd)
    hosts = Hosts.of_address(listener.getsockname()[0], host, settings.hosts)
    config = uvicorn.Config(
        make_app(settings, hosts),
        loop="uvloop",
        http=cast(Any, Connections(settings)),
        ws="none",
        access_log=False,
        proxy_headers=False,
        log_config=None,
        server_header=False,
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
    log_to_stderr()
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
    log_to_stderr()
    _collect_seldom()
    worker = Persister(read_settings())
    _on_end(worker.stop)
    worker.run()


@cli.command()
def relay() -> None:
    """Move events from the outbox to Kafka (HOLDFAST_KAFKA_BOOTSTRAP)."""
    log_to_stderr()
    _collect_seldom()
    worker = Relay(read_settings())
    _on_end(worker.stop)
    worker.run()


@cli.command()
@data_dir_option
def env(data_dir: Path | None) -> None:
    """Print the environment variables of a running stack: eval "$(holdfast env)"."""
    settings, servers = settings_of_stack(data_dir)
    variables = {
        "HOLDFAST_REDIS_URL": settings.redis_url,
        "HOLDFAST_POSTGRES_URL": settings.postgres_url,
        "HOLDFAST_KAFKA_BOOTSTRAP": settings.kafka_bootstrap,
        "HOLDFAST_URL": servers.http_url,
    }
    for name, value in variables.items():
        if value:
            click.echo(f"export {name}={_quoted(value)}")


def _quoted(value: str) -> str:
    """As any POSIX shell takes it for this very value."""
    return "'" + value.replace("'", "'\\''") + "'"


def _on_end(action: Callable[[], None]) -> None:
    """Call ``action`` on SIGINT and SIGTERM."""

    def handler(signum: int, frame: Any) -> None:
        action()

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, handler)


def run() -> None:
    """Run the command line: no traceback ever reaches a user for what can go wrong around us."""
    try:
        cli(standalone_mode=True)
    except (HoldfastError, ServerError, orders.OrderFileError, replay.ReplayError) as error:
        fail(error)
    except RedisError as error:
        fail(f"Redis: {why(error)}")
    except psycopg.Error as error:
        fail(f"PostgreSQL: {why(error)}")
    except OSError as error:
        fail(error)
    except Exception as error:
        if os.environ.get("HOLDFAST_TRACEBACK"):
            raise
        fail(f"unexpected {error!r}; HOLDFAST_TRACEBACK=1 shows where, please report it")


if __name__ == "__main__":
    run()
