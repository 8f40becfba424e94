"""The audit trail's cursor and filters: nothing is told twice or passed over, whatever is written when."""

from __future__ import annotations

import random
from base64 import urlsafe_b64encode
from itertools import combinations
from typing import Any

import httpx
import psycopg
import pytest
from ledger_kit import FIRST_MS, event, receipt, write
from running import NO_POSTGRES, check_problem, in_process

from api.cursors import Places, as_arrays, encode_places
from api.schema import rfc3339
from engine.events import TYPES
from engine.settings import Settings
from persister import database
from persister.queries import QUERIES

pytestmark = pytest.mark.anyio
NO_REDIS = "redis://127.0.0.1:1/0"


@pytest.fixture
def ledger(postgres_url: str) -> Settings:
    with database.connect(postgres_url) as connection:
        database.migrate(connection)
    return Settings(redis_url=NO_REDIS, postgres_url=postgres_url)


async def page(client: httpx.AsyncClient, **query: Any) -> tuple[list[dict[str, Any]], str]:
    answer = await client.get("/v1/movements", params=query)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert isinstance(body["next_cursor"], str) and body["next_cursor"]
    return body["movements"], body["next_cursor"]


async def poll(
    client: httpx.AsyncClient, cursor: str | None, **query: Any
) -> tuple[list[Any], str]:
    """Until an empty page; the places of all rows in the order they came, and the cursor then."""
    found: list[Any] = []
    while True:
        more = {} if cursor is None else {"cursor": cursor}
        movements, cursor = await page(client, **query, **more)
        if not movements:
            return found, cursor
        found += [(row["partition"], row["seq"], row["line"]) for row in movements]


async def test_given_an_empty_ledger_when_polled_then_its_cursor_goes_on_from_the_first_row(
    ledger: Settings,
) -> None:
    async with in_process(ledger) as client:
        assert (await page(client))[0] == []
        found, cursor = await poll(client, None)
        assert found == []
        write(ledger.postgres_url, receipt(1), receipt(2))
        found, cursor = await poll(client, cursor)
        assert found == [(0, 1, 1), (0, 2, 1)]
        assert await poll(client, cursor) == ([], cursor)
        write(ledger.postgres_url, receipt(3, epoch=4))
        assert (await poll(client, cursor))[0] == [(0, 3, 1)]


@pytest.mark.parametrize("filters", [{}, {"sku": "tea"}, {"type": "receive"}], ids=str)
async def test_given_partitions_written_at_any_time_when_polled_then_no_row_is_passed_over(
    ledger: Settings, filters: dict[str, str]
) -> None:
    """Each partition is committed by transactions of its own, whatever the times of its events are."""
    chance = random.Random(seed := random.randrange(10**6))
    print("seed", seed)
    written: list[tuple[int, int, int]] = []
    found: list[tuple[int, int, int]] = []
    seqs: dict[int, int] = {}
    cursor: str | None = None
    async with in_process(ledger) as client:
        for _ in range(12):
            partition = chance.randrange(4)
            for _ in range(chance.randint(1, 4)):
                seq = seqs[partition] = seqs.get(partition, 0) + 1
                # A clock that an operator set back, too: times are no place.
                moment = FIRST_MS + chance.randrange(10_000)
                write(ledger.postgres_url, receipt(seq, partition=partition, at_ms=moment))
                written.append((partition, seq, 1))
            told, cursor = await poll(client, cursor, limit=chance.randint(1, 5), **filters)
            found += told
            assert len(found) == len(set(found)) and set(found) == set(written)
        whole, _ = await poll(client, None, **filters)
    for partition in seqs:
        assert [p for p in found if p[0] == partition] == [p for p in whole if p[0] == partition]
        assert [p for p in whole if p[0] == partition] == sorted(
            p for p in whole if p[0] == partition
        )


