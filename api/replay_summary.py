"""What a replay tells: progress while it runs, and a summary at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

from api.order_file import Format
from api.orders import BrokenLine, Plan
from api.terminal import cell

SHOWN_MAX = 20


class Changed(msgspec.Struct, frozen=True):
    """An order that was played before and differs in the file now. It is left as it was played."""

    invoice: str
    detail: str


class Known(msgspec.Struct, frozen=True):
    """What of a plan the ledger had before: sales, movements (openings too), and what differs."""

    invoices: int
    movements: int
    changed: tuple[Changed, ...]


class Summary(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What became of the file, as answered to this run.

    ``…_replayed`` was known already: from an earlier run, or from a sending whose reply got lost.
    ``invoices`` are the confirmed, refused, replayed and unexpected sales. ``changed`` are orders that were
    played before and differ now; ``left_out`` are invoices with a broken line. Latencies are of a unit, from
    its first sending to its answer.
    """

    format: Format
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
    left_out: tuple[str, ...]
    changed: tuple[Changed, ...]
    unexpected: dict[str, int]
    unexpected_details: tuple[str, ...]
    seconds: float
    invoices_per_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float

    def with_known(self, known: Known) -> Summary:
        """The summary of what was new, with what the ledger had before."""
        return msgspec.structs.replace(
            self,
            invoices=self.invoices + known.invoices,
            invoices_replayed=self.invoices_replayed + known.invoices,
            movements_replayed=self.movements_replayed + known.movements,
            changed=(*known.changed, *self.changed),
        )

    @property
    def played(self) -> int:
        """Sales and movements of the file that are in the stock, from this run or an earlier one;
        opening stock is none of the file's."""
        now = self.invoices_confirmed + self.returns + self.write_offs + self.found
        return now + self.invoices_replayed + self.movements_replayed + len(self.changed)

    @property
    def exit_code(self) -> int:
        """0; 1 if a line couldn't be used, nothing at all was played, or the service answered something
        that a replay doesn't expect."""
        return 1 if self.unexpected or self.broken or not self.played else 0


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
    """The summary as a table for a person; broken lines and changed orders one by one, the first twenty."""
    s = summary
    _print_some(
        [f"line {line.line} can't be used: {line.detail}" for line in s.broken],
        "broken lines",
        console,
    )
    _print_some([f"invoice {name} is left out whole" for name in s.left_out], "invoices", console)
    _print_some(
        [f"invoice {each.invoice} was played otherwise: {each.detail}" for each in s.changed],
        "changed invoices",
        console,
    )
    rows: list[tuple[str, int | None, int | None]] = [
        ("lines of the file", s.lines, None),
        ("opening receipts", s.openings, s.units_opening),
        ("invoices", s.invoices, None),
        ("  reserved", None, s.units_reserved),
        ("  confirmed", s.invoices_confirmed, s.units_confirmed),
        ("  refused, short of stock", s.invoices_refused, s.units_refused),
        ("  known already", s.invoices_replayed, None),
        ("changed, left as they were played", len(s.changed), None),
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
        table.add_row(cell(label), *("" if n is None else f"{n:,}" for n in numbers))
    console.print(table)
    for detail in s.unexpected_details:
        console.print(cell(f"  {detail}"))
    if s.p99_ms:
        _print_speed(s, console)
    if not s.played:
        console.print("nothing of this file was played", highlight=False)


def _print_speed(s: Summary, console: Console) -> None:
    speed = f"{s.invoices_per_second:,.0f} invoices a second, {s.seconds:.1f} s in all"
    latency = f"p50 {s.p50_ms:.1f} ms, p95 {s.p95_ms:.1f} ms, p99 {s.p99_ms:.1f} ms a unit"
    console.print(speed, latency, sep="\n", highlight=False)


def _print_some(texts: list[str], what: str, console: Console) -> None:
    for text in texts[:SHOWN_MAX]:
        console.print(cell(text), soft_wrap=True)
    if len(texts) > SHOWN_MAX:
        console.print(f"… and {len(texts) - SHOWN_MAX:,} more {what}", highlight=False)
