"""Reading /metrics and /v1/status."""

from __future__ import annotations

from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from engine.settings import Settings
from persister import database
from persister.persister import connect_redis
from persister.runs import run


def numbers(text: str) -> dict[str, float]:
    """Value by metric, its labels left out: all of them are of partition 0."""
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    assert all(s.labels == {"partition": "0"} for s in samples if "partition" in s.labels)
    found = {s.name: s.value for s in samples}
    assert len(found) == len(samples)
    return found


async def look(client: httpx.AsyncClient) -> tuple[dict[str, float], dict[str, Any]]:
    """The metrics, and partition 0 of the status."""
    scraped = await client.get("/metrics")
    assert scraped.status_code == 200, scraped.text
    status = await client.get("/v1/status")
    assert status.status_code == 200, status.text
    (partition,) = status.json()["partitions"]
    return numbers(scraped.text), partition


def reconcile(settings: Settings) -> None:
    with (
        connect_redis(settings.redis_url) as redis,
        database.connect(settings.postgres_url) as connection,
    ):
        run(redis, connection, trigger="test", retention_ms=60_000, wait_s=1)
