"""A flash sale: far more buyers than units, all at once, over HTTP."""

from __future__ import annotations

import asyncio
from collections import Counter

import httpx
import pytest
from running import in_process, persisting, rows, wait_for_ledger

from engine.settings import Settings
from persister import database
from persister.persister import connect_redis
from persister.reconcile import reconcile

pytestmark = pytest.mark.anyio

UNITS, BUYERS = 1_000, 5_000


async def _sell(client: httpx.AsyncClient) -> list[httpx.Response]:
    move = {"movement_id": "m", "type": "receive", "sku": "gpu", "location": "MAIN"}
    answer = await client.post("/v1/movements", json=move | {"quantity": UNITS})
    assert answer.status_code == 201

    async def buy(name: str) -> httpx.Response:
        line = {"sku": "gpu", "quantity": 1, "location": "MAIN"}
        order = {"reservation_id": name, "order_id": f"o-{name}", "lines": [line]}
        return await client.post("/v1/reservations", json=order)

    answers = await asyncio.gather(*[buy(f"buyer-{n}") for n in range(BUYERS)])
    stock = (await client.get("/v1/stock/gpu")).json()
    assert (stock["on_hand"], stock["held"], stock["available"]) == (UNITS, UNITS, 0)
    return answers


async def test_exactly_as_many_reservations_succeed_as_there_are_units(one: Settings) -> None:
    """5,000 buyers want one of 1,000 units; the ledger then tells the same 1,000."""
    with persisting(one):
        async with in_process(one) as client:
            answers = await _sell(client)
        wait_for_ledger(one)
        with database.connect(one.postgres_url) as ledger, connect_redis(one.redis_url) as redis:
            report = reconcile(redis, ledger)
    assert Counter(answer.status_code for answer in answers) == {201: UNITS, 409: BUYERS - UNITS}
    refused = [answer.json() for answer in answers if answer.status_code == 409]
    assert {problem["code"] for problem in refused} == {"insufficient_stock"}
    sold = sorted(answer.json()["reservation_id"] for answer in answers if answer.is_success)
    query = "SELECT reservation_id FROM movements WHERE type = 'reserve'"
    assert sorted(row[0] for row in rows(one.postgres_url, query)) == sold
    assert rows(one.postgres_url, "SELECT on_hand, held FROM balances") == [(UNITS, UNITS)]
    assert report.clean and report.checked == 1
