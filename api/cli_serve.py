"""``holdfast serve``: one worker of the HTTP service."""

from __future__ import annotations

import socket
from typing import Any, cast

import click
import uvicorn

from api.address import check_exposure, listen
from api.app import make_app
from api.cli_kit import collect_seldom, on_end, read_settings
from api.connections import Connections
from api.hosts import Hosts
from api.logs import log_to_stderr


@click.command("serve")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535))
@click.option("--fd", type=int, help="Serve on this inherited listening socket instead.")
@click.option("--allow-unauthenticated", is_flag=True)
def serve_command(host: str, port: int, fd: int | None, allow_unauthenticated: bool) -> None:
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
    collect_seldom()
    on_end(lambda: None)  # uvicorn raises the signal again once it has ended: exit with 0
    uvicorn.Server(config).run(sockets=[listener])
