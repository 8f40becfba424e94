"""Every part of the benchmark runs and its audits pass; what is planted is found. Never a time."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import httpx
import psutil
import pytest
from kit import Partition
from redis import Redis
from running import (
    REPOSITORY,
    environment,
    eventually,
    on_one_redis,
    persisting,
    wait_for_ledger,
)

from bench import engine_figures, http_figures, pipeline
from bench.figures import Run, figure
from bench.machine import Watch
from bench.place import audit_reservations, audit_stock
from bench.table import verdict
from engine import keys
from engine.settings import Settings


def _some_orders(directory: Path) -> Path:
    """The first lines of the file of real orders, some 200 invoices."""
    few = directory / "orders.csv"
    with gzip.open(pipeline.ORDERS, "rt") as lines, few.open("w") as kept:
        kept.writelines(islice(lines, 4_000))
    return few


@pytest.mark.parametrize(
    ("part", "what", "more"),
    [
        ("engine", engine_figures.WHAT, set()),
        ("http", http_figures.WHAT, {"http_batch_running", "http_reserve_running"}),
        ("pipeline", pipeline.WHAT, {"replay_invoices_running"}),
    ],
)
def test_a_part_runs_and_every_audit_of_it_passes(
    part: str, what: dict[str, str], more: set[str], tmp_path: Path, embedded_kafka: None
) -> None:
    written = tmp_path / "figures.json"
    seconds = "0.05" if part == "pipeline" else "0.2"
    options = ["--seconds", seconds, "--repeats", "1", "--json", str(written)]
    options += ["--plots", str(tmp_path / "plots"), "--report", str(tmp_path / "REPORT.md")]
    ran = subprocess.run(
        [sys.executable, "-m", "bench", part, *options],
        cwd=REPOSITORY,
        env=environment(HOLDFAST_BENCH_ORDERS=str(_some_orders(tmp_path))),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    content = json.loads(written.read_text())
    assert {"machine", "versions", "settings", "figures", "busy"} == set(content)
    assert {"load average before", "steal"} < set(content["machine"])
    page = (tmp_path / "REPORT.md").read_text()
    assert "* steal: " in page and ("busy" in page) is bool(content["busy"])
    figures = {each["name"]: each for each in content["figures"]}
    assert set(what) | more <= set(figures)
    for name, each in figures.items():
        assert each["audit"] is True, each
        if each["value"] is None:  # this machine's disk stood still meanwhile
            assert "answered 503" in each["why"], each
            continue
        assert each["min"] <= each["value"] <= each["max"] and each["value"] > 0, each
        assert (each["met"] is None) == (each["target"] is None)
        assert name in ran.stdout and name in (tmp_path / "REPORT.md").read_text()
    assert (tmp_path / "plots" / "targets.png").read_bytes().startswith(b"\x89PNG")


@on_one_redis
def test_the_audit_finds_what_is_missing_and_what_is_oversold(
    settings: Settings, redis: Redis
) -> None:
    with persisting(settings):
        p = Partition(redis)
        p.receive("A", 5)
        p.hold("r1", "A")
        p.hold("r2", "A")
        wait_for_ledger(settings)

        def found(*ids: str) -> list[str]:
            ledger = settings.postgres_url
            return [*audit_reservations(redis, ledger, ids), *audit_stock(redis, ledger)]

        assert found("r1", "r2") == []
        assert found("r1", "r1") != []
        assert found("r1", "lost") == [
            "1 acknowledged reservations are not in Redis",
            "1 acknowledged reservations are not in the ledger exactly once",
        ]
        redis.hset(keys.stock(0, "A", "X"), "held", 6)
        assert [f.split(":")[0] for f in found("r1")] == ["A at X", "A at X is oversold"]


def test_a_run_in_which_the_disk_stands_still_is_told_as_that() -> None:
    """Given a Redis that stands still for so long that somebody is answered 503."""
    with http_figures.Service() as service, ThreadPoolExecutor() as threads:
        service.receive("hot", 1_000_000)
        pid = service.redis.info("server")["process_id"]
        load = threads.submit(service.run, "reserve", 3.0, 16, rate=200.0)
        url = f"{service.url}/v1/stock/hot"
        eventually(
            "the load has begun", lambda: httpx.get(url, trust_env=False).json()["held"] > 10
        )
        os.kill(pid, signal.SIGSTOP)
        try:
            eventually("it is told", lambda: httpx.get(url, trust_env=False).status_code == 503)
        finally:
            os.kill(pid, signal.SIGCONT)
        run = load.result()
    assert run.findings == [] and run.stalled > 0


def test_runs_that_stalled_are_left_out_of_the_figure_and_told() -> None:
    good, stalled = Run(9.0, [], {"p99": 1.0}), Run(900.0, [], {"p99": 900.0}, stalled=7)
    made = figure("x", "ms", [good, stalled, good], target=10.0, at_most=True)
    assert (made.value, made.max, made.met, made.audit) == (9.0, 9.0, True, True)
    assert made.notes == {"p99": 1.0}
    assert (
        made.why.startswith("1 of 3 runs left out: ") and "7 commands were answered 503" in made.why
    )
    none = figure("x", "ms", [stalled, stalled], target=10.0, at_most=True)
    assert (none.value, none.met, none.audit) == (None, None, True)
    assert verdict(none) == "not measured" and "2 of 2 runs" in none.why
    lost = figure("x", "ms", [good, Run(1.0, ["one lost"], stalled=7)])
    assert (lost.audit, lost.findings) == (False, ["one lost"])


def test_a_busy_machine_is_told() -> None:
    """Given other processes that use every core."""
    watch = Watch()
    burners = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"])
        for _ in range(os.cpu_count() or 1)
    ]
    try:
        eventually(
            "each has worked for a while",
            lambda: all(sum(psutil.Process(b.pid).cpu_times()[:2]) > 0.3 for b in burners),
        )
        load, later = watch.ends(), Watch()
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
    assert load.busy.startswith("The machine was busy with other work: ")
    assert later.busy_before.startswith("The machine was busy before the run began: ")
    assert set(load.told) == {
        "load average before",
        "cores in use before",
        "others' share of the cores during the run",
        "steal",
    }


def test_without_its_extras_it_says_what_to_run() -> None:
    ran = subprocess.run(
        [sys.executable, "-S", "-m", "bench", "http"],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "Traceback" not in ran.stderr and "make bench" in ran.stderr
    assert "-r requirements/bench.txt" in ran.stderr


def test_make_bench_takes_a_part_and_options() -> None:
    def command(*arguments: str) -> str:
        told = subprocess.run(
            ["make", "--no-print-directory", "-n", "bench", *arguments],
            cwd=REPOSITORY,
            env=environment(),
            capture_output=True,
            text=True,
            check=True,
        )
        return told.stdout.splitlines()[-1].partition("-m ")[2]

    assert command() == "bench all"
    assert command("BENCH=http --seconds 1") == "bench http --seconds 1"


def test_a_run_that_fails_its_audit_has_no_figure() -> None:
    wrong = figure("x", "a second", [Run(9.0, []), Run(9.0, ["one lost"])], [Run(3.0)], target=1.0)
    assert (wrong.value, wrong.ratio, wrong.met, wrong.audit) == (None, None, None, False)
    assert wrong.findings == ["one lost"]
    right = figure("x", "a second", [Run(9.0, [])], [Run(3.0)], target=2.0)
    assert (right.value, right.ratio, right.met, right.audit) == (9.0, 3.0, True, True)
    assert figure("x", "ms", [Run(9.0)], target=8.0, at_most=True).met is False
