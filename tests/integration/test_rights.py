"""The rights that docs/operations.md gives the Redis user are enough for all of Holdfast."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from api.servers import RedisServer
from engine import keys
from engine.engine import Engine
from engine.errors import StoreError
from engine.model import Confirm, Extend, GetReservation, GetStock, Line, Movement, Release, Reserve
from engine.settings import Settings
from persister import database
from persister.persister import connect_redis
from persister.reconcile import reconcile
from persister.restore import restore
from persister.runs import run
from tests.running import persisting

pytestmark = pytest.mark.anyio


def documented_rights(repository: Path) -> list[str]:
    text = (repository / "docs" / "operations.md").read_text()
    block = re.search(r"needs the keys `(hf:\*)` and:\n\n```\n(.*?)```", text, re.DOTALL)
    assert block
    return [f"~{block[1]}", *block[2].split()]


@pytest.fixture
def limited_url(redis: Redis, redis_server: RedisServer, repository: Path) -> Iterator[str]:
    rules = documented_rights(repository)
    redis.execute_command("ACL", "SETUSER", "shop", "reset", "on", ">secret", *rules)
    redis.acl_log_reset()
    yield redis_server.url.replace("redis://", "redis://shop:secret@")
    redis.execute_command("ACL", "DELUSER", "shop")


async def test_given_the_documented_rights_when_all_is_used_then_nothing_is_refused(
    limited_url: str, postgres_url: str, redis: Redis
) -> None:
    settings, admin = Settings(redis_url=limited_url, postgres_url=postgres_url), redis
    with persisting(settings):
        engine = await Engine.start(settings)
        line = (Line("tea", 1),)
        commands = [
            Movement(movement_id="m", type="receive", sku="tea", location="A", quantity=5),
            Reserve(reservation_id="r", order_id="o", lines=line, ttl_ms=60_000),
            Extend(reservation_id="r", ttl_ms=120_000),
            Reserve(reservation_id="s", order_id="o", lines=line, ttl_ms=60_000),
            Reserve(reservation_id="none", order_id="o", lines=(Line("tea", 9),), ttl_ms=60_000),
            Confirm(reservation_id="r"),
            Release(reservation_id="s", lines=line, request_id="q"),
            GetReservation("r"),
            GetStock("tea"),
        ]
        statuses = [(await engine.call(command)).status.value for command in commands]
        assert statuses == [
            *("applied", "reserved", "extended", "reserved", "insufficient_stock", "confirmed"),
            *("released", "found", "found"),
        ]
        swept = await engine.sweep(0)
        assert swept is not None
        assert (await engine.states())[0].open
        assert (await engine.redis_state({})).partitions[0].open
        assert await engine.durability() in ("always", "everysec", "no")
        with database.connect(postgres_url) as connection, connect_redis(limited_url) as limited:
            report = reconcile(limited, connection)
        assert (report.checked, report.differences) == (1, [])
        await engine.call(Reserve(reservation_id="lost", order_id="o", lines=line, ttl_ms=60_000))
        admin.delete(keys.stock(0, "tea", "A"), keys.reservation(0, "lost"))
        with database.connect(postgres_url) as connection, connect_redis(limited_url) as limited:
            mended = run(limited, connection, trigger="test", repair_by="Ada", retention_ms=60_000)
        assert mended.clean and len(mended.repaired) == 3
        await engine.close()
    admin.flushall()
    assert restore(settings, limited_url).seq > 0
    assert admin.acl_log() == [], "a script passes over some refusals, and is slower for it"


async def test_given_no_right_to_info_when_the_engine_starts_then_it_says_which_is_missing(
    limited_url: str, redis: Redis
) -> None:
    redis.execute_command("ACL", "SETUSER", "shop", "-info")
    with pytest.raises(StoreError, match=r"(?i)lacks a right.*info"):
        await Engine.start(Settings(redis_url=limited_url))
