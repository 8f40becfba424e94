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
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import msgspec
from redis.asyncio import Redis

from engine.model import Command, Outcome
from engine.parts import Group, Operation, Part, Submission
from engine.queue import COMMANDS_MAX, Queue
from engine.repeats import Repeats
from engine.reservations import Wire
from engine.scripts import Scripts
from engine.sending import Sender, Step
from engine.statuses import Status

log = logging.getLogger("holdfast.engine")

IN_FLIGHT_MAX = 2
MORE_DUE_MAX_S = 2.0
_REFUSALS_OF_ONE = (b"store_full", b"backlog_full")


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
        self._repeats = Repeats(log)
        self._sender = Sender(
            redis,
            scripts,
            self._repeats,
            in_flight_max=IN_FLIGHT_MAX,
            unavailable_after_ms=unavailable_after_ms,
        )
        self._operations = operations
        self._in_order = [operation.script for operation in operations.values()]
        self._queue = Queue()
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
        self._queue.add(self._parts(submission, commands))
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
        await self._sender.open()

    async def close(self) -> None:
        """Let what was handed in be decided, then disconnect."""
        while self._tasks or self._queue:
            if self._tasks:
                await asyncio.wait(self._tasks)  # not gather: cancelled, it would cancel them too
            await asyncio.sleep(0)
        self._repeats.close()
        await self._sender.close()

    def _pump(self) -> None:
        self._scheduled = False
        while self._queue and len(self._tasks) < IN_FLIGHT_MAX:
            step = self._queue.next_step()
            if not step:
                return
            task = asyncio.get_running_loop().create_task(self._run(step))
            self._tasks.add(task)
            task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._pump()

    async def _run(self, step: Step) -> None:
        in_order = {script: step[script] for script in self._in_order if script in step}
        undecided: list[Part] = []
        silent = False
        try:
            replies, repeated = await self._sender.send(in_order)
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
        self._queue.finished(step, undecided)
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
        for refusal in _REFUSALS_OF_ONE:
            if refused := answers.count([refusal]):
                self._repeats.refused(refusal.decode(), refused)
        waiting: list[Part] = []
        some_wait, start = b"more_due" in answers, 0
        for part in group.parts:
            own = answers[start : start + part.count]
            start += part.count
            pieces = _decided(part, own, waiting) if some_wait else [(part, own)]
            for piece, answered in pieces:
                outcomes = _decoded(piece, answered, now_ms)
                piece.settle(_unsure(outcomes) if is_repeated else outcomes)
        # What came back undecided was too much for one call: send less next time, until one goes whole.
        count = sum([part.count for part in waiting])
        limit = max(1, group.count // 2) if count > 1 else COMMANDS_MAX
        self._queue.limit(group.operation.script, limit)
        if waiting:
            self._ask_again(waiting, undecided)

    @staticmethod
    def _ask_again(waiting: list[Part], undecided: list[Part]) -> None:
        """Put them first in the next step. Only the first was really tried, so only its time runs."""
        first, mono_s = waiting[0], asyncio.get_running_loop().time()
        first.give_up_at = first.give_up_at or mono_s + MORE_DUE_MAX_S
        if mono_s >= first.give_up_at:
            first.between(0, 1).settle_all(Status.UNAVAILABLE)
            others = [first.between(1, first.count)] if first.count > 1 else []
            waiting = others + waiting[1:]
        undecided += waiting

    def _give_up_waiting(self) -> None:
        """Whoever waits behind a server that doesn't answer is told now, not after its own wait."""
        for part in self._queue.give_up():
            self._repeats.refused(Status.UNAVAILABLE, part.count)
            part.settle_all(Status.UNAVAILABLE)


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
    """The commands that were decided, as far as they stand together; the others, too, are added to
    ``waiting``."""
    for is_undecided, run in groupby(
        range(part.count), lambda place: answers[place] == b"more_due"
    ):
        places = list(run)
        start, stop = places[0], places[-1] + 1
        piece = part.between(start, stop)
        if is_undecided:
            waiting.append(piece)
        else:
            yield piece, answers[start:stop]


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


#: A receive that was applied may have filled the outbox, a reserve the memory, an extend have come close to
#: its limit.
_PERHAPS_OWN = frozenset({Status.BACKLOG_FULL, Status.STORE_FULL, Status.LIFETIME_EXCEEDED})
