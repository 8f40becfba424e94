"""Redis, DECR with INCR back: count down, give back what fell below 0, then write the hold."""

from __future__ import annotations

from bench.peers.buyers import Buyer
from bench.peers.redis_shop import STOCK, RedisShop, connect, hold_key, hold_value


class RedisDecr(RedisShop):
    """Two round trips a unit. Whoever dies between them has taken a unit that nobody holds."""

    def buyer(self) -> Buyer:
        return DecrBuyer(self.url)


class DecrBuyer:
    """The steps of the way, one by one, so that a test can stop between them."""

    def __init__(self, url: str) -> None:
        self.retries = 0
        self._redis = connect(url)

    def hold(self, order_id: str) -> bool:
        if self.take(1) < 0:
            self.give_back(1)
            return False
        self.write(order_id)
        return True

    def take(self, quantity: int) -> int:
        """Count down; what is left, below 0 where it was too much."""
        return int(self._redis.decrby(STOCK, quantity))

    def give_back(self, quantity: int) -> None:
        """Undo ``take``."""
        self._redis.incrby(STOCK, quantity)

    def write(self, order_id: str) -> None:
        """Write the hold of a unit that was taken."""
        self._redis.set(hold_key(order_id), hold_value(order_id))

    def close(self) -> None:
        self._redis.close()
