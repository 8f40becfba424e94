"""Does this service sell, and if not, why and since when: looked at once a second by every HTTP worker."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import msgspec

from engine.engine import Engine
from engine.selling import Refusal
from engine.statuses import Status

log = logging.getLogger("holdfast.api")

LOOK_EVERY_S = 1.0


class NotSelling(msgspec.Struct, frozen=True):
    """Why a partition decides no reserve, and since when this worker has seen that (ms since 1970)."""

    code: str
    detail: str
    since_ms: int


class Watch:
    """Keeps since when each partition doesn't sell, and says in the log when that begins and ends."""

    def __init__(self, engine: Callable[[], Engine | None], partitions: int) -> None:
        self._engine = engine
        self._partitions = range(partitions)
        self._not_selling: dict[int, NotSelling] = {}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.look()
            except Exception:  # a mistake of ours must not end the watch
                log.exception("looking whether it sells failed")
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self) -> dict[int, NotSelling | None]:
        """Why each partition doesn't sell now; None where it does. Never raises for what Redis does."""
        found = await asyncio.gather(*[self._refusal(each) for each in self._partitions])
        for partition, refusal in zip(self._partitions, found, strict=True):
            self._note(partition, refusal)
        return {partition: self._not_selling.get(partition) for partition in self._partitions}

    async def _refusal(self, partition: int) -> Refusal | None:
        engine = self._engine()
        if engine is None:
            return Refusal(Status.UNAVAILABLE, "Redis has not been reached yet")
        return await engine.why_not_selling(partition)

    def _note(self, partition: int, refusal: Refusal | None) -> None:
        before, now_ms = self._not_selling.get(partition), round(time.time() * 1000)
        if refusal is None:
            if before is not None:
                del self._not_selling[partition]
                seconds = (now_ms - before.since_ms) / 1000
                log.warning("partition %s sells again, after %.1f s", partition, seconds)
            return
        since_ms = now_ms if before is None else before.since_ms
        self._not_selling[partition] = NotSelling(refusal.code, refusal.detail, since_ms)
        if before is None or before.code != refusal.code:
            log.error("partition %s does not sell: %s, %s", partition, refusal.code, refusal.detail)
