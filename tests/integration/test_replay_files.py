"""`holdfast replay` of files that were played before, in another shape, corrected, or broken in part."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
import pytest
from running import (
    REPOSITORY,
    Up,
    environment,
    eventually,
    holdfast,
    rows,
)

from engine import keys
from persister.persister import connect_redis

HEADER = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country"
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    stack = Up(tmp_path_factory.mktemp("replay-files") / "stack")
    stack.start()
    yield stack
    assert stack.stop() == 0


class Shop:
    """A file of orders whose skus and invoices are its own, and the stack that it is played on."""

    def __init__(self, stack: Up, path: Path) -> None:
        self.stack = stack
        self.path = path
        self.name = f"{next(_numbers)}Z"

    def line(self, invoice: str, sku: str, quantity: object, price: str = "2.5") -> str:
        """``invoice`` and ``sku`` are made its own by its name."""
        customer = "17850"
        return (
            f"{invoice}{self.name},{self.sku(sku)},LANTERN £,{quantity},2010,{price},{customer},UK"
        )

    def sku(self, sku: str) -> str:
        return f"{self.name}-{sku}"

    def play(self, lines: list[str], *options: str, code: int = 0, encoding: str = "utf-8") -> Any:
        """The summary as JSON."""
        done = self.run(lines, "--json", *options, encoding=encoding)
        assert done.returncode == code, done.stderr + done.stdout
        answer = json.loads(done.stdout)
        assert answer["reconciliation"]["clean"]
        return answer["replay"]

    def run(
        self, lines: list[str], *options: str, encoding: str = "utf-8", ends: str = "\n"
    ) -> subprocess.CompletedProcess[str]:
        self.path.write_bytes(ends.join([HEADER, *lines, ""]).encode(encoding))
        return holdfast("replay", str(self.path), "--data-dir", str(self.stack.data_dir), *options)

    def on_hand(self, sku: str) -> int:
        with httpx.Client(base_url=self.stack.url, trust_env=False) as client:
            answer = client.get(f"/v1/stock/{self.sku(sku)}").json()
        assert answer["held"] == 0
        return int(answer["on_hand"])

    def position(self) -> Any:
        return rows(self.stack.settings().postgres_url, "SELECT epoch, seq FROM positions")

    def forget(self) -> None:
        """Take out of Redis what it forgets after its retention: ended reservations, movements' ids."""
        with connect_redis(self.stack.settings().redis_url) as redis:
            for pattern in (keys.reservation(0, "*"), keys.movement_request(0, "*")):
                for key in redis.scan_iter(pattern):
                    redis.delete(key)


@pytest.fixture
def shop(stack: Up, tmp_path: Path) -> Shop:
    return Shop(stack, tmp_path / "orders.csv")


def some_orders(shop: Shop) -> list[str]:
    """Sales of 10 A and 3 B, 2 A returned, 4 B written off, 5 A found."""
    return [
        shop.line("1", "A", 6),
        shop.line("1", "B", 3),
        shop.line("2", "A", 4),
        shop.line("C3", "A", -2),
        shop.line("4", "B", -4, "0"),
        shop.line("5", "A", 5, "0"),
    ]


def check_played(shop: Shop) -> None:
    assert (shop.on_hand("A"), shop.on_hand("B")) == (7, 0)


@pytest.mark.parametrize("forgotten", [False, True])
def test_a_file_that_was_saved_again_changes_nothing(shop: Shop, forgotten: bool) -> None:
    """Whatever the encoding, the line ends, the order of lines; whether or not Redis knows the ids."""
    lines = some_orders(shop)
    assert shop.play(lines)["invoices_confirmed"] == 2
    before = shop.position()
    check_played(shop)
    ways = [("utf-8-sig", "\r\n"), ("windows-1252", "\r"), ("utf-16", "\n")]
    for encoding, ends in ways:
        if forgotten:
            shop.forget()
        done = shop.run(lines[::-1], "--json", encoding=encoding, ends=ends)
        assert done.returncode == 0, done.stderr + done.stdout
        summary = json.loads(done.stdout)["replay"]
        assert summary["invoices"] == summary["invoices_replayed"] == 2
        assert summary["movements_replayed"] == 5
        assert shop.position() == before
    assert "read as UTF-16" in done.stderr


