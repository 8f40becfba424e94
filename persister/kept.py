"""What was acknowledged and stays in the outbox for a while, so that a ledger that falls back by seconds
catches up from there. Whichever comes first takes it away: its age, or the bytes of all of it."""

from __future__ import annotations

from collections import deque

import msgspec

from engine.acknowledged import Place

#: What is acknowledged within so long is taken away together, which bounds how much there is to remember.
TOGETHER_S = 0.1


class _Part(msgspec.Struct):
    """Up to ``place`` (epoch, seq), acknowledged from ``first_s`` to ``last_s``."""

    first_s: float
    last_s: float
    place: Place
    bytes_count: int


class Kept:
    """Of one outbox. Times are of a monotonic clock, in seconds; with ``keep_ms`` or ``bytes_max`` 0 nothing
    is kept."""

    def __init__(self, keep_ms: int, bytes_max: int) -> None:
        self._keep_s = keep_ms / 1000
        self._bytes_max = bytes_max
        self._parts: deque[_Part] = deque()
        self.bytes_count = 0

    def add(self, mono_s: float, place: Place, bytes_count: int) -> None:
        """All up to ``place`` is acknowledged now, ``bytes_count`` of it newly."""
        self.bytes_count += bytes_count
        last = self._parts[-1] if self._parts else None
        if last is not None and not bytes_count and place <= last.place:
            return  # said again: what is there gets no younger by that
        if last is not None and mono_s - last.first_s < TOGETHER_S:
            last.last_s, last.place = mono_s, max(place, last.place)
            last.bytes_count += bytes_count
        else:
            self._parts.append(_Part(mono_s, mono_s, place, bytes_count))

    def take_over(self, mono_s: float, *, all_of_it: bool = False) -> Place | None:
        """The place up to which it had been kept for long enough at ``mono_s``, or is too much, or
        ``all_of_it``; None for nothing. It is no longer counted."""
        place = None
        while self._parts and (all_of_it or self._is_over(mono_s)):
            part = self._parts.popleft()
            self.bytes_count -= part.bytes_count
            place = part.place
        return place

    def _is_over(self, mono_s: float) -> bool:
        is_old = mono_s - self._parts[0].last_s >= self._keep_s
        keeps_nothing = not self._keep_s or not self._bytes_max
        return keeps_nothing or is_old or self.bytes_count > self._bytes_max

    def __len__(self) -> int:
        return len(self._parts)
