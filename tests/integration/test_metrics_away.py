"""/metrics while a server is away, and over a socket."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from kit import Partition
from metrics_kit import numbers, reconcile
from running import in_process, persisting, served, wait_for_ledger

from api.servers import RedisServer
from engine.settings import Settings
from persister.persister import connect_redis

pytestmark = pytest.mark.anyio


async def test_given_no_redis_then_what_the_ledger_knows_is_told(
    one: Settings, one_redis: RedisServer
) -> None:
    with connect_redis(one.redis_url) as redis:
        Partition(redis).receive("tea", 5)
    with persisting(one):
        wait_for_ledger(one)
    reconcile(one)
    for reached in (True, False):
        if not reached:
            one_redis.kill()
        async with in_process(one) as client:
            if reached:
                assert numbers((await client.get("/metrics")).text)["holdfast_redis_up"] == 1
                one_redis.kill()
            answer = await client.get("/metrics")
            assert answer.status_code == 200
            found = numbers(answer.text)
            assert (found["holdfast_redis_up"], found["holdfast_postgres_up"]) == (0, 1)
            assert (found["holdfast_ledger_epoch"], found["holdfast_ledger_seq"]) == (1, 1)
            assert found["holdfast_reconciliation_differences"] == 0
            assert not any("outbox_e" in name or "partition" in name for name in found)
            assert "holdfast_ledger_behind_events" not in found
        one_redis.start()


async def test_over_a_socket_get_and_head(
    one: Settings, one_redis: RedisServer, tmp_path: Path
) -> None:
    with persisting(one), served(one, tmp_path / "log") as url:
        async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
            got, head = await client.get("/metrics"), await client.head("/metrics")
    for answer in (got, head):
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert numbers(got.text)["holdfast_redis_up"] == 1
    assert head.content == b"" and int(head.headers["content-length"]) > 1000
