"""The ledger on a real PostgreSQL: each event once, in order, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ledger_kit
import msgspec
import psycopg
import pytest
from running import eventually, rows

from engine.errors import LedgerError, PartitionStopped
from engine.events import Event, EventLine, from_json
from engine.statuses import State
from persister import database
from persister.audit import audit
from persister.database import NOTICE_A_DEAD_HOST
from persister.ledger import KafkaMark, Ledger, Position

AT_MS = 1_800_000_000_123


@pytest.fixture
def url(postgres_url: str) -> str:
    """A database with the schema."""
    with database.connect(postgres_url) as connection:
        database.migrate(connection)
    return postgres_url


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    with database.connect(url) as connection:
        yield Ledger(connection, 0)


def event(seq: int, epoch: int = 1, *, sku: str = "tea", on_hand: int = 5, **more: Any) -> Event:
    line = EventLine(sku, "MAIN", 5, on_hand, seq, -1)
    fields = {"type": "receive", "movement_id": f"m{seq}", "lines": (line,)} | more
    return Event(version=1, partition=0, epoch=epoch, seq=seq, at_ms=AT_MS + seq, **fields)


def kept(url: str) -> list[tuple[int, int]]:
    return rows(url, "SELECT epoch, seq FROM events ORDER BY seq")


def balances(url: str) -> list[tuple[Any, ...]]:
    return rows(url, "SELECT sku, on_hand, held, quarantined, seq FROM balances ORDER BY sku")


def check_sums(url: str) -> None:
    """Balances are the sums of their movements, and every event of the position is there once."""
    sums = rows(
        url,
        "SELECT sku, location, sum(on_hand_delta)::bigint, sum(held_delta)::bigint,"
        " sum(quarantined_delta)::bigint, max(seq) FROM movements GROUP BY 1, 2 ORDER BY 1, 2",
    )
    query = "SELECT sku, location, on_hand, held, quarantined, seq FROM balances ORDER BY 1, 2"
    assert rows(url, query) == sums
    seqs = [seq for _, seq in kept(url)]
    assert seqs == list(range(1, len(seqs) + 1))
    assert [row[0] for row in rows(url, "SELECT seq FROM positions")] == (
        [len(seqs)] if seqs else []
    )


def test_events_are_written_once_with_all_they_carry(ledger: Ledger, url: str) -> None:
    line = EventLine("tea", "MAIN", 3, -3, -3, 0)
    full = event(
        1, type="confirm", reservation_id="r", order_id="o", customer_id="c", reference="ref",
        reason="why", request_id="q", fingerprint="f", deadline_ms=AT_MS, lines=(line, line),
    )  # fmt: skip
    assert ledger.position() == Position(0, 0)
    assert ledger.write([full]) == Position(1, 1) == ledger.position()
    assert from_json(rows(url, "SELECT body::text FROM events")[0][0].encode()) == full
    query = (
        "SELECT partition, epoch, seq, line, type, sku, location, quantity, on_hand_delta,"
        " held_delta, quarantined_delta, reservation_id, order_id, customer_id, reference, reason,"
        " round(extract(epoch FROM occurred_at) * 1000)::bigint FROM movements ORDER BY line"
    )
    values = ("confirm", "tea", "MAIN", 3, -3, -3, 0, "r", "o", "c", "ref", "why", AT_MS + 1)
    assert rows(url, query) == [(0, 1, 1, number, *values) for number in (1, 2)]
    assert balances(url) == [("tea", -6, -6, 0, 1)]


@pytest.mark.parametrize("start", [1, 2, 3, 4])
def test_a_batch_that_overlaps_the_position_is_recognised(
    ledger: Ledger, url: str, start: int
) -> None:
    """Given events 1 to 3, what is known is dropped and what is new is written."""
    ledger.write([event(seq) for seq in (1, 2, 3)])
    assert ledger.write([event(seq) for seq in range(start, 6)]) == Position(1, 5)
    assert balances(url) == [("tea", 25, 15, -5, 5)]
    check_sums(url)


def test_an_old_batch_and_an_empty_one_change_nothing(ledger: Ledger, url: str) -> None:
    ledger.write([event(1), event(2)])
    assert ledger.write([event(1)]) == ledger.write([]) == Position(1, 2)
    assert balances(url) == [("tea", 10, 3, -2, 2)]


def test_a_new_epoch_goes_on_with_the_next_seq(ledger: Ledger, url: str) -> None:
    ledger.write([event(1), event(2, 2)])
    assert ledger.write([event(2, 2), event(3, 2), event(4, 7)]) == Position(7, 4)
    check_sums(url)


@pytest.mark.parametrize(
    "batch",
    [
        [event(4)],
        [event(3), event(5)],
        [event(3), event(3, on_hand=6)],
        [event(3), event(2, on_hand=6)],
        [event(4), event(3)],
        [event(2, on_hand=6), event(3)],
        [event(1, 2), event(3, 3)],
        [event(2, order_id="another"), event(3)],
        [event(1), event(2, on_hand=6)],
        [event(2, on_hand=6)],
        [event(1, on_hand=6), event(2), event(3)],
        [event(3, 2), event(4, 1)],
        [event(3, 3), event(4, 2)],
    ],
    ids=["gap", "gap inside", "twice, and it differs", "known one differs behind a new one", "backwards",
         "differs", "known seq in another epoch", "differs in a text", "the last one differs",
         "only the last one, and it differs",
         "the first one differs", "epoch goes back inside", "epoch goes up and back"],
)  # fmt: skip
def test_what_does_not_follow_stops_the_partition_and_nothing_is_written(
    ledger: Ledger, url: str, batch: list[Event]
) -> None:
    """Given events 1 and 2."""
    ledger.write([event(1), event(2)])
    before = balances(url)
    with pytest.raises(PartitionStopped, match="partition 0") as stopped:
        ledger.write(batch)
    assert "\n" not in str(stopped.value)
    assert kept(url) == [(1, 1), (1, 2)]
    assert balances(url) == before
    assert ledger.position() == Position(1, 2)
    assert ledger.write([event(3)]) == Position(1, 3)


@pytest.mark.parametrize("batch", [[event(3)], [event(2)], [event(2, on_hand=6), event(4)]])
def test_an_epoch_that_goes_back_was_replaced_and_stays_out(
    ledger: Ledger, url: str, batch: list[Event]
) -> None:
    """Also where the ledger was told of the later opening by its events only."""
    ledger.write([event(1), event(2, 2)])
    assert ledger.write(batch) == Position(2, 2)
    assert ledger.write([*batch, event(3, 2)]) == Position(2, 3)
    assert kept(url) == [(1, 1), (2, 2), (2, 3)]
    check_sums(url)


def test_the_place_in_kafka_stays_while_events_come_from_the_outbox(ledger: Ledger) -> None:
    """Over to direct reading and back: what was read there is not read again."""
    assert ledger.kafka_mark() is None
    mark = KafkaMark("topic", 7)
    ledger.write([event(1)], mark)
    ledger.write([event(2)])
    assert ledger.kafka_mark() == mark
    ledger.leave_quarantine()
    assert ledger.kafka_mark() == mark
    ledger.write([event(3)], KafkaMark("another", 2))
    assert ledger.kafka_mark() == KafkaMark("another", 2)


def test_a_stop_is_told_and_forgotten_when_it_goes_on(ledger: Ledger, url: str) -> None:
    ledger.write([event(1)])
    ledger.stop("a gap")
    assert rows(url, "SELECT epoch, seq, stopped FROM positions") == [(1, 1, "a gap")]
    ledger.write([event(2)])
    assert rows(url, "SELECT epoch, seq, stopped FROM positions") == [(1, 2, None)]


@pytest.mark.parametrize(
    "text",
    ["\\", "\\N", "\\.", "a\\tb\\nc", "\\\\", "'; DROP TABLE events; --", '"quoted"', "{}", "☕ tea",
     "\U0001f375", "äöü ß", "\u2028", "\ufeff", "\uffff", "%s %(a)s", " ", "NULL", "x" * 1000,
     "</script>", "e\u0301"],
)  # fmt: skip
def test_every_text_survives(ledger: Ledger, url: str, text: str) -> None:
    written = event(1, order_id=text, customer_id=text, reference=text, reason=text)
    ledger.write([written, event(2)])
    query = "SELECT order_id, customer_id, reference, reason FROM movements WHERE seq = 1"
    assert rows(url, query) == [(text,) * 4]
    body = rows(url, "SELECT body::text FROM events WHERE seq = 1")[0][0]
    assert from_json(body.encode()) == written
    ledger.write([written])


def test_the_position_moves_in_the_same_transaction(ledger: Ledger, url: str) -> None:
    """Killed in mid-transaction, the connection leaves nothing behind; the same batch goes in after."""
    ledger.write([event(1)])
    with database.connect(url) as doomed, pytest.raises(psycopg.OperationalError):
        pid = doomed.info.backend_pid
        with doomed.transaction():
            Ledger(doomed, 0).write([event(2), event(3)])
            rows(url, "SELECT pg_terminate_backend(%s, 5000)", pid)
            doomed.execute("SELECT 1")
    assert kept(url) == [(1, 1)]
    assert balances(url) == [("tea", 5, 1, -1, 1)]
    assert ledger.position() == Position(1, 1)
    assert ledger.write([event(2), event(3)]) == Position(1, 3)
    check_sums(url)


@pytest.mark.parametrize("table", ["movements", "balances", "positions"])
def test_a_table_that_refuses_takes_all_the_others_back(
    ledger: Ledger, url: str, table: str
) -> None:
    """Whichever step of the transaction fails, none of it stays."""
    ledger.write([event(1)])
    with psycopg.connect(url) as connection:
        connection.execute(f"ALTER TABLE {table} ADD CONSTRAINT no CHECK (seq < 3) NOT VALID")
    with pytest.raises(psycopg.errors.CheckViolation):
        ledger.write([event(2), event(3)])
    assert kept(url) == [(1, 1)]
    check_sums(url)


def test_only_one_process_has_the_lease(url: str) -> None:
    with database.connect(url) as one, database.connect(url) as two:
        assert Ledger(one, 0).lease()
        assert not Ledger(two, 0).lease()
        assert Ledger(two, 1).lease()
        one.close()
        eventually("the server has noticed", lambda: Ledger(two, 0).lease())


def test_a_lease_ends_when_the_host_of_its_holder_has_vanished(ledger: Ledger) -> None:
    """Both ends ask within seconds; nobody answers for a host that is gone."""
    assert ledger.lease()
    names = ("keepalives_idle", "keepalives_interval", "keepalives_count", "user_timeout")
    asked = [ledger.connection.execute(f"SHOW tcp_{name}").fetchone() for name in names]
    assert asked == [("5",), ("2",), ("3",), ("15000",)]
    given = ledger.connection.info.get_parameters()
    assert {name: str(value) for name, value in NOTICE_A_DEAD_HOST.items()}.items() <= given.items()


def test_migrations_are_applied_once(postgres_url: str) -> None:
    with database.connect(postgres_url) as connection:
        assert database.migrate(connection) == [path.stem for _, path in database.migrations()]
        assert database.migrate(connection) == []


def test_migrations_of_many_processes_at_once_are_applied_once(postgres_url: str) -> None:
    def migrate(_: int) -> list[str]:
        with database.connect(postgres_url) as connection:
            return database.migrate(connection)

    with ThreadPoolExecutor(8) as pool:
        applied = [name for names in pool.map(migrate, range(8)) for name in names]
    assert applied == [path.stem for _, path in database.migrations()]


def test_a_schema_newer_than_the_program_is_refused(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("INSERT INTO schema_migrations (version, name) VALUES (9999, 'future')")
    with database.connect(url) as connection, pytest.raises(LedgerError, match="9999"):
        database.migrate(connection)


def test_postgresql_away_is_a_ledger_error_in_one_line() -> None:
    with pytest.raises(LedgerError, match="PostgreSQL") as error:
        database.connect("postgresql://postgres@127.0.0.1:1/postgres")
    assert "\n" not in str(error.value)


def test_a_large_batch_of_many_skus_adds_up(ledger: Ledger, url: str) -> None:
    """5,000 events of 700 skus, in batches that overlap."""
    events = [event(seq, 1 + seq // 1000, sku=f"s{seq % 700}") for seq in range(1, 5001)]
    for start in range(0, 5000, 900):
        ledger.write(events[max(0, start - 300) : start + 900])
    assert ledger.position() == Position(6, 5000)
    assert msgspec.structs.astuple(ledger.position()) == kept(url)[-1]
    check_sums(url)


def test_given_an_id_that_ends_and_begins_again_in_one_batch_then_the_new_one_is_live(
    url: str,
) -> None:
    """A ledger that is behind for longer than ended reservations are remembered."""

    def reserved(seq: int) -> Event:
        of: dict[str, Any] = {
            "reservation_id": "r",
            "order_id": f"o{seq}",
            "fingerprint": "f",
            "deadline_ms": 9,
        }
        return ledger_kit.event(seq, "reserve", ("tea", "MAIN", 2, 0, 2), **of)

    confirmed = ledger_kit.event(
        3, "confirm", ("tea", "MAIN", 2, -2, -2), reservation_id="r", status=State.CONFIRMED
    )
    ledger_kit.write(url, ledger_kit.receipt(1), reserved(2))
    ledger_kit.write(url, confirmed, reserved(4))
    assert rows(url, "SELECT order_id, seq FROM live_reservations") == [("o4", 4)]
    with database.connect(url) as connection:
        assert msgspec.to_builtins(audit(connection).findings) == []
