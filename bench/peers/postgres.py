"""What the two ways in PostgreSQL share: tables, books, connections."""

from __future__ import annotations

from typing import Any

import psycopg

from bench.peers.buyers import HOLD_MS, SKU, Books, ThreadedShop

_SCHEMA = """
DROP TABLE IF EXISTS stock, holds;
CREATE TABLE stock (
    sku text PRIMARY KEY,
    units bigint NOT NULL CHECK (units >= 0),
    version bigint NOT NULL DEFAULT 0
);
CREATE TABLE holds (
    order_id text PRIMARY KEY,
    sku text NOT NULL,
    quantity bigint NOT NULL,
    customer_id text NOT NULL,
    expires_at timestamptz NOT NULL
);
"""
Connection = psycopg.Connection[tuple[Any, ...]]
HOLD_FOR = f"now() + interval '{HOLD_MS} milliseconds'"


def connect(url: str) -> Connection:
    """A connection that prepares every statement at its first use."""
    return psycopg.connect(url, autocommit=True, prepare_threshold=0)


class PostgresShop(ThreadedShop):
    """Stock in a row, a hold in a row, both changed in one transaction. Fsync is on."""

    def reset(self, units: int) -> None:
        with connect(self.url) as connection:
            connection.execute(_SCHEMA, prepare=False)
            connection.execute("INSERT INTO stock (sku, units) VALUES (%s, %s)", (SKU, units))
            # The checkpoint of the run before must not fall into this one.
            connection.execute("CHECKPOINT", prepare=False)

    def books(self) -> Books:
        with connect(self.url) as connection:
            row = connection.execute(
                "SELECT (SELECT units FROM stock), (SELECT count(*) FROM holds)"
            ).fetchone()
        assert row is not None
        return Books(*row)
