"""``holdfast env``: where the servers of a running stack are, for the shell."""

from __future__ import annotations

from pathlib import Path

import click

from api.cli_kit import data_dir_option, settings_of_stack


@click.command("env")
@data_dir_option
def env_command(data_dir: Path | None) -> None:
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
