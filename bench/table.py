"""Figures as a person reads them."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.figures import Figure


def print_table(figures: list[Figure], console: Console) -> None:
    """Target, measured, verdict, a line a figure."""
    if not console.is_terminal:
        console.width = 200
    table = Table("figure", "measured", "unit", "min–max", "baseline", "ratio", "target", "verdict")
    for each in figures:
        cells = (each.name, *cells_of(each))
        table.add_row(*[Text(cell) for cell in cells])
    console.print(table, highlight=False)
    for each in figures:
        for finding in each.findings:
            console.print(Text(f"{each.name}: {finding}"))
        if each.why:
            console.print(Text(f"{each.name}: {each.why}"))


def cells_of(each: Figure) -> tuple[str, ...]:
    """Measured, unit, range, baseline, ratio, target and verdict as text."""
    spread = (
        "" if each.min is None or each.max is None else f"{number(each.min)}–{number(each.max)}"
    )
    sign = "≤" if each.at_most else "≥"
    times = " ×" if each.ratio is not None else ""
    target = "" if each.target is None else f"{sign} {number(each.target)}{times}"
    return (
        number(each.value),
        each.unit,
        spread,
        number(each.baseline),
        "" if each.ratio is None else f"{each.ratio:.2f} ×",
        target,
        verdict(each),
    )


def number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.2f}".rstrip("0").rstrip(".")


def verdict(each: Figure) -> str:
    if each.audit is False:
        return "AUDIT FAILED"
    if each.value is None:
        return "not measured"
    return {None: "", True: "met", False: "missed"}[each.met]
