"""What is on its way through the batcher: commands in parts of one type, and what goes into one call."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any

import msgspec

from engine.model import Outcome
from engine.reservations import Wire
from engine.statuses import Status

_encode = msgspec.msgpack.Encoder().encode


def pack(wires: Sequence[Wire]) -> tuple[bytes, ...]:
    """The commands of one call: their values, one after the other."""
    return (_encode(list(chain.from_iterable(wires))),)


@dataclass(frozen=True, slots=True)
class Operation:
    """How commands of one type travel: which script, its other arguments, to and from its bytes.

    ``encode`` raises ValueError for a command no script may see, before it can harm its neighbours;
    ``pack`` makes the first arguments of a call out of what it gave.
    ``order`` is put before the ids of what must keep its order (None: any order). ``lines`` counts for
    the limit of a call. ``known`` is the script that tells what became of ids sent before, where a full
    server refuses ``script`` itself; it takes the same commands and only reads.
    """

    script: str
    keys: tuple[str, ...]
    arguments: tuple[int, ...]
    encode: Callable[[Any], Wire]
    decode: Callable[[Any, Any, int], Outcome]
    order: str | None
    lines: Callable[[Any], int]
    pack: Callable[[Sequence[Wire]], tuple[bytes, ...]] = pack
    known: str = ""


def _lines_of(outcomes: Sequence[Outcome]) -> int:
    lines = 0
    for outcome in outcomes:
        reservation = outcome.reservation
        if reservation is not None:
            lines += len(reservation.lines)
        else:
            lines += len(outcome.shortages) + len(outcome.stock)
    return lines


def _without_lines(outcome: Outcome) -> Outcome:
    return msgspec.structs.replace(
        outcome, reservation=None, shortages=(), stock=(), truncated=True
    )


class Submission:
    """Commands handed in together; the future gets all their outcomes at once, in order.

    ``lines_left``: outcomes with more lines than that together are kept without them: a cart that was
    named two thousand times would fill the memory.
    """

    __slots__ = ("future", "left", "lines_left", "outcomes")

    def __init__(
        self, future: asyncio.Future[list[Outcome]], count: int, lines_max: int | None = None
    ) -> None:
        self.future = future
        self.lines_left = lines_max
        self.outcomes: list[Outcome | None] = [None] * count
        self.left = count

    def fill(self, places: Sequence[int], outcomes: Sequence[Outcome]) -> None:
        if self.lines_left is not None:
            lines = _lines_of(outcomes)
            if lines > self.lines_left:
                outcomes = [self._bounded(outcome) for outcome in outcomes]
            else:
                self.lines_left -= lines
        if isinstance(places, range):
            self.outcomes[places.start : places.stop] = outcomes
        else:
            for place, outcome in zip(places, outcomes, strict=True):
                self.outcomes[place] = outcome
        self.left -= len(places)
        if self.left == 0 and not self.future.done():
            self.future.set_result(self.outcomes)  # type: ignore[arg-type]

    def _bounded(self, outcome: Outcome) -> Outcome:
        lines = _lines_of((outcome,))
        if self.lines_left is None or lines > self.lines_left:
            return _without_lines(outcome)
        self.lines_left -= lines
        return outcome


class Part:
    """Commands of one type that were handed in together, on their way. What is done to many at once
    costs a fraction of what it costs one by one."""

    __slots__ = (
        "commands",
        "count",
        "give_up_at",
        "lines",
        "operation",
        "order_keys",
        "places",
        "submission",
        "wires",
    )

    def __init__(
        self,
        operation: Operation,
        submission: Submission,
        places: Sequence[int],
        commands: Sequence[Any],
        wires: Sequence[Wire],
    ) -> None:
        self.operation = operation
        self.submission = submission
        self.places = places
        self.commands = commands
        self.wires = wires
        self.count = len(wires)
        order: Any = operation.order
        self.order_keys: list[Any] = []
        if order is not None:
            ids: list[Any] = [wire[0] for wire in wires]
            self.order_keys = [order + each for each in ids] if order else ids
        self.lines = sum([operation.lines(command) for command in commands])
        self.give_up_at = 0.0  # of the first command

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        self.submission.fill(self.places, outcomes)

    def settle_all(self, status: Status) -> None:
        self.settle([Outcome(status=status)] * self.count)

    def give_up(self) -> None:
        """Tell those that have no outcome that it is unknown."""
        for place in self.places:
            if self.submission.outcomes[place] is None:
                self.submission.fill((place,), (Outcome(status=Status.UNAVAILABLE),))

    def between(self, start: int, stop: int) -> Part:
        """A part of this part."""
        cut = slice(start, stop)
        part = Part(
            self.operation,
            self.submission,
            self.places[cut],
            self.commands[cut],
            self.wires[cut],
        )
        if start == 0:
            part.give_up_at = self.give_up_at
        return part

    def fitting(self, lines: int) -> int:
        """How many of the first commands have no more lines than that."""
        if self.lines <= lines:
            return self.count
        counts = [self.operation.lines(command) for command in self.commands]
        return bisect_right(list(accumulate(counts)), lines)


class Group:
    """What goes into one script call."""

    __slots__ = ("count", "operation", "order_keys", "parts", "submissions")

    def __init__(self, operation: Operation) -> None:
        self.operation = operation
        self.parts: list[Part] = []
        self.order_keys: set[str] = set()
        self.submissions: set[Submission] = set()
        self.count = 0

    def add(self, part: Part) -> None:
        self.parts.append(part)
        self.submissions.add(part.submission)
        self.order_keys.update(part.order_keys)
        self.count += part.count

    def pack(self) -> tuple[bytes, ...]:
        """The first arguments of its call."""
        return self.operation.pack(list(chain.from_iterable([part.wires for part in self.parts])))


class Waiting:
    """What the next step can't take, in order, and what has to wait behind it: commands on its ids, and
    those of its type that were handed in with it."""

    __slots__ = ("_behind", "_order_keys", "parts")

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self._order_keys: set[str] = set()
        self._behind: set[tuple[Submission, str]] = set()

    def add(self, part: Part) -> None:
        self.parts.append(part)
        self._order_keys.update(part.order_keys)
        if part.order_keys:
            self._behind.add((part.submission, part.operation.script))

    def holds_up(self, part: Part) -> bool:
        if not self.parts or not part.order_keys:
            return False
        together = (part.submission, part.operation.script) in self._behind
        return together or not self._order_keys.isdisjoint(part.order_keys)
