"""What the two ways in Redis share: keys, books, connections."""

from __future__ import annotations

import time

from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from bench.peers.buyers import HOLD_MS, SKU, Books, ThreadedShop

STOCK = f"stock:{SKU}"


def connect(url: str) -> Redis:
    """A client with one connection that repeats nothing by itself: a repeated DECR counts twice."""
    return Redis.from_url(
        url, protocol=2, retry=Retry(NoBackoff(), 0), single_connection_client=True
    )


def hold_key(order_id: str) -> str:
    return f"hold:{order_id}"


def hold_value(order_id: str, quantity: int = 1) -> str:
    """What a hold tells: the same as the row in PostgreSQL."""
    return f"{SKU}|{quantity}|{order_id}|{int(time.time() * 1000) + HOLD_MS}"


class RedisShop(ThreadedShop):
    """Stock in a counter, a hold in a string. The hold has no expiry: with one, its unit would vanish
    with it."""

    def reset(self, units: int) -> None:
        with connect(self.url) as redis:
            redis.flushall()
            redis.set(STOCK, units)

    def books(self) -> Books:
        with connect(self.url) as redis:
            holds = sum(1 for _ in redis.scan_iter(hold_key("*"), count=10_000))
            return Books(int(redis.get(STOCK) or 0), holds)
