"""A distributed lock in Redis around read and write: SET NX PX, read, write, delete if it still is ours."""

from __future__ import annotations

import uuid

from bench.peers.buyers import SKU, Buyer, back_off
from bench.peers.redis_shop import STOCK, RedisShop, connect, hold_key, hold_value

LOCK = f"lock:{SKU}"
LOCK_TTL_MS = 10_000
_UNLOCK = (
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"
)


class RedisLock(RedisShop):
    """Three round trips a unit, the least that the way allows: lock, read, then write and unlock.

    Whoever is stopped for longer than the lock lasts goes on to write what it read before.
    """

    def buyer(self) -> Buyer:
        return LockBuyer(self.url)


class LockBuyer:
    """The steps of the way, one by one, so that a test can stop between them."""

    def __init__(self, url: str, lock_ttl_ms: int = LOCK_TTL_MS) -> None:
        self.retries = 0
        self._lock_ttl_ms = lock_ttl_ms
        self._redis = connect(url)
        self._token = uuid.uuid4().hex
        self._unlock = self._redis.script_load(_UNLOCK)

    def hold(self, order_id: str) -> bool:
        self.lock()
        units = self.read()
        if units < 1:
            self.unlock()
            return False
        self.write_and_unlock(order_id, units - 1)
        return True

    def lock(self) -> None:
        """Wait until the lock is ours."""
        tries = 0
        while not self._redis.set(LOCK, self._token, nx=True, px=self._lock_ttl_ms):
            tries += 1
            back_off(tries)
        self.retries += tries

    def read(self) -> int:
        """The units that can be sold."""
        return int(self._redis.get(STOCK) or 0)

    def write_and_unlock(self, order_id: str, units: int) -> None:
        """In one transaction write what is left and the hold, and let the lock go if it still is ours."""
        pipe = self._redis.pipeline(transaction=True)
        pipe.set(STOCK, units)
        pipe.set(hold_key(order_id), hold_value(order_id))
        pipe.evalsha(self._unlock, 1, LOCK, self._token)
        pipe.execute()

    def unlock(self) -> None:
        """Let the lock go where it still is ours."""
        self._redis.evalsha(self._unlock, 1, LOCK, self._token)

    def close(self) -> None:
        self._redis.close()
