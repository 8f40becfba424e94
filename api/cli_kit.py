"""What the commands share: settings of the running stack, common options, how they end."""

from __future__ import annotations

import gc
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click
import msgspec

from api import local
from engine.addresses import printable
from engine.settings import Settings, settings_from


def fail(text: object) -> NoReturn:
    """End with exit code 2 and one line."""
    click.echo(f"holdfast: {printable(' '.join(str(text).splitlines()))}", err=True)
    sys.exit(2)


def read_settings() -> Settings:
    return settings_from(os.environ)


def settings_of_stack(data_dir: Path | None) -> tuple[Settings, local.Servers]:
    """Settings with the servers of the stack that runs on this data directory, or of the environment."""
    servers = local.discover(local.data_dir_from(os.environ, data_dir), os.environ)
    settings = msgspec.structs.replace(
        read_settings(),
        redis_url=servers.redis_url,
        postgres_url=servers.postgres_url,
        kafka_bootstrap=servers.kafka_bootstrap or "",
    )
    return settings, servers


def settings_of_ledger(data_dir: Path | None) -> Settings:
    """Settings where only the ledger must be there: HOLDFAST_POSTGRES_URL, else the running stack's."""
    if os.environ.get("HOLDFAST_POSTGRES_URL"):
        return read_settings()
    return settings_of_stack(data_dir)[0]


def check_text(name: str, text: str, pattern: str, length_max: int) -> None:
    """Ends the command where an option's text is not what the ledger keeps."""
    if not text.strip() or not re.match(pattern, text):
        fail(
            f"{name} is {text[:60]!r}; it must be 1 to {length_max:,} characters, no control character"
        )


data_dir_option = click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the embedded stack keeps its data (HOLDFAST_DATA_DIR, else .holdfast).",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


def json_text(content: Any) -> str:
    """JSON as a person reads it."""
    return msgspec.json.format(msgspec.json.encode(content)).decode()


def collect_seldom() -> None:
    """Cyclic garbage is rare here, and looking for it at the usual rate took a fifth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


def on_end(action: Callable[[], None]) -> None:
    """Call ``action`` on SIGINT and SIGTERM."""

    def handler(signum: int, frame: Any) -> None:
        action()

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, handler)
