"""Figures over HTTP: ``holdfast up`` with one worker, the load generator on the same cores.

The persister is held back while a target is measured (the outbox takes the events), and lets the ledger
catch up before the audit; beside each stands the figure with it running.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

import httpx
import msgspec
import uvloop

from api import replay
from api.orders import read_plan
from api.ports import free_port
from bench import child
from bench.figures import Figure, Run, figure, in_turn, say
from bench.http_client import Done, Orders
from bench.place import (
    REPOSITORY,
    BenchError,
    Process,
    audit_reservations,
    audit_stock,
    connect_redis,
    cpu_s,
    until,
    wait_for_ledger,
)

PLENTY = 1_000_000_000
FLASH_UNITS = 1_000
FLASH_RATE = 5_000.0
REPLAY_CONCURRENCY = 256
_runs = count(1)

WHAT = {
    "http_batch": "POST /v1/batch, 200 reservations a request, 8 connections, durable",
    "http_reserve": "POST /v1/reservations, one each, 64 connections, against a Starlette endpoint that"
    " reads the JSON and answers it",
    "http_reserve_p99": "its p99 at half of that rate, open loop",
    "http_stock_p99": "GET /v1/stock/{sku}, p99 at half of that rate, open loop",
    "http_flash_p99": "p99 while 5,000 buyers a second arrive for one sku of 1,000 units, 1,000 connections",
}


def figures(seconds: float, repeats: int) -> list[Figure]:
    """Every row of HTTP's."""
    with Service() as service:
        service.receive("hot", PLENTY)
        found = _throughput(service, seconds, repeats)
        half = next(f.value for f in found if f.name == "http_reserve") or 2_000.0
        return [*found, *_latencies(service, seconds, repeats, half / 2)]


def _throughput(service: Service, seconds: float, repeats: int) -> list[Figure]:
    say("HTTP: echo, one reservation a request, batches; persister held back, then running")

    def one(held_back: bool) -> Run:
        return service.run("reserve", seconds, 64, held_back=held_back)

    def batch(held_back: bool) -> Run:
        return service.run("batch", seconds, 8, held_back=held_back)

    with service.echo():
        echoes, ones, batches, running, batches_running = in_turn(
            repeats,
            lambda: service.run("echo", seconds, 64),
            lambda: one(True),
            lambda: batch(True),
            lambda: one(False),
            lambda: batch(False),
        )
    unit = "reservations/s"
    beside = ", persister running"
    return [
        figure("http_batch", unit, batches, what=WHAT["http_batch"], target=100_000),
        figure("http_batch_running", unit, batches_running, what=WHAT["http_batch"] + beside),
        figure("http_reserve", unit, ones, echoes, what=WHAT["http_reserve"], target=0.9),
        figure("http_reserve_running", unit, running, echoes, what=WHAT["http_reserve"] + beside),
    ]


def _latencies(service: Service, seconds: float, repeats: int, rate: float) -> list[Figure]:
    say(f"HTTP: latencies at {rate:,.0f} a second, and a flash sale at {FLASH_RATE:,.0f}")

    def p99(work: str, held_back: bool = True) -> Run:
        run = service.run(work, seconds, 64, rate=rate, held_back=held_back)
        return msgspec.structs.replace(run, value=run.notes["p99"])

    reserve, stock, flash, running = in_turn(
        repeats,
        lambda: p99("reserve"),
        lambda: p99("stock"),
        lambda: service.flash_sale(seconds),
        lambda: p99("reserve", held_back=False),
    )
    unit = "ms"
    return [
        _below("http_reserve_p99", unit, reserve, 10),
        _below("http_stock_p99", unit, stock, 10),
        _below("http_flash_p99", unit, flash, 100),
        figure(
            "http_reserve_p99_running",
            unit,
            running,
            what=WHAT["http_reserve_p99"] + ", persister running",
        ),
    ]


def _below(name: str, unit: str, runs: list[Run], target: float) -> Figure:
    return figure(name, unit, runs, what=WHAT[name], target=target, at_most=True)


