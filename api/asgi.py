"""HTTP plumbing between Starlette's router and our handlers: bodies in, bytes out, problems.

A handler is ``async def handler(call) -> Reply``; it raises ``Problem`` to refuse. Endpoints are bare
ASGI applications, so that the hottest of them costs no more than its own work.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from starlette.types import Receive, Scope, Send

from api.problems import Problem, Reply

log = logging.getLogger("holdfast.api")

DRAIN_MAX_BYTES = 16 * 1024 * 1024
BODY_MAX_S = 30.0


class Call:
    """One request: path parameters, query, headers and the whole body."""

    __slots__ = ("_receive", "body", "scope")

    def __init__(self, scope: Scope, body: bytes, receive: Receive) -> None:
        self.scope = scope
        self.body = body
        self._receive = receive

    @property
    def state(self) -> Any:
        """What the lifespan made: engine, ledger, settings (api/app.py)."""
        return self.scope["app"].state

    def path(self, name: str) -> str:
        value: str = self.scope["path_params"][name]
        return value

    def header(self, name: bytes) -> str | None:
        """The header's value; None where it is missing."""
        for key, value in self.scope["headers"]:
            if key == name:
                text: str = value.decode("latin-1")
                return text
        return None

    async def left(self) -> None:
        """Waits until the client has left."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def query(self, allowed: frozenset[str]) -> list[tuple[str, str]]:
        """The query's parameters in order. Problem 400 for one that isn't allowed."""
        pairs = parse_qsl(self.scope["query_string"].decode("latin-1"), keep_blank_values=True)
        for name, _ in pairs:
            if name not in allowed:
                raise Problem(
                    "invalid_request",
                    f"query parameter {name!r} is not known here; known: "
                    + ", ".join(sorted(allowed)),
                )
        return pairs


_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
Handler = Callable[[Call], Awaitable[Reply]]


class Endpoint:
    """An ASGI application that dispatches by method and turns a handler's result into bytes."""

    def __init__(self, **handlers: Handler) -> None:
        self._handlers = dict(handlers)
        if "GET" in handlers:
            self._handlers["HEAD"] = handlers["GET"]
        self._allow = ", ".join(sorted(self._handlers))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            # First of all, also where it is refused: a client that still sends hears no answer.
            state = scope["app"].state
            body = await state.patience.body(receive, state.settings.body_max_bytes)
            state.hosts.check(scope["headers"], scope["http_version"])
            call = Call(scope, body, receive)
            handler = self._handlers.get(scope["method"], self._refuse_method)
            if scope["method"] in _WITH_BODY and handler != self._refuse_method:
                check_body(call)
            reply = await handler(call)
        except Problem as problem:
            reply = problem.reply()
        except Disconnected:
            return
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            reply = Problem("internal_error", "this is our mistake; the log has more").reply()
        await send_reply(reply, send)

    async def _refuse_method(self, call: Call) -> Reply:
        raise Problem(
            "method_not_allowed",
            f"{call.scope['method']} is not possible here; possible: {self._allow}",
            headers=((b"allow", self._allow.encode()),),
        )


async def send_reply(reply: Reply, send: Send) -> None:
    """Write a reply."""
    await send(
        {
            "type": "http.response.start",
            "status": reply.status,
            "headers": [
                (b"content-type", reply.content_type),
                (b"content-length", str(len(reply.body)).encode()),
                *reply.headers,
            ],
        }
    )
    await send({"type": "http.response.body", "body": reply.body})


class Disconnected(Exception):
    """The client left before it was answered; what it asked for was not done."""


