"""Every part of the benchmark runs and its audits pass; what is planted is found. Never a time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from kit import Partition
from redis import Redis
from running import REPOSITORY, environment, on_one_redis, persisting, wait_for_ledger

from bench import engine, http, pipeline
from bench.figures import Run, figure
from bench.place import audit_reservations, audit_stock
from engine import keys
from engine.settings import Settings


@pytest.mark.parametrize(
    ("part", "what", "more"),
    [
        ("engine", engine.WHAT, set()),
        ("http", http.WHAT, {"http_batch_running", "http_reserve_running"}),
        ("pipeline", pipeline.WHAT, {"replay_invoices_running"}),
    ],
)
def test_a_part_runs_and_every_audit_of_it_passes(
    part: str, what: dict[str, str], more: set[str], tmp_path: Path, embedded_kafka: None
) -> None:
    written = tmp_path / "figures.json"
    options = ["--seconds", "0.2", "--repeats", "1", "--json", str(written)]
    options += ["--plots", str(tmp_path / "plots"), "--report", str(tmp_path / "REPORT.md")]
    ran = subprocess.run(
        [sys.executable, "-m", "bench", part, *options],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    content = json.loads(written.read_text())
    assert {"machine", "versions", "settings", "figures"} == set(content)
    figures = {each["name"]: each for each in content["figures"]}
    assert set(what) | more <= set(figures)
    for name, each in figures.items():
        assert each["audit"] is True, each
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


def test_a_run_that_fails_its_audit_has_no_figure() -> None:
    wrong = figure("x", "a second", [Run(9.0, []), Run(9.0, ["one lost"])], [Run(3.0)], target=1.0)
    assert (wrong.value, wrong.ratio, wrong.met, wrong.audit) == (None, None, None, False)
    assert wrong.findings == ["one lost"]
    right = figure("x", "a second", [Run(9.0, [])], [Run(3.0)], target=2.0)
    assert (right.value, right.ratio, right.met, right.audit) == (9.0, 3.0, True, True)
    assert figure("x", "ms", [Run(9.0)], target=8.0, at_most=True).met is False
