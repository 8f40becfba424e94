"""PostgreSQL, optimistic: read stock and version, take only if the version still is that, else again."""

from __future__ import annotations

from bench.peers.buyers import SKU, Buyer, back_off
from bench.peers.postgres import HOLD_FOR, PostgresShop, connect

_LOOK = "SELECT units, version FROM stock WHERE sku = %s"
#: One statement is one transaction: no round trip for BEGIN and COMMIT, no lock held over one.
_TAKE = f"""
WITH taken AS (
    UPDATE stock SET units = units - 1, version = version + 1
    WHERE sku = %s AND version = %s RETURNING sku
)
INSERT INTO holds SELECT %s, sku, 1, %s, {HOLD_FOR} FROM taken
"""


class PostgresOptimistic(PostgresShop):
    """Two round trips a try. Who comes second backs off and tries again, until it has a unit or none is
    left."""

    def buyer(self) -> Buyer:
        return _Buyer(self.url)


class _Buyer:
    def __init__(self, url: str) -> None:
        self.retries = 0
        self._connection = connect(url)

    def hold(self, order_id: str) -> bool:
        tries = 0
        while True:
            row = self._connection.execute(_LOOK, (SKU,)).fetchone()
            if row is None or row[0] < 1:
                return False
            values = (SKU, row[1], order_id, order_id)
            if self._connection.execute(_TAKE, values).rowcount == 1:
                return True
            self.retries += 1
            tries += 1
            back_off(tries)

    def close(self) -> None:
        self._connection.close()
