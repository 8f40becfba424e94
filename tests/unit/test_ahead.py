"""Reading ahead hands out each batch once, in order, and never calls what was not written drained."""

from __future__ import annotations

import threading
from contextlib import closing

import pytest

from engine.events import Event
from persister.ahead import Ahead
from persister.ledger import Position
from persister.sources import Batch, Unreadable

START = Position(0, 0)


def event(seq: int) -> Event:
    return Event(version=1, partition=0, epoch=1, seq=seq, type="extend", at_ms=seq)


class Shelf:
    """A source of batches that are there already; notes who asks, and whether two ask at once."""

    def __init__(self, *batches: Batch | Exception) -> None:
        self.left: list[Batch | Exception] = list(batches)
        self.after: list[Position] = []
        self.threads: set[str] = set()
        self._busy = threading.Lock()

    def read(self, after: Position, wait_ms: int) -> Batch:
        assert self._busy.acquire(blocking=False), "two threads at once"
        self.threads.add(threading.current_thread().name)
        self.after.append(after)
        batch = self.left.pop(0) if self.left else Batch([])
        self._busy.release()
        if isinstance(batch, Exception):
            raise batch
        return batch

    def begin(self, position: Position) -> None:
        self.read(position, 0)

    def is_drained(self, position: Position) -> bool:
        return not self.left

    def is_at_end(self) -> bool:
        return not self.left

    def pass_over(self, unreadable: Unreadable) -> None:
        self.after.append(Position(9, 9))

    def committed(self, position: Position) -> None:
        assert not self._busy.locked()


def test_each_batch_comes_once_in_order_and_the_next_is_read_meanwhile() -> None:
    shelf = Shelf(Batch([event(1), event(2)]), Batch([event(3)]))
    with closing(Ahead(shelf)) as ahead:
        first = ahead.read(START, 0)
        ahead.committed(Position(1, 2))
        assert shelf.left == [], "nothing was read ahead"
        assert not ahead.is_drained(Position(1, 2)) and not ahead.is_at_end()
        second = ahead.read(Position(1, 2), 0)
        third = ahead.read(Position(1, 3), 0)
        assert ahead.is_drained(Position(1, 3)) and ahead.is_at_end()
    assert [[e.seq for e in batch.events] for batch in (first, second, third)] == [[1, 2], [3], []]
    assert shelf.after[:2] == [START, Position(1, 2)]
    assert len(shelf.threads) == 2


def test_given_a_batch_up_to_something_unreadable_then_nothing_is_read_behind_it() -> None:
    thing = Unreadable(source="kafka", place="2", raw=b"junk", why="it is junk")
    shelf = Shelf(Batch([event(1)], unreadable=thing), Batch([event(2)]))
    with closing(Ahead(shelf)) as ahead:
        assert ahead.read(START, 0).unreadable is thing
        ahead.pass_over(thing)
        assert len(shelf.left) == 1
        assert ahead.read(Position(1, 1), 0).events[0].seq == 2


def test_given_an_error_while_reading_ahead_then_the_next_read_raises_it() -> None:
    shelf = Shelf(Batch([event(1)]), OSError("Redis went away"))
    with closing(Ahead(shelf)) as ahead:
        ahead.read(START, 0)
        with pytest.raises(OSError, match="went away"):
            ahead.read(Position(1, 1), 0)
