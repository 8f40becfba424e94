"""httptools as it is needed here: bytes of HTTP/1.1 become requests, whatever else they ask for."""

from __future__ import annotations

from typing import Any, Protocol
from urllib.parse import unquote

import httptools
import msgspec

from api.problems import Problem


class Head(msgspec.Struct, frozen=True, gc=False):
    """Request line and headers, names in lower case. ``body_bytes``: as announced, 0 where it is none or
    comes in chunks. ``keep_alive``: the client may send another request."""

    method: str
    target: bytes
    version: str
    headers: list[tuple[bytes, bytes]]
    body_bytes: int
    keep_alive: bool
    expects_continue: bool

    def scope(self) -> dict[str, Any]:
        """What ASGI calls a scope."""
        raw_path, _, query = self.target.partition(b"?")
        path = raw_path.decode()
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": self.version,
            "method": self.method,
            "scheme": "http",
            "path": unquote(path) if "%" in path else path,
            "raw_path": raw_path,
            "query_string": query,
            "root_path": "",
            "headers": self.headers,
        }


class Reader(Protocol):
    """Who is told what was read."""

    def head(self, head: Head) -> None: ...
    def body(self, part: bytes) -> None: ...
    def end(self) -> None: ...


class Parser:
    """Tells a Reader of requests. Each piece it is fed must end with the head that it may hold.

    ``is_within``: a head was begun and isn't whole.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._parser: Any = httptools.HttpRequestParser(self)
        self._target = self._method = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._misfit = ""
        self._upgrades = False
        self.is_within = False

    def feed(self, piece: bytes | memoryview) -> Problem | None:
        """Read on; the problem where it is no HTTP. Nothing can be read after one."""
        try:
            self._parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            return self._read_without_upgrade()
        except httptools.HttpParserError as error:
            return Problem("invalid_request", self._misfit or f"this is not HTTP/1.1: {error}")
        return None

    def close(self) -> None:
        """Break the circle of references: cyclic garbage is collected seldom here."""
        self._parser = None

    def _read_without_upgrade(self) -> Problem | None:
        """httptools skips the body of a request that asks for another protocol. Nobody must take up that
        offer, so a new parser is given the same head without it."""
        self._upgrades = False
        if self._method == b"CONNECT":
            return Problem("method_not_allowed", "this is no proxy: CONNECT is not possible")
        version = self._parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (self._method, self._target, version)]
        for name, value in self._headers:
            if name not in (b"upgrade", b"http2-settings"):
                lines.append(b"%s: %s" % (name, value))
        self._parser = httptools.HttpRequestParser(self)
        return self.feed(b"\r\n".join(lines) + b"\r\n\r\n")

    # What httptools tells.

    def on_message_begin(self) -> None:
        self._target = b""
        self._headers = []
        self.is_within = True

    def on_url(self, target: bytes) -> None:
        self._target += target

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.is_within:  # not those behind a chunked body
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.is_within = False
        self._method = self._parser.get_method()
        self._upgrades = self._parser.should_upgrade()
        if not self._upgrades:
            self._reader.head(self._head())

    def on_body(self, body: bytes) -> None:
        self._reader.body(body)

    def on_message_complete(self) -> None:
        if not self._upgrades:
            self._reader.end()

    def _head(self) -> Head:
        version = self._parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise self._says(f"the version is HTTP/{version}; it must be HTTP/1.1 or HTTP/1.0")
        target = self._target
        if not target.startswith(b"/"):
            target = self._path_of(target)
        if b"#" in target:
            raise self._says("the target of a request has no fragment ('#')")
        is_newest = version == "1.1"
        body_bytes, expects_continue = 0, False
        for name, value in self._headers:
            if name == b"content-length":
                body_bytes = int(value)
            elif name == b"expect":
                expects_continue = is_newest and value.lower() == b"100-continue"
        return Head(
            self._method.decode(),
            target,
            version,
            self._headers,
            body_bytes,
            is_newest and self._parser.should_keep_alive(),
            expects_continue,
        )

    def _says(self, misfit: str) -> ValueError:
        self._misfit = misfit  # httptools keeps the exception of a callback to itself
        return ValueError(misfit)

    def _path_of(self, target: bytes) -> bytes:
        """Of ``http://host/path`` the path; the host counts instead of the header (RFC 9112, 3.2.2)."""
        scheme, mark, rest = target.partition(b"://")
        if not mark or scheme.lower() not in (b"http", b"https"):
            return target
        ends = [at for at in (rest.find(b"/"), rest.find(b"?")) if at >= 0]
        end = min(ends, default=len(rest))
        self._headers = [pair for pair in self._headers if pair[0] != b"host"]
        self._headers.append((b"host", rest[:end]))
        path = rest[end:]
        return path if path.startswith(b"/") else b"/" + path
