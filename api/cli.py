"""The command line: ``holdfast up``, ``check``, ``reconcile``, …

Exit codes everywhere: 0 done, 1 done and something is wrong, 2 could not be done (one line says why),
130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import click
import psycopg
from redis.exceptions import RedisError

from api.cli_kit import fail
from api.terminal import tell
from engine.addresses import why
from engine.errors import HoldfastError

INTERRUPTED = 128 + 2  # as a shell tells an end by SIGINT
#: Each command's module and its name there.
_COMMANDS = {
    "audit": "cli_ledger.audit_command",
    "check": "cli_check.check_command",
    "db": "cli_db.db_group",
    "env": "cli_env.env_command",
    "ledger": "cli_adopt.ledger_group",
    "persister": "cli_persister.persister_command",
    "quarantine": "cli_quarantine.quarantine_group",
    "reconcile": "cli_reconcile.reconcile_command",
    "relay": "cli_persister.relay_command",
    "replay": "cli_replay.replay_command",
    "restore": "cli_restore.restore_command",
    "serve": "cli_serve.serve_command",
    "sweeper": "cli_sweeper.sweeper_command",
    "up": "cli_up.up_command",
}


class _Commands(click.Group):
    """Imports a command when it is called: all of them together take a second, and each its part of it.
    After click's documentation, "Lazily Loading Subcommands"."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name].partition(".")
        command: click.Command = getattr(import_module(f"api.{module}"), name)
        return command

    def make_context(self, *args: Any, **more: Any) -> click.Context:
        with _nobody_reads():
            return super().make_context(*args, **more)

    def invoke(self, ctx: click.Context) -> Any:
        with _nobody_reads():
            return super().invoke(ctx)


@contextmanager
def _nobody_reads() -> Iterator[None]:
    """click itself ends with 1 there, and a check with 1 says that nothing can be sold."""
    try:
        yield
    except BrokenPipeError:
        # What is still to be printed goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise HoldfastError("nobody reads what it prints") from None


@click.group(cls=_Commands)
@click.version_option(package_name="holdfast", prog_name="holdfast")
def cli() -> None:
    """Holdfast, a stock reservation engine."""


def run() -> None:
    """Run the command line: no traceback ever reaches a user for what can go wrong around us."""
    try:
        sys.exit(cli(standalone_mode=False))
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except click.Abort:
        tell("holdfast: interrupted", err=True)
        sys.exit(INTERRUPTED)
    except HoldfastError as error:
        fail(error)
    except RedisError as error:
        fail(f"Redis: {why(error)}")
    except psycopg.Error as error:
        fail(f"PostgreSQL: {why(error)}")
    except OSError as error:
        fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
    except Exception as error:
        if os.environ.get("HOLDFAST_TRACEBACK"):
            raise
        fail(f"unexpected {error!r}; HOLDFAST_TRACEBACK=1 shows where, please report it")


if __name__ == "__main__":
    run()