@pytest.mark.parametrize("forgotten", [False, True])
def test_of_a_corrected_file_only_what_is_new_is_played(shop: Shop, forgotten: bool) -> None:
    """A changed sale, return, write-off and customer are told and left as they were; a new invoice, a new
    line of a cancellation are played."""
    lines = some_orders(shop)
    shop.play(lines)
    if forgotten:
        shop.forget()
    lines[0] = shop.line("1", "A", 8)
    lines[2] = lines[2].replace("17850", "17851")
    lines[4] = shop.line("4", "B", -3, "0")
    new = [shop.line("6", "A", 2), shop.line("C3", "A", -1), shop.line("7", "C", 9)]
    summary = shop.play([*lines, *new])
    a, b = f"{shop.sku('A')}", f"{shop.sku('B')}"
    told = {each["invoice"].removesuffix(shop.name): each["detail"] for each in summary["changed"]}
    assert told == {
        "1": f"{a} at MAIN: 6 were sold, the file says 8",
        "2": "customer 17850, the file says 17851",
        "4": f"damage of 4 {b} at MAIN was played, the file hasn't it",
    }
    assert summary["units_confirmed"] == 11 and summary["units_returned"] == 1
    assert summary["openings"] == 1 and summary["units_opening"] == 9
    assert (shop.on_hand("A"), shop.on_hand("B"), shop.on_hand("C")) == (6, 0, 0)
    before = shop.position()
    assert shop.play([*lines, *new])["units_confirmed"] == 0
    assert shop.position() == before


def test_lines_that_went_from_a_file_are_told(shop: Shop) -> None:
    """A return whose sku was corrected is not given back a second time."""
    lines = some_orders(shop)
    shop.play(lines)
    shop.forget()
    lines[3] = shop.line("C3", "D", -2)
    del lines[1]
    summary = shop.play(lines)
    assert [each["invoice"].removesuffix(shop.name) for each in summary["changed"]] == ["1", "C3"]
    check_played(shop)


def test_an_invoice_played_elsewhere_is_told_and_not_sold_again(shop: Shop) -> None:
    lines = some_orders(shop)
    shop.play(lines)
    summary = shop.play(lines, "--location", "EAST")
    assert len(summary["changed"]) == 5 and summary["units_confirmed"] == 0
    assert "at MAIN: 6 were sold" in summary["changed"][0]["detail"]


@pytest.mark.parametrize("forgotten", [False, True])
def test_a_sku_is_opened_once(shop: Shop, forgotten: bool) -> None:
    """Not by another ratio, not by another file; what is new is."""
    lines = some_orders(shop)
    assert shop.play(lines)["units_opening"] == 17
    if forgotten:
        shop.forget()
    assert shop.play(lines, "--stock-ratio", "3")["units_opening"] == 0
    check_played(shop)
    others = [shop.line("8", "A", 9), shop.line("9", "A", 7), shop.line("9", "C", 1)]
    summary = shop.play(others, "--stock-ratio", "2")
    assert summary["units_opening"] == 2
    assert (summary["invoices_refused"], summary["invoices_confirmed"]) == (1, 1)
    assert (shop.on_hand("A"), shop.on_hand("C")) == (0, 1)


def test_two_shops_with_the_same_invoice_numbers_need_a_namespace(shop: Shop) -> None:
    lines = [shop.line("1", "A", 1), shop.line("C2", "A", -1)]
    shop.play(lines)
    assert shop.play(lines)["units_confirmed"] == 0
    other = shop.play(lines, "--namespace", "shop-b")
    assert (other["units_confirmed"], other["units_returned"], other["units_opening"]) == (1, 1, 0)
    again = shop.play(lines, "--namespace", "shop-b")
    assert (again["invoices_replayed"], again["units_confirmed"]) == (1, 0)
    assert shop.on_hand("A") == 1
    orders = rows(
        shop.stack.settings().postgres_url,
        "SELECT DISTINCT order_id FROM movements WHERE sku = %s AND order_id IS NOT NULL ORDER BY 1",
        shop.sku("A"),
    )
    assert orders == [(f"1{shop.name}",), (f"shop-b/1{shop.name}",)]


