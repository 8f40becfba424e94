"""A step on its way to Redis and back: what is sent, sent again, looked up, and what a reply means."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from engine.link import Link
from engine.parts import Group
from engine.repeats import Repeats
from engine.scripts import Scripts
from engine.selling import status_for_all
from engine.statuses import Status

#: An event loop that looks at the clock this much too late has stood still; and this long it then listens.
LATE_S = 0.1
#: What goes in one pipeline: a group by its script.
Step = dict[str, Group]


class _Call(NamedTuple):
    script: str
    keys: tuple[str, ...]
    arguments: tuple[bytes | int, ...]


_Calls = dict[str, _Call]  # by the script of the group


class Sender:
    """Sends steps, ``in_flight_max`` of them at once. Not thread-safe."""

    def __init__(
        self,
        redis: Redis,
        scripts: Scripts,
        repeats: Repeats,
        *,
        in_flight_max: int,
        unavailable_after_ms: int,
    ) -> None:
        self._redis = redis
        self._scripts = scripts
        self._repeats = repeats
        # One for each call in flight: Redis then reads them all before its one fsync.
        self._links = [Link(redis.connection_pool) for _ in range(in_flight_max)]
        self._unavailable_after_s = unavailable_after_ms / 1000

    async def open(self) -> None:
        """Connect now instead of at the first call. RedisError or OSError where that can't be; nothing
        stays connected then."""
        try:
            for link in self._links:
                await link.open()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        for link in self._links:
            await link.close()

    async def send(self, step: Step) -> tuple[dict[str, Any], set[str]]:
        """The reply of each script that replied, or the status that stands for all its commands; and the
        scripts that were sent more than once. They go in the order of the step.

        Repeats what got no reply, which is safe by the ids in it, until the time is up; whether an
        ``unavailable`` command took effect is unknown: the same id again gives the answer. Where the
        server is full and so refuses a script, what is known of its ids is looked up.
        """
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + self._unavailable_after_s
        calls = {script: _call_of(group) for script, group in step.items()}
        replies: dict[str, Any] = {}
        unanswered: set[str] = set()  # sent without a reply: they may have taken effect
        pause_s = 0.02
        while calls:
            looking_up = False
            try:
                async with _listening_until(give_up_at):
                    answered = await self._call(calls)
            except (RedisError, TimeoutError, OSError) as error:
                self._repeats.no_reply(error)
                unanswered.update(calls)
            else:
                for script, reply in answered.items():
                    translated = self._translated(script, reply)
                    if translated is None:
                        unanswered.add(script)
                        continue
                    known = step[script].operation.known
                    if translated is Status.STORE_FULL and known not in ("", calls[script].script):
                        calls[script] = _look_up_of(step[script])
                        looking_up = True
                        continue
                    if script in unanswered and isinstance(translated, Status):
                        translated = Status.UNAVAILABLE  # "nothing was changed" would be a guess
                    replies[script] = translated
                    del calls[script]
            if not calls or loop.time() + pause_s >= give_up_at:
                break
            if not looking_up:
                await asyncio.sleep(pause_s)
                pause_s *= 2
        return replies, unanswered

    def _translated(self, script: str, reply: Any) -> Any:
        """A reply as it is, a Status for all commands of the call, or None: ask again."""
        if isinstance(reply, NoScriptError):
            return None
        status = status_for_all(reply)
        if status is Status.UNAVAILABLE:
            self._repeats.failed(script, reply)
        if isinstance(reply, RedisConnectionError | RedisTimeoutError):  # LOADING, say
            return None
        return status or reply

    async def _call(self, calls: _Calls) -> dict[str, Any]:
        answered = await self._pipeline(calls)
        forgotten = [s for s, reply in answered.items() if isinstance(reply, NoScriptError)]
        if forgotten:
            await self._scripts.load(self._redis)
            answered |= await self._pipeline({script: calls[script] for script in forgotten})
        return answered

    async def _pipeline(self, calls: _Calls) -> dict[str, Any]:
        evalshas = [
            (
                "EVALSHA",
                self._scripts.sha1[call.script],
                len(call.keys),
                *call.keys,
                *call.arguments,
            )
            for call in calls.values()
        ]
        link = self._links.pop()
        try:
            return dict(zip(calls, await link.call(evalshas), strict=True))
        finally:
            self._links.append(link)


@asynccontextmanager
async def _listening_until(give_up_at: float) -> AsyncIterator[None]:
    """TimeoutError at ``give_up_at``, a time of the loop. Where the loop stood still by then (a busy
    machine), what arrived meanwhile is read first: it would be a reply that came in time thrown away."""
    loop = asyncio.get_running_loop()

    def time_is_up() -> None:
        has_stood_still = loop.time() - give_up_at > LATE_S
        timeout.reschedule(loop.time() + LATE_S if has_stood_still else give_up_at)

    async with asyncio.timeout(None) as timeout:
        timer = loop.call_at(give_up_at, time_is_up)
        try:
            yield
        finally:
            timer.cancel()


def _call_of(group: Group) -> _Call:
    operation = group.operation
    return _Call(operation.script, operation.keys, (*group.pack(), *operation.arguments))


def _look_up_of(group: Group) -> _Call:
    """The same commands for the script that only tells what is known of their ids."""
    return _Call(group.operation.known, group.operation.keys[:1], group.pack())
