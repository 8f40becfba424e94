"""docker-compose.yml, its services run one by one on the servers of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import psycopg
import pytest
from composed import OURS, SERVICES, Composed, kafka_properties, moved
from confluent_kafka.admin import AdminClient, ConfigResource
from kafka_kit import messages
from running import eventually, rows

from engine.events import from_json
from engine.settings import Settings
from persister.persister import connect_redis


@pytest.fixture(scope="module")
def composed(embedded_kafka: None) -> Iterator[Composed]:
    """All of it at work. Not below pytest's own directory: for root that is closed to PostgreSQL."""
    with TemporaryDirectory(prefix="holdfast-compose-") as directory:
        composed = Composed(Path(directory))
        try:
            composed.up()
            yield composed
        finally:
            composed.close()


def test_a_sale_goes_all_the_way_and_reconcile_keeps_its_run(composed: Composed) -> None:
    move = {"movement_id": "m1", "type": "receive", "sku": "tea", "location": "MAIN", "quantity": 9}
    order = {"order_id": "o1", "lines": [{"sku": "tea", "quantity": 2}]}
    with httpx.Client(base_url=f"http://127.0.0.1:{composed.port}/v1", trust_env=False) as client:
        assert client.post("/movements", json=move).status_code == 201
        held = client.post("/reservations", json=order)
        assert held.status_code == 201, held.text
        trail = {"order_id": "o1"}
        eventually(
            "it is in the ledger, for the reader too",
            lambda: client.get("/movements", params=trail).json()["movements"],
        )
        latest = eventually(
            "a run is kept",
            lambda: (answer := client.get("/reconciliations/latest")).is_success and answer.json(),
        )
    assert (latest["trigger"], latest["clean"]) == ("daily", True), composed.log("reconcile")
    topic = Settings(kafka_bootstrap=composed.kafka.url)
    assert [from_json(body).type for body in messages(topic)] == ["receive", "reserve"]


def test_each_process_has_the_login_it_needs_and_nobody_the_superusers(composed: Composed) -> None:
    url = composed.postgres.url.removesuffix("/postgres") + "/holdfast"
    query = "SELECT DISTINCT usename FROM pg_stat_activity WHERE datname = 'holdfast'"
    eventually("the persister is there", lambda: ("holdfast_persister",) in rows(url, query))
    assert ("holdfast",) not in rows(url, query)
    for name, may_write in (("api", False), ("persister", True), ("reconcile", True)):
        place = {"postgres:5432": f"127.0.0.1:{composed.postgres.port}"}
        with psycopg.connect(moved(OURS[name]["environment"]["HOLDFAST_POSTGRES_URL"], place)) as c:
            right = "SELECT has_table_privilege('reconciliations', 'INSERT'),"
            change = " has_table_privilege('events', 'UPDATE')"
            assert c.execute(right + change).fetchone() == (may_write, False), name
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(url.replace("postgres@", "holdfast_api:wrong@"))


def test_redis_runs_with_what_its_command_says(composed: Composed) -> None:
    wanted = {
        "appendonly": "yes",
        "appendfsync": "always",
        "save": "",
        "maxmemory": str(2 * 1024**3),
        "maxmemory-policy": "noeviction",
        "auto-aof-rewrite-min-size": str(1024**3),
    }
    with connect_redis(composed.redis.url) as redis:
        found = redis.config_get(*wanted)
    assert {_text(key): _text(value) for key, value in found.items()} == wanted
    given = SERVICES["redis"]["command"].split()
    assert {word.removeprefix("--") for word in given if word.startswith("--")} == set(wanted)


def test_each_kafka_variable_is_a_property_that_the_broker_took(composed: Composed) -> None:
    admin = AdminClient({"bootstrap.servers": composed.kafka.url})
    broker = ConfigResource(ConfigResource.Type.BROKER, "1")
    found = admin.describe_configs([broker])[broker].result(timeout=10)
    of_a_place = {"listeners", "advertised.listeners", "controller.quorum.voters", "log.dirs"}
    for name, value in kafka_properties().items():
        assert name in found, f"Kafka knows no property {name}"
        if name not in of_a_place:
            assert found[name].value == value, name


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
