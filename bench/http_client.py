"""The load generator of the HTTP figures: one process, raw HTTP/1.1 over kept connections.

``python -m bench.http_client`` reads one JSON line (Orders), connects, prints ``ready``, begins at the
next line of its input, and prints what it did (Done). Closed loop: each connection asks anew once it has
its answer. Open loop: a request is due every 1 / ``rate`` seconds, whatever the server does; its latency
counts from that moment, so waiting for a free connection is part of it.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections import deque
from itertools import count
from typing import cast
from urllib.parse import urlsplit

import msgspec
from hdrh.histogram import HdrHistogram

from bench.child import serve

LONGEST_US = 60_000_000
PERCENTILES = (50.0, 90.0, 99.0, 99.9)
PATIENCE_S = 30.0
#: What is due is sent this often. The loop's clock knows no less: with shorter sleeps it would not sleep at
#: all, and take a core from the service. A request's wait for the tick is part of its latency.
TICK_S = 0.001


class Orders(msgspec.Struct, frozen=True, kw_only=True):
    """What to do. ``work``: reserve, stock, batch or echo; ``rate`` 0 is the closed loop. ``at_once``:
    operations a batch. Acknowledged ids go to the file ``acknowledged``, a line each."""

    url: str
    work: str
    run: str
    seconds: float
    connections: int
    rate: float = 0.0
    at_once: int = 200
    sku: str = "hot"
    acknowledged: str = ""


class Done(msgspec.Struct, frozen=True):
    """``units``: reservations that were acknowledged, or answers of 200 where nothing is reserved;
    ``statuses``: answers by HTTP status; ``unavailable``: operations of batches whose outcome is unknown;
    latencies by percentile in ms."""

    units: int
    seconds: float
    statuses: dict[int, int]
    latency_ms: dict[str, float]
    failed: int
    unavailable: int = 0


class Result(msgspec.Struct, frozen=True, gc=False):
    """What the load generator reads of one result."""

    code: str


class Results(msgspec.Struct, frozen=True, gc=False):
    results: list[Result]


_decode = msgspec.json.Decoder(Results).decode


class Load:
    """The connections together: what is to be sent next, what has come back."""

    def __init__(self, orders: Orders) -> None:
        self.orders = orders
        self.host = urlsplit(orders.url).netloc
        self.numbers = count()
        self.acknowledged: list[str] = []
        self.units = 0
        self.statuses: dict[int, int] = {}
        self.failed = 0
        self.unavailable = 0
        self.histogram = HdrHistogram(1, LONGEST_US, 3)
        self.ending_s = float("inf")
        self.free: deque[Connection] = deque()
        self.due: deque[float] = deque()
        self.open = 0

    def request(self) -> tuple[bytes, list[str]]:
        """The bytes of the next request, and the ids in it."""
        orders = self.orders
        if orders.work == "stock":
            return self._get(f"/v1/stock/{orders.sku}"), []
        size = orders.at_once if orders.work == "batch" else 1
        ids = [f"{orders.run}-{next(self.numbers)}" for _ in range(size)]
        parts = [
            f'"reservation_id":"{each}","order_id":"o-{each}","lines":'
            f'[{{"sku":"{orders.sku}","quantity":1,"location":"MAIN"}}]}}'
            for each in ids
        ]
        if orders.work == "batch":
            body = '{"operations":[' + ",".join(['{"op":"reserve",' + p for p in parts]) + "]}"
            return self._post("/v1/batch", body), ids
        path = "/echo" if orders.work == "echo" else "/v1/reservations"
        return self._post(path, "{" + parts[0]), ids

    def _get(self, path: str) -> bytes:
        return f"GET {path} HTTP/1.1\r\nHost: {self.host}\r\n\r\n".encode()

    def _post(self, path: str, body: str) -> bytes:
        return (
            f"POST {path} HTTP/1.1\r\nHost: {self.host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}"
        ).encode()

    def answered(self, status: int, body: bytes, ids: list[str], since_s: float) -> None:
        self.histogram.record_value(max(1, int((time.monotonic() - since_s) * 1e6)))
        self.statuses[status] = self.statuses.get(status, 0) + 1
        if self.orders.work == "batch" and status == 200:
            results = _decode(body).results
            held = [i for i, r in zip(ids, results, strict=True) if r.code == "reserved"]
            self.acknowledged += held
            self.units += len(held)
            self.unavailable += sum([r.code == "unavailable" for r in results])
        elif status == 201:
            self.acknowledged += ids
            self.units += 1
        elif status == 200 and self.orders.work in ("stock", "echo"):
            self.units += 1

    def done(self, seconds: float) -> Done:
        return Done(
            self.units,
            seconds,
            self.statuses,
            {f"p{p:g}": self.histogram.get_value_at_percentile(p) / 1000 for p in PERCENTILES},
            self.failed,
            self.unavailable,
        )


class Connection(asyncio.Protocol):
    """One kept connection with at most one request under way."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._buffer = b""
        self._ids: list[str] = []
        self._since_s = 0.0
        self._busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._load.open += 1

    def connection_lost(self, error: Exception | None) -> None:
        self._load.failed += self._busy

    def send(self, since_s: float) -> None:
        data, self._ids = self._load.request()
        self._since_s, self._busy = since_s, True
        self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        head = self._buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        at = self._buffer.lower().find(b"content-length:", 0, head)
        size = int(self._buffer[at + 15 : self._buffer.find(b"\r\n", at)])
        if len(self._buffer) < head + 4 + size:
            return
        status, body = int(self._buffer[9:12]), self._buffer[head + 4 : head + 4 + size]
        self._buffer, self._busy = b"", False
        load = self._load
        load.answered(status, body, self._ids, self._since_s)
        now_s = time.monotonic()
        if load.due:
            self.send(load.due.popleft())
        elif load.orders.rate:
            load.free.append(self)
        elif now_s < load.ending_s:
            self.send(now_s)

    @property
    def busy(self) -> bool:
        return self._busy

    def close(self) -> None:
        self._transport.close()


