"""What a person is told holds names that somebody else chose: they steer no terminal and begin no line."""

from __future__ import annotations

import ast
import io
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from api.cli_kit import fail
from api.cli_quarantine import print_items
from api.cli_reconcile import print_report
from api.order_file import Format
from api.orders import BrokenLine, Reason
from api.replay_summary import Changed, Summary, print_summary
from api.terminal import cell, tell
from persister.differences import Difference, Hold, Kind, Repair, Report
from persister.quarantine import Item

#: Clears the screen, begins a line, goes back over one, turns the text round, rings.
EVIL = "e\x1b[2J\x9b2J\r\nd: 0 findings\x08\u202e\x07[red]:tea:"
HARMLESS = r"e\x1b[2J\x9b2J\r\nd: 0 findings\x08\u202e\x07[red]:tea:"
NOW = datetime(2027, 1, 15, tzinfo=UTC)


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=1000)


def check(console: Console, times: int) -> None:
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert not [c for c in text if not c.isprintable() and c != "\n"], repr(text)
    assert "\nd: 0" not in text
    # Long ones are folded, so what is counted is short.
    assert text.count(r"e\x1b[2J") == text.count(r"[red]:tea:") == times, text


def test_of_a_reconciliation(console: Console) -> None:
    hold = Hold(EVIL, 1, 2, ())
    difference = Difference(kind=Kind.COUNTER_DRIFT, partition=0, sku=EVIL, location=EVIL, detail=EVIL,
                            redis=hold, ledger=hold)  # fmt: skip
    repair = Repair(
        kind=Kind.LEAKED_HOLD, sku=EVIL, location=EVIL, reservation_id=None, outcome=EVIL
    )
    report = Report(checked=1, reservations_checked=0, differences=[difference], started_at="2026-11-01",
                    duration_ms=1, repaired=[repair], not_kept=EVIL)  # fmt: skip
    print_report(report, console)
    check(console, 2 + 1 + 2 + 3 + 1)


def test_of_the_quarantine(console: Console) -> None:
    item = Item(quarantine_id=1, partition=0, source="kafka", topic_id=EVIL, place=EVIL, raw=b"raw",
                why=EVIL, epoch=1, seq=1, last_seq=None, first_seen_at=NOW, state="discarded",
                stopped_here=False, discarded_by=EVIL, reason=EVIL, discarded_at=NOW)  # fmt: skip
    print_items([item], console)
    check(console, 2 + 1 + 2)


def test_of_a_replay(console: Console) -> None:
    summary = Summary(
        format=Format("UTF-8", "comma", "LF"), lines=1, invoices=1, skipped={EVIL: 1},
        broken=(BrokenLine(1, Reason.BAD_QUANTITY, EVIL),), left_out=(EVIL,), changed=(Changed(EVIL, EVIL),),
        unexpected={EVIL: 1}, unexpected_details=(EVIL,), seconds=1.0, invoices_per_second=1.0,
        p50_ms=1.0, p95_ms=1.0, p99_ms=1.0,
    )  # fmt: skip
    print_summary(summary, console)
    check(console, 1 + 1 + 1 + 2 + 1 + 1)


def test_of_a_line_and_of_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    tell("one", f"two {EVIL}")
    with pytest.raises(SystemExit):
        fail(f"first\nsecond {EVIL}")
    told = capsys.readouterr()
    assert told.out == f"one\ntwo {HARMLESS}\n"
    assert told.err.count("\n") == 1 and told.err.isascii() and "\x1b" not in told.err
    assert cell(EVIL).plain == HARMLESS


def test_no_command_prints_by_another_way() -> None:
    """But JSON, which escapes by itself, and the lines of `env`, which are for the shell."""
    allowed = {"json_text(", 'f"export '}
    for path in (Path(__file__).resolve().parents[2] / "api").glob("cli*.py"):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.Call) or path.name == "cli_kit.py":
                continue
            called = ast.get_source_segment(text, node.func) or ""
            given = [ast.get_source_segment(text, each) or "" for each in node.args]
            if called in ("click.echo", "print", "sys.stdout.write"):
                assert given[0].startswith(tuple(allowed)), f"{path.name}:{node.lineno}: use tell"
            assert called not in ("Text", "escape"), f"{path.name}:{node.lineno}: use cell"
            assert called != "logging.basicConfig", f"{path.name}:{node.lineno}: use log_to_stderr"
            if called == "console.print":
                assert given[0].startswith(("cell(", "table")), (
                    f"{path.name}:{node.lineno}: use cell"
                )
            elif called.endswith(".add_row"):
                assert all("cell(" in each for each in given), (
                    f"{path.name}:{node.lineno}: use cell"
                )
