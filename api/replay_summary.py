"""What a replay tells: progress while it runs, and a summary at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

from api.orders import BrokenLine, Plan

BROKEN_SHOWN = 100


class Summary(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What became of the file, as answered to this run.

    ``…_replayed`` was known already: from an earlier run, or from a sending whose reply got lost.
    ``invoices`` are the confirmed, refused, replayed and unexpected ones. Latencies are of a unit,
    from its first sending to its answer.
    """

    lines: int
    invoices: int
    openings: int = 0
    units_opening: int = 0
    units_reserved: int = 0
    invoices_confirmed: int = 0
    units_confirmed: int = 0
    invoices_refused: int = 0
    units_refused: int = 0
    returns: int = 0
    units_returned: int = 0
    write_offs: int = 0
    units_written_off: int = 0
    write_offs_refused: int = 0
    units_write_off_refused: int = 0
    found: int = 0
    units_found: int = 0
    invoices_replayed: int = 0
    movements_replayed: int = 0
    skipped: dict[str, int]
    broken: tuple[BrokenLine, ...]
    unexpected: dict[str, int]
    unexpected_details: tuple[str, ...]
    seconds: float
    invoices_per_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float

    @property
    def exit_code(self) -> int:
        """0, or 1 if the service answered something that a replay doesn't expect."""
        return 1 if self.unexpected else 0


def percentile(ascending: list[float], percent: int) -> float:
    """Nearest rank: the smallest value that ``percent`` of all don't exceed; 0 of none."""
    if not ascending:
        return 0.0
    return round(ascending[-(-len(ascending) * percent // 100) - 1], 2)


@contextmanager
def progress(plan: Plan, console: Console) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, else a line every tenth; yields what ``run`` takes as on_progress."""
    total = len(plan.openings) + len(plan.units)
    if console.is_terminal:
        columns = ("replay", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("replay", total=total)
            yield lambda units: bar.advance(task, units)
        return
    done = 0

    def plain(units: int) -> None:
        nonlocal done
        before, done = done, done + units
        if done * 10 // total > before * 10 // total:
            console.print(f"replay: {done:,} of {total:,}", highlight=False)

    yield plain


def print_summary(summary: Summary, console: Console) -> None:
    """The summary as a table for a person; broken lines one by one (the first hundred)."""
    for line in summary.broken[:BROKEN_SHOWN]:
        console.print(f"line {line.line} skipped: {escape(line.detail)}", highlight=False)
    if len(summary.broken) > BROKEN_SHOWN:
        console.print(f"… and {len(summary.broken) - BROKEN_SHOWN:,} more broken lines")
    s = summary
    rows: list[tuple[str, int | None, int | None]] = [
        ("lines of the file", s.lines, None),
        ("opening receipts", s.openings, s.units_opening),
        ("invoices", s.invoices, None),
        ("  reserved", None, s.units_reserved),
        ("  confirmed", s.invoices_confirmed, s.units_confirmed),
        ("  refused, short of stock", s.invoices_refused, s.units_refused),
        ("  known already", s.invoices_replayed, None),
        ("returns", s.returns, s.units_returned),
        ("write-offs", s.write_offs, s.units_written_off),
        ("  refused, short of stock", s.write_offs_refused, s.units_write_off_refused),
        ("found stock", s.found, s.units_found),
        ("movements known already", s.movements_replayed, None),
        *((f"skipped: {reason}", count, None) for reason, count in s.skipped.items()),
        *((f"UNEXPECTED: {code}", count, None) for code, count in s.unexpected.items()),
    ]
    table = Table("replay", box=None, pad_edge=False)
    table.add_column("count", justify="right")
    table.add_column("units", justify="right")
    for label, *numbers in rows:
        table.add_row(escape(label), *("" if n is None else f"{n:,}" for n in numbers))
    console.print(table)
    for detail in s.unexpected_details:
        console.print(f"  {escape(detail)}", highlight=False)
    speed = f"{s.invoices_per_second:,.0f} invoices a second, {s.seconds:.1f} s in all"
    latency = f"p50 {s.p50_ms:.1f} ms, p95 {s.p95_ms:.1f} ms, p99 {s.p99_ms:.1f} ms a unit"
    console.print(speed, latency, sep="\n", highlight=False)