async def test_of_several_partitions_the_oldest_comes_first(ledger: Settings) -> None:
    for seq in range(1, 6):
        for partition in (1, 0, 2):
            moment = FIRST_MS + seq * 10 + partition
            write(ledger.postgres_url, receipt(seq, partition=partition, at_ms=moment))
    async with in_process(ledger) as client:
        found, _ = await poll(client, None, limit=4)
    assert found == [(partition, seq, 1) for seq in range(1, 6) for partition in range(3)]


async def test_a_hole_that_was_adopted_is_no_end(ledger: Settings) -> None:
    """Seqs and epochs jump there."""
    write(ledger.postgres_url, receipt(1))
    with psycopg.connect(ledger.postgres_url, autocommit=True) as connection:
        connection.execute("UPDATE positions SET seq = 9, epoch = 3")
    async with in_process(ledger) as client:
        _, cursor = await poll(client, None)
        write(ledger.postgres_url, receipt(10, epoch=5), receipt(11, epoch=5))
        assert (await poll(client, cursor))[0] == [(0, 10, 1), (0, 11, 1)]


MANY = [
    receipt(1), receipt(2, "mug", "SHOP"),
    event(3, "reserve", ("tea", "MAIN", 2, 0, 2), ("mug", "SHOP", 1, 0, 1), reservation_id="r1",
          order_id="o1", customer_id="c1", fingerprint="f", deadline_ms=FIRST_MS + 90_000),
    event(4, "extend", reservation_id="r1", order_id="o1", deadline_ms=FIRST_MS + 95_000),
    event(5, "confirm", ("tea", "MAIN", 2, -2, -2), ("mug", "SHOP", 1, -1, -1), reservation_id="r1",
          order_id="o1", customer_id="c1", status="confirmed"),
    event(6, "damage", ("tea", "MAIN", 1, -1, 0), movement_id="m6", reason="wet"),
    receipt(7, "tea", "SHOP"),
]  # fmt: skip


async def test_each_combination_of_filters_tells_just_what_fits(ledger: Settings) -> None:
    write(ledger.postgres_url, *MANY)
    values = {"sku": "tea", "location": "SHOP", "type": "confirm", "reservation_id": "r1",
              "order_id": "o1", "since": rfc3339(FIRST_MS + 5000)}  # fmt: skip
    async with in_process(ledger) as client:
        everything, _ = await page(client)
        for count in range(1, len(values) + 1):
            for names in combinations(values, count):
                asked = {name: values[name] for name in names}
                found, _ = await page(client, **asked)
                assert found == [
                    row
                    for row in everything
                    if all(
                        row["occurred_at"] >= value if name == "since" else row[name] == value
                        for name, value in asked.items()
                    )
                ], asked
        for name in ("sku", "location", "reservation_id", "order_id"):
            assert (await page(client, **{name: ""}))[0] == []
        for kind in TYPES:
            told, _ = await page(client, type=kind)
            assert {row["type"] for row in told} <= {kind}


async def test_since_begins_at_its_moment_in_every_partition_and_a_later_cursor_goes_before_it(
    ledger: Settings,
) -> None:
    events = [
        receipt(seq, partition=p, at_ms=FIRST_MS + seq * 1000)
        for seq in range(1, 9)
        for p in (0, 3)
    ]
    write(ledger.postgres_url, *events)
    async with in_process(ledger) as client:
        for seq, text in [(1, "2020-01-01"), (4, rfc3339(FIRST_MS + 4000)), (5, rfc3339(FIRST_MS + 4001)),
                          (9, "2999-12-31"), (9, "9999-12-31T23:59:59Z"), (1, "0001-01-01")]:  # fmt: skip
            found, cursor = await poll(client, None, since=text, limit=3)
            assert {(p, s) for p, s, _ in found} == {(p, s) for p in (0, 3) for s in range(seq, 9)}
            assert (await poll(client, cursor, since=text))[0] == []
        _, cursor = await page(client, limit=8)
        found, _ = await poll(client, cursor, since="2020-01-01")
        assert {s for _, s, _ in found} == {5, 6, 7, 8}
        # What comes once a poller waits for a time that is not yet.
        _, cursor = await page(client, since=rfc3339(FIRST_MS + 60_000))
        write(ledger.postgres_url, receipt(9, at_ms=FIRST_MS + 61_000))
        assert (await poll(client, cursor))[0] == [(0, 9, 1)]


