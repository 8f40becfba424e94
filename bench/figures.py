"""A figure of the benchmark: measured in turn with its baseline, audited, held against its target."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence

import msgspec


class Run(msgspec.Struct, frozen=True):
    """One run. ``findings``: what its audit found wrong (empty: nothing); None where there is nothing to
    audit (a bare baseline). ``stalled``: commands whose outcome nobody was told because Redis, or the disk
    that it waits for, stood still (503); such a run measures the stall. ``notes``: what else is worth
    telling, name to value."""

    value: float
    findings: list[str] | None = None
    notes: dict[str, float] = {}
    stalled: int = 0


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the report. ``value``, ``min`` and ``max`` are of its own runs in ``unit`` (value the
    median), ``baseline`` the median of what it is compared with, measured in turn with it. ``ratio``:
    value by baseline. ``target`` is one for the ratio where there is a baseline, else for the value;
    ``met`` None where there is none, or where this can't be measured here (then ``value`` is None too and
    ``why`` says why). ``audit``: True clean, False not, None nothing to audit. A figure whose audit is
    not clean has no value; runs that stalled are left out of it, and ``why`` says so."""

    name: str
    unit: str
    what: str = ""
    value: float | None = None
    min: float | None = None
    max: float | None = None
    baseline: float | None = None
    ratio: float | None = None
    target: float | None = None
    at_most: bool = False
    met: bool | None = None
    audit: bool | None = None
    why: str = ""
    findings: list[str] = []
    notes: dict[str, float] = {}


Measure = Callable[[], Run]


def in_turn(count: int, *measures: Measure) -> list[list[Run]]:
    """Run each measure ``count`` times, A B A B, so that a machine that changes its pace changes all."""
    runs: list[list[Run]] = [[] for _ in measures]
    for _ in range(count):
        for of_one, measure in zip(runs, measures, strict=True):
            of_one.append(measure())
    return runs


def figure(
    name: str,
    unit: str,
    runs: Sequence[Run],
    baseline: Sequence[Run] = (),
    *,
    what: str = "",
    target: float | None = None,
    at_most: bool = False,
) -> Figure:
    """The figure of some runs and their baseline's. ``at_most``: the target is an upper limit."""
    audited = [run.findings for run in runs if run.findings is not None]
    findings = sorted({finding for found in audited for finding in found})
    audit = None if not audited else not findings
    if audit is False:
        return Figure(
            name=name,
            unit=unit,
            what=what,
            target=target,
            at_most=at_most,
            audit=False,
            why="its audit found something wrong",
            findings=findings,
        )
    why = _stalls(runs)
    runs = [run for run in runs if not run.stalled]
    if not runs:
        return Figure(
            name=name, unit=unit, what=what, target=target, at_most=at_most, audit=audit, why=why
        )
    values = [run.value for run in runs]
    value = statistics.median(values)
    base = statistics.median([run.value for run in baseline]) if baseline else None
    ratio = value / base if base else None
    judged = value if ratio is None else ratio
    met = None if target is None else (judged <= target if at_most else judged >= target)
    names = {note for run in runs for note in run.notes}
    return Figure(
        name=name,
        unit=unit,
        what=what,
        value=value,
        min=min(values),
        max=max(values),
        baseline=base,
        ratio=ratio,
        target=target,
        at_most=at_most,
        met=met,
        audit=audit,
        why=why,
        notes={
            note: statistics.median([run.notes[note] for run in runs if note in run.notes])
            for note in sorted(names)
        },
    )


def _stalls(runs: Sequence[Run]) -> str:
    """What to say of the runs that stalled; '' where none did."""
    stalled = [run.stalled for run in runs if run.stalled]
    if not stalled:
        return ""
    return (
        f"{len(stalled)} of {len(runs)} runs left out: Redis or its disk stood still,"
        f" {sum(stalled):,} commands were answered 503; their audit is clean"
    )


def not_measured(
    name: str, unit: str, why: str, *, what: str = "", target: float | None = None
) -> Figure:
    """A figure that can't be had on this machine."""
    return Figure(name=name, unit=unit, what=what, target=target, why=why)


def say(text: str) -> None:
    """Progress, for whoever waits."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
