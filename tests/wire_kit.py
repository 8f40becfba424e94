"""A running service talked to by sockets: what is sent is exactly what is written in the test."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, Self

import httpx
import psutil
from running import Service

_names = count()


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found

    @property
    def code(self) -> str:
        """Of a refusal; each is problem details, whoever gave it."""
        assert self.headers["content-type"] == "application/problem+json", self
        assert self.json()["status"] == self.status
        return str(self.json()["code"])


class Talk:
    """A connection. ``answer`` reads one answer, interim ones included."""

    def __init__(self, service: Service, *, receive_bytes: int = 0, timeout_s: float = 30) -> None:
        self.socket = socket.socket()
        if receive_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(timeout_s)
        self.socket.connect(("127.0.0.1", service.port))
        self._read = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, *segments: bytes) -> Self:
        for segment in segments:
            self.socket.sendall(segment)
        return self

    def send_no_more(self) -> Self:
        self.socket.shutdown(socket.SHUT_WR)
        return self

    def answer(self) -> Answer:
        head = self._until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        headers = {}
        for line in head[1:-2]:
            name, _, value = line.partition(": ")
            assert name.lower() not in headers, head
            headers[name.lower()] = value
        size = int(headers.get("content-length", 0))
        while len(self._read) < size:
            self._more()
        body, self._read = self._read[:size], self._read[size:]
        assert head[0].startswith("HTTP/1.1 "), head
        return Answer(int(head[0].split(" ")[1]), headers, body)

    def ends(self) -> bool:
        """Nothing more comes, and the connection is closed (or reset)."""
        try:
            return not self._read and self.socket.recv(1) == b""
        except ConnectionError:
            return not self._read

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._read:
            self._more()
        end = self._read.index(mark) + len(mark)
        found, self._read = self._read[:end], self._read[end:]
        return found

    def _more(self) -> None:
        received = self.socket.recv(262_144)
        if not received:
            raise ConnectionError(f"closed after {self._read[:200]!r}")
        self._read += received


def request(
    target: str,
    body: bytes | dict[str, Any] | None = None,
    *lines: str,
    method: str = "POST",
    kind: str | None = "application/json",
    chunks: int = 0,
    version: str = "1.1",
) -> bytes:
    """The bytes of a request. ``chunks``: the body goes in so many; ``lines``: further header lines."""
    head = [f"{method} {target} HTTP/{version}", "Host: 127.0.0.1", *lines]
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    if kind is not None and data is not None:
        head.append(f"Content-Type: {kind}")
    if data is not None:
        head.append("Transfer-Encoding: chunked" if chunks else f"Content-Length: {len(data)}")
    return "\r\n".join([*head, "\r\n"]).encode() + (
        data or b"" if not chunks else chunked(data or b"", chunks)
    )


def chunked(data: bytes, chunks: int) -> bytes:
    size = -(-len(data) // chunks) or 1
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    return b"".join([b"%x\r\n%s\r\n" % (len(part), part) for part in parts]) + b"0\r\n\r\n"


class Shop:
    """A service with stock, asked by an ordinary client what has become of it."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.client = httpx.Client(base_url=service.url, trust_env=False, timeout=60)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def hold(self, units: int = 10) -> str:
        """A reservation of all units of a sku of the same name."""
        name = f"n{next(_names)}"
        move = {
            "movement_id": name,
            "type": "receive",
            "sku": name,
            "location": "M",
            "quantity": units,
        }
        assert self.client.post("/v1/movements", json=move).status_code == 201
        line = {"sku": name, "quantity": units, "location": "M"}
        order = {"reservation_id": name, "order_id": name, "lines": [line]}
        assert self.client.post("/v1/reservations", json=order).status_code == 201
        return name

    def left(self, name: str) -> tuple[int, int]:
        """on_hand and held of a sku."""
        stock = self.client.get(f"/v1/stock/{name}").json()
        return stock["on_hand"], stock["held"]

    def memory_mib(self) -> float:
        """What the worker has resident."""
        resident: int = psutil.Process(self.service.pid).memory_info().rss
        return resident / 2**20


def part(name: str, quantity: int = 1) -> dict[str, Any]:
    """The body of a confirm or release of so many units."""
    line = {"sku": name, "quantity": quantity, "location": "M"}
    return {"request_id": "p", "lines": [line]}


@contextmanager
def talks(service: Service, number: int, **options: Any) -> Iterator[list[Talk]]:
    """So many connections."""
    opened: list[Talk] = []
    try:
        for _ in range(number):
            opened.append(Talk(service, **options))
        yield opened
    finally:
        for talk in opened:
            talk.socket.close()
