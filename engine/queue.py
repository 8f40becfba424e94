"""What waits for its step, and what each waits for.

First come, first served, but a part overtakes nothing that shares an id with it, and nothing of its type that
was handed in with it. One that would is *parked* behind what it must not overtake, and looked at again when
that is decided, not at every step: so a thousand commands on one id cost a thousand looks, not a million.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable
from typing import TypeAlias

from engine.parts import Group, Part, Waiting
from engine.sending import Step

COMMANDS_MAX = 512
LINES_MAX = 4_000
_Ahead: TypeAlias = Part | Group


class Queue:
    """Parts in the order they came. ``next_step`` hands out what may go now, ``finished`` must be told
    what became of it. Not thread-safe."""

    def __init__(self) -> None:
        self._parts: deque[Part] = deque()
        self._in_flight: list[Group] = []
        self._limits: dict[str, int] = {}  # script → commands it is sent in one call
        self._waits: dict[Part, set[_Ahead]] = {}  # those that are parked
        self._behind: dict[_Ahead, list[Part]] = {}  # who is parked behind it
        self._last: dict[
            Hashable, Part
        ] = {}  # id, or submission and script → the last one parked with it
        self._were_parked: set[Part] = set()

    def __bool__(self) -> bool:
        return bool(self._parts or self._waits)

    def add(self, parts: Iterable[Part]) -> None:
        self._parts += parts

    def limit(self, script: str, commands: int) -> None:
        """Send that script no more commands in one call."""
        self._limits[script] = commands

    def next_step(self) -> Step:
        """As much as one step may take; empty where all have to wait."""
        step: Step = {}
        room, lines_left = COMMANDS_MAX, LINES_MAX
        waiting, joining = Waiting(), deque[Part]()
        parts = self._parts
        while room and lines_left > 0 and (joining or parts):
            joins = bool(joining)
            part = joining.popleft() if joins else parts.popleft()
            if part.submission.future.done():
                if not joins:
                    self._drop(part)
                continue
            script = part.operation.script
            if not joins and self._has_to_wait(part, step, waiting):
                continue
            group = step.get(script) or Group(part.operation)
            most = self._limits.get(script, COMMANDS_MAX)
            taken = min(part.fitting(lines_left), room, most - group.count)
            if taken < part.count <= most and step and part.lines <= LINES_MAX:
                taken = 0  # the next step can take it whole
            if joins and taken < part.count:
                continue
            if not taken and step:
                waiting.add(part)
                continue
            # With more lines than a call may have, too: the script decides one at least.
            taken = max(taken, 1)
            if taken < part.count:
                rest = part.between(taken, part.count)
                self._replace(part, rest)
                waiting.add(rest)
                part = part.between(0, taken)
            step[script] = group
            group.add(part)
            joining += self._taken(part, group)
            room -= taken
            lines_left -= part.lines
        parts.extendleft(reversed(waiting.parts))
        self._in_flight += step.values()
        return step

    def finished(self, step: Step, undecided: list[Part]) -> None:
        """A step was answered, but for ``undecided``: they go first in the next one, and whoever waited for
        their ids goes on waiting."""
        again: dict[Hashable, Part] = {}
        for part in undecided:
            again.update(dict.fromkeys(_tokens(part), part))
            self._were_parked.add(part)
        ready: list[Part] = []
        for group in step.values():
            self._in_flight.remove(group)
            for part in self._behind.pop(group, ()):
                if part not in self._waits:
                    continue
                self._waits[part].discard(group)
                for ahead in {again[token] for token in _tokens(part) if token in again}:
                    self._put_behind(part, ahead)
                if not self._waits[part]:
                    del self._waits[part]
                    ready.append(part)
        self._parts.extendleft(reversed(undecided + ready))

    def give_up(self) -> list[Part]:
        """Forget all that waits, and answer it."""
        given_up = [*self._parts, *self._waits]
        self._parts.clear()
        for kept in (self._waits, self._behind, self._last, self._were_parked):
            kept.clear()
        return given_up

    def _has_to_wait(self, part: Part, step: Step, waiting: Waiting) -> bool:
        """Would it overtake something? Then it is put where it waits."""
        if waiting.holds_up(part):
            waiting.add(part)
            return True
        ids, script = part.order_keys, part.operation.script
        if not ids:
            return False
        ahead: list[_Ahead] = [g for g in self._in_flight if not g.order_keys.isdisjoint(ids)]
        for other, group in step.items():
            if other != script and not group.order_keys.isdisjoint(ids):
                ahead.append(group)
        if self._last and part not in self._were_parked:
            ahead += {self._last[token] for token in _tokens(part) if token in self._last}
        together = [
            group
            for group in self._in_flight
            if group.operation.script == script and part.submission in group.submissions
        ]
        if ahead:
            own = step.get(script)
            self._park(part, [*ahead, *together, *([own] if own else [])])
        elif together:
            waiting.add(part)  # of those there are few: the rest of what was handed in together
        return bool(ahead or together)

    def _park(self, part: Part, ahead: Iterable[_Ahead]) -> None:
        self._waits[part] = set()
        for each in ahead:
            self._put_behind(part, each)
        if part in self._were_parked:  # others may have come behind it since
            for token in _tokens(part):
                self._last.setdefault(token, part)
        else:
            self._last.update(dict.fromkeys(_tokens(part), part))
            self._were_parked.add(part)

    def _put_behind(self, part: Part, ahead: _Ahead) -> None:
        if ahead not in self._waits[part]:
            self._waits[part].add(ahead)
            self._behind.setdefault(ahead, []).append(part)

    def _taken(self, part: Part, group: Group) -> list[Part]:
        """It goes, in this group. Answers those behind it that can go with it: they wait for nothing else,
        and one call decides in order."""
        self._waits.pop(part, None)
        self._forget(part)
        joining = []
        for other in self._behind.pop(part, ()):
            if other in self._waits:
                self._waits[other].discard(part)
                self._put_behind(other, group)
                if len(self._waits[other]) == 1 and other.operation is group.operation:
                    joining.append(other)
        return joining

    def _drop(self, part: Part) -> None:
        """Nobody waits for its outcome any more."""
        self._forget(part)
        for other in self._behind.pop(part, ()):
            if other in self._waits:
                self._waits[other].discard(part)
                if not self._waits[other]:
                    del self._waits[other]
                    self._parts.appendleft(other)

    def _replace(self, part: Part, rest: Part) -> None:
        """Whoever is behind a part is behind the rest of it."""
        was_parked = part in self._were_parked
        self._forget(part)
        for other in self._behind.pop(part, ()):
            if other in self._waits:
                self._waits[other].discard(part)
                self._put_behind(other, rest)
        if was_parked:
            self._were_parked.add(rest)
            for token in _tokens(rest):
                self._last.setdefault(token, rest)

    def _forget(self, part: Part) -> None:
        if part in self._were_parked:
            self._were_parked.discard(part)
            for token in _tokens(part):
                if self._last.get(token) is part:
                    del self._last[token]


def _tokens(part: Part) -> list[Hashable]:
    """What no other part may share that overtakes this one."""
    if not part.order_keys:
        return []
    return [*part.order_keys, (part.submission, part.operation.script)]
