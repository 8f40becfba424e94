"""A client process of the engine's figures: drives the engine as hard as one process can.

``python -m bench.client`` reads one JSON line (Orders), makes ready, prints ``ready``, begins at the next
line of its input, and prints what it did (Done). Acknowledged ids go to a file, a line each.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from itertools import count, islice

import msgspec

from bench.child import serve
from engine.engine import Engine
from engine.model import Confirm, GetStock, Line, Outcome, Reserve
from engine.settings import Settings
from engine.statuses import Status

TTL_MS = 3_600_000


class Orders(msgspec.Struct, frozen=True, kw_only=True):
    """What to do: ``work`` is a key of WORKS, with ``at_once`` commands a call and ``callers`` calls under
    way, for ``seconds``. ``skus`` are named by ``prefix`` and 0, 1, …, all of them at X."""

    redis_url: str
    work: str
    run: str
    seconds: float
    prefix: str = "S"
    skus: int = 1
    lines: int = 1
    callers: int = 4
    at_once: int = 256
    acknowledged: str = ""


class Done(msgspec.Struct, frozen=True):
    """``count`` commands (reads: skus) in ``seconds``, with ``cpu_s`` of this process; ``other``: those
    that had not the outcome meant; ``unavailable``: those whose outcome Redis told nobody in time."""

    count: int
    seconds: float
    cpu_s: float
    other: int
    unavailable: int = 0


class Client:
    """One process' share of a run."""

    def __init__(self, engine: Engine, orders: Orders) -> None:
        self.engine = engine
        self.orders = orders
        self.acknowledged: list[str] = []
        self.other = self.unavailable = 0
        self._numbers = count()
        self._carts = [self._cart(number) for number in range(orders.skus)]

    def _cart(self, number: int) -> tuple[Line, ...]:
        orders = self.orders
        return tuple(
            [
                Line(f"{orders.prefix}{(number * 31 + i * 3_571) % orders.skus}", 1, "X")
                for i in range(orders.lines)
            ]
        )

    def reserves(self, size: int) -> list[Reserve]:
        """Commands of this run, each with an id of its own (20 characters)."""
        prefix, carts, made = f"{self.orders.run}-", self._carts, []
        width = 20 - len(prefix)
        for number in islice(self._numbers, size):
            name = prefix + str(number).zfill(width)
            lines = carts[number % len(carts)]
            made.append(Reserve(reservation_id=name, order_id=name, lines=lines, ttl_ms=TTL_MS))
        return made

    async def reserve(self) -> int:
        return len(await self._hold())

    async def _hold(self) -> list[str]:
        commands = self.reserves(self.orders.at_once)
        outcomes = await self.engine.call_all(commands)
        held = [
            c.reservation_id
            for c, o in zip(commands, outcomes, strict=True)
            if o.status is Status.RESERVED
        ]
        self.acknowledged += held
        self._count(outcomes, len(held))
        return held

    def _count(self, outcomes: Sequence[Outcome], meant: int) -> int:
        """Of these outcomes so many are as meant; that number."""
        if meant < len(outcomes):
            unavailable = sum([o.status is Status.UNAVAILABLE for o in outcomes])
            self.unavailable += unavailable
            self.other += len(outcomes) - meant - unavailable
        return meant

    async def life(self) -> int:
        """Reserve, then pay."""
        held = await self._hold()
        outcomes = await self.engine.call_all([Confirm(reservation_id=each) for each in held])
        return self._count(outcomes, sum([o.status is Status.CONFIRMED for o in outcomes]))

    async def refuse(self) -> int:
        """Ask for what is sold out."""
        commands = self.reserves(self.orders.at_once)
        outcomes = await self.engine.call_all(commands)
        return self._count(outcomes, sum([o.status is Status.INSUFFICIENT_STOCK for o in outcomes]))

    async def look(self) -> int:
        """Is it available? Many skus a call."""
        start = next(self._numbers) * self.orders.at_once
        skus = [
            f"{self.orders.prefix}{(start + i) % self.orders.skus}"
            for i in range(self.orders.at_once)
        ]
        outcomes = await self.engine.call_all([GetStock(sku) for sku in skus])
        return self._count(outcomes, sum([o.status is Status.FOUND for o in outcomes]))

    async def work(self, until_s: float) -> int:
        """Calls one after the other until then; how much came of them."""
        act: Callable[[], Awaitable[int]] = getattr(self, self.orders.work)
        done = 0
        while time.monotonic() < until_s:
            done += await act()
        return done


async def run(orders: Orders) -> tuple[Done, list[str]]:
    """Make ready, wait for the word, work; what was done, and the ids that were acknowledged."""
    engine = await Engine.start(Settings(redis_url=orders.redis_url))
    client = Client(engine, orders)
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)  # as the HTTP workers have it
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    began_s, began_cpu_s = time.monotonic(), time.process_time()
    until_s = began_s + orders.seconds
    counts = await asyncio.gather(*[client.work(until_s) for _ in range(orders.callers)])
    seconds, cpu_s = time.monotonic() - began_s, time.process_time() - began_cpu_s
    await engine.close()
    done = Done(sum(counts), seconds, cpu_s, client.other, client.unavailable)
    return done, client.acknowledged


if __name__ == "__main__":
    serve(Orders, run)
