"""Holdfast's engine as a shop: the same buyers, each awaiting ``Engine.call`` for one reservation."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable

import uvloop
from redis import Redis

from bench.peers.buyers import HOLD_MS, SKU, Books, PeerError, Shop, Sold
from bench.peers.redis_shop import connect
from engine import keys
from engine.engine import Engine
from engine.model import Line, Movement, Reserve
from engine.partitions import Opening, open_partition, read_head, read_server
from engine.scripts import Scripts
from engine.settings import Settings
from engine.statuses import Status

LOCATION = "MAIN"


class Holdfast(Shop):
    """One process with one engine, as one HTTP worker has it. ``batch``: reservations a call
    (``Engine.call_all`` where it is more than one)."""

    processes = 1

    def __init__(self, url: str, batch: int = 1) -> None:
        super().__init__(url)
        self.batch = batch

    def reset(self, units: int) -> None:
        with connect(self.url) as redis:
            redis.flushall()
            open_fresh(redis)
        asyncio.run(_receive(Settings(redis_url=self.url), units))

    def books(self) -> Books:
        with connect(self.url) as redis:
            stock = redis.hmget(keys.stock(0, SKU, LOCATION), "on_hand", "held")
            pattern = keys.reservation(0, "*")
            holds = sum(1 for _ in redis.scan_iter(pattern, count=10_000))
            return Books(int(stock[0] or 0) - int(stock[1] or 0), holds)

    def buyer(self) -> None:  # type: ignore[override]
        raise NotImplementedError("buyers here are tasks of one event loop: see work")

    def work(
        self, number: int, connections: int, seconds: float, begin: Callable[[], None]
    ) -> Sold:
        gc.freeze()
        gc.set_threshold(100_000, 50, 100)  # as the HTTP worker does
        return uvloop.run(self._work(connections, seconds, begin))

    async def _work(self, connections: int, seconds: float, begin: Callable[[], None]) -> Sold:
        engine = await Engine.start(Settings(redis_url=self.url))
        begin()
        begun = time.monotonic()
        until = begun + seconds
        one = _one if self.batch == 1 else _many
        parts = await asyncio.gather(
            *[one(engine, index, until, self.batch) for index in range(connections)]
        )
        elapsed_s = time.monotonic() - begun
        await engine.close()
        return Sold(sum(p[0] for p in parts), sum(p[1] for p in parts), 0, elapsed_s)


def open_fresh(redis: Redis) -> None:
    """Open partition 0 of an empty server, as the persister does where there is no ledger yet."""
    opening = open_partition(
        redis,
        Scripts.for_server(redis.info("server")),
        0,
        judged=read_head(redis, 0),
        server=read_server(redis),
        trimmer="persister",
    )
    if opening is not Opening.OPENED:
        raise PeerError(f"the partition of a fresh Redis did not open: {opening}")


def reservation(order_id: str) -> Reserve:
    """One unit of the hot sku."""
    return Reserve(
        reservation_id=order_id,
        order_id=order_id,
        customer_id=order_id,
        lines=(Line(SKU, 1, LOCATION),),
        ttl_ms=HOLD_MS,
    )


async def _receive(settings: Settings, units: int) -> None:
    engine = await Engine.start(settings)
    outcome = await engine.call(
        Movement(movement_id="in", type="receive", sku=SKU, location=LOCATION, quantity=units)
    )
    await engine.close()
    if outcome.status is not Status.APPLIED:
        raise PeerError(f"stock could not be received: {outcome.status}")


async def _one(engine: Engine, index: int, until_mono_s: float, batch: int) -> tuple[int, int]:
    """Units held and refused, one a call."""
    units = 0
    while time.monotonic() < until_mono_s:
        outcome = await engine.call(reservation(f"o{index:07d}{units:012d}"))
        if outcome.status is Status.INSUFFICIENT_STOCK:
            return units, 1
        if outcome.status is not Status.RESERVED:
            raise PeerError(f"a reservation was answered {outcome.status}")
        units += 1
    return units, 0


async def _many(engine: Engine, index: int, until_mono_s: float, batch: int) -> tuple[int, int]:
    """Units held and refused, ``batch`` a call."""
    units = sent = 0
    while time.monotonic() < until_mono_s:
        ids = [f"o{index:07d}{n:012d}" for n in range(sent, sent + batch)]
        outcomes = await engine.call_all([reservation(each) for each in ids])
        sent += batch
        held = sum(1 for outcome in outcomes if outcome.status is Status.RESERVED)
        units += held
        refused = sum(1 for o in outcomes if o.status is Status.INSUFFICIENT_STOCK)
        if held + refused < batch:
            raise PeerError(f"{batch - held - refused} of {batch} reservations were not decided")
        if refused:
            return units, refused
    return units, 0
