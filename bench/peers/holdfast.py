"""Holdfast's engine as a shop: the same buyers, each awaiting ``Engine.call`` for one reservation."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable

import uvloop
from redis import Redis

from bench.peers.buyers import HOLD_MS, SKU, Books, PeerError, Shop, Sold, added_up
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
    """A process with one engine on each core, as an HTTP worker has it. ``batch``: reservations a call
    (``Engine.call_all`` where it is more than one)."""

    def __init__(self, url: str, batch: int = 1) -> None:
        super().__init__(url)
        self.batch = batch

    def reset(self, units: int) -> None:
        with connect(self.url) as redis:
            redis.flushall()
            open_fresh(redis)
        asyncio.run(receive(self.url, SKU, units))

    def books(self) -> Books:
        with connect(self.url) as redis:
            stock = redis.hmget(keys.stock(0, SKU, LOCATION), "on_hand", "held")
            pattern = keys.reservation(0, "*")
            holds = sum(1 for _ in redis.scan_iter(pattern, count=10_000))
            return Books(int(stock[0] or 0) - int(stock[1] or 0), holds)

    def work(
        self, number: int, connections: int, seconds: float, begin: Callable[[], None]
    ) -> Sold:
        gc.freeze()
        gc.set_threshold(100_000, 50, 100)  # as the HTTP worker does
        return uvloop.run(self._work(number, connections, seconds, begin))

    async def _work(
        self, number: int, connections: int, seconds: float, begin: Callable[[], None]
    ) -> Sold:
        engine = await Engine.start(Settings(redis_url=self.url))
        begin()
        begun = time.monotonic()
        parts = await asyncio.gather(
            *[
                _closed_loop(engine, f"o{number:03d}{index:04d}", self.batch, begun + seconds)
                for index in range(connections)
            ]
        )
        elapsed_s = min(seconds, time.monotonic() - begun)
        await engine.close()
        return added_up(parts, elapsed_s)


def open_fresh(redis: Redis) -> None:
    """Open partition 0 of an empty server, as the persister does where there is no ledger yet."""
    opening = open_partition(
        redis,
        Scripts.for_server(redis.info("server")),
        0,
        judged=read_head(redis, 0),
        server=read_server(redis),
        epoch=1,
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


async def receive(url: str, sku: str, units: int) -> None:
    """Put stock in. PeerError: it was refused."""
    engine = await Engine.start(Settings(redis_url=url))
    outcome = await engine.call(
        Movement(movement_id="in", type="receive", sku=sku, location=LOCATION, quantity=units)
    )
    await engine.close()
    if outcome.status is not Status.APPLIED:
        raise PeerError(f"stock could not be received: {outcome.status}")


async def _closed_loop(engine: Engine, prefix: str, batch: int, until_mono_s: float) -> Sold:
    units = in_time = refused = sent = 0
    while time.monotonic() < until_mono_s and not refused:
        ids = [f"{prefix}{number:012d}" for number in range(sent, sent + batch)]
        sent += batch
        if batch == 1:
            outcomes = [await engine.call(reservation(ids[0]))]
        else:
            outcomes = await engine.call_all([reservation(each) for each in ids])
        statuses = [outcome.status for outcome in outcomes]
        held = statuses.count(Status.RESERVED)
        refused = statuses.count(Status.INSUFFICIENT_STOCK)
        if held + refused < batch:
            raise PeerError(f"reservations were answered {sorted(set(statuses))}")
        units += held
        in_time += held if time.monotonic() <= until_mono_s else 0
    return Sold(units, in_time, refused, 0, 0.0)
