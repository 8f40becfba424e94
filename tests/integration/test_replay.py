"""`holdfast replay` of 2,000 real invoices against a running stack."""

from __future__ import annotations

import csv
import gzip
import json
import math
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import httpx
import pytest
from running import REPOSITORY, Up, holdfast, rows

FILE = REPOSITORY / "tests" / "data" / "orders-2000-invoices.csv.gz"
CHARGES = {"POST", "DOT", "M", "C2", "D", "S", "AMAZONFEE", "BANK CHARGES"}


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    stack = Up(tmp_path_factory.mktemp("replay") / "stack")
    stack.start()
    yield stack
    assert stack.stop() == 0


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    stack = Up(tmp_path_factory.mktemp("replay-short") / "stack")
    stack.start()
    yield stack
    assert stack.stop() == 0


def replay(stack: Up, *options: str) -> dict[str, Any]:
    done = holdfast("replay", str(FILE), "--data-dir", str(stack.data_dir), "--json", *options)
    assert done.returncode == 0, done.stderr + done.stdout
    answer: dict[str, Any] = json.loads(done.stdout)
    assert answer["reconciliation"]["clean"]
    assert answer["reconciliation"]["differences"] == []
    assert answer["replay"]["unexpected"] == {}
    summary: dict[str, Any] = answer["replay"]
    return summary


class Expected:
    """What the file holds, read here a second time, in the plainest way."""

    def __init__(self) -> None:
        self.sold: Counter[str] = Counter()
        self.returned: Counter[str] = Counter()
        self.damaged: Counter[str] = Counter()
        self.found: Counter[str] = Counter()
        self.invoices: dict[str, Counter[str]] = {}
        self.lines = self.charges = 0
        with gzip.open(FILE, "rt", encoding="utf-8-sig", newline="") as file:
            for row in csv.DictReader(file):
                self.lines += 1
                sku, units = row["StockCode"].upper(), int(row["Quantity"])
                if sku in CHARGES:
                    self.charges += 1
                elif row["InvoiceNo"].startswith("C"):
                    self.returned[sku] -= units
                elif units < 0:
                    self.damaged[sku] -= units
                elif float(row["UnitPrice"]) == 0:
                    self.found[sku] += units
                else:
                    self.sold[sku] += units
                    self.invoices.setdefault(row["InvoiceNo"], Counter())[sku] += units

    def opening(self, sku: str, ratio: Fraction) -> int:
        return math.ceil(ratio * self.sold[sku]) + self.damaged[sku]

    def skus(self) -> set[str]:
        return {*self.sold, *self.returned, *self.damaged, *self.found}


def stock(stack: Up) -> dict[str, dict[str, int]]:
    """Stock of every sku of the file, as the service tells it."""
    skus, found = sorted(Expected().skus()), {}
    with httpx.Client(base_url=stack.url, trust_env=False) as client:
        for at in range(0, len(skus), 500):
            query = [("sku", sku) for sku in skus[at : at + 500]]
            answer = client.get("/v1/stock", params=query).json()
            assert answer["unknown"] == []
            found |= {sku.pop("sku"): sku for sku in answer["stock"]}
    return found


def test_all_orders_are_kept_and_nothing_differs(full: Up) -> None:
    summary, expected = replay(full), Expected()
    assert summary["lines"] == expected.lines
    assert summary["skipped"] == {"charge": expected.charges}
    assert summary["invoices"] == summary["invoices_confirmed"] == len(expected.invoices)
    sold = sum(expected.sold.values())
    assert summary["units_reserved"] == summary["units_confirmed"] == sold
    assert summary["invoices_refused"] == summary["units_refused"] == 0
    assert summary["units_returned"] == sum(expected.returned.values())
    assert summary["units_written_off"] == sum(expected.damaged.values())
    assert summary["units_found"] == sum(expected.found.values())
    for sku, record in stock(full).items():
        left = expected.found[sku] + expected.returned[sku]
        assert (record["on_hand"], record["held"], record["quarantined"]) == (left, 0, 0), sku


def test_the_second_time_nothing_changes(full: Up) -> None:
    """All of it is known already; neither the stock nor the ledger moves."""
    url = full.settings().postgres_url
    replay(full)
    before = stock(full), rows(url, "SELECT epoch, seq FROM positions")
    summary, expected = replay(full), Expected()
    assert (stock(full), rows(url, "SELECT epoch, seq FROM positions")) == before
    assert summary["invoices_replayed"] == len(expected.invoices)
    assert summary["movements_replayed"] > 0
    for name in ("units_opening", "units_reserved", "units_confirmed", "units_refused",
                 "units_returned", "units_written_off", "units_found"):  # fmt: skip
        assert summary[name] == 0, name


def test_with_less_stock_some_are_refused_and_the_sums_agree(short: Up) -> None:
    summary, expected = replay(short, "--stock-ratio", "0.7"), Expected()
    assert summary["invoices_refused"] > 0
    assert summary["invoices_confirmed"] + summary["invoices_refused"] == summary["invoices"]
    sold = sum(expected.sold.values())
    assert summary["units_confirmed"] + summary["units_refused"] == sold
    ratio = Fraction("0.7")
    opened = sum(expected.opening(sku, ratio) for sku in {*expected.sold, *expected.damaged})
    assert summary["units_opening"] == opened
    left = (
        opened + summary["units_returned"] + summary["units_found"]
        - summary["units_confirmed"] - summary["units_written_off"]
    )  # fmt: skip
    records = stock(short).values()
    assert sum(record["on_hand"] for record in records) == left
    assert all(record["held"] == 0 and record["available"] >= 0 for record in records)


def test_every_confirmed_invoice_is_in_the_ledger_as_ordered(short: Up) -> None:
    """Exactly what was ordered, line by line, and nothing of what was refused."""
    replay(short, "--stock-ratio", "0.7")
    expected = Expected()
    query = "SELECT order_id, sku, sum(quantity)::bigint FROM movements WHERE type = 'confirm' GROUP BY 1, 2"
    confirmed: dict[str, Counter[str]] = {}
    for order_id, sku, quantity in rows(short.settings().postgres_url, query):
        confirmed.setdefault(order_id, Counter())[sku] = quantity
    assert 0 < len(confirmed) < len(expected.invoices)
    assert all(expected.invoices[order_id] == lines for order_id, lines in confirmed.items())


def test_the_table_for_people_tells_the_same_and_ends_with_0(full: Up) -> None:
    # Another shop's orders: others may have played those of this one before.
    done = holdfast("replay", str(FILE), "--namespace", "table", "--data-dir", str(full.data_dir))
    assert done.returncode == 0, done.stderr
    assert "0 differences" in done.stdout
    assert "p99" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [["nowhere.csv"], [str(FILE), "--stock-ratio", "much"], [str(FILE), "--url", "nonsense"],
     [str(FILE), "--concurrency", "0"], ["pyproject.toml"]],
)  # fmt: skip
def test_what_can_not_be_replayed_is_exit_code_2(full: Up, arguments: list[str]) -> None:
    done = holdfast("replay", *arguments, "--data-dir", str(full.data_dir))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
