"""How a request reads from the ledger: within 3 s or not at all, and never for a client that has left."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import psycopg
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from api.asgi import Call, Disconnected
from api.problems import Problem
from engine.addresses import why
from persister.database import NOTICE_A_DEAD_HOST, QUERIES

READ_WITHIN_S = 3.0
CONNECTIONS_MAX = 4
#: PostgreSQL is away, has no ledger yet, or `holdfast db init` has not let this login in.
_AWAY = (
    psycopg.OperationalError,
    PoolTimeout,
    psycopg.errors.UndefinedTable,
    psycopg.errors.InsufficientPrivilege,
)

Connection = psycopg.AsyncConnection[DictRow]
_Result = TypeVar("_Result")


class LedgerReader:
    """Connections for reading, made when they are needed."""

    def __init__(self, url: str) -> None:
        self._pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            url,
            min_size=0,
            max_size=CONNECTIONS_MAX,
            timeout=2,
            # A server that was away is tried anew by the next request, not after a growing pause.
            reconnect_timeout=0,
            open=False,
            configure=_configure,
            # Plans are made for the values at hand: the filters differ too much for one plan.
            kwargs={
                "autocommit": True,
                "connect_timeout": 2,
                "application_name": "holdfast",
                "client_encoding": "UTF8",
                "prepare_threshold": None,
                "row_factory": dict_row,
                **NOTICE_A_DEAD_HOST,
            },
        )
        self._given_up: set[asyncio.Task[Any]] = set()

    async def open(self) -> None:
        """Waits for no server."""
        # A server that is away is told by every answer that needs it, not by lines of the pool's tries.
        logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
        await self._pool.open(wait=False)

    async def close(self) -> None:
        """Ends what is still read, and the connections."""
        for task in self._given_up:
            task.cancel()  # the second time it doesn't wait for PostgreSQL any more
        await self._pool.close()

    async def rows(self, call: Call, query: str, values: dict[str, Any]) -> list[dict[str, Any]]:
        """Rows of a named query, for one request; what ``within`` raises."""

        async def read(connection: Connection) -> list[dict[str, Any]]:
            return await fetch(connection, query, values)

        return await self.within(call, read)

    async def within(self, call: Call, read: Callable[[Connection], Awaitable[_Result]]) -> _Result:
        """What ``read`` makes of a connection. It only reads, so it may be begun again.

        Problem 503 where PostgreSQL is away, has no ledger for us yet, or gave no answer within 3 s;
        Disconnected where the client left before. In both cases PostgreSQL is told to cancel.
        """
        reading = asyncio.create_task(self._read(read))
        leaving = asyncio.create_task(call.left())
        try:
            await asyncio.wait(
                (reading, leaving), timeout=READ_WITHIN_S, return_when=asyncio.FIRST_COMPLETED
            )
            if reading.done():
                return reading.result()
            if leaving.done():
                raise Disconnected
            raise _too_slow()
        except _AWAY as error:
            raise Problem(
                "unavailable", f"the ledger can't be read right now: {why(error)}"
            ) from None
        finally:
            leaving.cancel()
            if not reading.done():
                self._give_up(reading)

    def _give_up(self, reading: asyncio.Task[Any]) -> None:
        """Cancelling it cancels the query (psycopg's ``cancel_safe``). Nobody waits for that: a server
        that hangs doesn't hear it either, and its connection is closed after 10 s."""
        self._given_up.add(reading)
        reading.add_done_callback(self._forget)
        reading.cancel()

    def _forget(self, reading: asyncio.Task[Any]) -> None:
        self._given_up.discard(reading)
        if not reading.cancelled():
            reading.exception()  # nobody asks any more

    async def _read(self, read: Callable[[Connection], Awaitable[_Result]]) -> _Result:
        """Connections that a restart of PostgreSQL has broken show it at their first use: the next one is
        taken at once (the pool's own check would wait a second after each)."""
        for _ in range(CONNECTIONS_MAX):
            async with self._pool.connection() as connection:
                _go_on()
                try:
                    return await read(connection)
                except psycopg.errors.QueryCanceled:
                    raise _too_slow() from None
                except psycopg.OperationalError:
                    if not connection.broken:
                        raise
        async with self._pool.connection() as connection:
            _go_on()
            return await read(connection)


def _go_on() -> None:
    """The pool waits by Python 3.11's ``wait_for``, which forgets a cancellation that comes with the
    connection."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def fetch(connection: Connection, query: str, values: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of a named query."""
    cursor = await connection.execute(QUERIES[query], values)
    return await cursor.fetchall()


def _too_slow() -> Problem:
    return Problem("unavailable", f"the ledger gave no answer within {READ_WITHIN_S:g} s")


async def _configure(connection: Connection) -> None:
    await connection.execute(QUERIES["session"])
    await connection.execute(QUERIES["reader_session"], {"ms": f"{READ_WITHIN_S * 1000:.0f}"})
