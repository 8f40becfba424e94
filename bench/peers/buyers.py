"""Buyers at a shop: so many connections, each holding one unit after the other, in a closed loop.

A *shop* is one way to sell the units of one hot sku on a real server. Every shop is driven alike: its
buyers are spread over client processes, all are connected before any begins, and afterwards the shop's
books are compared with what the buyers were told.
"""

from __future__ import annotations

import os
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, Protocol

import msgspec

from bench.figures import Run

SKU = "hot"
UNITS = 1_000_000_000
HOLD_MS = 900_000
ANSWER_TIMEOUT_S = 120.0


class PeerError(Exception):
    """A peer could not be measured; the text says why."""


class Sold(msgspec.Struct, frozen=True):
    """What buyers were told. ``in_time``: those of the units that were theirs before the time was over.
    ``retries``: tries for a unit beyond the first one for each."""

    units: int
    in_time: int
    refused: int
    retries: int
    elapsed_s: float


class Books(msgspec.Struct, frozen=True):
    """What a shop has written: units that can still be sold, and holds."""

    left: int
    holds: int


class Buyer(Protocol):
    """One connection. ``retries`` counts tries for a unit beyond the first one for each."""

    retries: int

    def hold(self, order_id: str) -> bool:
        """Hold one unit for this order, durably; False where none is left."""

    def close(self) -> None:
        """Disconnect."""


class Shop(ABC):
    """One way to sell, at ``url``. It is sent to its buyers' processes, so it holds no connection."""

    #: Client processes that drive it fastest; None: one a core.
    processes: int | None = None

    def __init__(self, url: str) -> None:
        self.url = url

    @abstractmethod
    def reset(self, units: int) -> None:
        """Forget everything, then have so many units of the one sku."""

    @abstractmethod
    def books(self) -> Books:
        """What is written now."""

    @abstractmethod
    def work(
        self, number: int, connections: int, seconds: float, begin: Callable[[], None]
    ) -> Sold:
        """Hold units with so many connections, until the time is over or none is left.

        Connects, calls ``begin``, which returns when all others are connected too, then works.
        ``number`` tells this process from others.
        """


class ThreadedShop(Shop):
    """A shop whose buyers have a connection and a thread each."""

    @abstractmethod
    def buyer(self) -> Buyer:
        """Connect."""

    def work(
        self, number: int, connections: int, seconds: float, begin: Callable[[], None]
    ) -> Sold:
        buyers = [self.buyer() for _ in range(connections)]
        begin()
        until = time.monotonic() + seconds

        def one(index: int) -> Sold:
            return _closed_loop(buyers[index], f"o{number:03d}{index:04d}", until)

        begun = time.monotonic()
        with ThreadPoolExecutor(connections) as threads:
            parts = list(threads.map(one, range(connections)))
        elapsed_s = min(seconds, time.monotonic() - begun)
        for buyer in buyers:
            buyer.close()
        return added_up(parts, elapsed_s)


def sell(shop: Shop, connections: int, seconds: float) -> Sold:
    """Let so many connections buy at once. PeerError: one of them could not go on."""
    count = min(connections, shop.processes or os.cpu_count() or 1)
    shares = [connections // count + (i < connections % count) for i in range(count)]
    with _workers(shop, shares, seconds) as pipes:
        for pipe in pipes:
            _answer(pipe, ANSWER_TIMEOUT_S)
        for pipe in pipes:
            pipe.send("begin")
        parts = [_answer(pipe, seconds + ANSWER_TIMEOUT_S) for pipe in pipes]
    return added_up(parts, max(part.elapsed_s for part in parts))


def measure(shop: Shop, connections: int, seconds: float, units: int = UNITS) -> Run:
    """Units a second that so many connections hold, from a fresh shop, and the audit of its books."""
    shop.reset(units)
    sold = sell(shop, connections, seconds)
    findings = audit(units, sold.units, shop.books())
    if sold.refused and sold.units < units:
        findings.append(
            f"buyers were refused although only {sold.units} of {units} units were sold"
        )
    return Run(
        sold.in_time / sold.elapsed_s,
        findings,
        {"retries_per_unit": sold.retries / max(1, sold.units)},
    )


def audit(units: int, sold: int, books: Books) -> list[str]:
    """What is wrong with the books of a shop that had ``units`` and answered ``sold`` times yes."""
    findings = []
    if books.left < 0:
        findings.append(f"the stock is {books.left}, below 0")
    if sold > units:
        findings.append(f"{sold} of {units} units were sold: {sold - units} too many")
    if units - books.left != sold:
        findings.append(f"the stock went down by {units - books.left}, but {sold} units were sold")
    if books.holds != sold:
        findings.append(f"{books.holds} holds are written, but {sold} units were sold")
    return findings


def back_off(tries: int) -> None:
    """Wait before the next try for what others have too: a random time, up to twice as long each try
    (4 ms at first, 1 s at most). Without it most tries of many buyers are in vain."""
    time.sleep(random.random() * 0.002 * 2 ** min(tries, 9))


def _closed_loop(buyer: Buyer, prefix: str, until_mono_s: float) -> Sold:
    units = in_time = refused = 0
    while time.monotonic() < until_mono_s and not refused:
        if buyer.hold(f"{prefix}{units:012d}"):
            units += 1
            in_time += time.monotonic() <= until_mono_s
        else:
            refused = 1
    return Sold(units, in_time, refused, buyer.retries, 0.0)


def added_up(parts: list[Sold], elapsed_s: float) -> Sold:
    """What several buyers were told, together."""
    return Sold(
        sum(part.units for part in parts),
        sum(part.in_time for part in parts),
        sum(part.refused for part in parts),
        sum(part.retries for part in parts),
        elapsed_s,
    )


@contextmanager
def _workers(shop: Shop, shares: list[int], seconds: float) -> Iterator[list[Connection]]:
    """A process for each share of the connections, and a pipe to each. New interpreters, not forks: a
    fork would copy the locks of whatever threads run here."""
    context = get_context("spawn")
    pipes, processes = [], []
    try:
        for number, share in enumerate(shares):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_work, args=(theirs, shop, number, share, seconds), daemon=True
            )
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        yield pipes
    except BaseException:
        for process in processes:
            process.kill()
        raise
    finally:
        for process in processes:
            process.join()
        for pipe in pipes:
            pipe.close()


def _work(pipe: Connection, shop: Shop, number: int, connections: int, seconds: float) -> None:
    def begin() -> None:
        pipe.send("connected")
        pipe.recv()

    try:
        pipe.send(shop.work(number, connections, seconds, begin))
    except Exception as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        pipe.send(PeerError(f"{type(shop).__name__}: {why}"))


def _answer(pipe: Connection, timeout_s: float) -> Any:
    if not pipe.poll(timeout_s):
        raise PeerError(f"a process of buyers gave no answer for {timeout_s:.0f} s")
    try:
        answer = pipe.recv()
    except EOFError:
        raise PeerError("a process of buyers ended before its work was done") from None
    if isinstance(answer, PeerError):
        raise answer
    return answer