async def run(orders: Orders) -> tuple[Done, list[str]]:
    """Connect, wait for the word, work; what was done, and the ids that were acknowledged."""
    load, loop = Load(orders), asyncio.get_running_loop()
    place = urlsplit(orders.url)
    connections: list[Connection] = []
    for _ in range(orders.connections):
        _, connection = await loop.create_connection(
            lambda: Connection(load), place.hostname or "", place.port or 80
        )
        connections.append(connection)
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    began_s = time.monotonic()
    load.ending_s = began_s + orders.seconds
    if orders.rate:
        load.free.extend(connections)
        await _pace(load, began_s)
    else:
        for connection in connections:
            connection.send(time.monotonic())
        await asyncio.sleep(orders.seconds)
    # What is under way, or was due, is waited for: its latency counts.
    give_up_at = time.monotonic() + PATIENCE_S
    while load.due or any(connection.busy for connection in connections):
        if time.monotonic() > give_up_at:
            load.failed += len(load.due) + sum(connection.busy for connection in connections)
            break
        await asyncio.sleep(0.001)
    seconds = time.monotonic() - began_s
    for connection in connections:
        connection.close()
    return load.done(seconds), load.acknowledged


async def _pace(load: Load, began_s: float) -> None:
    """Send what is due, on the free connections; what finds none waits for one."""
    orders, number = load.orders, 0
    while (due_s := began_s + number / orders.rate) < load.ending_s:
        if due_s > time.monotonic():
            await asyncio.sleep(TICK_S)
            continue
        if load.free:
            load.free.popleft().send(due_s)
        else:
            load.due.append(due_s)
        number += 1
        if number % 64 == 0:
            await asyncio.sleep(0)  # behind: answers have to be read all the same


if __name__ == "__main__":
    serve(Orders, run)
