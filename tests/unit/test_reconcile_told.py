"""What a person is told of a reconciliation."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from api.cli_reconcile import print_report
from persister.differences import Difference, Kind, Repair, Report


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_gets_twenty_rows_and_the_count_of_the_others(terminal: bool) -> None:
    differences = [
        Difference(kind=Kind.COUNTER_DRIFT, partition=0, sku=f"sku-{n}", location="X", detail="d")
        for n in range(1234)
    ]
    repaired = [
        Repair(
            kind=Kind.COUNTER_DRIFT,
            sku=f"mended-{n}",
            location="X",
            reservation_id=None,
            outcome="o",
        )
        for n in range(25)
    ]
    report = Report(checked=1, reservations_checked=0, differences=differences, started_at="2026-11-01",
                    duration_ms=1, repaired=repaired)  # fmt: skip
    out = io.StringIO()
    print_report(report, Console(file=out, force_terminal=terminal, width=120))
    text = out.getvalue()
    assert text.count("sku-") == (20 if terminal else 1234)
    assert text.count("mended-") == (20 if terminal else 25)
    assert ("and 1,214 more differences" in text) == ("and 5 more repairs" in text) == terminal
    assert "1,234 differences" in text or "1234 differences" in text
