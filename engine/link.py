"""One connection for script calls, with nothing between the socket and a call's future.

redis-py opens it (address, TLS, user, database) and names its errors. Its streams, pool and timeouts, which
would cost more than all else that the engine does for a call (docs/performance.md), stay out of the way.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from socket import SO_LINGER, SOL_SOCKET
from typing import Any, TypeAlias

import hiredis
from redis.asyncio.connection import DefaultParser
from redis.exceptions import ConnectionError as RedisConnectionError

#: A command as Redis takes it: its name and its arguments, each a str, bytes or an int.
Words: TypeAlias = tuple[Any, ...]
#: To linger, for no time: the connection is reset, and what is still unsent dropped.
_AT_ONCE = struct.pack("ii", 1, 0)


class Link:
    """A connection that opens when it is needed, and anew after it was lost. Not thread-safe.

    ``pool``, redis-py's of asyncio, makes the connections; none of them goes into it."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._wire: _Wire | None = None
        self._opening = asyncio.Lock()

    async def open(self) -> _Wire:
        """Be sure that there is a connection. RedisError or OSError where there can't be one."""
        async with self._opening:
            if self._wire is None or self._wire.is_lost:
                await self.close()
                connection = self._pool.make_connection()
                await connection.connect()
                self._wire = _Wire(connection)
            return self._wire

    async def call(self, commands: Sequence[Words]) -> list[Any]:
        """The replies to the commands, which go out at once and in order; an error as a value.

        RedisError or OSError where the connection can't be opened or is lost meanwhile: whether the
        commands took effect is unknown. Waits without end for a server that says nothing: whoever gives up
        (cancels) ends the connection, for all who wait, and the next call opens another.
        """
        wire = self._wire
        if wire is None or wire.is_lost:
            wire = await self.open()
        return await wire.call(commands)

    async def close(self) -> None:
        """End the connection; whoever still waits gets RedisConnectionError."""
        if self._wire is not None:
            await self._wire.close()


class _Wire(asyncio.Protocol):
    """An open connection, taken over from redis-py: replies come in the order of the calls."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._transport = connection._writer.transport
        self._streams = self._transport.get_protocol()
        self._transport.set_protocol(self)
        self._reader = hiredis.Reader(replyError=DefaultParser.parse_error)
        self._calls: deque[_Call] = deque()

    @property
    def is_lost(self) -> bool:
        return bool(self._transport.is_closing())

    async def call(self, commands: Sequence[Words]) -> list[Any]:
        call = _Call(len(commands))
        self._calls.append(call)
        self._transport.write(b"".join([hiredis.pack_command(words) for words in commands]))
        try:
            return await call.future
        except asyncio.CancelledError:
            self._give_up()
            raise

    def _give_up(self) -> None:
        """Close at once, and have the kernel forget what it has not delivered: it would go on trying, and
        a command could take effect long after its caller was told that its outcome is unknown."""
        with suppress(OSError, ValueError):  # it was lost in the same moment
            self._transport.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, _AT_ONCE)
        self._transport.abort()

    async def close(self) -> None:
        await self._connection.disconnect()

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not False:
                call = self._calls[0]
                call.replies.append(reply)
                if len(call.replies) == call.count:
                    self._calls.popleft()
                    if not call.future.done():
                        call.future.set_result(call.replies)
        except (hiredis.ProtocolError, IndexError):  # nobody asked for that, or it is no reply
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        for call in self._calls:
            if not call.future.done():
                call.future.set_exception(
                    RedisConnectionError(f"the connection was lost: {error or 'it was closed'}")
                )
        self._calls.clear()
        self._streams.connection_lost(error)  # redis-py waits for it when it disconnects


class _Call:
    __slots__ = ("count", "future", "replies")

    def __init__(self, count: int) -> None:
        self.count = count
        self.future: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self.replies: list[Any] = []
