"""``holdfast audit --since``: a part of the ledger proves itself; what is planted in it is found, and
what it can't tell is said."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from running import environment, holdfast, rows

from api.schema import rfc3339
from engine.events import Event, EventLine
from engine.settings import Settings
from persister import database
from persister.audit import UNCHECKED, Anchor, AuditReport, Fault, audit
from persister.audit_since import begins_at
from persister.ledger import Ledger

FIRST_MS = 1_800_000_000_000


def history(chance: random.Random, count: int) -> list[Event]:
    """Whole lives of reservations in several epochs; many events at the same ms, some ms without."""
    found: list[Event] = []
    held: dict[str, int] = {}
    epoch, at_ms = 1, FIRST_MS
    for seq in range(1, count + 1):
        at_ms += chance.choice([0, 0, 1, 7, 5_000])
        epoch += chance.choice([0] * 20 + [1, 3])
        fields: dict[str, Any]
        kind = chance.choice(["receive", "reserve", "reserve", "extend", "part", "end"])
        if kind == "receive" or (kind != "reserve" and not held):
            line = EventLine(f"s{chance.randint(0, 5)}", "MAIN", 5, 5, 0, 0)
            fields = {"type": "receive", "movement_id": f"m{seq}", "lines": (line,)}
        elif kind == "reserve":
            line = EventLine("tea", "MAIN", 100, 0, 100, 0)
            fields = {"type": "reserve", "reservation_id": f"r{seq}", "order_id": f"o{seq}"}
            fields |= {"lines": (line,), "fingerprint": "f", "deadline_ms": at_ms + 60_000}
            held[f"r{seq}"] = 100
        else:
            name = chance.choice(list(held))
            fields = {"reservation_id": name, "order_id": f"o{name[1:]}", "fingerprint": "f"}
            if kind == "extend":
                fields |= {"type": "extend", "deadline_ms": at_ms + 90_000}
            else:
                units = 1 if kind == "part" else held.pop(name)
                status = "held" if kind == "part" else "confirmed"
                if kind == "part":
                    held[name] -= 1
                line = EventLine("tea", "MAIN", units, -units, -units, 0)
                fields |= {"type": "confirm", "lines": (line,), "status": status}
        found.append(Event(version=1, partition=0, epoch=epoch, seq=seq, at_ms=at_ms, **fields))
    return found


@pytest.fixture
def events() -> list[Event]:
    seed = random.randrange(10**6)
    print("seed", seed)
    return history(random.Random(seed), 200)


@pytest.fixture
def url(postgres_url: str, events: list[Event]) -> str:
    """The URL of a ledger with those events."""
    write(postgres_url, events)
    return postgres_url


def write(url: str, events: list[Event]) -> None:
    with database.connect(url) as connection:
        database.migrate(connection)
        Ledger(connection, 0).write(events)


def audited(
    url: str, since_ms: int | None, anchors: dict[int, Anchor] | None = None
) -> AuditReport:
    with database.connect(url) as connection:
        return audit(connection, since_ms=since_ms, anchors=anchors)


def faults(report: AuditReport) -> set[Fault]:
    return {finding.fault for finding in report.findings}


def as_superuser(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for table in ("events", "movements"):
            connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER ALL")
        assert connection.execute(statement).rowcount > 0, statement
        for table in ("events", "movements"):
            connection.execute(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {table}_append_only")


def test_a_part_begins_at_the_first_event_of_its_time_wherever_that_is(
    url: str, events: list[Event]
) -> None:
    times = sorted({event.at_ms + more for event in events for more in (-1, 0, 1)})
    with database.connect(url) as connection:
        for since_ms in times:
            expected = [(e.epoch, e.seq) for e in events if e.at_ms >= since_ms]
            beyond = (events[-1].epoch, events[-1].seq + 1)
            assert begins_at(connection, 0, since_ms) == (expected or [beyond])[0], since_ms
        assert begins_at(connection, 7, FIRST_MS) == (0, 0)


def test_every_part_of_a_whole_ledger_is_clean(url: str, events: list[Event]) -> None:
    for since_ms in sorted({0, 2**42, *[event.at_ms for event in events[::7]]}):
        report = audited(url, since_ms)
        assert (report.findings, report.since_ms) == ([], since_ms)
        assert report.events == sum(event.at_ms >= since_ms for event in events)
        assert report.anchors == audited(url, None).anchors
        assert report.unchecked == [UNCHECKED]


CORRUPTIONS: dict[str, tuple[set[Fault], str]] = {
    "a body": (
        {Fault.BROKEN_CHAIN, Fault.UNREADABLE_EVENT},
        "UPDATE events SET body = '[]' WHERE seq = {}",
    ),
    "a hash": (
        {Fault.BROKEN_CHAIN},
        "UPDATE events SET hash = decode(repeat('ab', 32), 'hex') WHERE seq = {}",
    ),
    "a type": ({Fault.WRONG_IDENTITY}, "UPDATE events SET type = 'gift' WHERE seq = {}"),
    "an event gone": ({Fault.GAP, Fault.BROKEN_CHAIN}, "DELETE FROM events WHERE seq = {}"),
    "a quantity": ({Fault.WRONG_MOVEMENTS}, "UPDATE movements SET quantity = 99 WHERE seq = {}"),
    "a line too few": ({Fault.WRONG_MOVEMENTS}, "DELETE FROM movements WHERE seq = {}"),
    "a line too many": (
        {Fault.WRONG_MOVEMENTS},
        "INSERT INTO movements SELECT partition, epoch, seq, 9, type, sku, location, quantity,"
        " on_hand_delta, held_delta, quarantined_delta, reservation_id, order_id, customer_id,"
        " reference, reason, occurred_at FROM movements WHERE seq = {}",
    ),
}


@pytest.mark.parametrize(("expected", "statement"), CORRUPTIONS.values(), ids=CORRUPTIONS)
def test_what_is_planted_in_the_part_is_found_and_what_is_before_it_only_by_the_whole(
    postgres_url: str, expected: set[Fault], statement: str
) -> None:
    """Given 60 receipts a second apart and a part that begins with the 30th."""
    line = EventLine("tea", "MAIN", 5, 5, 0, 0)
    write(
        postgres_url,
        [
            Event(version=1, partition=0, epoch=1 + seq // 20, seq=seq, type="receive",
                  at_ms=FIRST_MS + seq * 1000, movement_id=f"m{seq}", lines=(line,))
            for seq in range(1, 61)
        ],
    )  # fmt: skip
    since_ms = FIRST_MS + 30_000
    as_superuser(postgres_url, statement.format(7))
    report = audited(postgres_url, since_ms)
    assert (report.findings, report.events) == ([], 31)
    assert faults(audited(postgres_url, None)) >= expected
    for seq in (45, 30):
        as_superuser(postgres_url, statement.format(seq))
        found = audited(postgres_url, since_ms)
        assert faults(found) - {Fault.WRONG_BALANCE, Fault.WRONG_MOVEMENTS} == expected - {
            Fault.WRONG_MOVEMENTS
        }
        assert expected <= faults(found)


def life(*steps: tuple[str, int], ms: int = 1000) -> list[Event]:
    """Events of one reservation, ``ms`` apart: (reserve | extend | part | end, units)."""
    found = []
    for seq, (step, units) in enumerate(steps, 1):
        at_ms = FIRST_MS + seq * ms
        sign = 1 if step == "reserve" else -1
        line = EventLine("tea", "MAIN", units, min(0, sign) * units, sign * units, 0)
        fields: dict[str, Any] = {
            "type": {"part": "confirm", "end": "confirm"}.get(step, step),
            "lines": () if step == "extend" else (line,),
            "status": {"part": "held", "end": "confirmed"}.get(step),
        }
        if step in ("reserve", "extend"):
            fields["deadline_ms"] = at_ms + 60_000
        found.append(
            Event(version=1, partition=0, epoch=1, seq=seq, at_ms=at_ms, reservation_id="r",
                  order_id="o", fingerprint="f", **fields)
        )  # fmt: skip
    return found


LIVE = "UPDATE live_reservations SET "
BEGUN = [("reserve", 9), ("extend", 0), ("part", 1)]


@pytest.mark.parametrize(
    ("steps", "statement", "found"),
    [
        ([*BEGUN, ("part", 1)], None, False),
        ([*BEGUN, ("part", 1)], LIVE + """lines = '[["tea", "MAIN", 9, 3, 0]]'""", True),
        ([*BEGUN, ("part", 1)], LIVE + "seq = 2", True),
        ([*BEGUN, ("part", 1)], LIVE + "deadline_ms = 5", False),
        ([*BEGUN, ("part", 1)], "DELETE FROM live_reservations", True),
        ([*BEGUN, ("extend", 0)], LIVE + "deadline_ms = 5", True),
        ([*BEGUN, ("part", 1), ("extend", 0)], LIVE + "deadline_ms = 5", True),
        ([*BEGUN, ("end", 8)], None, False),
        ([*BEGUN, ("end", 8), ("reserve", 2)], LIVE + "deadline_ms = 5", True),
        (BEGUN, LIVE + "deadline_ms = 5", False),
    ],
)
def test_a_live_reservation_begun_before_the_part_is_checked_by_what_the_part_does_to_it(
    postgres_url: str, steps: list[tuple[str, int]], statement: str | None, found: bool
) -> None:
    """Given a part that begins with its fourth event."""
    write(postgres_url, life(*steps))
    if statement:
        as_superuser(postgres_url, statement)
        assert faults(audited(postgres_url, None)) == {Fault.WRONG_LIVE_RESERVATION}
    expected = {Fault.WRONG_LIVE_RESERVATION} if found else set()
    assert faults(audited(postgres_url, FIRST_MS + 4000)) == expected


def test_a_reservation_that_ended_in_the_part_and_is_kept_as_live_is_found(
    postgres_url: str,
) -> None:
    write(postgres_url, life(*BEGUN, ("end", 8)))
    as_superuser(
        postgres_url,
        "INSERT INTO live_reservations VALUES (0, 'r', 'o', NULL, 'f', 1, 2, 3, '[]')",
    )
    report = audited(postgres_url, FIRST_MS + 4000)
    assert [(f.fault, f.where) for f in report.findings] == [
        (Fault.WRONG_LIVE_RESERVATION, "live reservation r")
    ]


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("UPDATE balances SET seq = seq - 1 WHERE sku = 'tea'", {Fault.WRONG_BALANCE}),
        ("UPDATE balances SET seq = 1 WHERE sku = 'tea'", {Fault.WRONG_BALANCE}),
        ("DELETE FROM balances WHERE sku = 'tea'", {Fault.WRONG_BALANCE}),
        ("UPDATE balances SET on_hand = on_hand + 1 WHERE sku = 'tea'", set()),
        ("UPDATE positions SET seq = seq - 1", {Fault.WRONG_POSITION}),
        ("UPDATE positions SET hash = decode(repeat('ab', 32), 'hex')", {Fault.WRONG_POSITION}),
    ],
)
def test_balances_stand_at_their_last_event_and_the_position_at_the_last_of_all(
    postgres_url: str, statement: str, expected: set[Fault]
) -> None:
    """Totals of balances are for an audit of the whole, and the report says so."""
    write(postgres_url, life(*BEGUN, ("part", 1), ("part", 1)))
    as_superuser(postgres_url, statement)
    report = audited(postgres_url, FIRST_MS + 4000)
    assert faults(report) == expected
    assert "totals of balances" in report.unchecked[0]
    if "positions" in statement:  # also where nothing happened since
        assert faults(audited(postgres_url, 2**42)) == expected


def test_a_position_without_any_event_is_found(postgres_url: str) -> None:
    write(postgres_url, life(("reserve", 1)))
    for table in ("events", "movements", "balances", "live_reservations"):
        as_superuser(postgres_url, f"DELETE FROM {table}")
    for since_ms in (None, FIRST_MS):
        assert faults(audited(postgres_url, since_ms)) == {Fault.WRONG_POSITION}


def test_an_anchor_is_checked_from_the_event_before_the_part_on_and_else_kept(
    postgres_url: str,
) -> None:
    history = life(("reserve", 9), *[("part", 1)] * 5)
    heads = []
    for event in history:
        write(postgres_url, [event])
        heads.append(audited(postgres_url, None).anchors[0])
    since_ms = FIRST_MS + 4000  # the part begins with event 4
    for head in heads[2:]:
        assert audited(postgres_url, since_ms, {0: head}).findings == []
        wrong = msgspec.structs.replace(head, hash="00" * 32)
        report = audited(postgres_url, since_ms, {0: wrong})
        assert faults(report) == {Fault.WRONG_ANCHOR}
    ahead = msgspec.structs.replace(heads[-1], seq=7)
    assert faults(audited(postgres_url, since_ms, {0: ahead})) == {Fault.WRONG_ANCHOR}
    report = audited(postgres_url, since_ms, {0: heads[1]})
    assert (report.findings, report.anchors) == ([], {0: heads[1]})
    assert "anchor of partition 0: its event 1-2" in report.unchecked[1]


def test_the_command_line_says_since_when_and_what_was_not_checked(
    postgres_url: str, tmp_path: Path
) -> None:
    """Given a reservation begun 48 h before its last event, which is of a moment ago."""
    now_ms = int(datetime.now(UTC).timestamp() * 1000)
    ages_h = (48, 30, 1)
    history = [
        msgspec.structs.replace(event, at_ms=now_ms - age_h * 3_600_000)
        for age_h, event in zip(ages_h, life(*BEGUN), strict=True)
    ]
    write(postgres_url, history)
    environ = environment(Settings(postgres_url=postgres_url))
    day = (datetime.now(UTC) - timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%S")
    for text, count in (
        ("24h", 1), ("90m", 1), ("2d", 2), ("3d", 3), ("5m", 0), ("2020-01-01", 3),
        (f"{day}Z", 1), (f"{day}.5+00:00", 1), ("2999-01-01", 0), ("999999d", 3),
    ):  # fmt: skip
        answer = holdfast("audit", "--since", text, environ=environ)
        assert (answer.returncode, answer.stderr) == (0, ""), text
        assert f"audited {count} events since " in answer.stdout, text
        assert "not checked: the events before that time, the totals" in answer.stdout
    since = holdfast("audit", "--since", "2026-11-01T02:00:00+02:00", "--json", environ=environ)
    assert msgspec.json.decode(since.stdout)["since"] == "2026-11-01T00:00:00.000Z"
    assert rfc3339(now_ms)[:10] not in holdfast("audit", environ=environ).stdout
    anchor = tmp_path / "anchor.json"
    anchor.write_text('{"0": {"epoch": 1, "seq": 1, "hash": "00"}}')
    kept = msgspec.json.decode(anchor.read_bytes())
    answer = holdfast("audit", "--since", "24h", "--anchor", str(anchor), environ=environ)
    assert answer.returncode == 0 and "not checked: the anchor of partition 0" in answer.stdout
    assert msgspec.json.decode(anchor.read_bytes()) == kept
    assert rows(postgres_url, "SELECT count(*) FROM events") == [(3,)]


@pytest.mark.parametrize(
    "text", ["", "24", "h", "-1h", "yesterday", "2026-13-01", "2026-11-01T00:00:00", "2026-W01-1"]
)
def test_a_time_that_can_not_be_read_is_one_line_and_exit_code_2(text: str) -> None:
    refused = holdfast("audit", "--since", text)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "--since" in refused.stderr and len(refused.stderr.splitlines()) == 1
