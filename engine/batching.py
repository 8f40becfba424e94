"""Many concurrent calls, one script call: what arrives in one turn of the event loop goes together.

A *step* is one pipeline with one script call an operation. Two steps are in flight at most, so Redis
works on one while Python prepares the next; what arrives meanwhile waits and shares the one after.
So the batch grows by itself with the load, and a lone call waits for nobody.

Order: commands on one id take effect in the order they were handed in. A command whose id is in
another step, or under another operation of this one, waits for that to be answered. A command that
a script leaves undecided (``more_due``) goes first in the next step.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, OutOfMemoryError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from engine.model import Command, Outcome
from engine.scripts import Scripts
from engine.statuses import Status

log = logging.getLogger("holdfast.engine")

COMMANDS_MAX = 512
LINES_MAX = 4_000
IN_FLIGHT_MAX = 2
MORE_DUE_MAX_S = 2.0
_encode = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True)
class Operation:
    """How commands of one type travel: which script, its other arguments, to and from its bytes.

    ``encode`` raises ValueError for a command no script may see, before it can harm its neighbours.
    ``order_key`` names what commands must keep their order on (None: any order).
    """

    script: str
    keys: tuple[str, ...]
    arguments: tuple[int, ...]
    encode: Callable[[Any], object]
    decode: Callable[[Any, Any, int], Outcome]
    order_key: Callable[[Any], str | None]
    lines: Callable[[Any], int]


class _Submission:
    """Commands handed in together; the future gets all their outcomes at once, in order."""

    __slots__ = ("future", "left", "outcomes")

    def __init__(self, future: asyncio.Future[list[Outcome]], count: int) -> None:
        self.future = future
        self.outcomes: list[Outcome | None] = [None] * count
        self.left = count

    def settle(self, index: int, outcome: Outcome) -> None:
        if self.outcomes[index] is not None:
            return
        self.outcomes[index] = outcome
        self.left -= 1
        if self.left == 0 and not self.future.done():
            self.future.set_result(self.outcomes)  # type: ignore[arg-type]


class _Pending:
    """One command on its way."""

    __slots__ = ("command", "give_up_at", "index", "key", "operation", "submission", "wire")

    def __init__(
        self, operation: Operation, command: Command, submission: _Submission, index: int
    ) -> None:
        self.operation = operation
        self.command = command
        self.submission = submission
        self.index = index
        self.wire = operation.encode(command)
        self.key = operation.order_key(command)
        self.give_up_at = 0.0

    def settle(self, outcome: Outcome) -> None:
        self.submission.settle(self.index, outcome)


_Step = dict[str, list[_Pending]]


class Batcher:
    """The way into one partition. One a process and partition; not thread-safe."""

    def __init__(
        self,
        redis: Redis,
        scripts: Scripts,
        operations: dict[type, Operation],
        *,
        unavailable_after_ms: int,
    ) -> None:
        self._redis = redis
        self._scripts = scripts
        self._operations = operations
        self._by_script = {operation.script: operation for operation in operations.values()}
        self._unavailable_after_s = unavailable_after_ms / 1000
        self._queue: deque[_Pending] = deque()
        self._busy: dict[str, list[_Pending]] = {}  # order key → the group it travels in
        self._limits: dict[str, int] = {}  # script → commands it is sent in one call
        self._tasks: set[asyncio.Task[None]] = set()
        self._scheduled = False

    def submit(self, commands: Sequence[Command]) -> asyncio.Future[list[Outcome]]:
        """Hand in commands; the future gets their outcomes in order.

        Cancelling it disturbs nobody else: commands not yet sent are dropped, sent ones are decided
        and their outcome forgotten. ValueError: a command no script may see; none was handed in.
        """
        loop = asyncio.get_running_loop()
        submission = _Submission(loop.create_future(), len(commands))
        operations = self._operations
        self._queue.extend(
            [
                _Pending(operations[type(command)], command, submission, index)
                for index, command in enumerate(commands)
            ]
        )
        if not commands:
            submission.future.set_result([])
        elif not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._pump)
        return submission.future

    async def drain(self) -> None:
        """Wait until nothing is queued or in flight."""
        while self._tasks or self._queue:
            await asyncio.gather(*self._tasks)
            await asyncio.sleep(0)

    def _pump(self) -> None:
        self._scheduled = False
        while self._queue and len(self._tasks) < IN_FLIGHT_MAX:
            step = self._next_step()
            if not step:
                return
            task = asyncio.get_running_loop().create_task(self._run(step))
            self._tasks.add(task)
            task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._pump()

    def _next_step(self) -> _Step:
        step: _Step = {}
        commands = lines = 0
        waiting: list[_Pending] = []
        waiting_keys: set[str] = set()
        queue, busy = self._queue, self._busy
        while queue and commands < COMMANDS_MAX:
            pending = queue.popleft()
            if pending.submission.future.done():
                continue
            script, key = pending.operation.script, pending.key
            group = step.get(script)
            full = group is not None and len(group) >= self._limits.get(script, COMMANDS_MAX)
            if full or (
                key is not None
                and (key in waiting_keys or (key in busy and busy[key] is not group))
            ):
                waiting.append(pending)
                if key is not None:
                    waiting_keys.add(key)
                continue
            lines += pending.operation.lines(pending.command)
            if lines > LINES_MAX and commands:
                queue.appendleft(pending)
                break
            commands += 1
            if group is None:
                group = step[script] = []
            group.append(pending)
            if key is not None:
                busy[key] = group
        queue.extendleft(reversed(waiting))
        return step

    async def _run(self, step: _Step) -> None:
        undecided: list[_Pending] = []
        try:
            replies = await self._send(step)
            for script, pendings in step.items():
                self._settle(script, pendings, replies[script], undecided)
        except Exception:
            # A mistake of ours must not leave anybody waiting for ever: the outcome is unknown.
            log.exception("a step failed")
            replies = {}
            for pending in [pending for pendings in step.values() for pending in pendings]:
                pending.settle(Outcome(status=Status.UNAVAILABLE))
        for pendings in step.values():
            for pending in pendings:
                if pending.key is not None:
                    self._busy.pop(pending.key, None)
        self._queue.extendleft(reversed(undecided))
        if any(reply is Status.UNAVAILABLE for reply in replies.values()):
            self._give_up_waiting()

    def _settle(
        self, script: str, pendings: list[_Pending], reply: Any, undecided: list[_Pending]
    ) -> None:
        if isinstance(reply, Status):
            outcome = Outcome(status=reply)
            for pending in pendings:
                pending.settle(outcome)
            return
        now_ms, answers, damaged = reply
        if damaged:
            log.error("records that can't be read were passed over: %s", damaged)
        waiting: list[_Pending] = []
        for pending, answer in zip(pendings, answers, strict=True):
            if answer == b"more_due":
                waiting.append(pending)
            else:
                pending.settle(_decoded(pending, answer, now_ms))
        # What came back undecided was too much for one call: send less next time, until one goes whole.
        limit = max(1, len(pendings) // 2) if len(waiting) > 1 else COMMANDS_MAX
        self._limits[script] = limit
        if waiting:
            self._ask_again(waiting, undecided)

    @staticmethod
    def _ask_again(waiting: list[_Pending], undecided: list[_Pending]) -> None:
        """Put them first in the next step. Only the first was really tried, so only its time runs."""
        first, mono_s = waiting[0], asyncio.get_running_loop().time()
        first.give_up_at = first.give_up_at or mono_s + MORE_DUE_MAX_S
        if mono_s >= first.give_up_at:
            first.settle(Outcome(status=Status.UNAVAILABLE))
            waiting = waiting[1:]
        undecided += waiting

    def _give_up_waiting(self) -> None:
        """Whoever waits behind a server that doesn't answer is told now, not after its own wait."""
        waiting, self._queue = self._queue, deque()
        for pending in waiting:
            pending.settle(Outcome(status=Status.UNAVAILABLE))

    async def _send(self, step: _Step) -> dict[str, Any]:
        """The reply of each script, or the status that stands for all its commands.

        Repeats what got no reply, which is safe by the ids in it, until the time is up; whether an
        ``unavailable`` command took effect is unknown: the same id again gives the answer.
        """
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + self._unavailable_after_s
        calls = {
            script: _encode([pending.wire for pending in step[script]])
            for script in self._by_script
            if script in step
        }
        replies: dict[str, Any] = dict.fromkeys(calls, Status.UNAVAILABLE)
        unanswered: set[str] = set()  # sent without a reply: they may have taken effect
        pause_s = 0.02
        while calls:
            try:
                async with asyncio.timeout_at(give_up_at):
                    answered = await self._call(calls)
            except (RedisError, TimeoutError, OSError) as error:
                log.warning("Redis did not answer: %s", error)
                unanswered.update(calls)
            else:
                for script, reply in answered.items():
                    translated = _translated(script, reply)
                    if translated is None:
                        unanswered.add(script)
                        continue
                    if script in unanswered and isinstance(translated, Status):
                        translated = Status.UNAVAILABLE  # "nothing was changed" would be a guess
                    replies[script] = translated
                    del calls[script]
            if not calls or loop.time() + pause_s >= give_up_at:
                break
            await asyncio.sleep(pause_s)
            pause_s *= 2
        return replies

    async def _call(self, calls: dict[str, bytes]) -> dict[str, Any]:
        answered = await self._pipeline(calls)
        forgotten = [s for s, reply in answered.items() if isinstance(reply, NoScriptError)]
        if forgotten:
            await self._scripts.load(self._redis)
            answered |= await self._pipeline({script: calls[script] for script in forgotten})
        return answered

    async def _pipeline(self, calls: dict[str, bytes]) -> dict[str, Any]:
        pipe = self._redis.pipeline(transaction=False)
        for script, commands in calls.items():
            operation = self._by_script[script]
            pipe.execute_command(
                "EVALSHA",
                self._scripts.sha1[script],
                len(operation.keys),
                *operation.keys,
                commands,
                *operation.arguments,
            )
        return dict(zip(calls, await pipe.execute(raise_on_error=False), strict=True))


def _decoded(pending: _Pending, answer: Any, now_ms: int) -> Outcome:
    try:
        return pending.operation.decode(pending.command, answer, now_ms)
    except (msgspec.MsgspecError, ValueError, LookupError, TypeError, AttributeError):
        log.exception("the answer to %r can't be read: %r", pending.command, answer)
        return Outcome(status=Status.UNAVAILABLE)


def _translated(script: str, reply: Any) -> Any:
    """A reply as it is, a Status for all commands of the call, or None: ask again."""
    if reply == b"partition_closed":
        return Status.PARTITION_CLOSED
    if reply == b"backlog_full":
        return Status.BACKLOG_FULL
    if isinstance(reply, RedisConnectionError | RedisTimeoutError | NoScriptError):
        return None
    # Redis 6.2 wraps the refusal of a command inside a script into an error of the script.
    if isinstance(reply, OutOfMemoryError) or (
        isinstance(reply, ResponseError) and "OOM command not allowed" in str(reply)
    ):
        return Status.STORE_FULL
    if isinstance(reply, RedisError):
        log.error("script %s failed: %s", script, reply)
        return Status.UNAVAILABLE
    return reply
