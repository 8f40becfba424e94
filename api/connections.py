"""All connections of a worker: how many, how long they may take, what they may hold in memory."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
from typing import Any

from uvicorn import Config
from uvicorn.server import ServerState

from api.connection import Connection
from engine.settings import Settings

log = logging.getLogger("holdfast.api")

TICK_S = 1.0
SAY_AGAIN_S = 60.0
#: For Redis, PostgreSQL, logs, and connections that are told that there are too many.
DESCRIPTORS_KEPT = 128
LINGERING_MAX = 64


class Connections:
    """Makes uvicorn's protocols, and bounds what all of them take together.

    ``held`` is what requests that are not answered yet hold of memory, in bytes as they came;
    ``unsent`` what clients have not taken of their answers, the one that waits longest first.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.head_s = settings.head_timeout_ms / 1000
        self.keep_alive_s = settings.keep_alive_ms / 1000
        self.send_s = settings.send_timeout_ms / 1000
        self.request_max = settings.head_max_bytes + settings.body_max_bytes
        self.connections_max = _affordable(settings.connections_max)
        self.held = 0
        self.unsent: dict[Connection, int] = {}
        self._unsent_bytes = 0
        self._open: set[Connection] = set()
        self._ticking = False
        self._refused = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._date = b""
        self._say_at_s: dict[str, float] = {}

    def __call__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> Connection:
        """A protocol, as uvicorn asks for one."""
        loop = _loop or asyncio.get_running_loop()
        return Connection(self, config.loaded_app, server_state, app_state, loop)

    def add(self, connection: Connection, loop: asyncio.AbstractEventLoop) -> bool:
        """Take it in; False where there are too many."""
        is_taken = len(self._open) < self.connections_max
        if not is_taken:
            self._refused += 1
        self._open.add(connection)
        if not self._ticking:
            self._ticking = True
            loop.call_later(TICK_S, self._tick, loop)
        return is_taken

    def may_linger(self) -> bool:
        """May one too many be told that it is? Else it is closed without a word."""
        return len(self._open) <= self.connections_max + LINGERING_MAX

    def date(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        """The headers of every answer as bytes; uvicorn makes them anew each second."""
        if headers is not self._headers:
            self._headers = headers
            self._date = b"".join([b"%s: %s\r\n" % pair for pair in headers])
        return self._date

    def remove(self, connection: Connection) -> None:
        self._open.discard(connection)
        self.sent(connection)

    def hold(self, size: int) -> bool:
        """Count bytes of requests; False where that is more than all may hold."""
        if self.held + size > self.settings.bodies_max_bytes:
            return False
        self.held += size
        return True

    def waits(self, connection: Connection, size: int) -> None:
        """Its client has not taken these bytes. Where that is too much in all, the connections that have
        waited longest are ended."""
        self._unsent_bytes += size - self.unsent.get(connection, 0)
        self.unsent[connection] = size
        while self._unsent_bytes > self.settings.unsent_max_bytes:
            slowest = next(iter(self.unsent))
            self.sent(slowest)
            slowest.abort()

    def sent(self, connection: Connection) -> None:
        """Its client has taken all."""
        self._unsent_bytes -= self.unsent.pop(connection, 0)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        now_s = loop.time()
        for connection in [each for each in self._open if each.deadline_s <= now_s]:
            connection.expire()
        if self._refused and self._may_say("connections", now_s):
            log.warning(
                "%d connections were refused: %d are open, and no more are taken"
                " (HOLDFAST_CONNECTIONS_MAX, or the limit of file descriptors less %d)",
                self._refused,
                self.connections_max,
                DESCRIPTORS_KEPT,
            )
            self._refused = 0
        self._look_for_descriptors(now_s)
        self._ticking = bool(self._open)
        if self._ticking:
            loop.call_later(TICK_S, self._tick, loop)

    def _look_for_descriptors(self, now_s: float) -> None:
        # Where none is left the event loop closes new connections without a word.
        try:
            os.close(os.dup(0))
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE) and self._may_say("descriptors", now_s):
                log.error("no file descriptors are left: new connections are closed (ulimit -n)")

    def _may_say(self, what: str, now_s: float) -> bool:
        if now_s < self._say_at_s.get(what, 0.0):
            return False
        self._say_at_s[what] = now_s + SAY_AGAIN_S
        return True


def _affordable(wanted: int) -> int:
    """As many connections as are wanted, or as file descriptors allow; the soft limit is raised."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard == resource.RLIM_INFINITY or wanted <= hard - DESCRIPTORS_KEPT:
        return wanted
    affordable = max(1, hard - DESCRIPTORS_KEPT)
    log.warning(
        "HOLDFAST_CONNECTIONS_MAX is %d, but a process may open %d files (ulimit -n):"
        " %d connections are taken",
        wanted,
        hard,
        affordable,
    )
    return affordable
