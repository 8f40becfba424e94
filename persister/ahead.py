"""Read and decode the next batch while PostgreSQL takes in the one before."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

from persister.ledger import Position
from persister.sources import Batch, Source, Unreadable


class Ahead:
    """A source that is one batch ahead of who reads it, as long as there is more.

    One thread reads, and nothing else is asked of the source before that has come back: it is never used
    by two threads at once. What was read ahead counts as not read for ``is_drained`` and ``is_at_end``.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self._pending: Future[Batch] | None = None

    def close(self) -> None:
        """Wait for the read that is under way, and forget it."""
        self._pool.shutdown()

    def begin(self, position: Position) -> None:
        self._settle()
        self._source.begin(position)

    def is_drained(self, position: Position) -> bool:
        return not self._holds_some() and self._source.is_drained(position)

    def is_at_end(self) -> bool:
        return not self._holds_some() and self._source.is_at_end()

    def committed(self, position: Position) -> None:
        self._settle()
        self._source.committed(position)

    def pass_over(self, unreadable: Unreadable) -> None:
        self._settle()
        self._source.pass_over(unreadable)

    def read(self, after: Position, wait_ms: int) -> Batch:
        """As the source's, and then the next read begins."""
        pending, self._pending = self._pending, None
        batch = pending.result() if pending else Batch([])
        if not batch.events and batch.unreadable is None:
            batch = self._source.read(after, wait_ms)
        if batch.events and batch.unreadable is None:
            last = batch.events[-1]
            position = Position(last.epoch, last.seq)
            self._pending = self._pool.submit(self._source.read, position, 0)
        return batch

    def _settle(self) -> Batch | None:
        """Wait for the read that is under way; it is handed out by the next ``read``."""
        return self._pending.result() if self._pending else None

    def _holds_some(self) -> bool:
        batch = self._settle()
        return batch is not None and bool(batch.events or batch.unreadable)
