"""``holdfast sweeper``."""

from __future__ import annotations

import asyncio
import signal

import click
import uvloop

from api.cli_kit import read_settings
from api.logs import log_to_stderr
from engine.engine import Engine
from engine.expiry import sweep_until


@click.command("sweeper")
def sweeper_command() -> None:
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
