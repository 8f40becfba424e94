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
from typing import Any, NoReturn

import click
import msgspec
import psycopg
import uvicorn
import uvloop
from redis.exceptions import RedisError
from rich.console import Console

from api import local, orders, replay
from api.address import check_exposure, listen
from api.app import make_app
from api.replay_summary import print_summary, progress
from api.servers import ServerError
from engine.engine import Engine
from engine.errors import HoldfastError
from engine.expiry import sweep_until
from engine.partitions import read_head
from engine.settings import Settings, settings_from
from persister import database
from persister.audit import audit, read_anchors, write_anchors
from persister.ledger import Ledger
from persister.persister import Persister, connect_redis
from persister.reconcile import Report, reconcile

LEDGER_PATIENCE_S = 60.0


def _fail(text: object) -> NoReturn:
    click.echo(f"holdfast: {text}", err=True)
    sys.exit(2)


def _settings() -> Settings:
    return settings_from(os.environ)


def _settings_of_stack(data_dir: Path | None) -> tuple[Settings, local.Servers]:
    """Settings with the URLs of the stack that runs on this data directory, or of the environment."""
    servers = local.discover(local.data_dir_from(os.environ, data_dir), os.environ)
    settings = msgspec.structs.replace(
        _settings(), redis_url=servers.redis_url, postgres_url=servers.postgres_url
    )
    return settings, servers


_data_dir = click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the embedded stack keeps its data (HOLDFAST_DATA_DIR, else .holdfast).",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


@click.group()
@click.version_option(package_name="holdfast", prog_name="holdfast")
def cli() -> None:
    """Holdfast, a stock reservation engine."""


@cli.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(1, 65535))
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 64))
@_data_dir
@click.option("--demo", is_flag=True, help="Put a small catalogue with stock in.")
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
    allow_unauthenticated: bool,
) -> None:
    """Start Redis, PostgreSQL, the service, the sweeper and the persister; Ctrl-C stops all."""
    _settings()
    options = local.Options(
        host=host,
        port=port,
        workers=workers,
        data_dir=local.data_dir_from(os.environ, data_dir),
        demo=demo,
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
    settings = _settings()
    if fd is None:
        check_exposure(host, allow_unauthenticated)
        listener = listen(host, port)
    else:
        listener = socket.socket(fileno=fd)
    config = uvicorn.Config(
        make_app(settings),
        loop="uvloop",
        http="httptools",
        ws="none",
        access_log=False,
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
    settings = _settings()

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
    """Open the partition and move events from the outbox into the PostgreSQL ledger."""
    _log_to_stderr()
    _collect_seldom()
    worker = Persister(_settings())
    _on_end(worker.stop)
    worker.run()


@cli.command()
@_data_dir
def env(data_dir: Path | None) -> None:
    """Print the environment variables of a running stack: eval "$(holdfast env)"."""
    settings, servers = _settings_of_stack(data_dir)
    click.echo(f"export HOLDFAST_REDIS_URL='{settings.redis_url}'")
    click.echo(f"export HOLDFAST_POSTGRES_URL='{settings.postgres_url}'")
    if servers.http_url:
        click.echo(f"export HOLDFAST_URL='{servers.http_url}'")


@cli.command("reconcile")
@_data_dir
@_json
def reconcile_command(data_dir: Path | None, as_json: bool) -> None:
    """Prove that Redis and the ledger agree. Exit code 0 clean, 1 differences, 2 could not run."""
    settings, _ = _settings_of_stack(data_dir)
    report = _reconcile(settings)
    if as_json:
        click.echo(_json_text(_report_content(report)))
    else:
        _print_report(report, Console())
    sys.exit(0 if report.clean else 1)


def _reconcile(settings: Settings) -> Report:
    with (
        database.connect(settings.postgres_url) as connection,
        connect_redis(settings.redis_url) as redis,
    ):
        return reconcile(redis, connection)


def _report_content(report: Report) -> dict[str, Any]:
    return {"clean": report.clean, **msgspec.to_builtins(report)}


def _json_text(content: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(content)).decode()


def _print_report(report: Report, console: Console) -> None:
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


@cli.command("audit")
@_data_dir
@_json
@click.option(
    "--anchor",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Check against the chain's heads in this file (if it is there), then write the new ones.",
)
def audit_command(data_dir: Path | None, as_json: bool, anchor: Path | None) -> None:
    """Prove that the ledger is whole and unchanged. Exit code 0 clean, 1 something wrong, 2 could
    not run."""
    settings, _ = _settings_of_stack(data_dir)
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
        click.echo(
            _json_text({"clean": report.clean, **msgspec.to_builtins(report, str_keys=True)})
        )
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


@cli.command("replay")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--url", help="The running service; else the stack on the data directory.")
@click.option(
    "--stock-ratio", default="1.0", show_default=True, help="Opening stock per unit sold."
)
@click.option("--location", default="MAIN", show_default=True)
@click.option("--concurrency", default=64, show_default=True, type=click.IntRange(1, 2000))
@_data_dir
@_json
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
    settings, servers = _settings_of_stack(data_dir)
    url = url or servers.http_url
    if url is None:
        _fail("no service runs on this data directory; start one with 'holdfast up' or give --url")
    with progress(plan, Console(stderr=True)) as on_progress:
        summary = uvloop.run(
            replay.run(
                plan, url=url, location=location, concurrency=concurrency, on_progress=on_progress
            )
        )
    if not as_json:
        print_summary(summary, Console())
    _wait_for_ledger(settings, Console(stderr=True))
    report = _reconcile(settings)
    if as_json:
        click.echo(_json_text({"replay": summary, "reconciliation": _report_content(report)}))
    else:
        _print_report(report, Console())
    sys.exit(0 if report.clean and summary.exit_code == 0 else 1)


def _ratio(text: str) -> Fraction:
    try:
        return orders.parse_ratio(text)
    except ValueError as error:
        _fail(f"--stock-ratio: {error}")


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
        _fail(error)
    except RedisError as error:
        _fail(f"Redis: {' '.join(str(error).split())}")
    except psycopg.Error as error:
        _fail(f"PostgreSQL: {' '.join(str(error).split())}")
    except OSError as error:
        _fail(error)
    except Exception as error:
        if os.environ.get("HOLDFAST_TRACEBACK"):
            raise
        _fail(f"unexpected {error!r}; HOLDFAST_TRACEBACK=1 shows where, please report it")


if __name__ == "__main__":
    run()
