"""What the tests of the quarantine share: what stands in it, the command line, a damaged outbox."""

from __future__ import annotations

import json
from typing import Any

import psycopg
from redis import Redis

from engine import keys
from engine.events import VERSION, Event, from_json
from engine.settings import Settings
from persister import database
from persister.audit import audit
from tests.running import environment, eventually, holdfast, rows

OUTBOX = keys.outbox(0)


def cli(settings: Settings, *arguments: str) -> Any:
    """`holdfast quarantine …` to its end."""
    return holdfast("quarantine", *arguments, environ=environment(settings))


def discard(settings: Settings, number: int, by: str = "ann", reason: str = "junk") -> str:
    done = cli(settings, "discard", str(number), "--by", by, "--reason", reason)
    assert done.returncode == 0, done.stderr
    return done.stdout


def listed(settings: Settings) -> list[dict[str, Any]]:
    """Everything that was ever in quarantine."""
    done = cli(settings, "list", "--all", "--json")
    content = json.loads(done.stdout)
    assert done.returncode == (1 if content["open"] else 0), done.stderr
    return content["quarantine"]


def stopped_at(settings: Settings) -> int:
    """The id of what the partition is stopped at; 0 where it isn't."""
    try:
        found = rows(settings.postgres_url, "SELECT quarantine_id, stopped FROM positions")
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn):
        return 0
    if not found or found[0][0] is None:
        return 0
    assert f"quarantine {found[0][0]}" in found[0][1]
    return found[0][0]


def wait_until_stopped(settings: Settings, number: int) -> None:
    eventually(f"it stops at {number}", lambda: stopped_at(settings) == number)


def events(settings: Settings) -> list[Event]:
    """What the ledger has."""
    found = rows(settings.postgres_url, "SELECT body::text FROM events ORDER BY seq")
    return [from_json(body.encode()) for (body,) in found]


def discards(settings: Settings) -> list[tuple[int, int, str | None]]:
    """Epoch, seq and reason of each event of type discard; that it has nothing else is checked."""
    found = [event for event in events(settings) if event.type == "discard"]
    for event in found:
        plain = Event(
            version=VERSION,
            partition=0,
            epoch=event.epoch,
            seq=event.seq,
            type="discard",
            at_ms=event.at_ms,
            reason=event.reason,
        )
        assert event == plain
    return [(event.epoch, event.seq, event.reason) for event in found]


def check_audit(settings: Settings) -> None:
    """The ledger proves itself, and its times never run back."""
    with database.connect(settings.postgres_url) as connection:
        assert audit(connection).findings == []
    times = [event.at_ms for event in events(settings)]
    assert times == sorted(times)


def damage(redis: Redis, seqs: set[int], raw: bytes = b"\xc1 nonsense") -> dict[int, bytes]:
    """Put these bytes in the place of the outbox entries that end in these seqs; what was there."""
    entries = redis.xrange(OUTBOX)
    redis.delete(OUTBOX)
    was = {}
    for entry_id, fields in entries:
        seq = int(entry_id.split(b"-")[1])
        if seq in seqs:
            was[seq] = fields[b"events"]
            fields = {b"events": raw}
        redis.xadd(OUTBOX, fields, id=entry_id)
    assert was.keys() == seqs
    return was
