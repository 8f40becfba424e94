"""PostgreSQL, SELECT … FOR UPDATE: lock the row of the stock, look, take, write the hold, commit."""

from __future__ import annotations

from bench.peers.buyers import SKU, Buyer
from bench.peers.postgres import HOLD_FOR, PostgresShop, connect

_LOOK = "SELECT units FROM stock WHERE sku = %s FOR UPDATE"
#: Taking and holding in one statement spares a round trip while the row is locked.
_TAKE = f"""
WITH taken AS (UPDATE stock SET units = units - 1 WHERE sku = %s RETURNING sku)
INSERT INTO holds SELECT %s, sku, 1, %s, {HOLD_FOR} FROM taken
"""


class PostgresForUpdate(PostgresShop):
    """Two round trips a unit, the least that the way allows: BEGIN with the SELECT, then UPDATE, INSERT
    and COMMIT."""

    def buyer(self) -> Buyer:
        return _Buyer(self.url)


class _Buyer:
    def __init__(self, url: str) -> None:
        self.retries = 0
        self._connection = connect(url)

    def hold(self, order_id: str) -> bool:
        run = self._connection.execute
        with self._connection.pipeline():
            run("BEGIN", prepare=False)
            row = run(_LOOK, (SKU,)).fetchone()
            if row is None or row[0] < 1:
                run("ROLLBACK", prepare=False)
                return False
            run(_TAKE, (SKU, order_id, order_id))
            run("COMMIT", prepare=False)
        return True

    def close(self) -> None:
        self._connection.close()
