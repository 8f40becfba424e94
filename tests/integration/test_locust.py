"""A flash sale by Locust against a running service: it ends, and its audit finds what is planted."""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from running import REPOSITORY, environment, eventually, persisting, rows, served

from api.ports import free_port
from engine import keys
from engine.settings import Settings
from persister.persister import connect_redis

SMALL = {
    "USERS": "30",
    "SECONDS": "3",
    "UNITS": "30",
    "SKUS": "4",
    "WAIT_MS": "100",
    "ABANDON_SECONDS": "1",
    "LOST": "20",
}


@pytest.fixture
def service(one: Settings, tmp_path: Path) -> Iterator[str]:
    with persisting(one), served(one, tmp_path / "serve.log") as url:
        yield url


@contextmanager
def locust(
    url: str, *options: str, headless: bool = True, **sizes: str
) -> Iterator[subprocess.Popen[str]]:
    """A sale as a process; where the test fails meanwhile it is ended."""
    variables = {f"HOLDFAST_LOCUST_{name}": value for name, value in (SMALL | sizes).items()}
    file = str(REPOSITORY / "bench" / "locustfile.py")
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "locust",
            "-f",
            file,
            *(["--headless", "--only-summary"] if headless else []),
            "-H",
            url,
            *options,
        ],
        cwd=REPOSITORY,
        env=environment(None, **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def shown(output: str) -> dict[str, str]:
    """What the end tells, by its name."""
    return dict(re.findall(r"^(\S[\w ():]*?)  +(\S.*)$", output, re.MULTILINE))


def ended(process: subprocess.Popen[str], code: int) -> str:
    """What it said, once it has ended with that code."""
    output, _ = process.communicate(timeout=90)
    assert process.returncode == code, output
    assert "Traceback" not in output
    return output


def acknowledged(output: str) -> int:
    found = re.search(r"([\d,]+) acknowledged reservations", output)
    assert found is not None, output
    return int(found[1].replace(",", ""))


def unanswered(output: str) -> int:
    found = re.search(r"([\d,]+) without an answer", output)
    return int(found[1].replace(",", "")) if found else 0


def reserved_in_ledger(settings: Settings) -> int:
    return rows(
        settings.postgres_url,
        "SELECT count(DISTINCT reservation_id) FROM movements WHERE type = 'reserve'",
    )[0][0]


def test_a_sale_sells_out_and_is_clean(one: Settings, service: str, tmp_path: Path) -> None:
    """The audit's numbers are the ledger's; refusals are counted as what they are, none as a failure."""
    report = tmp_path / "report"
    with locust(service, "--csv", str(report), "--html", f"{report}.html") as process:
        output = ended(process, 0)

    assert "CLEAN: nothing oversold, nothing lost" in output
    in_ledger = reserved_in_ledger(one)
    assert 0 <= in_ledger - acknowledged(output) <= unanswered(output)
    received, on_hand, held, sold = rows(
        one.postgres_url,
        "SELECT sum(on_hand_delta) FILTER (WHERE type = 'receive'), sum(on_hand_delta),"
        " sum(held_delta), -sum(on_hand_delta) FILTER (WHERE type = 'confirm')"
        " FROM movements WHERE sku LIKE 'sale-%%-hot'",
    )[0]
    assert re.search(rf"hot sku +{received} +{on_hand} +{held} +{sold}\n", output), output
    with Path(f"{report}_stats.csv").open(newline="") as file:
        requests = {row["Name"]: row for row in csv.DictReader(file)}
    assert {"reserve", "reserve (sold out)", "reserve (replayed)", "confirm"} <= requests.keys()
    assert {row["Failure Count"] for row in requests.values()} == {"0"}
    assert "<title>Locust" in Path(f"{report}.html").read_text()


def test_so_many_buyers_come_for_so_many_units(one: Settings, service: str, tmp_path: Path) -> None:
    """Each once; the end tells what they were answered, when it was sold out, and the units over time."""
    sizes = {"BUYERS": "150", "UNITS": "20", "LOST": "0", "PAY": "100", "ABANDON": "0", "FAIL": "0"}
    with locust(service, "--csv", str(tmp_path / "sale"), **sizes, MAX_503="0") as process:
        output = ended(process, 0)

    told = shown(output)
    assert told["buyers"] == "150 of 150 came for 20 units"
    asked, refused = (
        rows(
            one.postgres_url,
            "SELECT count(DISTINCT reservation_id) FROM movements"
            " WHERE sku LIKE 'sale-%%-hot' AND type = 'reserve'",
        )[0][0],
        int(told["refused"].partition(" ")[0]),
    )
    assert asked >= 20 and refused >= 150 - asked
    assert told["503s"] == "0" and told["errors"] == "0" and "% of a core" in told["generator"]
    assert re.fullmatch(r"[\d,]+ requests, p50 .* ms, p95 .* ms, p99 .* ms", told["spike: reserve"])
    sold_out_s = re.match(r"(\d+\.\d{3}) s after the first", told["sold out"])
    with (tmp_path / "sale_units_left.csv").open(newline="") as file:
        units = list(csv.DictReader(file))
    assert sold_out_s is not None
    after = [row for row in units if float(row["seconds"]) >= float(sold_out_s[1])]
    assert after and {row["available"] for row in after} == {"0"}
    assert "proper args" not in output and "spawn rate is very high" not in output


def test_workers_share_the_buyers(one: Settings, service: str) -> None:
    with locust(service, "--processes", "2", BUYERS="101", UNITS="200", USERS="4") as process:
        output = ended(process, 0)

    told = shown(output)
    assert told["buyers"] == "101 of 101 came for 200 units"
    assert told["sold out"].startswith("never") and "of 2 processes" in told["generator"]


def test_a_gate_that_is_missed_ends_the_sale_with_1(one: Settings, service: str) -> None:
    """Given a Redis that is full for a while."""
    with locust(service, MAX_503="0") as process, connect_redis(one.redis_url) as redis:
        try:
            eventually(
                "one is paid for",
                lambda: rows(one.postgres_url, "SELECT 1 FROM movements WHERE type = 'confirm'"),
            )
            redis.config_set("maxmemory", "1mb")
            output = ended(process, 1)
        finally:
            redis.config_set("maxmemory", "0")

    number = re.search(r"^503s +(\d+) \(\d+ store_full\)$", output, re.MULTILINE)
    assert number is not None, output
    assert f"GATE MISSED: HOLDFAST_LOCUST_MAX_503=0: {number[1]} were answered 503" in output
    assert "CLEAN: nothing oversold, nothing lost" in output


def test_the_audit_is_on_the_web_page(one: Settings, service: str) -> None:
    """The page goes on asking until the audit is there; the report and the units can be taken away."""
    port = free_port()
    options = ("--web-host", "127.0.0.1", "--web-port", str(port))
    with (
        locust(service, *options, headless=False, UNITS="5") as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as page,
        psycopg.connect(one.postgres_url) as ledger,
    ):
        eventually("the page is there", lambda: answers(page))
        assert "Sale and audit" in page.get("/").text
        assert sale_on(page)["audit"] == "no sale has begun"
        page.post("/swarm", data={"user_count": "1", "spawn_rate": "1", "host": service})
        eventually(
            "one is paid for",
            lambda: rows(one.postgres_url, "SELECT 1 FROM movements WHERE type = 'confirm'"),
        )
        ledger.execute("LOCK TABLE events IN EXCLUSIVE MODE")  # the audit has to wait
        waiting = eventually("users are gone, the audit waits", lambda: auditing(page), 90)
        assert waiting["state"] == "running"  # Locust's page asks no more once it reads "stopped"
        ledger.rollback()
        told = eventually("the audit is there", lambda: audited(page), 90)
        assert told["audit"] == "CLEAN: nothing oversold, nothing lost"
        assert "sale-" in told["sale"] and "units=5" in told["settings"]
        assert "CLEAN" in page.get("/holdfast/report.txt").text
        assert page.get("/holdfast/units-left.csv").text.startswith("seconds,available")
        assert page.get("/holdfast/other").status_code == 404
        process.terminate()
        process.communicate(timeout=30)


def auditing(page: httpx.Client) -> dict[str, Any] | None:
    told: dict[str, Any] = page.get("/stats/requests").json()
    waits = "then auditing" in told["extended_stats"][0]["data"][0]["result"]
    return told if waits and told["user_count"] == 0 else None


def answers(page: httpx.Client) -> bool:
    try:
        return page.get("/").status_code == 200
    except httpx.TransportError:
        return False


def sale_on(page: httpx.Client) -> dict[str, str]:
    """The rows of the tab."""
    (table,) = page.get("/stats/requests").json()["extended_stats"]
    return {row["what"]: row["result"] for row in table["data"]}


def audited(page: httpx.Client) -> dict[str, str] | None:
    told = sale_on(page)
    return told if told["audit"].startswith(("CLEAN", "OVERSOLD", "COULD")) else None


def test_workers_with_batches_tell_all_they_were_told(one: Settings, service: str) -> None:
    sizes = {"USERS": "4", "UNITS": "100", "LOST": "60"}
    with locust(service, "--batch", "50", "--processes", "2", **sizes) as process:
        output = ended(process, 0)

    assert "CLEAN: nothing oversold, nothing lost" in output
    assert acknowledged(output) > 50
    assert 0 <= reserved_in_ledger(one) - acknowledged(output) <= unanswered(output)
    assert re.search(r" reserve: insufficient_stock\n", output), output
    assert re.search(r" reserve: already_reserved\n", output), output


def test_units_sold_that_nobody_received_are_found(one: Settings, service: str) -> None:
    """Given stock that somebody raised in Redis by hand, when it is sold, then the audit says so."""
    with locust(service, HOT="100", PAY="100", ABANDON="0", FAIL="0") as process:
        with connect_redis(one.redis_url) as redis:
            stock = eventually(
                "the hot sku is there",
                lambda: list(redis.scan_iter(keys.stock(0, "sale-*-hot", "MAIN"))),
            )[0]
            redis.hincrby(stock, "on_hand", 1000)
        output = ended(process, 1)

    assert re.search(r"sale-\w+-hot at MAIN oversold at seq \d+: on_hand", output), output
    assert re.search(r"OVERSOLD OR LOST: \d+ findings", output)
    assert "CLEAN" not in output


def test_an_acknowledged_reservation_that_the_ledger_lost_is_found(
    one: Settings, service: str
) -> None:
    """Given a ledger from which somebody deleted one that was paid for, then the audit names it."""
    with locust(service) as process:
        lost = eventually(
            "one is paid for",
            lambda: rows(
                one.postgres_url,
                "SELECT reservation_id FROM movements WHERE type = 'confirm' LIMIT 1",
            ),
        )[0][0]
        with psycopg.connect(one.postgres_url) as connection:
            connection.execute("ALTER TABLE movements DISABLE TRIGGER movements_append_only")
            connection.execute("DELETE FROM movements WHERE reservation_id = %s", [lost])
            connection.execute("ALTER TABLE movements ENABLE ALWAYS TRIGGER movements_append_only")
        output = ended(process, 1)

    assert f"reservation {lost} was acknowledged and is in the ledger 0 times: lost" in output
    assert "CLEAN" not in output


def test_other_machines_are_left_alone_and_a_missing_service_is_told() -> None:
    with locust("http://192.0.2.1:8080") as process:
        assert "HOLDFAST_LOCUST_ANY_HOST=1" in ended(process, 2)
    for url in (
        "http://shop:hush/quiet@db:8080",
        "http://db:hush",
        "http://shop:hush@quiet.invalid",
    ):
        with locust(url, ANY_HOST="1") as process:
            told = ended(process, 2)
        assert "hush" not in told and ("`make run`" in told or "must be one such as" in told), told
    with locust("http://127.0.0.1:1") as process:
        assert "`make run` starts a service" in ended(process, 2)
    with locust("http://127.0.0.1:1", USERS="many") as process:
        assert "HOLDFAST_LOCUST_USERS='many': a whole number from 1 to" in ended(process, 2)
