"""``holdfast audit``: a ledger that is whole proves it; every planted corruption is found and named."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import psycopg
import pytest
from redis import Redis
from running import (
    environment,
    holdfast,
    in_process,
    on_one_redis,
    persisting,
    rows,
    until_ready,
    wait_for_ledger,
)

from engine import keys
from engine.reservations import read_record
from engine.settings import Settings
from persister import database
from persister.audit import Anchor, AuditReport, Fault, audit

pytestmark = [pytest.mark.anyio, on_one_redis]


def operations(chance: random.Random, count: int) -> list[dict[str, Any]]:
    """Lives of reservations: whole and in parts, ended and not."""
    found: list[dict[str, Any]] = []
    for number in range(count):
        name = {"reservation_id": f"r{number}"}
        line = {"sku": f"s{chance.randint(0, 4)}", "quantity": 3}
        part = {"lines": [{**line, "quantity": 1}], "request_id": "p"}
        found.append({"op": "reserve", **name, "order_id": f"order \\ {number}", "lines": [line]})
        found += chance.choice(
            [
                [],
                [{"op": "confirm", **name}],
                [{"op": "release", **name}],
                [{"op": "extend", **name, "ttl_seconds": 3600}],
                [{"op": "confirm", **name, **part}],
                [{"op": "confirm", **name, **part}, {"op": "release", **name}],
                [{"op": "release", **name, **part}, {"op": "extend", **name, "ttl_seconds": 7200}],
            ]
        )
    return found


@pytest.fixture
async def filled(settings: Settings) -> Settings:
    """A ledger of some hundred events, written in several batches; nobody works on it now."""
    seed = random.randrange(10**6)
    print("seed", seed)
    chance = random.Random(seed)
    receipts = [
        {"op": "movement", "movement_id": f"m{n}", "type": "receive", "sku": f"s{n}"}
        | {"location": "MAIN", "quantity": 1000, "reason": "a \\ delivery"}
        for n in range(5)
    ]
    with persisting(settings):
        async with in_process(settings) as client:
            await until_ready(client)
            todo = operations(chance, 100)
            for part in (receipts, *(todo[i : i + 30] for i in range(0, len(todo), 30))):
                answer = await client.post("/v1/batch", json={"operations": part})
                assert answer.status_code == 200, answer.text
                wait_for_ledger(settings)
    return settings


def audited(settings: Settings, anchors: dict[int, Anchor] | None = None) -> AuditReport:
    with database.connect(settings.postgres_url) as connection:
        return audit(connection, anchors=anchors)


def as_superuser(settings: Settings, *statements: str) -> None:
    """Change what the triggers protect, as somebody with all rights could."""
    with psycopg.connect(settings.postgres_url, autocommit=True) as connection:
        for table in ("events", "movements"):
            connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER {table}_append_only")
        for statement in statements:
            assert connection.execute(statement).rowcount > 0, statement
        for table in ("events", "movements"):
            connection.execute(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {table}_append_only")


async def test_a_whole_ledger_is_clean_and_its_live_reservations_are_those_of_redis(
    filled: Settings, redis: Redis
) -> None:
    report = audited(filled)
    assert (report.findings, report.events) == ([], int(redis.hget(keys.head(0), "seq")))
    kept = rows(
        filled.postgres_url,
        "SELECT reservation_id, created_ms, deadline_ms, seq, fingerprint, lines FROM live_reservations",
    )
    assert len(kept) > 5
    held = 0
    for reservation_id, created_ms, deadline_ms, seq, fingerprint, lines in kept:
        record = read_record(redis.get(keys.reservation(0, reservation_id)))
        assert record.state == 0
        assert (record.created_ms, record.deadline_ms, record.seq) == (created_ms, deadline_ms, seq)
        assert record.fingerprint == fingerprint
        parts = record.parts or [0, 0] * len(lines)
        expected = [
            [*triple, *parts[2 * i : 2 * i + 2]] for i, triple in enumerate(record.body.triples())
        ]
        assert lines == expected
        held += sum(quantity - done - given for _, _, quantity, done, given in lines)
    assert held == sum(int(redis.hget(keys.stock(0, f"s{n}", "MAIN"), "held")) for n in range(5))


CORRUPTIONS: dict[str, tuple[Fault | set[Fault], str]] = {
    "a body": (
        {Fault.BROKEN_CHAIN, Fault.WRONG_MOVEMENTS, Fault.WRONG_BALANCE},
        "UPDATE events SET body = replace(body::text, '1000', '1001')::json WHERE seq = 3",
    ),
    "a hash": (
        Fault.BROKEN_CHAIN,
        "UPDATE events SET hash = decode(repeat('ab', 32), 'hex') WHERE seq = 5",
    ),
    "a body that is no event": (
        {Fault.BROKEN_CHAIN, Fault.UNREADABLE_EVENT, Fault.WRONG_BALANCE},
        "UPDATE events SET body = '[]' WHERE seq = 3",
    ),
    "the time of an event": (
        Fault.WRONG_IDENTITY,
        "UPDATE events SET occurred_at = occurred_at - interval '1 hour' WHERE seq = 7",
    ),
    "a quantity": (
        Fault.WRONG_MOVEMENTS,
        "UPDATE movements SET quantity = quantity + 1 WHERE seq = 4",
    ),
    "an order": (Fault.WRONG_MOVEMENTS, "UPDATE movements SET order_id = 'x' WHERE seq = 8"),
    "a line too many": (
        Fault.WRONG_MOVEMENTS,
        "INSERT INTO movements SELECT partition, epoch, 99999, line, type, sku, location, quantity,"
        " on_hand_delta, held_delta, quarantined_delta, reservation_id, order_id, customer_id,"
        " reference, reason, occurred_at FROM movements WHERE seq = 4",
    ),
    "a line too few": (Fault.WRONG_MOVEMENTS, "DELETE FROM movements WHERE seq = 4"),
    "an epoch that goes back": (
        {Fault.GAP, Fault.BROKEN_CHAIN, Fault.WRONG_IDENTITY, Fault.WRONG_MOVEMENTS}
        | {Fault.WRONG_POSITION, Fault.WRONG_BALANCE, Fault.WRONG_LIVE_RESERVATION},
        "UPDATE events SET epoch = 2 WHERE seq BETWEEN 10 AND 50",
    ),
    "a position": (Fault.WRONG_POSITION, "UPDATE positions SET seq = seq - 1"),
    "the head of the chain": (
        Fault.WRONG_POSITION,
        "UPDATE positions SET hash = decode(repeat('ab', 32), 'hex')",
    ),
    "a balance": (Fault.WRONG_BALANCE, "UPDATE balances SET held = held + 1 WHERE sku = 's3'"),
    "a balance gone": (Fault.WRONG_BALANCE, "DELETE FROM balances WHERE sku = 's3'"),
    "a live reservation": (
        Fault.WRONG_LIVE_RESERVATION,
        "UPDATE live_reservations SET deadline_ms = deadline_ms + 1"
        " WHERE reservation_id = (SELECT min(reservation_id) FROM live_reservations)",
    ),
    "a live reservation gone": (
        Fault.WRONG_LIVE_RESERVATION,
        "DELETE FROM live_reservations"
        " WHERE reservation_id = (SELECT min(reservation_id) FROM live_reservations)",
    ),
}


@pytest.mark.parametrize(("faults", "statement"), CORRUPTIONS.values(), ids=CORRUPTIONS)
async def test_each_corruption_is_found_named_and_nothing_else(
    filled: Settings, faults: Fault | set[Fault], statement: str
) -> None:
    as_superuser(filled, statement)
    found = {finding.fault for finding in audited(filled).findings}
    assert found == ({faults} if isinstance(faults, Fault) else faults)


async def test_an_event_gone_is_a_gap_and_its_lines_are_told(filled: Settings) -> None:
    as_superuser(filled, "DELETE FROM events WHERE seq = 4")
    found = {finding.fault: finding for finding in audited(filled).findings}
    assert found[Fault.GAP].where == "event 1-5"
    assert {Fault.BROKEN_CHAIN, Fault.WRONG_MOVEMENTS, Fault.WRONG_BALANCE} <= set(found)


async def test_a_ledger_rewritten_as_a_whole_does_not_fit_its_anchor(
    filled: Settings, tmp_path: Path
) -> None:
    """Somebody with all rights changes an event and every hash after it: only the anchor tells."""
    anchors = audited(filled).anchors
    assert audited(filled, anchors).clean
    ahead = {0: Anchor(1, anchors[0].seq + 1, anchors[0].hash)}
    assert [f.fault for f in audited(filled, ahead).findings] == [Fault.WRONG_ANCHOR]
    as_superuser(
        filled,
        "UPDATE events SET body = replace(body::text, 'delivery', 'delivered')::json WHERE seq = 5",
        "UPDATE movements SET reason = 'a \\ delivered' WHERE seq = 5",
        "WITH RECURSIVE chained AS ("
        " SELECT seq, sha256(decode(repeat('00', 32), 'hex') || convert_to(body::text, 'UTF8')) AS hash"
        " FROM events WHERE seq = 1 UNION ALL"
        " SELECT e.seq, sha256(c.hash || convert_to(e.body::text, 'UTF8'))"
        " FROM events e JOIN chained c ON e.seq = c.seq + 1)"
        " UPDATE events SET hash = chained.hash FROM chained WHERE events.seq = chained.seq",
        "UPDATE positions SET hash = (SELECT hash FROM events ORDER BY seq DESC LIMIT 1)",
    )
    assert audited(filled).clean
    assert [f.fault for f in audited(filled, anchors).findings] == [Fault.WRONG_ANCHOR]


@pytest.mark.parametrize("table", ["events", "movements"])
@pytest.mark.parametrize(
    "statement", ["UPDATE {} SET epoch = 2", "DELETE FROM {}", "TRUNCATE {} CASCADE"]
)
async def test_nobody_changes_the_ledger_not_even_its_owner_or_a_replica(
    filled: Settings, table: str, statement: str
) -> None:
    with psycopg.connect(filled.postgres_url, autocommit=True) as connection:
        for role in ("origin", "replica"):
            connection.execute(f"SET session_replication_role = {role}")
            with pytest.raises(psycopg.errors.IntegrityConstraintViolation, match="append-only"):
                connection.execute(statement.format(table))
    assert audited(filled).clean


async def test_the_command_line_ends_with_0_clean_1_findings_2_could_not_run(
    filled: Settings, tmp_path: Path
) -> None:
    anchor = tmp_path / "anchor.json"
    for _ in range(2):
        clean = holdfast("audit", "--anchor", str(anchor), environ=environment(filled))
        assert (clean.returncode, clean.stderr) == (0, "")
        assert "0 findings" in clean.stdout
    anchor.write_text(anchor.read_text().replace('"hash": "', '"hash": "00'))
    before = anchor.read_text()
    wrong = holdfast("audit", "--json", "--anchor", str(anchor), environ=environment(filled))
    assert wrong.returncode == 1 and '"wrong_anchor"' in wrong.stdout
    assert anchor.read_text() == before
    anchor.write_text("nonsense")
    for arguments, asked in (
        (["--anchor", str(anchor)], filled),
        ([], Settings(redis_url=filled.redis_url, postgres_url="postgresql://x@127.0.0.1:1/x")),
    ):
        refused = holdfast("audit", *arguments, environ=environment(asked))
        assert (refused.returncode, refused.stdout) == (2, "")
        assert len(refused.stderr.splitlines()) == 1


async def test_a_ledger_from_before_the_chain_gets_it_by_the_migration(
    filled: Settings, postgres_url: str
) -> None:
    """The same rows under the first migration only, then the second: the same chain, the same live
    reservations."""
    expected = audited(filled)
    live = rows(filled.postgres_url, "SELECT * FROM live_reservations ORDER BY reservation_id")
    with psycopg.connect(filled.postgres_url, autocommit=True) as connection:
        for statement in (
            "DROP TRIGGER events_append_only ON events",
            "DROP TRIGGER movements_append_only ON movements",
            "DROP TABLE quarantine_discards, quarantine",
            "ALTER TABLE positions DROP COLUMN quarantine_id",
            "DROP TABLE holes, adoptions, beats, ledger_identity, openings",
            "ALTER TABLE positions DROP COLUMN adopting",
            "DROP FUNCTION refuse_change",
            "DROP TABLE live_reservations",
            "ALTER TABLE events DROP COLUMN hash",
            "ALTER TABLE positions DROP COLUMN hash",
            "DELETE FROM schema_migrations WHERE version IN (2, 5, 7, 8)",
        ):
            connection.execute(statement)
    with database.connect(filled.postgres_url) as connection:
        names = ["0002_proof", "0005_quarantine", "0007_openings", "0008_holes"]
        assert database.migrate(connection) == names
    assert audited(filled) == expected
    assert (
        rows(filled.postgres_url, "SELECT * FROM live_reservations ORDER BY reservation_id") == live
    )
