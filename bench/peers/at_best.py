"""Holdfast against a peer that takes many reservations a call, both at their best: each side with two client
processes and with the size of a call and the number of calls under way that suit it.

What suits is found by trying, each way once; then both are measured in turn.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import NamedTuple

import msgspec

from bench.figures import Figure, Run, figure, in_turn, say
from bench.peers.buyers import PeerError

SECONDS_MIN = 5.0


class Way(NamedTuple):
    """``size`` reservations a call, ``calls`` under way in both processes together."""

    size: int
    calls: int


Measure = Callable[[Way, float], Run]


class Side(NamedTuple):
    """``ways``: those it is tried with."""

    name: str
    measure: Measure
    ways: Sequence[Way]


OURS = tuple([Way(*way) for way in product((256, 512, 2_000, 8_189), (2, 4, 8))])
THEIRS = tuple([Way(*way) for way in product((1_000, 4_000, 8_189), (2, 4, 8))])
#: The same way for both, told in the notes: small calls, one under way in each process.
SAME = (Way(100, 2), Way(1, 2))


def best(side: Side, seconds: float) -> Way:
    """The way that does most. PeerError where the books are right after none."""
    found: dict[Way, float] = {}
    for way in side.ways:
        say(f"{side.name}: {way.size:,} a call, {way.calls} calls under way")
        run = side.measure(way, seconds)
        if not run.findings:
            found[way] = run.value
    if not found:
        raise PeerError(f"{side.name}: no way of measuring it had right books")
    return max(found, key=lambda way: found[way])


def compare(
    name: str,
    ours: Side,
    theirs: Side,
    *,
    what: str,
    seconds: float,
    repeats: int,
    same: Sequence[Way] = SAME,
) -> Figure:
    """The figure, its baseline the peer's. A finding in either side's books leaves it without a value."""
    our_way, their_way = best(ours, seconds), best(theirs, seconds)
    pairs = [(our_way, their_way), *[(way, way) for way in same]]
    measures = [
        measure
        for our, their in pairs
        for measure in (
            partial(ours.measure, our, seconds),
            partial(theirs.measure, their, seconds),
        )
    ]
    runs = in_turn(repeats, *measures)
    judged = [_with_findings(a, b, name) for a, b in zip(runs[0], runs[1], strict=True)]
    made = figure(name, "reservations/s", judged, runs[1], what=what)
    notes = {
        "holdfast_a_call": float(our_way.size),
        "holdfast_calls": float(our_way.calls),
        "peer_a_call": float(their_way.size),
        "peer_calls": float(their_way.calls),
    }
    for index, way in enumerate(same, 1):
        notes[f"holdfast_batches_of_{way.size}"] = _median(runs[2 * index])
        notes[f"peer_batches_of_{way.size}"] = _median(runs[2 * index + 1])
    return made if made.value is None else msgspec.structs.replace(made, notes=notes)


def _median(runs: Sequence[Run]) -> float:
    return statistics.median([run.value for run in runs])


def _with_findings(ours: Run, theirs: Run, peer: str) -> Run:
    """Our run with what the audit of either side found."""
    findings = [f"holdfast: {finding}" for finding in ours.findings or []]
    findings += [f"{peer}: {finding}" for finding in theirs.findings or []]
    return msgspec.structs.replace(ours, findings=findings)
