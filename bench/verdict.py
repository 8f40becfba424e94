"""The end of a sale: what it tells, and whether its gates were met."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from bench.answers import CORE_BUSY, Answers, percentile
from bench.oversell import Told, Trail
from bench.sizes import PREFIX, Sizes

FINDINGS_SHOWN_MAX = 20
_SAMPLE_MS = 100


class Row(NamedTuple):
    """A line of the report."""

    what: str
    result: str


class Ended(NamedTuple):
    """A sale that is over and audited. ``came``: buyers that came, of ``sizes.buyers``."""

    run: str
    sizes: Sizes
    hot: str
    came: int
    answers: Answers
    told: Told
    trail: Trail
    findings: list[str]
    audit_s: float


def rows(sale: Ended) -> list[Row]:
    """What happened, a line each."""
    return [*_counts(sale), *_spike(sale.answers), *_generator(sale.answers)]


def _counts(sale: Ended) -> Iterator[Row]:
    answers, sizes = sale.answers, sale.sizes
    if sizes.buyers:
        yield Row("buyers", f"{sale.came:,} of {sizes.buyers:,} came for {sizes.units:,} units")
    yield Row("as meant", f"{answers.outcomes['as meant']:,} requests")
    yield Row("refused", _by_kind(answers.refusals))
    codes = {
        outcome[4:]: count
        for outcome, count in sorted(answers.outcomes.items())
        if outcome.startswith("503 ")
    }
    yield Row("503s", _by_kind(codes))
    yield Row("errors", f"{answers.outcomes['error']:,}")
    for kind, detail in sorted(answers.errors.items()):
        yield Row("", f"{kind}: {detail}")
    yield Row("sold out", _sold_out(sale))


def _by_kind(counts: dict[str, int]) -> str:
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in counts.items())
    return f"{sum(counts.values()):,}" + (f" ({kinds})" if kinds else "")


def _sold_out(sale: Ended) -> str:
    if (seconds := sell_out_s(sale.trail)) is not None:
        return f"{seconds:.3f} s after the first reservation of the hot sku"
    left = sale.trail.timeline[-1].available if sale.trail.timeline else sale.sizes.units
    return f"never: {left:,} units of the hot sku were left"


def sell_out_s(trail: Trail) -> float | None:
    """From the first reservation of the hot sku until none of it was left, by the clock of Redis; None
    where it was never sold out."""
    began = next((at.ms for at in trail.timeline if at.held), None)
    if began is None:
        return None
    ended = next((at.ms for at in trail.timeline if at.ms >= began and at.available <= 0), None)
    return None if ended is None else (ended - began) / 1000


def units_left_csv(trail: Trail) -> str:
    """Units of the hot sku over time, a line for each tenth of a second in which they changed. Seconds
    count from the first reservation."""
    began = next((at.ms for at in trail.timeline if at.held), 0)
    sampled = {(at.ms - began) // _SAMPLE_MS: at for at in trail.timeline if at.ms >= began}
    lines = [
        f"{(at.ms - began) / 1000:.3f},{at.available},{at.held},{at.on_hand}"
        for at in sampled.values()
    ]
    return "\n".join(["seconds,available,held,on_hand", *lines, ""])


def _spike(answers: Answers) -> Iterator[Row]:
    every = answers.spike_of_all()
    if not every:
        yield Row("spike", "no request")
        return
    yield Row("spike", _latency(every))
    for name, times in sorted(answers.spike.items()):
        yield Row(f"spike: {name}", _latency(times))


def _latency(times: Counter[float]) -> str:
    shown = ", ".join(f"p{p} {percentile(times, p):,g} ms" for p in (50, 95, 99))
    return f"{times.total():,} requests, {shown}"


def _generator(answers: Answers) -> Iterator[Row]:
    if not answers.cores:
        return
    busiest = max(answers.cores)
    told = f"{100 * busiest:.0f} % of a core in the spike"
    if len(answers.cores) > 1:
        told += f" (the busiest of {len(answers.cores)} processes)"
    if busiest >= CORE_BUSY:
        told += ": it was the limit, not the service; use --processes or --batch"
    elif max(answers.machine) >= CORE_BUSY:
        told += (
            f"; all cores here {100 * max(answers.machine):.0f} % busy: the machine was the limit"
        )
    else:
        told += ": it was not the limit"
    yield Row("generator", told)


def missed(sale: Ended) -> list[str]:
    """The gates that were not met."""
    sizes, answers = sale.sizes, sale.answers
    found = []
    if sizes.p99_ms is not None:
        every = answers.spike_of_all()
        p99 = percentile(every, 99)
        if not every:
            found.append(f"{PREFIX}P99_MS={sizes.p99_ms}: no request in the spike")
        elif p99 > sizes.p99_ms:
            found.append(f"{PREFIX}P99_MS={sizes.p99_ms}: p99 of the spike was {p99:,g} ms")
    if sizes.max_503 is not None and answers.unavailable > sizes.max_503:
        found.append(f"{PREFIX}MAX_503={sizes.max_503}: {answers.unavailable:,} were answered 503")
    return found


def text(sale: Ended) -> str:
    """All of it: what happened, the audit, the gates."""
    width = max(len(row.what) for row in rows(sale)) + 2
    told = sale.told
    return "\n".join(
        [
            f"sale {sale.run}",
            *(f"{row.what:{width}}{row.result}" for row in rows(sale)),
            f"oversell audit of {sale.run}: {len(told.reservations):,} acknowledged reservations, "
            f"{sale.trail.count:,} movements, {sale.audit_s:.1f} s",
            *_units(sale),
            *(f"{count:12,} {outcome}" for outcome, count in sorted(told.tally.items())),
            *([f"{len(told.open_ids):,} without an answer"] if told.open_ids else []),
            *(f"  {finding}" for finding in sale.findings[:FINDINGS_SHOWN_MAX]),
            *(["  ..."] if len(sale.findings) > FINDINGS_SHOWN_MAX else []),
            *(f"GATE MISSED: {gate}" for gate in missed(sale)),
            audit_row(sale).result,
        ]
    )


def audit_row(sale: Ended) -> Row:
    """The audit in one line."""
    if sale.findings:
        return Row("audit", f"OVERSOLD OR LOST: {len(sale.findings):,} findings")
    return Row("audit", "CLEAN: nothing oversold, nothing lost")


def _units(sale: Ended) -> Iterator[str]:
    columns = ("received", "on_hand", "held", "confirmed")
    units = {"hot sku": [0] * 4, f"{sale.sizes.skus} other skus": [0] * 4}
    hot, others = units.values()
    for (sku, _), position in sale.trail.places.items():
        row = hot if sku == sale.hot else others
        for i, column in enumerate(columns):
            row[i] += getattr(position, column)
    yield f"{'units':16}" + "".join(f"{column:>12}" for column in columns)
    for name, row in units.items():
        yield f"{name:16}" + "".join(f"{n:12,}" for n in row)
