"""The order that engine/queue.py keeps, tried by chance, and what it costs to keep it."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from typing import Any

import pytest
from kit import confirm, extend, move, release, reserve

from engine.batching import Batcher
from engine.engine import _operations
from engine.model import GetReservation, GetStock, Outcome
from engine.parts import Part, Submission
from engine.queue import Queue
from engine.settings import Settings
from engine.statuses import Status

OPERATIONS = _operations(0, Settings())
DONE = Outcome(status=Status.FOUND)


class Counting(Queue):
    looks = 0

    def _has_to_wait(self, *arguments: Any) -> bool:
        self.looks += 1
        return super()._has_to_wait(*arguments)


class Play:
    """Hands commands in and plays the server, which may leave commands undecided as the scripts do."""

    def __init__(self, seed: int = 0, undecided: float = 0.0) -> None:
        self.random = random.Random(seed)
        self.share_undecided = undecided
        self.queue = Counting()
        self.in_flight: list[Any] = []
        self.handed_in: list[tuple[Submission, int, Any]] = []
        self.decided: list[tuple[Submission, int, Any]] = []
        self.loop = asyncio.new_event_loop()

    def hand_in(self, *commands: Any) -> Submission:
        submission = Submission(self.loop.create_future(), len(commands))
        batcher = Batcher.__new__(Batcher)
        batcher._operations = OPERATIONS
        self.queue.add(batcher._parts(submission, commands))
        self.handed_in += [(submission, place, c) for place, c in enumerate(commands)]
        return submission

    def begin(self) -> None:
        while len(self.in_flight) < 2 and (step := self.queue.next_step()):
            for script, group in step.items():
                for flying in self.in_flight:
                    for other in flying.values():
                        assert not group.order_keys & other.order_keys, "two steps decide one id"
                assert not any(
                    group.order_keys & step[other].order_keys for other in step if other != script
                )
                assert 1 <= group.count <= 512
            self.in_flight.append(step)

    def end_one(self) -> None:
        step = self.in_flight.pop(self.random.randrange(len(self.in_flight)))
        undecided: list[Part] = []
        for group in step.values():
            left: set[Any] = set()
            for part in group.parts:
                for i in range(part.count):
                    key = part.order_keys[i] if part.order_keys else None
                    if key in left or self.random.random() < self.share_undecided:
                        left.add(key or object())
                        undecided.append(part.between(i, i + 1))
                    else:
                        submission, place = part.submission, part.places[i]
                        self.decided.append((submission, place, part.commands[i]))
                        submission.fill((place,), (DONE,))
        self.queue.finished(step, undecided)

    def play(self) -> None:
        self.begin()
        while self.in_flight:
            self.end_one()
            self.begin()
        assert not self.queue, "something waits for ever"
        self.loop.close()

    def orders(self, key: Any) -> bool:
        def by(entries: Any) -> Any:
            found = defaultdict(list)
            for submission, place, command in entries:
                name = key(submission, command)
                if name is not None:
                    found[name].append((id(submission), place))
            return found

        handed_in, decided = by(self.handed_in), by(self.decided)
        return handed_in == decided


def on_an_id(submission: Submission, command: Any) -> Any:
    if hasattr(command, "movement_id"):
        return "movement", command.movement_id
    if isinstance(command, GetReservation | GetStock):
        return None
    return command.reservation_id


def of_a_type(submission: Submission, command: Any) -> Any:
    if isinstance(command, GetReservation | GetStock):
        return None
    return id(submission), type(command)


CARTS = [[("A", 1)]] * 38 + [[(f"S{i}", 1) for i in range(n)] for n in (700, 1_500)]


def some_command(chance: random.Random, ids: int) -> Any:
    name = f"r{chance.randrange(ids)}"
    lines = [("A", 1)] * chance.choice([1, 1, 1, 5])
    return chance.choice(
        [
            reserve(name, *CARTS[chance.randrange(40)]),
            confirm(name),
            release(name, *lines, request_id="q"),
            extend(name, 1_000),
            move("receive", "A", 1, movement_id=name),
            GetReservation(name),
            GetStock("A"),
        ]
    )


@pytest.mark.parametrize("undecided", [0.0, 0.2])
@pytest.mark.parametrize("seed", range(40))
def test_given_calls_by_chance_then_all_are_decided_and_each_order_is_kept(
    seed: int, undecided: float
) -> None:
    play = Play(seed, undecided)
    chance = play.random
    ids = chance.choice([1, 2, 5, 40])
    rounds, counts = chance.choice([(3, [1, 5, 600]), (10, [1, 2, 10, 60]), (40, [1, 1, 2, 4])])
    for _ in range(rounds):
        for _ in range(chance.choice([1, 4])):
            count = chance.choice(counts)
            play.hand_in(*[some_command(chance, ids) for _ in range(count)])
        play.begin()
        if play.in_flight and chance.random() < 0.6:
            play.end_one()
    play.play()
    assert len(play.decided) == len(play.handed_in)
    assert play.orders(on_an_id), f"seed {seed}: commands on one id changed places"
    if not undecided:
        assert play.orders(of_a_type), f"seed {seed}: commands of one type changed places"


@pytest.mark.parametrize("seed", range(30))
def test_given_callers_that_leave_then_the_others_are_decided_in_order(seed: int) -> None:
    play = Play(seed, 0.1)
    chance = play.random
    left = set()
    for _ in range(30):
        commands = [some_command(chance, 3) for _ in range(chance.choice([1, 3, 30]))]
        submission = play.hand_in(*commands)
        play.begin()
        if chance.random() < 0.4:
            submission.future.cancel()
            left.add(submission)
        if play.in_flight and chance.random() < 0.4:
            play.end_one()
    play.play()
    play.handed_in = [entry for entry in play.handed_in if entry[0] not in left]
    play.decided = [entry for entry in play.decided if entry[0] not in left]
    assert play.orders(on_an_id)


@pytest.mark.parametrize("seed", range(20))
def test_given_a_server_that_says_nothing_then_what_waits_is_given_up_and_later_calls_go(
    seed: int,
) -> None:
    play = Play(seed)
    chance = play.random
    for _ in range(10):
        play.hand_in(*[some_command(chance, 2) for _ in range(20)])
    play.begin()
    sent = sum(group.count for step in play.in_flight for group in step.values())
    given_up = play.queue.give_up()
    assert sent + sum(part.count for part in given_up) == 200
    assert not play.queue
    later = play.hand_in(reserve("r0", "A"), confirm("r0"), reserve("r1", "A"))
    play.play()
    places = [place for submission, place, _ in play.decided if submission is later]
    assert sorted(places) == [0, 1, 2] and places.index(0) < places.index(1)


def alternating(pairs: int) -> int:
    """Looks that it takes to send pairs of operations on one id, four batches of them at once."""
    play = Play()
    for _ in range(4):
        play.hand_in(*[each for _ in range(pairs) for each in (reserve("r", "A"), release("r"))])
    play.play()
    assert play.orders(on_an_id)
    return play.queue.looks


def test_given_alternating_operations_on_one_id_then_the_work_grows_with_their_number() -> None:
    assert alternating(1_000) <= 4 * 2_000 * 3


def test_given_large_carts_then_the_work_grows_with_their_number() -> None:
    """Two carts fill a call; those behind are not looked at again and again."""
    play = Play()
    lines = [(f"S{i}", 1) for i in range(2_000)]
    for n in range(400):
        play.hand_in(reserve(f"r{n}", *lines))
    play.play()
    assert play.queue.looks <= 400 * 3
