"""One client's connection: its bytes become requests, one after the other.

The parser gets no byte behind the request that is being answered: so that answer stands whatever follows
it, and requests that come together wait in the bytes they came in. The cut is exact, since a head and a
chunked body both end with an empty line, and any other body has as many bytes as its head says.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

from starlette.types import ASGIApp
from uvicorn.server import ServerState

from api.exchange import Exchange, bytes_of
from api.parser import Head, Parser
from api.problems import Problem

if TYPE_CHECKING:
    from api.connections import Connections

_EMPTY_LINE = b"\r\n\r\n"
#: A request of this size is always read, however much the others hold.
FREE_BYTES = 16 * 1024
#: After the last answer what still comes is dropped, so much and so long, so that the client can hear it:
#: closing at once would reset the connection.
DROPPED_MAX_BYTES = 16 * 1024 * 1024
LINGER_S = 5.0
_NEVER_S = float("inf")


class Connection(asyncio.Protocol):
    """Reads requests and hands them to the application, one at a time and in order. Made by
    Connections, which ends it at ``deadline_s`` (of the loop's clock)."""

    def __init__(
        self,
        all_of_them: Connections,
        app: ASGIApp,
        server_state: ServerState,
        app_state: dict[str, Any],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._all = all_of_them
        self._app = app
        self._server_state = server_state
        self._app_state = app_state
        self._loop = loop
        self.deadline_s = _NEVER_S
        self._transport: asyncio.Transport
        self._parser = Parser(self)
        self._addresses: tuple[Any, Any] = (None, None)
        self._exchange: Exchange | None = None
        self._rest = b""  # came behind the request that is being answered
        self._tail = b""  # of what was read, where an empty line may have begun
        self._head_bytes = 0
        self._idle_bytes = 0  # since the body last grew
        self._body_left = 0
        self._held = 0
        self._is_leaving = False
        self._dropped = 0
        self._is_paused = False
        self._has_ended = False  # the client sends no more
        self._is_last = False
        self._is_lost = False
        self._drained: asyncio.Future[None] | None = None
        self._is_unsent = False

    # What the event loop tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=0)  # paused is: something is unsent
        peer, own = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        self._addresses = (peer[:2] if peer else None, own[:2] if own else None)
        self.deadline_s = self._loop.time() + self._all.head_s
        if self._all.add(self, self._loop):
            self._server_state.connections.add(self)  # type: ignore[arg-type]
        elif self._all.may_linger():
            self.refuse(Problem("overloaded", "too many connections are open; nothing was read"))
        else:
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._all.remove(self)
        self._server_state.connections.discard(self)
        self.deadline_s = _NEVER_S
        self._is_leaving, self._rest = True, b""
        self._is_lost = True
        self._parser.close()
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.leave()
        if exchange is None or not exchange.is_whole:
            self._let_go()
        self._wake()

    def data_received(self, data: bytes) -> None:
        if self._is_leaving:
            self._dropped += len(data)
            if self._dropped > DROPPED_MAX_BYTES:
                self.abort()
        elif self._rest or self._is_busy():
            self._keep(data)
        else:
            self._read(data)

    def eof_received(self) -> bool:
        """True: answer first, then close."""
        self._has_ended = True
        exchange = self._exchange
        if self._is_leaving:
            return False
        if self._rest or (exchange is not None and exchange.is_whole):
            if exchange is not None:
                exchange.hang_up()
            return True
        self._end_early()
        return False

    def pause_writing(self) -> None:
        self._is_unsent = True
        self._all.waits(self, self._transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        self._is_unsent = False
        self._all.sent(self)
        self._wake()
        if self._is_leaving:
            self.deadline_s = self._loop.time() + LINGER_S
        elif self._exchange is None:
            self._go_on()

    # What Connections and uvicorn want.

    def expire(self) -> None:
        """The deadline has passed."""
        if self._is_leaving or self._is_unsent:
            self.abort()
        elif self._head_bytes:
            limit_s = self._all.head_s
            self.refuse(Problem("request_timeout", f"the head was not whole after {limit_s:g} s"))
        else:
            self._is_leaving = True
            self._transport.close()

    def abort(self) -> None:
        """End it at once, whatever is unsent."""
        self._is_leaving = True
        if not self._is_lost:
            self._transport.abort()

    def shutdown(self) -> None:
        """uvicorn ends: answer what is being answered, nothing more."""
        self._is_last = True
        if self._exchange is not None:
            self._exchange.keep_alive = False
        elif not self._is_leaving:
            self._is_leaving = True
            self._transport.close()

    # From bytes to requests.

    def _read(self, data: bytes) -> None:
        """Up to the end of one request; what comes behind it is kept."""
        start, size = 0, len(data)
        while start < size:
            exchange = self._exchange
            if exchange is None:
                stop = self._end_of_line(data, start)
                if not self._head_bytes:
                    self.deadline_s = self._loop.time() + self._all.head_s
                self._head_bytes += stop - start
                if self._head_bytes > self._all.settings.head_max_bytes:
                    self.refuse(self._too_large())
                    return
            elif exchange.is_whole:
                self._keep(data[start:])
                return
            elif self._body_left:
                stop = min(size, start + self._body_left)
                self._body_left -= stop - start
            else:
                stop = self._end_of_line(data, start)
                self._idle_bytes += stop - start
            piece = data if stop - start == size else memoryview(data)[start:stop]
            if not self._feed(piece, stop - start):
                return
            start = stop
        if self._exchange is None and not self._parser.is_within:
            self._head_bytes = 0  # blank lines between requests

    def _is_busy(self) -> bool:
        """Is a request being answered, or its answer not sent yet?"""
        exchange = self._exchange
        return self._is_unsent if exchange is None else exchange.is_whole

    def _end_of_line(self, data: bytes, start: int) -> int:
        """Where the next empty line ends, or all of it."""
        tail, self._tail = self._tail, b""
        if tail:
            at = (tail + data[start : start + 3]).find(_EMPTY_LINE)
            if at >= 0:
                return start + at + 4 - len(tail)
        at = data.find(_EMPTY_LINE, start)
        if at >= 0:
            return at + 4
        self._tail = (tail + data[max(start, len(data) - 3) :])[-3:]
        return len(data)

    def _feed(self, piece: bytes | memoryview, size: int) -> bool:
        """Let the parser have it; False where the request was refused."""
        if self._hold(size):
            problem = self._parser.feed(piece)
        else:
            problem = Problem("overloaded", "too much is being read already; nothing was changed")
        if problem is None and self._idle_bytes > self._all.settings.head_max_bytes:
            problem = self._too_large()
        if problem is not None:
            self.refuse(problem)
        return problem is None

    def _too_large(self) -> Problem:
        limit = self._all.settings.head_max_bytes
        told = f"request line and headers may have {limit} bytes together"
        return Problem("headers_too_large", told)

    # What the parser tells.

    def head(self, head: Head) -> None:
        if self._exchange is not None:
            raise ValueError("a request within a request")
        scope = head.scope()
        scope["client"], scope["server"] = self._addresses
        scope["state"] = self._app_state.copy()
        self._body_left = head.body_bytes
        self._head_bytes = self._idle_bytes = 0
        self.deadline_s = _NEVER_S
        self._exchange = exchange = Exchange(
            self,
            scope,
            keep_alive=head.keep_alive and not self._is_last,
            expects_continue=head.expects_continue,
        )
        task = self._loop.create_task(exchange.run(self._app))
        self._server_state.tasks.add(task)
        task.add_done_callback(self._server_state.tasks.discard)

    def body(self, part: bytes) -> None:
        self._idle_bytes = 0
        if self._exchange is not None:
            self._exchange.add(part)

    def end(self) -> None:
        if self._exchange is not None:
            self._exchange.complete()

    # What Exchange wants.

    def date(self) -> bytes:
        """The headers that every answer has."""
        return self._all.date(self._server_state.default_headers)

    def write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    async def drain(self) -> None:
        """Until the client has taken all."""
        if self._is_unsent and not self._is_leaving:
            self.deadline_s = self._loop.time() + self._all.send_s
            self._drained = self._loop.create_future()
            await self._drained
            self.deadline_s = _NEVER_S

    def ended(self) -> None:
        """The application is done with a request. One whose client has left counted until now."""
        if self._is_lost:
            self._let_go()

    def answered(self, exchange: Exchange) -> None:
        """The answer is written. The next request is read once this one is sent."""
        self._server_state.total_requests += 1
        if self._exchange is not exchange:
            return
        self._exchange = None
        self._let_go()
        if not exchange.keep_alive:
            self._leave()
        elif not self._is_unsent:
            self._go_on()
        else:
            self.deadline_s = self._loop.time() + self._all.send_s

    def refuse(self, problem: Problem) -> None:
        """Answer what is no request, or can't be read to its end, and close."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.leave()
        if exchange is None or not exchange.is_answered:
            self.write(bytes_of(problem.reply(), self.date()))
        self._let_go()
        self._leave()

    def pause_reading(self) -> None:
        if not self._is_paused and not self._has_ended and not self._transport.is_closing():
            self._is_paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if not self._is_paused or self._rest:
            return
        self._is_paused = False
        if not self._has_ended and not self._transport.is_closing():
            self._transport.resume_reading()

    # Between requests.

    def _keep(self, data: bytes) -> None:
        """It waits until the request before it was answered; where all hold too much, it is dropped, and
        that answer is the last."""
        self.pause_reading()
        if self._hold(len(data)):
            self._rest += data
        elif self._exchange is not None:
            self._rest = b""
            self._exchange.keep_alive = False
        else:
            self._leave()

    def _go_on(self) -> None:
        """Read the next request, where it is here already."""
        if self._is_leaving:
            return
        self.deadline_s = self._loop.time() + self._all.keep_alive_s
        rest, self._rest = self._rest, b""
        if rest:
            self._read(rest)
        if self._has_ended and not self._is_leaving and not self._rest:
            exchange = self._exchange
            if exchange is None or not exchange.is_whole:
                self._end_early()
            else:
                exchange.hang_up()
        self.resume_reading()

    def _end_early(self) -> None:
        """The client sends no more, and no request of it is whole."""
        if self._exchange is not None:
            self.refuse(Problem("invalid_request", "the body ended before it was whole"))
        elif self._head_bytes:
            self.refuse(Problem("invalid_request", "the request ended before it was whole"))
        else:
            self._leave()

    def _leave(self) -> None:
        """Close once the client has heard the last answer, or has had time to."""
        if self._is_leaving:
            return
        self._is_leaving, self._rest = True, b""
        linger_s = self._all.send_s if self._is_unsent else LINGER_S
        self.deadline_s = self._loop.time() + linger_s
        self._server_state.connections.discard(self)
        if self._transport.is_closing():
            return
        if self._has_ended or self._is_last:
            self._transport.close()
            return
        self._transport.write_eof()
        self.resume_reading()

    def _hold(self, size: int) -> bool:
        """Count what this request takes; False where all of them take too much."""
        before, self._held = self._held, min(self._held + size, self._all.request_max)
        more = self._held - max(before, FREE_BYTES)
        return more <= 0 or self._all.hold(more) or self._give_back(before)

    def _give_back(self, held: int) -> bool:
        self._held = held
        return False

    def _let_go(self) -> None:
        self._all.held -= max(0, self._held - FREE_BYTES)
        self._held = 0

    def _wake(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
