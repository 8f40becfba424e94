"""``holdfast audit``: what no event stands for, tables whose protection is off, memory, what it prints."""

from __future__ import annotations

import json
import tracemalloc

import psycopg
import pytest
from ledger_kit import FIRST_MS, event, receipt, write
from running import environment, holdfast, rows

from engine.events import Event
from engine.settings import Settings
from persister import database, grants
from persister.audit import AuditReport, Fault, audit
from persister.ledger import Ledger


@pytest.fixture
def url(postgres_url: str) -> str:
    write(postgres_url, receipt(1), hold(2), receipt(1, partition=2))
    return postgres_url


def hold(seq: int) -> Event:
    return event(
        seq, "reserve", ("tea", "MAIN", 1, 0, 1), reservation_id=f"r{seq}", order_id=f"o{seq}",
        customer_id="c", fingerprint="f" * 24, deadline_ms=FIRST_MS * 2,
    )  # fmt: skip


def audited(url: str, since_ms: int | None = None) -> AuditReport:
    with database.connect(url) as connection:
        return audit(connection, since_ms=since_ms)


def change(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


COPIES = {
    table: f"INSERT INTO {table} SELECT (r).* FROM (SELECT json_populate_record(NULL::{table},"
    f" (to_jsonb(t) || '{{\"partition\": %s}}')::json) AS r FROM {table} t WHERE partition = 0 LIMIT 1) q"
    for table in ("events", "movements", "positions", "balances", "live_reservations")
}
EXPECTED = {
    "events": Fault.WRONG_POSITION,
    "movements": Fault.WRONG_MOVEMENTS,
    "positions": Fault.WRONG_POSITION,
    "balances": Fault.WRONG_BALANCE,
    "live_reservations": Fault.WRONG_LIVE_RESERVATION,
}


@pytest.mark.parametrize("partition", [1, 7, -1])
@pytest.mark.parametrize("table", COPIES)
def test_a_row_of_a_partition_that_no_event_stands_for_is_found(
    url: str, table: str, partition: int
) -> None:
    """Below, between and above those that there are; also by an audit of a part."""
    assert audited(url).findings == []
    change(url, COPIES[table] % partition)
    for since_ms in (None, 0):
        found = audited(url, since_ms).findings
        assert EXPECTED[table] in {each.fault for each in found}
        assert {each.partition for each in found} == {partition}


@pytest.mark.parametrize(
    ("table", "fault"),
    [("balances", Fault.WRONG_BALANCE), ("live_reservations", Fault.WRONG_LIVE_RESERVATION),
     ("positions", Fault.WRONG_POSITION)],
)  # fmt: skip
def test_rows_that_are_missing_as_a_whole_are_found(url: str, table: str, fault: Fault) -> None:
    change(url, f"DELETE FROM {table} WHERE partition = 0")
    assert [(each.fault, each.partition) for each in audited(url).findings] == [(fault, 0)]


WEAK = {
    "off": "ALTER TABLE {0} DISABLE TRIGGER {0}_append_only",
    "all off": "ALTER TABLE {0} DISABLE TRIGGER ALL",
    "not for replicas": "ALTER TABLE {0} ENABLE TRIGGER {0}_append_only",
    "for replicas only": "ALTER TABLE {0} ENABLE REPLICA TRIGGER {0}_append_only",
    "dropped": "DROP TRIGGER {0}_append_only ON {0}",
    "for less": "CREATE OR REPLACE TRIGGER {0}_append_only BEFORE UPDATE OR DELETE ON {0}"
    " FOR EACH STATEMENT EXECUTE FUNCTION refuse_change(); ALTER TABLE {0} ENABLE ALWAYS TRIGGER"
    " {0}_append_only",
    "never": "CREATE OR REPLACE TRIGGER {0}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {0}"
    " FOR EACH STATEMENT WHEN (false) EXECUTE FUNCTION refuse_change(); ALTER TABLE {0} ENABLE ALWAYS"
    " TRIGGER {0}_append_only",
    "a child": "CREATE TABLE part () INHERITS ({0})",
}


@pytest.mark.parametrize("statement", WEAK.values(), ids=WEAK)
def test_each_table_whose_protection_is_off_is_told(url: str, statement: str) -> None:
    for table in grants.APPEND_ONLY:
        change(url, statement.format(table).replace("TABLE part", f"TABLE part_{table}"))
    found = audited(url).findings
    assert [(each.fault, each.partition, each.where) for each in found] == [
        (Fault.UNPROTECTED_TABLE, None, table) for table in sorted(grants.APPEND_ONLY)
    ]


def test_a_function_that_refuses_nothing_any_more_is_told(url: str) -> None:
    change(url, "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$"
                " BEGIN RETURN NULL; END $$")  # fmt: skip
    found = audited(url).findings
    assert [each.where for each in found] == sorted(grants.APPEND_ONLY)
    assert all("isn't that of the migration" in each.detail for each in found)


def test_every_table_with_such_a_trigger_is_among_the_append_only_ones(url: str) -> None:
    found = rows(
        url,
        "SELECT DISTINCT c.relname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid"
        " JOIN pg_proc p ON p.oid = t.tgfoid WHERE p.proname = 'refuse_change'",
    )
    assert {name for (name,) in found} == set(grants.APPEND_ONLY)


def test_the_command_prints_positions_what_stopped_and_tables_without_protection(url: str) -> None:
    with database.connect(url) as connection:
        Ledger(connection, 2).stop("event 1-2 is missing")
    environ = environment(Settings(postgres_url=url))
    clean = holdfast("audit", environ=environ)
    assert (clean.returncode, clean.stdout.splitlines()) == (
        0,
        ["partition 0: at event 1-2, not stopped",
         "partition 2: at event 1-1, stopped: event 1-2 is missing",
         "audited 3 events: 0 findings"],
    )  # fmt: skip
    change(url, "ALTER TABLE events DISABLE TRIGGER events_append_only")
    wrong = holdfast("audit", "--json", environ=environ)
    content = json.loads(wrong.stdout)
    assert wrong.returncode == 1
    assert content["positions"]["2"] == {"epoch": 1, "seq": 1, "stopped": "event 1-2 is missing"}
    assert content["findings"][0]["partition"] is None
    told = holdfast("audit", environ=environ).stdout
    assert "unprotected_table: events: its trigger events_append_only is switched off" in told


def test_memory_does_not_grow_with_what_is_held(postgres_url: str) -> None:
    """Python's, at its highest: with 4,000 live reservations and with three times as many."""
    peaks = []
    for first in (1, 4001, 8001):
        write(postgres_url, *[hold(seq) for seq in range(first, first + 4000)])
        tracemalloc.start()
        assert audited(postgres_url).findings == []
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.3 * peaks[0], peaks
