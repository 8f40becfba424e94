"""Reconciliation over HTTP: the latest run, and a new one in a process of its own."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from typing import Any

import msgspec

from api.asgi import Call
from api.problems import Problem, Reply, json_reply
from api.schema import rfc3339
from engine.settings import Settings


class Reconciler:
    """At most one run at a time; whoever asks meanwhile gets the answer of the same run."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._running: asyncio.Task[Reply] | None = None
        self._process: asyncio.subprocess.Process | None = None

    async def run(self) -> Reply:
        """201 with the report; Problem 503 where it could not run."""
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        return await asyncio.shield(self._running)

    async def close(self) -> None:
        """End a run that is under way; it has changed nothing."""
        if self._running is None or self._running.done():
            return
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
        with suppress(Problem):
            await self._running

    async def _run(self) -> Reply:
        # A process of its own: comparing is Python's work, and would slow the sales of this one.
        environ = {
            **os.environ,
            "HOLDFAST_REDIS_URL": self._settings.redis_url,
            "HOLDFAST_POSTGRES_URL": self._settings.postgres_url,
        }
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "api.cli", "reconcile", "--json", "--trigger", "http"),
            env=environ,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, told = await self._process.communicate()
        if self._process.returncode not in (0, 1) or not out:
            why = told.decode(errors="replace").strip().removeprefix("holdfast: ")
            raise Problem("unavailable", f"could not reconcile: {why or 'the run was ended'}")
        return Reply(201, msgspec.json.format(out, indent=-1))


async def post_reconciliation(call: Call) -> Reply:
    """Reconcile now; nothing is repaired."""
    reconciler: Reconciler = call.state.reconciler
    return await reconciler.run()


async def latest_reconciliation(call: Call) -> Reply:
    """The latest run that was kept. Problem 404 before the first."""
    rows = await call.state.ledger.rows(call, "latest_reconciliation", {})
    if not rows:
        raise Problem("not_found", "nothing has been reconciled yet; POST /v1/reconciliations does")
    row: dict[str, Any] = rows[0]
    for name in ("started_at", "finished_at"):
        row[name] = rfc3339(round(row[name].timestamp() * 1000))
    return json_reply(200, row)