def test_what_a_stopped_replay_left_is_played_by_the_next(shop: Shop) -> None:
    """Given half of an invoice's movements and no sale in the ledger."""
    lines = some_orders(shop)
    shop.play([lines[0], lines[1], lines[4]])
    summary = shop.play(lines)
    assert (summary["invoices_replayed"], summary["invoices_confirmed"]) == (1, 0)
    assert summary["invoices_refused"] == 1  # A was opened by the first file with 6
    assert summary["units_returned"] == 2 and not summary["changed"]


def test_two_replays_at_once_play_everything_once(shop: Shop) -> None:
    """Given stock for both, and a service that answers once both have asked what was played before."""
    shop.path.write_text("\n".join([HEADER, *some_orders(shop), ""]))
    command = [sys.executable, "-m", "api.cli", "replay", str(shop.path), "--json"]
    more = ["--stock-ratio", "2", "--data-dir", str(shop.stack.data_dir)]
    port = int(shop.stack.url.rpartition(":")[2])
    pids = shop.stack.pids()
    workers = [psutil.Process(pids[name]) for name in pids if name.startswith("http")]
    assert workers

    def is_playing(process: subprocess.Popen[str]) -> bool:
        connections = psutil.Process(process.pid).net_connections()
        return any(each.raddr and each.raddr.port == port for each in connections)

    for worker in workers:
        worker.suspend()
    try:
        both = [
            subprocess.Popen(
                [*command, *more],
                cwd=REPOSITORY,
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(2)
        ]
        eventually("both play", lambda: all(is_playing(process) for process in both))
    finally:
        for worker in workers:
            worker.resume()
    told = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    summaries = [json.loads(output)["replay"] for output, _ in told]
    units = {"confirmed": 13, "opening": 30, "returned": 2, "written_off": 4, "found": 5}
    for name, count in units.items():
        assert sum(each[f"units_{name}"] for each in summaries) == count, name
    assert (shop.on_hand("A"), shop.on_hand("B")) == (17, 3)


def test_broken_lines_are_named_and_end_with_1(shop: Shop) -> None:
    """An invoice with one is left out whole; of many the first twenty are named, the rest counted."""
    lines = [*some_orders(shop), shop.line("2", "A", '"1,234"')]
    done = shop.run(lines)
    assert done.returncode == 1
    assert "line 8 can't be used: quantity '1,234' has a thousands separator" in done.stdout
    assert f"invoice 2{shop.name} is left out whole" in done.stdout
    assert shop.on_hand("A") == 11
    many = [shop.line("8", "A", "many") for _ in range(30)]
    done = shop.run([*lines, *many])
    assert done.returncode == 1 and done.stdout.count("can't be used") == 20
    assert "and 11 more broken lines" in done.stdout
    summary = shop.play(lines, "--partial", code=1)
    assert summary["left_out"] == [] and summary["units_confirmed"] == 4
    check_played(shop)


@pytest.mark.parametrize(
    ("sku", "options"),
    [("POST", ()), ("A", ("--charge-codes", "+A,B")), ("A", ("--stock-ratio", "0"))],
)
def test_a_file_of_which_nothing_is_played_ends_with_1(
    shop: Shop, sku: str, options: tuple[str, ...]
) -> None:
    line = shop.line("1", "A", 3)
    if options != ("--stock-ratio", "0"):
        line = line.replace(shop.sku("A"), sku)
    done = shop.run([line], *options)
    assert done.returncode == 1 and "nothing of this file was played" in done.stdout


def test_a_ledger_that_has_stopped_can_not_say_what_was_played(shop: Shop) -> None:
    url = shop.stack.settings().postgres_url
    shop.play([shop.line("1", "A", 1)])
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("UPDATE positions SET stopped = 'for a test', seq = seq - 1")
        try:
            done = shop.run([shop.line("2", "A", 1)])
        finally:
            connection.execute("UPDATE positions SET stopped = NULL, seq = seq + 1")
    assert done.returncode == 2
    assert "1 events behind and has stopped: for a test" in done.stderr
    assert shop.run([shop.line("1", "A", 1)]).returncode == 0


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--location", "a b", "--location 'a b'"),
        ("--namespace", "a/b", "--namespace 'a/b'"),
        ("--namespace", "a" * 17, "16 at most"),
    ],
)
def test_names_that_do_not_fit_an_id_are_refused(
    shop: Shop, option: str, value: str, told: str
) -> None:
    done = shop.run([shop.line("1", "A", 1)], option, value)
    assert done.returncode == 2 and told in done.stderr
