"""What the events of a partition add up to, balances and live reservations, kept on disk for an audit.

SQLite's temporary database: memory up to its cache, the rest in a file that is gone with the process.
A reservation that begins and ends within a batch never touches it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

import msgspec

from engine.events import ADOPT, Event
from persister.live import ENDING, Live, apply

BATCH = 1_000
_CACHE_KIB = 16_384
_TABLES = f"""
PRAGMA cache_size = -{_CACHE_KIB};
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
CREATE TABLE balances (sku TEXT, location TEXT, on_hand INTEGER, held INTEGER, quarantined INTEGER,
  seq INTEGER, PRIMARY KEY (sku, location)) WITHOUT ROWID;
CREATE TABLE live (reservation_id TEXT PRIMARY KEY, kept BLOB) WITHOUT ROWID;
BEGIN;
"""
_ADD = """
INSERT INTO balances VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (sku, location) DO UPDATE SET
  on_hand = on_hand + excluded.on_hand, held = held + excluded.held,
  quarantined = quarantined + excluded.quarantined, seq = excluded.seq
"""
_FIND = (
    "SELECT reservation_id, kept FROM live WHERE reservation_id IN (SELECT value FROM json_each(?))"
)
_KEEP = "INSERT OR REPLACE INTO live VALUES (?, ?)"


class Expected(msgspec.Struct):
    """A live reservation as the events have it; ``deadline_unknown``: it was last set by what wasn't read."""

    found: Live
    deadline_unknown: bool = False


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Expected).decode


class Totals:
    """Of one partition. ``earlier``: the events of a reservation from before the first that is added, for
    an audit of a part; None where that is the very first."""

    def __init__(self, earlier: Callable[[str], Iterable[Event]] | None) -> None:
        self._earlier = earlier
        self._batch: list[Event] = []
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.executescript(_TABLES)

    def __enter__(self) -> Totals:
        return self

    def __exit__(self, *error: object) -> None:
        self._db.close()

    def add(self, event: Event) -> None:
        """The next event, in order."""
        self._batch.append(event)
        if len(self._batch) >= BATCH:
            self._flush()

    def balances(self) -> Iterator[tuple[tuple[str, str], list[int]]]:
        """By sku and location, in their order: on_hand, held, quarantined, seq."""
        self._flush()
        for sku, location, *numbers in self._db.execute(
            "SELECT * FROM balances ORDER BY sku, location"
        ):
            yield (sku, location), numbers

    def live(self) -> Iterator[tuple[str, Expected]]:
        """By id, in their order."""
        self._flush()
        for reservation_id, kept in self._db.execute("SELECT * FROM live ORDER BY reservation_id"):
            yield reservation_id, _decode(kept)

    def _flush(self) -> None:
        events, self._batch = self._batch, []
        self._add_to_balances(events)
        self._keep_live([event for event in events if event.reservation_id])

    def _add_to_balances(self, events: list[Event]) -> None:
        sums: dict[tuple[str, str], list[int]] = {}
        for event in events:
            for line in event.lines:
                total = sums.setdefault((line.sku, line.location), [0, 0, 0, 0])
                total[0] += line.on_hand_delta
                total[1] += line.held_delta
                total[2] += line.quarantined_delta
                total[3] = event.seq
        self._db.executemany(_ADD, [(*name, *total) for name, total in sums.items()])

    def _keep_live(self, events: list[Event]) -> None:
        ids = {str(event.reservation_id): None for event in events}
        kept = dict(self._db.execute(_FIND, [json.dumps(list(ids))]).fetchall())
        before = {name: _decode(value) for name, value in kept.items()}
        live = {name: expected.found for name, expected in before.items()}
        unknown = {name for name, expected in before.items() if expected.deadline_unknown}
        for event in events:
            if self._earlier is not None and event.status not in ENDING:
                self._look_back(str(event.reservation_id), event.type, live, unknown)
            apply(event, live)
        self._db.executemany(
            "DELETE FROM live WHERE reservation_id = ?",
            [(name,) for name in kept if name not in live],
        )
        rows = [(name, _encode(Expected(found, name in unknown))) for name, found in live.items()]
        self._db.executemany(_KEEP, rows)

    def _look_back(self, name: str, kind: str, live: dict[str, Live], unknown: set[str]) -> None:
        if kind not in ("reserve", ADOPT) and name not in live and self._earlier is not None:
            for event in self._earlier(name):
                apply(event, live)
            unknown.add(name)
        if kind in ("reserve", "extend", ADOPT):
            unknown.discard(name)


class _Ordered(Protocol):
    def __lt__(self, other: Any, /) -> bool: ...


_Key = TypeVar("_Key", bound=_Ordered)
_Left = TypeVar("_Left")
_Right = TypeVar("_Right")


def side_by_side(
    left: Iterable[tuple[_Key, _Left]], right: Iterable[tuple[_Key, _Right]]
) -> Iterator[tuple[_Key, _Left | None, _Right | None]]:
    """Both sides of each key, None where one lacks it; both in the order of their keys."""
    lefts, rights = iter(left), iter(right)
    a, b = next(lefts, None), next(rights, None)
    while a is not None or b is not None:
        if b is None or (a is not None and a[0] < b[0]):
            assert a is not None
            yield a[0], a[1], None
            a = next(lefts, None)
        elif a is None or b[0] < a[0]:
            yield b[0], None, b[1]
            b = next(rights, None)
        else:
            yield a[0], a[1], b[1]
            a, b = next(lefts, None), next(rights, None)
