"""Many concurrent calls, one script call: what arrives in one turn of the event loop goes together.

A *step* is one pipeline with one script call an operation. Two steps are in flight at most, so Redis
works on one while Python prepares the next; what arrives meanwhile waits and shares the one after.
So the batch grows by itself with the load, and a lone call waits for nobody.

Order: commands on one id take effect in the order they were handed in, and so do those of one type that
were handed in together. What must not overtake another step, or another operation of this one, waits for
that to be answered. A command that a script leaves undecided (``more_due``) goes first in the next step.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from engine.link import Link
from engine.model import Command, Outcome
from engine.parts import Group, Operation, Part, Submission, Waiting
from engine.repeats import Repeats
from engine.reservations import Wire
from engine.scripts import Scripts
from engine.selling import status_for_all
from engine.statuses import Status

log = logging.getLogger("holdfast.engine")

COMMANDS_MAX = 512
LINES_MAX = 4_000
IN_FLIGHT_MAX = 2
MORE_DUE_MAX_S = 2.0
_Step = dict[str, Group]  # by script
_Calls = dict[str, tuple[bytes, ...]]  # script → the first arguments of its call


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
        # One for each call in flight: Redis then reads them all before its one fsync.
        self._links = [Link(redis.connection_pool) for _ in range(IN_FLIGHT_MAX)]
        self._scripts = scripts
        self._repeats = Repeats(log)
        self._operations = operations
        self._in_order = [operation.script for operation in operations.values()]
        self._unavailable_after_s = unavailable_after_ms / 1000
        self._queue: deque[Part] = deque()
        self._in_flight: list[Group] = []
        self._limits: dict[str, int] = {}  # script → commands it is sent in one call
        self._tasks: set[asyncio.Task[None]] = set()
        self._scheduled = False

    def submit(
        self, commands: Sequence[Command], lines_max: int | None = None
    ) -> asyncio.Future[list[Outcome]]:
        """Hand in commands; the future gets their outcomes in order, bounded by ``lines_max``.

        Cancelling it disturbs nobody else: commands not yet sent are dropped, sent ones are decided
        and their outcome forgotten. ValueError: a command no script may see; none was handed in.
        """
        loop = asyncio.get_running_loop()
        submission = Submission(loop.create_future(), len(commands), lines_max)
        self._queue += self._parts(submission, commands)
        if not commands:
            submission.future.set_result([])
        elif not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._pump)
        return submission.future

    def _parts(self, submission: Submission, commands: Sequence[Command]) -> list[Part]:
        """One part a type, in the order in which the types appear, where that keeps the order of the
        commands on each id; else a part for each run of one type."""
        operations = self._operations
        if len(set(map(type, commands))) == 1:
            operation = operations[type(commands[0])]
            wires = list(map(operation.encode, commands))
            return [Part(operation, submission, range(len(commands)), commands, wires)]
        wires = [operations[type(command)].encode(command) for command in commands]
        places: dict[type, list[int]] = {}
        for kind, run in groupby(range(len(commands)), lambda place: type(commands[place])):
            places.setdefault(kind, []).extend(run)
        parts = [
            _part(operations[kind], submission, places[kind], commands, wires) for kind in places
        ]
        if _keep_order(parts):
            return parts
        runs = groupby(range(len(commands)), lambda place: type(commands[place]))
        return [
            _part(operations[kind], submission, list(run), commands, wires) for kind, run in runs
        ]

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
        """Let what was handed in be decided, then disconnect."""
        while self._tasks or self._queue:
            if self._tasks:
                await asyncio.wait(self._tasks)  # not gather: cancelled, it would cancel them too
            await asyncio.sleep(0)
        self._repeats.close()
        for link in self._links:
            await link.close()

    def _pump(self) -> None:
        self._scheduled = False
        while self._queue and len(self._tasks) < IN_FLIGHT_MAX:
            step = self._next_step()
            if not step:
                return
            self._in_flight += step.values()
            task = asyncio.get_running_loop().create_task(self._run(step))
            self._tasks.add(task)
            task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._pump()

    def _next_step(self) -> _Step:
        """As much of the queue as one step may take, first come first served; what has to wait stays
        at the head of the queue, in order."""
        step: _Step = {}
        room, lines_left = COMMANDS_MAX, LINES_MAX
        waiting = Waiting()
        queue = self._queue
        while queue and room:
            part = queue.popleft()
            script = part.operation.script
            if part.submission.future.done():
                continue
            group = step.get(script)
            if waiting.holds_up(part) or not self._may_go(part, group, step):
                waiting.add(part)
                continue
            group = group or Group(part.operation)
            most = self._limits.get(script, COMMANDS_MAX)
            taken = min(part.fitting(lines_left), room, most - group.count)
            if taken < part.count <= most and step and part.lines <= LINES_MAX:
                taken = 0  # the next step can take it whole
            if not taken and step:
                waiting.add(part)
                continue
            # With more lines than a call may have, too: the script decides one at least.
            taken = max(taken, 1)
            if taken < part.count:
                waiting.add(part.between(taken, part.count))
                part = part.between(0, taken)
            step[script] = group
            group.add(part)
            room -= taken
            lines_left -= part.lines
        queue.extendleft(reversed(waiting.parts))
        return step

    def _may_go(self, part: Part, group: Group | None, step: _Step) -> bool:
        """Would it overtake nothing: is no id of it in another step, or in another script of this one,
        and is no other step deciding what was handed in with it, of its type?"""
        ids, script = part.order_keys, part.operation.script
        if not ids:
            return True
        for other in self._in_flight:
            if not other.order_keys.isdisjoint(ids):
                return False
            if other.operation.script == script and part.submission in other.submissions:
                return False
        for other in step.values():
            if other is not group and not other.order_keys.isdisjoint(ids):
                return False
        return True

    async def _run(self, step: _Step) -> None:
        undecided: list[Part] = []
        silent = False
        try:
            replies, repeated = await self._send(step)
            silent = len(replies) < len(step)
            for script, group in step.items():
                reply = replies.get(script, Status.UNAVAILABLE)
                self._settle(group, reply, undecided, is_repeated=script in repeated)
        except Exception:
            # A mistake of ours must not leave anybody waiting for ever: the outcome is unknown.
            log.exception("a step failed")
            undecided.clear()
            for part in [part for group in step.values() for part in group.parts]:
                part.give_up()
        for group in step.values():
            self._in_flight.remove(group)
        self._queue.extendleft(reversed(undecided))
        if silent:
            self._give_up_waiting()

    def _settle(
        self, group: Group, reply: Any, undecided: list[Part], *, is_repeated: bool
    ) -> None:
        if isinstance(reply, Status):
            self._repeats.refused(reply, group.count)
            for part in group.parts:
                part.settle_all(reply)
            return
        now_ms, answers, damaged = reply
        if damaged:
            self._repeats.damaged(damaged)
        if len(answers) != group.count:
            raise ValueError(f"{len(answers)} answers to {group.count} commands")
        waiting: list[Part] = []
        some_wait, start = b"more_due" in answers, 0
        for part in group.parts:
            own = answers[start : start + part.count]
            start += part.count
            for piece, answered in _decided(part, own, waiting) if some_wait else [(part, own)]:
                outcomes = _decoded(piece, answered, now_ms)
                piece.settle(_unsure(outcomes) if is_repeated else outcomes)
        # What came back undecided was too much for one call: send less next time, until one goes whole.
        count = sum([part.count for part in waiting])
        limit = max(1, group.count // 2) if count > 1 else COMMANDS_MAX
        self._limits[group.operation.script] = limit
        if waiting:
            self._ask_again(waiting, undecided)

    @staticmethod
    def _ask_again(waiting: list[Part], undecided: list[Part]) -> None:
        """Put them first in the next step. Only the first was really tried, so only its time runs."""
        first, mono_s = waiting[0], asyncio.get_running_loop().time()
        first.give_up_at = first.give_up_at or mono_s + MORE_DUE_MAX_S
        if mono_s >= first.give_up_at:
            first.settle_all(Status.UNAVAILABLE)
            waiting = waiting[1:]
        undecided += waiting

    def _give_up_waiting(self) -> None:
        """Whoever waits behind a server that doesn't answer is told now, not after its own wait."""
        waiting, self._queue = self._queue, deque()
        for part in waiting:
            self._repeats.refused(Status.UNAVAILABLE, part.count)
            part.settle_all(Status.UNAVAILABLE)

    async def _send(self, step: _Step) -> tuple[dict[str, Any], set[str]]:
        """The reply of each script that replied, or the status that stands for all its commands; and the
        scripts that were sent more than once.

        Repeats what got no reply, which is safe by the ids in it, until the time is up; whether an
        ``unavailable`` command took effect is unknown: the same id again gives the answer.
        """
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + self._unavailable_after_s
        calls = {script: step[script].pack() for script in self._in_order if script in step}
        replies: dict[str, Any] = {}
        unanswered: set[str] = set()  # sent without a reply: they may have taken effect
        pause_s = 0.02
        while calls:
            try:
                async with asyncio.timeout_at(give_up_at):
                    answered = await self._call(step, calls)
            except (RedisError, TimeoutError, OSError) as error:
                self._repeats.no_reply(error)
                unanswered.update(calls)
            else:
                for script, reply in answered.items():
                    translated = self._translated(script, reply)
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

    async def _call(self, step: _Step, calls: _Calls) -> dict[str, Any]:
        answered = await self._pipeline(step, calls)
        forgotten = [s for s, reply in answered.items() if isinstance(reply, NoScriptError)]
        if forgotten:
            await self._scripts.load(self._redis)
            answered |= await self._pipeline(step, {script: calls[script] for script in forgotten})
        return answered

    async def _pipeline(self, step: _Step, calls: _Calls) -> dict[str, Any]:
        evalshas = []
        for script, packed in calls.items():
            operation = step[script].operation
            sha1, keys = self._scripts.sha1[script], operation.keys
            evalshas.append(("EVALSHA", sha1, len(keys), *keys, *packed, *operation.arguments))
        link = self._links.pop()
        try:
            return dict(zip(calls, await link.call(evalshas), strict=True))
        finally:
            self._links.append(link)


