"""What a live reservation takes in Redis: fill a fresh server through the engine, its outbox emptied as a
persister does, and divide what ``used_memory`` has grown by.

``used_memory`` counts what the allocator has handed out, its size classes rounded up; pages that it
keeps beyond that are in the note ``rss_bytes``. Two things it depends on are told by notes: neighbours
share the list of their deadline, a tenth of a second, so how many come in one; and the length of the
sku, which the kept bytes hold.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
from redis import Redis

from api.servers import RedisServer, choose_redis
from bench.figures import Figure, Run, figure, in_turn, say
from bench.peers.buyers import PeerError
from bench.peers.holdfast import LOCATION, open_fresh, receive
from bench.peers.redis_shop import connect
from engine import keys
from engine.engine import Engine
from engine.model import Line, Reserve
from engine.partitions import read_head
from engine.scripts import Scripts
from engine.settings import Settings
from engine.statuses import Status

NAME = "memory_per_reservation"
TARGET_BYTES = 260
RESERVATIONS = 200_000
#: 1,000 reservations a second: each tenth of a second has 100.
A_DEADLINE = 100
#: An EAN of 13 digits, as shops have them. From 22 on (20 once seq has passed 65,535) the kept bytes need the
#: allocator's next size class.
SKU, LONG_SKU = "4006381333931", "sku-00000000000000000001"
#: Note, reservations with the same deadline, sku.
OTHERS = (
    ("bytes_with_10_a_deadline", 10, SKU),
    ("bytes_with_1000_a_deadline", 1_000, SKU),
    ("bytes_with_a_sku_of_24", A_DEADLINE, LONG_SKU),
)
TTL_MS = 3_600_000
_CHUNK = 2_000
_GONE_WITHIN_S = 30.0


def figures(reservations: int = RESERVATIONS, repeats: int = 1) -> list[Figure]:
    """The one figure, ``memory_per_reservation`` in bytes."""
    say(f"memory of {reservations:,} live reservations")
    runs, *others = in_turn(
        repeats,
        lambda: measure(reservations, A_DEADLINE, SKU),
        *[partial(measure, reservations, a_deadline, sku) for _, a_deadline, sku in OTHERS],
    )
    made = figure(
        NAME,
        "bytes",
        [_with_findings(run, more) for run, *more in zip(runs, *others, strict=True)],
        what="a live reservation of one line in Redis; its id, order and customer have 20 characters, its"
        f" sku {len(SKU)}; {A_DEADLINE} share a deadline; its event is not counted",
        target=TARGET_BYTES,
        at_most=True,
    )
    if made.value is None:
        return [made]
    notes = {
        note: statistics.median(run.value for run in of_it)
        for (note, _, _), of_it in zip(OTHERS, others, strict=True)
    }
    return [msgspec.structs.replace(made, notes=made.notes | notes)]


def measure(reservations: int, a_deadline: int, sku: str) -> Run:
    """Bytes a reservation on a fresh server, so many of them with the same deadline; audited."""
    with TemporaryDirectory(prefix="holdfast-memory-") as directory:
        server = RedisServer(choose_redis(), Path(directory) / "redis")
        server.start()
        try:
            with connect(server.url) as redis:
                return measure_on(redis, server.url, reservations, a_deadline, sku)
        finally:
            server.stop()


def measure_on(redis: Redis, url: str, reservations: int, a_deadline: int, sku: str) -> Run:
    """The same on an empty server, with the only connection to it."""
    open_fresh(redis)
    asyncio.run(receive(url, sku, reservations))
    _trim(redis)
    before = _used(redis)
    acknowledged = asyncio.run(_fill(url, redis, reservations, a_deadline, sku))
    after = _used(redis)
    grown = {name: after[name] - before[name] for name in ("used_memory", "used_memory_rss")}
    return Run(
        grown["used_memory"] / max(1, acknowledged),
        audit(redis, sku, acknowledged),
        {
            "reservations": acknowledged,
            "rss_bytes": grown["used_memory_rss"] / max(1, acknowledged),
        },
    )


def _used(redis: Redis) -> dict[str, int]:
    """``INFO memory`` once the engine's connections and what was buffered for them are gone."""
    until = time.monotonic() + _GONE_WITHIN_S
    while redis.info("clients")["connected_clients"] > 1:
        if time.monotonic() > until:
            raise PeerError("connections of the engine stay open, and their buffers in the figure")
        time.sleep(0.01)
    return dict(redis.info("memory"))


def audit(redis: Redis, sku: str, acknowledged: int) -> list[str]:
    """What is wrong where so many reservations were acknowledged and none has ended."""
    deadlines: Any = redis.zrange(keys.deadlines(0), 0, -1)
    found = {
        "reservations are kept": sum(
            1 for _ in redis.scan_iter(keys.reservation(0, "*"), count=10_000)
        ),
        "units are held of the stock": int(redis.hget(keys.stock(0, sku, LOCATION), "held") or 0),
        "ids are on the lists of their deadlines": sum(
            [redis.llen(keys.due(0, int(deadline))) for deadline in deadlines]
        ),
    }
    findings = [
        f"{acknowledged} reservations were acknowledged, but {count} {what}"
        for what, count in found.items()
        if count != acknowledged
    ]
    if redis.xlen(keys.outbox(0)):
        findings.append("the outbox is not empty: its events are in the figure")
    return findings


def _with_findings(run: Run, others: Sequence[Run]) -> Run:
    findings = [finding for each in (run, *others) for finding in each.findings or []]
    return msgspec.structs.replace(run, findings=findings)


async def _fill(url: str, redis: Redis, count: int, a_deadline: int, sku: str) -> int:
    """How many were acknowledged. The outbox is emptied all along, as while a persister runs."""
    engine = await Engine.start(Settings(redis_url=url))
    acknowledged = 0
    for start in range(0, count, _CHUNK):
        numbers = range(start, min(count, start + _CHUNK))
        outcomes = await engine.call_all([_reserve(number, a_deadline, sku) for number in numbers])
        acknowledged += sum(1 for outcome in outcomes if outcome.status is Status.RESERVED)
        _trim(redis)
    await engine.close()
    return acknowledged


def _reserve(number: int, a_deadline: int, sku: str) -> Reserve:
    return Reserve(
        reservation_id=f"reserv{number:014d}",
        order_id=f"order-{number:014d}",
        customer_id=f"custom{number:014d}",
        lines=(Line(sku, 1, LOCATION),),
        ttl_ms=TTL_MS + number // a_deadline * 100,
    )


def _trim(redis: Redis) -> None:
    """Empty the outbox by the script with which the persister does, once an event is in the ledger."""
    head = read_head(redis, 0)
    written_bytes = int(redis.hget(keys.head(0), "written_bytes") or 0)
    answer = Scripts.for_server(redis.info("server")).call_sync(
        redis,
        "trim",
        [keys.head(0), keys.deadlines(0), keys.outbox(0)],
        [
            "persister:bench",
            60_000,
            "",
            *(head.epoch, head.seq, written_bytes, head.epoch),
            head.epoch,
            head.seq,
            0,
        ],
    )
    if answer[0] != b"kept":
        raise PeerError(f"the outbox could not be emptied: {answer}")
