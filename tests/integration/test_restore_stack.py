"""The runbook of a lost Redis, on the embedded stack: docs/operations.md, 'Redis is gone'."""

from __future__ import annotations

import shutil
from pathlib import Path

import httpx
from running import Up, eventually, holdfast


def test_given_a_stack_whose_redis_data_is_gone_then_up_says_so_and_the_runbook_brings_it_back(
    tmp_path: Path,
) -> None:
    up = Up(tmp_path / "data")
    up.start()
    reserved = {"order_id": "o", "reservation_id": "r", "lines": [{"sku": "tea", "quantity": 2}]}
    delivery = {"type": "receive", "sku": "tea", "location": "MAIN", "quantity": 5}
    for path, body in (
        ("movements", {"movement_id": "m", **delivery}),
        ("reservations", reserved),
    ):
        assert httpx.post(f"{up.url}/v1/{path}", json=body, trust_env=False).status_code == 201
    assert up.stop() == 0
    shutil.rmtree(up.data_dir / "redis")
    up.launch()
    eventually("it says why", lambda: "rebuild it with 'holdfast restore'" in up.output.read_text())
    assert not up.ready()
    done = holdfast("restore", "--into", up.state()["redis_url"], "--data-dir", str(up.data_dir))
    assert done.returncode == 0, done.stderr
    eventually("it is ready", up.ready)
    answer = httpx.get(f"{up.url}/v1/reservations/r", trust_env=False).json()
    assert (answer["status"], answer["lines"][0]["quantity"]) == ("held", 2)
    reconciled = holdfast("reconcile", "--data-dir", str(up.data_dir))
    assert reconciled.returncode == 0, reconciled.stdout
    assert up.stop() == 0