def cursor_of(text: str) -> str:
    return urlsafe_b64encode(text.encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "query",
    [
        *[{"cursor": cursor_of(text)} for text in (
            "0.1.81.2", "", "1:", "2", "2:0", "2:0.1.1", "2:0.1.1.1.1", "2:-1.1.1.1", "2:0.1.1.x", "2:,",
            f"2:{2**31}.1.1.1", f"2:0.{2**63}.1.1", f"2:0.1.{2**63}.1", f"2:0.1.1.{2**31}",
            "2:" + "9" * 5000 + ".1.1.1")],
        {"type": "gift"}, {"type": ""}, {"type": "Receive"}, {"since": ""}, {"since": "yesterday"},
        {"since": "2026-11-01T08:00:00"}, {"since": "2026-11-01 08:00:00Z"}, {"since": "24h"},
        {"since": "2026-11-01T00:00:00 02:00"}, {"since": "2026-13-01"}, {"since": "٢٠٢٦-11-01"},
        {"customer_id": "c"},
    ],
    ids=lambda query: str(query)[:50],
)  # fmt: skip
async def test_what_does_not_fit_is_400_and_says_what_would(query: dict[str, str]) -> None:
    async with in_process(Settings(redis_url=NO_REDIS, postgres_url=NO_POSTGRES)) as client:
        problem = check_problem(
            await client.get("/v1/movements", params=query), 400, "invalid_request"
        )
    assert next(iter(query)) in problem["detail"]


async def test_the_largest_cursor_is_read(ledger: Settings) -> None:
    write(ledger.postgres_url, receipt(1))
    largest = cursor_of(f"2:0.{2**63 - 1}.{2**63 - 1}.{2**31 - 1}")
    async with in_process(ledger) as client:
        for filters in ({}, {"sku": "tea"}):
            assert await page(client, cursor=largest, **filters) == ([], largest)


FILL = """
INSERT INTO movements
SELECT p, 1, n, 1, (ARRAY['reserve','confirm','receive','release'])[1 + n % 4], 's' || n % 997,
  'L' || n % 50, 1, 0, 1, 0, 'r' || n / 2, 'o' || n / 2, 'c' || n % 9973, NULL, NULL,
  timestamptz '2026-11-01Z' + n * interval '1 second'
FROM generate_series(1, 12000) AS n, generate_series(0, 1) AS p;
INSERT INTO movements
SELECT 0, 2, n, 1, 'damage', 'rare', 'FAR', 1, -1, 0, 0, NULL, NULL, NULL, NULL, 'wet',
  timestamptz '2026-12-01Z' FROM generate_series(12001, 12003) AS n;
INSERT INTO events
SELECT partition, epoch, seq, type, occurred_at, json_build_object('reservation_id', reservation_id),
  ''::bytea FROM movements;
INSERT INTO positions SELECT partition, max(epoch), max(seq) FROM movements GROUP BY partition;
ANALYZE;
"""
PLACES: Places = {0: (1, 1000, 1), 1: (1, 11_000, 1)}


def scanned_whole(connection: database.Connection, query: str, values: dict[str, Any]) -> list[str]:
    """Steps of the plan that look at every row of a table that grows for ever."""
    plan = connection.execute("EXPLAIN " + QUERIES[query], values).fetchall()
    lines = [line for (line,) in plan]
    return [
        line for line in lines if "Seq Scan on movements" in line or "Seq Scan on events" in line
    ]


