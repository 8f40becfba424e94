"""Figures of the engine: two client processes, one Redis, in turn with ``redis-benchmark DECR``."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import subprocess
from typing import Any

import msgspec

from bench import child
from bench.client import Done, Orders
from bench.figures import Figure, Run, figure, in_turn, not_measured, say
from bench.place import (
    BenchError,
    Place,
    Process,
    audit_reservations,
    audit_stock,
)
from engine.engine import Engine
from engine.model import Movement
from engine.settings import Settings

CLIENTS = 2
DECR_A_SECOND = 60_000  # how many requests DECR is given for each second of measuring
MANY_SKUS = 10_000
PLENTY = 1_000_000_000
_runs = itertools.count(1)

WHAT = {
    "engine_hot_durable": "reserve, one hot sku, 2 client processes, appendfsync always, against DECR",
    "engine_hot_no_fsync": "the same with fsync off, against DECR with fsync off",
    "engine_carts": "10,000 skus, 3 lines a reservation: lines, against single-line reservations",
    "engine_stock_reads": "availability, 100 skus a call: skus, against single-line reservations",
    "engine_full_life": "reserve and confirm, against reserve alone",
    "engine_refusals": "refusals of a sold-out sku, durable, against DECR",
}


def figures(seconds: float, repeats: int) -> list[Figure]:
    """Every row of the engine's."""
    return [*_durable(seconds, repeats), *_no_fsync(seconds, repeats)]


def _durable(seconds: float, repeats: int) -> list[Figure]:
    with Place() as place, place.fresh() as persister:
        work = Work(place, persister, seconds)
        work.receive({"S": MANY_SKUS, "GONE": 1})
        work.sell_out("GONE0")
        say("engine, durable: DECR, reserve, carts, reads, full life, refusals in turn")
        decr, hot, carts, reads, life, refusals = in_turn(
            repeats,
            work.decr,
            lambda: work.run("reserve"),
            lambda: work.run("reserve", units=3, skus=MANY_SKUS, lines=3),
            lambda: work.run("look", skus=MANY_SKUS, at_once=100),
            lambda: work.run("life"),
            lambda: work.run("refuse", prefix="GONE"),
        )
    return [
        _against("engine_hot_durable", "reservations/s", hot, decr, 1.6),
        _against("engine_carts", "lines/s", carts, hot, 1.2),
        _against("engine_stock_reads", "skus/s", reads, hot, 1.5),
        _against("engine_full_life", "lives/s", life, hot, 0.5),
        _against("engine_refusals", "refusals/s", refusals, decr, 4.0),
    ]


def _no_fsync(seconds: float, repeats: int) -> list[Figure]:
    with Place(appendfsync="no") as place, place.fresh() as persister:
        work = Work(place, persister, seconds)
        work.receive({"S": 1})
        say("engine, fsync off: DECR, reserve in turn")
        decr, hot = in_turn(repeats, work.decr, lambda: work.run("reserve"))
    return [_against("engine_hot_no_fsync", "reservations/s", hot, decr, 1.5)]


def _against(name: str, unit: str, runs: list[Run], baseline: list[Run], target: float) -> Figure:
    if baseline[0].value == 0:
        why = "no redis-benchmark or valkey-benchmark on PATH"
        return not_measured(name, unit, why, what=WHAT[name], target=target)
    return figure(name, unit, runs, baseline, what=WHAT[name], target=target)


class Work:
    """Runs of the client processes at a place, each with its audit."""

    def __init__(self, place: Place, persister: Process, seconds: float) -> None:
        self._place = place
        self._persister = persister
        self._seconds = seconds

    def receive(self, skus: dict[str, int]) -> None:
        """Put stock in: so many skus of each prefix."""
        names = [f"{prefix}{i}" for prefix, size in skus.items() for i in range(size)]
        asyncio.run(self._move("receive", names, PLENTY))
        self._place.wait_for_ledger()

    def sell_out(self, sku: str) -> None:
        asyncio.run(self._move("damage", [sku], PLENTY))

    async def _move(self, kind: str, skus: list[str], quantity: int) -> None:
        engine = await Engine.start(Settings(redis_url=self._place.redis_server.url))
        outcomes = await engine.call_all(
            [
                Movement(
                    movement_id=f"{kind}-{sku}", type=kind, sku=sku, location="X", quantity=quantity
                )
                for sku in skus
            ]
        )
        await engine.close()
        if {outcome.status for outcome in outcomes} != {"applied"}:
            raise BenchError(f"stock could not be moved: {outcomes[0]}")

    def decr(self) -> Run:
        """The textbook's way on the same server: a bare counter, no hold, no expiry, no event. 0 where
        there is no redis-benchmark."""
        program = shutil.which("redis-benchmark") or shutil.which("valkey-benchmark")
        if program is None:
            return Run(0.0)
        port = str(self._place.redis_server.port)
        requests = max(1_000, int(DECR_A_SECOND * self._seconds))
        told = subprocess.run(
            [
                program,
                "-p",
                port,
                "-c",
                "50",
                "-n",
                str(requests),
                "--csv",
                "DECR",
                "bench:counter",
            ],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        self._place.redis.delete("bench:counter")
        return Run(float(told.strip().splitlines()[-1].split('","')[1].strip('"')))

    def run(self, work: str, *, units: int = 1, **orders: Any) -> Run:
        """What the client processes did together a second; ``units`` counts lines instead of commands."""
        self._persister.hold_back()
        clients = [self._client(work, number, orders) for number in range(CLIENTS)]
        for _, process in clients:
            child.go(process)
        redis_s = self._place.redis_cpu_s()
        done, count, client_s, acknowledged, findings = 0.0, 0, 0.0, [], []
        stalled = 0
        for path, process in clients:
            told = child.told(process, self._seconds + 60)
            result = msgspec.json.decode(told, type=Done)
            done += result.count / result.seconds
            count, client_s = count + result.count, client_s + result.cpu_s
            acknowledged += path.read_text().split()
            path.unlink()
            stalled += result.unavailable
            if result.other:
                findings.append(f"{result.other} commands had another outcome than was meant")
        redis_s = self._place.redis_cpu_s() - redis_s
        notes = {
            "redis_us": 1e6 * redis_s / max(1, count),
            "client_us": 1e6 * client_s / max(1, count),
        }
        self._persister.let_go()
        self._place.wait_for_ledger()
        self._persister.check()
        redis, ledger = self._place.redis, self._place.postgres_url
        findings += audit_reservations(redis, ledger, acknowledged)
        findings += audit_stock(redis, ledger)
        return Run(done * units, findings, notes, stalled)

    def _client(self, work: str, number: int, orders: dict[str, Any]) -> Any:
        run = f"{next(_runs)}-{number}"
        path = self._place.directory / f"acknowledged-{run}"
        wanted = Orders(
            redis_url=self._place.redis_server.url,
            work=work,
            run=run,
            seconds=self._seconds,
            acknowledged=str(path),
            **orders,
        )
        return path, child.start("bench.client", wanted)
