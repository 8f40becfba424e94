"""When a daily run is due, and the documented schedules."""

import re
from datetime import UTC, datetime
from pathlib import Path

import yaml

from api.cli_reconcile import seconds_until


def test_the_next_time_of_day() -> None:
    now = datetime(2026, 3, 1, 2, 59, 30, tzinfo=UTC)
    assert seconds_until((3, 0), now) == 30
    assert seconds_until((2, 59), now) == 24 * 3600 - 30


def test_the_documented_cron_job_runs_reconcile_once_a_day(repository: Path) -> None:
    text = (repository / "docs" / "operations.md").read_text()
    (block,) = re.findall(r"```yaml\n(apiVersion.*?)```", text, re.DOTALL)
    job = yaml.safe_load(block)
    assert (job["kind"], job["apiVersion"]) == ("CronJob", "batch/v1")
    assert job["spec"]["schedule"] == "0 3 * * *"
    pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["command"] == ["holdfast", "reconcile"]
