"""What a person reads of a reconciliation is what was found, to the letter."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from api.cli_reconcile import print_report
from persister.differences import Difference, Kind, Repair, Report

KEY = "hf:{0}:stock:a:b:c"


def test_keys_that_look_like_markup_or_emoji_are_printed_as_they_are() -> None:
    difference = Difference(
        kind=Kind.MISSING_IN_LEDGER, partition=0, sku=KEY, detail="[red]a :tea: b[/red]"
    )
    repaired = Repair(
        kind=Kind.COUNTER_DRIFT, sku=KEY, location="[X]", reservation_id=None, outcome="left :a:"
    )
    report = Report(
        checked=1,
        reservations_checked=0,
        differences=[difference],
        started_at="2026-11-24T00:00:00.000Z",
        duration_ms=1,
        repaired=[repaired],
    )
    out = StringIO()
    print_report(report, Console(file=out))
    for text in (KEY, difference.detail, f"{KEY} [X]: left :a:"):
        assert text in out.getvalue()