@pytest.fixture
def large(ledger: Settings) -> Settings:
    with psycopg.connect(ledger.postgres_url, autocommit=True) as connection:
        connection.execute(FILL)
    return ledger


async def test_given_a_large_ledger_then_each_combination_of_filters_has_an_index(
    large: Settings,
) -> None:
    values = {
        "sku": "s7",
        "location": "L7",
        "type": "confirm",
        "reservation_id": "r9",
        "order_id": "o9",
    }
    since = "2026-11-01T02:00:00Z"
    with database.connect(large.postgres_url) as connection:
        for count in range(len(values) + 1):
            for names in combinations(values, count):
                for moment in (None, since):
                    for places in ({}, PLACES):
                        asked = {name: values[name] if name in names else None for name in values}
                        asked |= {"since": moment, "limit": 100, **as_arrays(places)}
                        query = "movements_matching" if names else "movements_after"
                        assert not scanned_whole(connection, query, asked), (names, moment)
        assert not scanned_whole(connection, "places_since", {"since": since})
        for names in (("order_id",), ("customer_id",), ("order_id", "customer_id")):
            asked = {n: "c7" if n in names else None for n in ("order_id", "customer_id")}
            asked |= {"limit": 100, **as_arrays(PLACES)}
            assert not scanned_whole(connection, "reservations_begun", asked), names
        ids = {"ids": [f"r{n}" for n in range(25)]}
        assert not scanned_whole(connection, "events_of_reservations", ids)


MIDDLE: Places = {0: (1, 6000, 1), 1: (1, 9, 1)}
END: Places = {0: (2, 12_003, 1), 1: (1, 12_000, 1)}


def is_cheap(connection: database.Connection, query: str, values: dict[str, Any]) -> bool:
    """Do the scans of its plan look at few rows, told or not, and at few blocks of tables and indexes?"""

    def count(node: dict[str, Any]) -> float:
        removed = [value for name, value in node.items() if name.startswith("Rows Removed by")]
        own = (node["Actual Rows"] + sum(removed)) * node["Actual Loops"]
        below = sum([count(each) for each in node.get("Plans", ())])
        return below + (own if "Scan" in node["Node Type"] else 0)

    row = connection.execute(
        "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + QUERIES[query], values
    ).fetchone()
    assert row is not None
    plan = row[0][0]["Plan"]
    return count(plan) < 1000 and plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 100


PAGES: list[dict[str, str]] = [
    {"sku": "rare"}, {"location": "FAR"}, {"type": "damage"}, {"type": "confirm"}, {"sku": "s5"},
    {"sku": "s5", "location": "L46"}, {"order_id": "o5"}, {"reservation_id": "r5"}, {},
]  # fmt: skip


async def test_a_page_costs_what_it_tells_however_long_the_ledger_is(large: Settings) -> None:
    """From the beginning, in the middle, at the end; also where another partition's rows lie beyond."""
    filters = ("sku", "location", "type", "reservation_id", "order_id")
    with database.connect(large.postgres_url) as connection:
        for places in ({}, MIDDLE, END):
            common = {"since": None, "limit": 50, **as_arrays(places)}
            for asked in PAGES:
                query = "movements_matching" if asked else "movements_after"
                values = {name: asked.get(name) for name in filters}
                assert is_cheap(connection, query, values | common), (asked, places)
            for asked in ({"order_id": "o5"}, {"customer_id": "c7"}):
                values = {name: asked.get(name) for name in ("order_id", "customer_id")}
                assert is_cheap(connection, "reservations_begun", values | common), (asked, places)
        assert is_cheap(connection, "events_of_reservations", {"ids": ["r5", "r6"]})
        assert is_cheap(connection, "places_since", {"since": "2026-11-01T02:00:00Z"})
    async with in_process(large) as client:
        for asked in PAGES:
            for places in ({}, MIDDLE, END):
                told, _ = await page(client, cursor=encode_places(places), limit=50, **asked)
                assert bool(told) == (places != END)
