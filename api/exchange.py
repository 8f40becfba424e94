"""One request and its answer, as ASGI wants it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Scope

from api.problems import Problem, Reply

if TYPE_CHECKING:
    from api.connection import Connection

log = logging.getLogger("holdfast.api")

#: More of a body than this waits in the client until the application has taken it.
BODY_WAITING_MAX = 64 * 1024
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def _status_line(status: int) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return f"HTTP/1.1 {status} {phrase}\r\n".encode()


_STATUS_LINES = {status: _status_line(status) for status in range(100, 600)}


def head_of(
    status: int, headers: Iterable[tuple[bytes, bytes]], date: bytes, *, close: bool
) -> bytes:
    """Status line and headers; ``date`` are headers as they stand. ValueError for a line break in one."""
    lines = [_STATUS_LINES[status], date]
    for name, value in headers:
        if b"\n" in value or b"\r" in value:
            raise ValueError(f"header {name!r} holds a line break")
        lines += (name, b": ", value, b"\r\n")
    lines.append(b"connection: close\r\n\r\n" if close else b"\r\n")
    return b"".join(lines)


def bytes_of(reply: Reply, date: bytes) -> bytes:
    """A whole answer after which the connection is closed."""
    size = str(len(reply.body)).encode()
    headers = [(b"content-type", reply.content_type), (b"content-length", size), *reply.headers]
    return head_of(reply.status, headers, date, close=True) + reply.body


class Exchange:
    """A request whose body may still arrive, and its answer, written in one piece where it is one.

    ``is_whole``: all of the request was read. ``is_answered``: the answer was begun, ``is_done``: and ended.
    ``is_gone``: nobody hears an answer any more.
    """

    __slots__ = (
        "_chunked",
        "_connection",
        "_expects_continue",
        "_left",
        "_parts",
        "_start",
        "_told_all",
        "_waiter",
        "_waiting",
        "is_answered",
        "is_done",
        "is_gone",
        "is_whole",
        "keep_alive",
        "scope",
    )

    def __init__(
        self, connection: Connection, scope: Scope, *, keep_alive: bool, expects_continue: bool
    ) -> None:
        self.scope = scope
        self.keep_alive = keep_alive
        self.is_whole = self.is_answered = self.is_done = self.is_gone = False
        self._connection = connection
        self._expects_continue = expects_continue
        self._parts: list[bytes] = []
        self._waiting = 0
        self._told_all = False
        self._left = False
        self._waiter: asyncio.Future[None] | None = None
        self._start: Message | None = None
        self._chunked = False

    # The connection's side.

    def add(self, part: bytes) -> None:
        """More of the body."""
        self._parts.append(part)
        self._waiting += len(part)
        if self._waiting > BODY_WAITING_MAX:
            self._connection.pause_reading()
        self._wake()

    def complete(self) -> None:
        """The body is whole."""
        self.is_whole = True
        self._wake()

    def hang_up(self) -> None:
        """The client sends no more: it may have left, or listen on."""
        self._left = True
        self._wake()

    def leave(self) -> None:
        """The connection is gone, or was answered past this request."""
        self.is_gone = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # The application's side.

    async def run(self, app: ASGIApp) -> None:
        """Let the application answer. Whatever it does, the connection goes on or is closed."""
        try:
            await self._run(app)
        finally:
            self._connection.ended()

    async def _run(self, app: ASGIApp) -> None:
        try:
            await app(self.scope, self.receive, self.send)
        except Exception:
            log.exception("%s %s failed", self.scope["method"], self.scope["path"])
            if not self.is_answered and not self.is_gone:
                problem = Problem("internal_error", "this is our mistake; the log has more")
                self._connection.refuse(problem)
                return
        except asyncio.CancelledError:
            self._connection.abort()
            raise
        if (
            not self.is_done and not self.is_gone
        ):  # half an answer, or none: whoever waits must hear it
            self._connection.abort()

    async def receive(self) -> Message:
        while not self.is_gone:
            if self._parts or (self.is_whole and not self._told_all):
                parts, self._parts, self._waiting = self._parts, [], 0
                self._told_all = self.is_whole
                self._connection.resume_reading()
                body = parts[0] if len(parts) == 1 else b"".join(parts)
                return {"type": "http.request", "body": body, "more_body": not self.is_whole}
            if self._left and self._told_all:
                break
            if self._expects_continue:
                self._expects_continue = False
                if not self.is_answered:
                    self._connection.write(_CONTINUE)
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
            self._waiter = None
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if self.is_gone:
            return
        if message["type"] == "http.response.start":
            self._start = message
            return
        body: bytes = message.get("body", b"")
        more: bool = message.get("more_body", False)
        start, self._start = self._start, None
        head = b""
        if start is not None:
            self.is_answered = True
            head = self._head(start, more)
        if self.scope["method"] == "HEAD":
            body = b""
        elif self._chunked:
            framed = b"%x\r\n%s\r\n" % (len(body), body) if body else b""
            body = framed if more else framed + b"0\r\n\r\n"
        self._connection.write(head + body)
        if more:
            await self._connection.drain()
        else:
            self.is_done = True
            self._connection.answered(self)

    def _head(self, start: Message, more: bool) -> bytes:
        headers: list[tuple[bytes, bytes]] = list(start["headers"])
        closes = False
        sized = False
        for name, value in headers:
            if name == b"connection" and value == b"close":
                closes = True
            elif name == b"content-length":
                sized = True
        if closes or not self.is_whole:
            self.keep_alive = False
        if more and not sized and self.scope["method"] != "HEAD":
            self._chunked = self.scope["http_version"] == "1.1"
            if self._chunked:
                headers.append((b"transfer-encoding", b"chunked"))
            else:
                self.keep_alive = False
        close = not self.keep_alive and not closes
        return head_of(start["status"], headers, self._connection.date(), close=close)