def _part(
    operation: Operation,
    submission: Submission,
    places: Sequence[int],
    commands: Sequence[Command],
    wires: Sequence[Wire],
) -> Part:
    own = [commands[place] for place in places]
    return Part(operation, submission, places, own, [wires[place] for place in places])


def _keep_order(parts: Sequence[Part]) -> bool:
    """If these parts go one after the other, do all commands on each id keep their order?"""
    last: dict[str, int] = {}
    for part in parts:
        for key, place in zip(part.order_keys, part.places, strict=False):
            if last.get(key, -1) > place:
                return False
            last[key] = place
    return True


def _decided(
    part: Part, answers: list[Any], waiting: list[Part]
) -> Iterator[tuple[Part, list[Any]]]:
    """The commands that were decided, one by one; the others, too, are added to ``waiting``."""
    for single, answer in zip(part.singles(), answers, strict=True):
        if answer == b"more_due":
            single.give_up_at = part.give_up_at
            waiting.append(single)
        else:
            yield single, [answer]


_UNREADABLE = (msgspec.MsgspecError, ValueError, LookupError, TypeError, AttributeError)


def _decoded(part: Part, answers: list[Any], now_ms: int) -> list[Outcome]:
    """The outcomes; ``unavailable`` for an answer that can't be read, the first of which is logged."""
    decode = part.operation.decode
    try:
        return [decode(c, a, now_ms) for c, a in zip(part.commands, answers, strict=True)]
    except _UNREADABLE:
        outcomes, unreadable = [], 0
    for command, answer in zip(part.commands, answers, strict=True):
        try:
            outcomes.append(decode(command, answer, now_ms))
        except _UNREADABLE:
            if not unreadable:
                log.exception("the answer to %r can't be read: %r", command, answer)
            unreadable += 1
            outcomes.append(Outcome(status=Status.UNAVAILABLE))
    if unreadable > 1:
        log.error("%d more answers of that call can't be read", unreadable - 1)
    return outcomes


def _unsure(outcomes: list[Outcome]) -> list[Outcome]:
    """Outcomes of commands that were sent before without a reply: refusals that may be of their own making
    say "nothing was changed" no more."""
    unavailable = Outcome(status=Status.UNAVAILABLE)
    return [unavailable if each.status in _PERHAPS_OWN else each for each in outcomes]


#: A receive that was applied may have filled the outbox, an extend have come close to its limit.
_PERHAPS_OWN = frozenset({Status.BACKLOG_FULL, Status.LIFETIME_EXCEEDED})