class Service:
    """``holdfast up`` on a directory and a port of its own."""

    def __enter__(self) -> Self:
        self._directory = TemporaryDirectory(prefix="holdfast-bench-")
        place = Path(self._directory.name)
        place.chmod(0o755)
        self._place = place
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._echo_url = ""
        environ = {name: v for name, v in os.environ.items() if not name.startswith("HOLDFAST_")}
        self._environ = environ
        arguments = ["api.cli", "up", "--port", str(self._port), "--data-dir", str(place / "data")]
        self._up = Process(arguments, environ, place / "up.log")
        until("the service is ready", lambda: self._up.check() and self._is_ready())
        state = json.loads((place / "data" / "stack.json").read_text())
        self._pids = {part["name"]: part["process"]["pid"] for part in state["parts"]}
        self.redis = connect_redis(state["redis_url"])
        self.postgres_url: str = state["postgres_url"]
        return self

    def __exit__(self, *_: object) -> None:
        self._up.stop()
        self._directory.cleanup()

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health/ready", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    @contextmanager
    def echo(self) -> Iterator[None]:
        """The baseline endpoint, served by a worker of its own."""
        port = free_port()
        process = Process(["bench.echo", str(port)], self._environ, self._place / "echo.log")
        self._echo_url = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            process.check()
            try:
                answer = httpx.post(f"{self._echo_url}/echo", json={}, trust_env=False)
                return answer.status_code == 200
            except httpx.TransportError:
                return False

        try:
            until("the baseline answers", answers)
            yield
        finally:
            process.stop()

    def receive(self, sku: str, quantity: int) -> None:
        movement = {
            "movement_id": f"in-{sku}",
            "type": "receive",
            "sku": sku,
            "location": "MAIN",
            "quantity": quantity,
        }
        answer = httpx.post(f"{self.url}/v1/movements", json=movement, trust_env=False)
        if answer.status_code != 201:
            raise BenchError(f"stock could not be received: {answer.text}")

    def flash_sale(self, seconds: float) -> Run:
        """Buyers arrive at a constant rate for 1,000 units of one sku; p99 of all answers, refusals
        included. Exactly so many are held."""
        sku = f"flash-{next(_runs)}"
        self.receive(sku, FLASH_UNITS)
        run = self.run("reserve", seconds, 1_000, rate=FLASH_RATE, sku=sku)
        findings = list(run.findings or [])
        wanted = min(FLASH_UNITS, int(seconds * FLASH_RATE))
        if run.notes["units"] != wanted and not run.stalled:
            findings.append(f"{run.notes['units']:.0f} of {wanted} units were sold")
        return msgspec.structs.replace(run, value=run.notes["p99"], findings=findings)

    def replay(self, orders: Path, *, held_back: bool) -> Run:
        """Invoices a second of `holdfast replay`'s own client; reconciliation is the audit."""
        plan = read_plan(orders, ratio=Fraction(1))
        with self._persister(held_back):
            summary = uvloop.run(
                replay.run(
                    plan,
                    url=self.url,
                    concurrency=REPLAY_CONCURRENCY,
                    on_progress=lambda units: None,
                )
            )
        wait_for_ledger(self.redis, self.postgres_url)
        told = subprocess.run(
            [sys.executable, "-m", "api.cli", "reconcile", "--data-dir", str(self._place / "data")],
            cwd=REPOSITORY,
            env=self._environ,
            capture_output=True,
            text=True,
            check=False,
        )
        findings = [] if told.returncode == 0 else [f"reconcile: {told.stdout}{told.stderr}"]
        findings += [f"unexpected: {code}" for code in summary.unexpected]
        return Run(summary.invoices_per_second, findings)

    @contextmanager
    def _persister(self, held_back: bool) -> Iterator[None]:
        """The persister held back meanwhile, where that is asked for."""
        pid = self._pids["persister"]
        if held_back:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def run(
        self,
        work: str,
        seconds: float,
        connections: int,
        *,
        held_back: bool = True,
        rate: float = 0.0,
        sku: str = "hot",
    ) -> Run:
        """One run of the load generator, audited: units a second, latencies as notes."""
        orders = Orders(
            url=self._echo_url if work == "echo" else self.url,
            work=work,
            run=f"b{next(_runs)}",
            seconds=seconds,
            connections=connections,
            rate=rate,
            sku=sku,
            acknowledged=str(self._place / "acknowledged"),
        )
        parts = {"redis": self._pids["redis"], "worker": self._pids["http-1"]}
        before_s = {name: cpu_s(pid) for name, pid in parts.items()}
        with self._persister(held_back):
            done = _generate(orders)
        notes = {**done.latency_ms, "units": float(done.units)}
        if work == "echo":
            return Run(done.units / done.seconds, notes=notes)
        for name, pid in parts.items():
            notes[f"{name}_us"] = 1e6 * (cpu_s(pid) - before_s[name]) / max(1, done.units)
        findings = []
        odd = {s: n for s, n in done.statuses.items() if s not in (200, 201, 409, 503)}
        if odd or done.failed:
            findings.append(f"answers {odd}, {done.failed} calls without an answer")
        wait_for_ledger(self.redis, self.postgres_url)
        acknowledged = Path(orders.acknowledged).read_text().split()
        findings += audit_reservations(self.redis, self.postgres_url, acknowledged)
        findings += audit_stock(self.redis, self.postgres_url)
        stalled = done.statuses.get(503, 0) + done.unavailable
        return Run(done.units / done.seconds, findings, notes, stalled)


def _generate(orders: Orders) -> Done:
    process = child.start("bench.http_client", orders)
    child.go(process)
    return msgspec.json.decode(child.told(process, orders.seconds + 90), type=Done)
