"""A partition stops loudly where an outbox entry can't be read or is missing."""

from __future__ import annotations

import logging
from collections.abc import Callable

import httpx
import pytest
from redis import Redis
from running import eventually, in_process, persisting, rows, wait_for_ledger

from engine import keys
from engine.settings import Settings

pytestmark = pytest.mark.anyio

OUTBOX = keys.outbox(0)


async def receive(client: httpx.AsyncClient, name: str) -> None:
    move = {"movement_id": name, "type": "receive", "sku": "tea", "location": "M", "quantity": 1}
    assert (await client.post("/v1/movements", json=move)).status_code == 201


def _last(redis: Redis) -> tuple[bytes, bytes]:
    """Id and bytes of the outbox's last entry."""
    entry_id, fields = redis.xrevrange(OUTBOX, count=1)[0]
    return entry_id, fields[b"events"]


def _replace_last(redis: Redis, data: bytes, field: bytes = b"events") -> None:
    """Put something else under the id of the last entry."""
    entry_id, _ = _last(redis)
    entries = redis.xrange(OUTBOX)
    redis.delete(OUTBOX)
    for each, fields in entries:
        redis.xadd(OUTBOX, {field: data} if each == entry_id else fields, id=each)


def _unreadable(redis: Redis) -> None:
    _replace_last(redis, b"\xc1 nonsense")


def _empty(redis: Redis) -> None:
    _replace_last(redis, b"\x90")


def _without_field(redis: Redis) -> None:
    _replace_last(redis, b"", b"other")


def _gap(redis: Redis) -> None:
    redis.xdel(OUTBOX, redis.xrange(OUTBOX)[1][0])


@pytest.mark.parametrize("damage", [_unreadable, _empty, _without_field, _gap])
async def test_what_can_not_be_read_stops_the_ledger_and_is_told(
    settings: Settings,
    redis: Redis,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Redis], None],
) -> None:
    """Given events 1 in the ledger and 2 to 4 in the outbox, one of which is damaged. Selling goes
    on; the ledger has what came before, nothing after, and /v1/status says why."""
    async with in_process(settings) as client:
        with persisting(settings):
            await receive(client, "m1")
            wait_for_ledger(settings)
        for name in ("m2", "m3", "m4"):
            await receive(client, name)
        damage(redis)

        async def stopped() -> str:
            partition = (await client.get("/v1/status")).json()["partitions"][0]
            return partition["ledger"]["stopped"] or ""

        with caplog.at_level(logging.CRITICAL), persisting(settings):
            eventually("it is said", lambda: "somebody has looked" in caplog.text)
            eventually(
                "it is kept",
                lambda: rows(settings.postgres_url, "SELECT 1 FROM positions WHERE stopped > ''"),
            )
            assert "partition 0" in await stopped()
            await receive(client, "m5")
        seqs = [seq for (seq,) in rows(settings.postgres_url, "SELECT seq FROM events ORDER BY 1")]
        assert seqs == list(range(1, len(seqs) + 1))
        assert len(seqs) == (1 if damage is _gap else 3)
        assert redis.xlen(OUTBOX) > 0
