"""What the tests of `holdfast ledger adopt` share: a ledger that comes back from an older dump."""

from __future__ import annotations

from typing import Any

import msgspec
import psycopg
from kit import (
    Partition,
    confirm,
    extend,
    line,
    move,
    release,
    statuses,
)
from redis import Redis
from running import (
    environment,
    eventually,
    holdfast,
    persisting,
    rows,
    wait_for_ledger,
)

from engine import keys
from engine.settings import Settings


def older_copy(settings: Settings, suffix: str = "dump") -> Settings:
    """The same Redis, and the ledger as it is now, in another database: a dump."""
    base, name = settings.postgres_url.rsplit("/", 1)
    with psycopg.connect(f"{base}/postgres", autocommit=True) as admin:
        admin.execute(f"DROP DATABASE IF EXISTS {name}_{suffix} WITH (FORCE)")
        admin.execute(f"CREATE DATABASE {name}_{suffix} TEMPLATE {name}")
    return msgspec.structs.replace(settings, postgres_url=f"{base}/{name}_{suffix}")


def adopt(settings: Settings, *options: str, code: int = 0) -> str:
    done = holdfast(
        *("ledger", "adopt", "--by", "kim", "--reason", "the disk died", *options),
        environ=environment(settings),
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def trim(p: Partition, settings: Settings) -> None:
    """The ledger has all; nothing of it is in the outbox any more."""
    wait_for_ledger(settings)
    eventually("all is trimmed", lambda: p.redis.xlen(keys.outbox(0)) == 0)


def begin(p: Partition) -> None:
    p.receive("tea", 1_000)
    p.receive("cup", 50)
    for name in ("stays", "ends", "lapses", "parted", "longer"):
        p.hold(name, line("tea", 3))
    p.hold("two", line("tea", 2), line("cup", 2))


def change_much(p: Partition) -> None:
    """What is lost: of each kind something."""
    p.hold("new", line("tea", 4))
    p.hold("gone", line("cup", 1))
    p.receive("pot", 7)
    p.receive("cup", 5)
    commands = [
        confirm("ends"),
        release("lapses"),
        confirm("parted", line("tea", 1), request_id="a-1"),
        extend("longer", 1_800_000),
        release("gone"),
        move("damage", "tea", 2),
    ]
    done = [p.one(command) for command in commands]
    assert statuses(done) == [
        "confirmed",
        "released",
        "confirmed",
        "extended",
        "released",
        "applied",
    ]


def story(settings: Settings) -> list[dict[str, Any]]:
    bodies = rows(settings.postgres_url, "SELECT body FROM events ORDER BY epoch, seq")
    return [body for (body,) in bodies]


def lose_events(settings: Settings, redis: Redis) -> tuple[Settings, Partition]:
    """An open partition whose ledger (a dump) lacks its latest events, which are nowhere any more."""
    p = Partition.of(redis)
    with persisting(settings):
        begin(p)
        wait_for_ledger(settings)
    dump = older_copy(settings)
    with persisting(settings):
        change_much(p)
        trim(p, settings)
    return dump, p
