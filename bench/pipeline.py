"""Figures of the way to the ledger: a filled outbox drained through Kafka, and real orders replayed."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from bench.figures import Figure, Run, figure, in_turn, say
from bench.http_figures import Service
from bench.place import (
    REPOSITORY,
    BenchError,
    Place,
    Process,
    audit_reservations,
    audit_stock,
    cpu_s,
    until,
)
from engine.acknowledged import is_acknowledged
from engine.engine import Engine
from engine.model import Line, Movement, Reserve
from engine.partitions import read_head
from engine.settings import Settings

EVENTS_A_SECOND = 500_000  # how many events are drained for each second of measuring
SKUS = 100
AT_ONCE = 2_000
ORDERS = REPOSITORY / "tests" / "data" / "orders-2000-invoices.csv.gz"

WHAT = {
    "pipeline_drain": "outbox to Kafka to ledger, everything on these cores, from a filled outbox",
    "pipeline_drain_direct": "outbox to ledger without Kafka, the same",
    "replay_invoices": "holdfast replay over HTTP, persister held back",
}


def figures(seconds: float, repeats: int) -> list[Figure]:
    """Every row of the pipeline's. ``HOLDFAST_BENCH_ORDERS`` names a file of orders to replay, else the
    2,000 invoices of the tests."""
    events = max(2_000, int(seconds * EVENTS_A_SECOND))
    say(f"pipeline: {events:,} events drained through Kafka, then directly; orders replayed")
    with Place(kafka=True) as kafka, Place() as direct:
        drains, directs = in_turn(
            max(1, repeats // 2), lambda: drain(kafka, events), lambda: drain(direct, events)
        )
    replays, running = in_turn(
        max(1, repeats // 2), lambda: replay(held_back=True), lambda: replay(held_back=False)
    )
    unit = "events/s"
    return [
        figure("pipeline_drain", unit, drains, what=WHAT["pipeline_drain"], target=40_000),
        figure("pipeline_drain_direct", unit, directs, what=WHAT["pipeline_drain_direct"]),
        figure(
            "replay_invoices", "invoices/s", replays, what=WHAT["replay_invoices"], target=1_500
        ),
        figure(
            "replay_invoices_running",
            "invoices/s",
            running,
            what=WHAT["replay_invoices"].replace("held back", "running"),
        ),
    ]


def drain(place: Place, events: int) -> Run:
    """Fill the outbox, start relay and persister, and wait until the ledger has all."""
    with place.fresh():
        pass  # opened, and nobody at work
    ids = asyncio.run(_fill(place.redis_server.url, events))
    seq = read_head(place.redis, 0).position[1]
    broker = place.kafka_server
    before_s = {"broker": cpu_s(broker.pid)} if broker else {}
    began_s = time.monotonic()
    programs = ["persister", *(["relay"] if broker else [])]
    processes = [Process(["api.cli", name], place.environ, place.log) for name in programs]
    try:
        place.wait_for_ledger()
        seconds = time.monotonic() - began_s
        notes = {
            f"{name}_rss_mb": psutil.Process(process.pid).memory_info().rss / 2**20
            for name, process in zip(programs, processes, strict=True)
        }
        pids = {name: process.pid for name, process in zip(programs, processes, strict=True)}
        if broker:
            pids["broker"] = broker.pid
        for name, pid in pids.items():
            notes[f"{name}_us"] = 1e6 * (cpu_s(pid) - before_s.get(name, 0.0)) / seq
        until("all is acknowledged", lambda: is_acknowledged(place.redis, 0))
    finally:
        for process in processes:
            process.stop()
    findings = audit_reservations(place.redis, place.postgres_url, ids)
    findings += audit_stock(place.redis, place.postgres_url)
    return Run(seq / seconds, findings, notes)


async def _fill(redis_url: str, events: int) -> list[str]:
    engine = await Engine.start(Settings(redis_url=redis_url))
    received = await engine.call_all(
        [
            Movement(
                movement_id=f"in-{i}", type="receive", sku=f"S{i}", location="X", quantity=10**9
            )
            for i in range(SKUS)
        ]
    )
    ids = [f"order-{i:014d}" for i in range(events)]
    outcomes = list(received)
    for first in range(0, events, AT_ONCE):
        outcomes += await engine.call_all(
            [
                Reserve(
                    reservation_id=each,
                    order_id=each,
                    customer_id=f"customer-{each}",
                    lines=(Line(f"S{number % SKUS}", 1, "X"),),
                    ttl_ms=3_600_000,
                )
                for number, each in enumerate(ids[first : first + AT_ONCE], first)
            ]
        )
    await engine.close()
    if {outcome.status for outcome in outcomes} != {"applied", "reserved"}:
        raise BenchError("the outbox could not be filled")
    return ids


def replay(*, held_back: bool) -> Run:
    """On a service of its own."""
    with Service() as service:
        orders = Path(os.environ.get("HOLDFAST_BENCH_ORDERS") or ORDERS)
        return service.replay(orders, held_back=held_back)