class Patience:
    """Gives up bodies that take too long to arrive: one look a second at all of them, since a timer for
    each took longer than reading it."""

    def __init__(self, limit_s: float = BODY_MAX_S) -> None:
        self.limit_s = limit_s
        self._since: dict[asyncio.Task[Any], float] = {}  # in order of time
        self._given_up: set[asyncio.Task[Any]] = set()

    async def watch(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(1.0)
            latest_s = time.monotonic() - self.limit_s
            for task, since_s in list(self._since.items()):
                if since_s > latest_s:
                    break
                self._given_up.add(task)
                task.cancel()

    async def body(self, receive: Receive, limit: int) -> bytes:
        """The whole body. Problem 413 past the limit (the rest is read and dropped, 16 MiB at most, so
        that the client hears it), 408 where it takes too long."""
        task = asyncio.current_task()
        assert task is not None
        self._since[task] = time.monotonic()
        try:
            return await _read_body(receive, limit)
        except asyncio.CancelledError:
            if task not in self._given_up:
                raise
            task.uncancel()
            raise Problem(
                "request_timeout",
                f"the body was not whole after {self.limit_s:.0f} s",
                headers=((b"connection", b"close"),),
            ) from None
        finally:
            self._since.pop(task)
            self._given_up.discard(task)


async def _read_body(receive: Receive, limit: int) -> bytes:
    chunks: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        part: bytes = message.get("body", b"")
        more = message.get("more_body", False)
        size += len(part)
        if size <= limit:
            chunks.append(part)
        elif size > DRAIN_MAX_BYTES:
            break
    if size > limit:
        raise _too_large(limit)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _too_large(limit: int) -> Problem:
    return Problem(
        "body_too_large",
        f"a body may have {limit} bytes at most; send it in parts",
        headers=((b"connection", b"close"),),
    )


class Nowhere(Endpoint):
    """For every path without a route."""

    async def _refuse_method(self, call: Call) -> Reply:
        raise Problem("not_found", f"there is nothing at {call.scope['path'][:200]!r}")


def check_body(call: Call) -> None:
    """Problem 415 for a body that is not said to be JSON, 400 where JSON is announced and nothing came, or
    another length: what a body would have narrowed must never be taken for all."""
    kinds: list[bytes] = []
    for name, value in call.scope["headers"]:
        if name == b"content-type":
            kinds.append(value)
        elif name == b"content-length":
            if not value.isdigit() or int(value) != len(call.body):
                raise Problem(
                    "invalid_request",
                    f"content-length is {_text(value)}, and {len(call.body)} bytes came",
                )
        elif name == b"content-encoding" and value.lower() != b"identity":
            raise Problem(
                "unsupported_media_type",
                f"content-encoding is {_text(value)}; send the body as it is",
            )
    if len(kinds) == 1 and kinds[0] == b"application/json" and call.body:
        return
    if len(kinds) > 1:
        raise Problem("unsupported_media_type", "content-type was sent more than once")
    kind = kinds[0].split(b";")[0].strip().lower() if kinds else None
    if call.body and kind is None:
        raise Problem(
            "unsupported_media_type",
            "a body came without content-type; it must be application/json",
        )
    if call.body and kind is not None and kind != b"application/json":
        raise Problem(
            "unsupported_media_type", f"content-type is {_text(kind)}; it must be application/json"
        )
    if not call.body and kind is not None and b"json" in kind:
        raise Problem("invalid_request", f"content-type is {_text(kind)}, and there is no body")


def _text(value: bytes) -> str:
    return repr(value[:100].decode("latin-1"))


def decode_json(call: Call, decoder: msgspec.json.Decoder[Any]) -> Any:
    """The body as the decoder's type. Problem 400 that names the field and the value."""
    try:
        return decode(decoder, call.body)
    except Unreadable as error:
        raise Problem("invalid_request", str(error)) from None


class Unreadable(ValueError):
    """A JSON text that does not fit; the text names the field, what was expected, what was there."""


def decode(decoder: msgspec.json.Decoder[Any], data: bytes | msgspec.Raw) -> Any:
    """``data`` as the decoder's type; Unreadable for whatever is wrong with it."""
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise Unreadable(_explain(error, bytes(data))) from None
    except UnicodeDecodeError:
        raise Unreadable("the body is not UTF-8") from None
    except RecursionError:
        raise Unreadable("the body is nested too deeply") from None
    except (msgspec.MsgspecError, ValueError) as error:
        raise Unreadable(f"the body is not JSON: {error}") from None


def _explain(error: msgspec.ValidationError, data: bytes) -> str:
    """msgspec's complaint with the path first and the value that was there, where it can be found."""
    complaint, _, path = str(error).partition(" - at `")
    if not path:
        return complaint
    path = path.rstrip("`").removeprefix("$").removeprefix(".")
    value = _value_at(data, path)
    shown = "" if value is _NOWHERE else f", got {_short(value)}"
    return f"{path or 'the body'}: {complaint}{shown}"


_NOWHERE = object()


def _short(value: object) -> str:
    try:
        text = msgspec.json.encode(value).decode()
    except (ValueError, RecursionError, msgspec.MsgspecError):
        return "a value that can't be shown"
    return text if len(text) <= 80 else text[:77] + "…"


def _value_at(data: bytes, path: str) -> object:
    """The value at a path like ``lines[0].quantity``."""
    try:
        found = msgspec.json.decode(data)
        for step in path.replace("[", ".[").strip(".").split("."):
            found = found[int(step[1:-1])] if step.startswith("[") else found[step]
    except (ValueError, LookupError, TypeError, RecursionError, msgspec.MsgspecError):
        return _NOWHERE
    return found
