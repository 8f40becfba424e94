"""What happens again and again is said at once, and then once a minute with how often it happened."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

import msgspec
from redis.exceptions import RedisError

from engine.addresses import why

EVERY_S = 60.0
KEYS_MAX = 10


class _Kind(msgspec.Struct):
    """What was counted since it was said last, and what is to be said of it."""

    level: int
    text: str
    count: int = 0


class Repeats:
    """Counts by kind. A kind is said when it happens for the first time, then with its count a minute later,
    again and again; one that didn't happen for a minute is forgotten, and said at once the next time.
    Belongs to an event loop."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._kinds: dict[str, _Kind] = {}
        self._timer: asyncio.TimerHandle | None = None

    def happened(
        self, kind: str, text: str, *, level: int = logging.WARNING, count: int = 1
    ) -> None:
        """``count`` times; ``text`` is what is said of the last of them."""
        known = self._kinds.get(kind)
        if known is None:
            self._kinds[kind] = _Kind(level, text)
            self._log.log(level, "%s%s", text, f" ({count} times)" if count > 1 else "")
        else:
            known.level, known.text = level, text
            known.count += count
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(EVERY_S, self.minute_over)

    def damaged(self, names: Iterable[bytes]) -> None:
        """Records that a script could not read and passed over, by their keys."""
        keys = sorted({ascii(name)[2:-1] for name in names})
        more = f" and {len(keys) - KEYS_MAX} more" if len(keys) > KEYS_MAX else ""
        self.happened(
            "damaged",
            f"records that can't be read were passed over: {', '.join(keys[:KEYS_MAX])}{more}",
            level=logging.ERROR,
        )

    def failed(self, script: str, error: RedisError) -> None:
        """Redis answered a script call with an error: MISCONF, READONLY, …"""
        kind = str(error).split(" ", 1)[0]
        self.happened(
            kind if kind.isupper() else type(error).__name__,
            f"script {script} failed: {why(error)}",
            level=logging.ERROR,
        )

    def no_reply(self, error: BaseException) -> None:
        """A call got no reply."""
        word = why(error) if str(error) else "no reply in time"
        self.happened("no reply", f"Redis did not answer: {word}")

    def refused(self, status: str, count: int) -> None:
        """So many commands were not decided."""
        self.happened(status, f"calls are refused with {status}", count=count)

    def minute_over(self) -> None:
        """Say what was counted, forget what didn't happen."""
        self._say()
        self._timer = None
        if self._kinds:
            self._timer = asyncio.get_running_loop().call_later(EVERY_S, self.minute_over)

    def close(self) -> None:
        """Say what was counted, for the last time."""
        self._say()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _say(self) -> None:
        for kind, known in list(self._kinds.items()):
            if not known.count:
                del self._kinds[kind]
                continue
            self._log.log(
                known.level, "%s (%d times in %.0f s at most)", known.text, known.count, EVERY_S
            )
            known.count = 0
