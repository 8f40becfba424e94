"""Reading an order file: every kind of line, every way to be broken, sums and ids."""

from __future__ import annotations

import re
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api.orders import (
    QUANTITY_MAX_MOVEMENT,
    Kind,
    Movement,
    OrderFileError,
    Plan,
    Reason,
    Sale,
    parse_charge_codes,
    parse_ratio,
    read_plan,
)

HEADER = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country"
EXCERPT = Path(__file__).parent.parent / "data" / "orders-2000-invoices.csv.gz"
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~-]{0,63}")


def line(
    invoice: str = "536365",
    sku: str = "85123A",
    quantity: str = "6",
    price: str = "2.55",
    customer: str = "17850.0",
    description: str = "LANTERN",
) -> str:
    return f"{invoice},{sku},{description},{quantity},2010-12-01 08:26:00,{price},{customer},UK"


def plan_of(tmp_path: Path, *lines: str, ratio: str = "1.0", **options: Any) -> Plan:
    path = tmp_path / "orders.csv"
    path.write_text("\n".join([HEADER, *lines, ""]), newline="")
    return read_plan(path, ratio=parse_ratio(ratio), **options)


def sales(plan: Plan) -> list[Sale]:
    return [unit for unit in plan.units if isinstance(unit, Sale)]


def movements(plan: Plan) -> list[tuple[Kind, str, int]]:
    return [(u.kind, u.sku, u.quantity) for u in plan.units if isinstance(u, Movement)]


def opening(plan: Plan) -> dict[str, int]:
    return {movement.sku: movement.quantity for movement in plan.openings}


def test_sale_lines_of_an_invoice_are_one_reservation_added_up_by_sku(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, line(), line(sku="71053", quantity="2"), line(sku="85123a"))
    assert sales(plan) == [
        Sale("inv-536365", "536365", "17850", {"85123A": 12, "71053": 2}),
    ]
    assert (plan.lines, plan.sale_lines, plan.skipped, plan.broken) == (3, 3, {}, ())


@pytest.mark.parametrize(
    ("text", "kind", "quantity"),
    [
        (line("C536379", quantity="-3"), Kind.RETURN, 3),
        (line("c536379", quantity="-3", price="0.0"), Kind.RETURN, 3),
        (line(quantity="-7", price="0.0"), Kind.DAMAGE, 7),
        (line(quantity="-7"), Kind.DAMAGE, 7),
        (line(quantity="5", price="0.0"), Kind.FOUND, 5),
        (line(quantity="5", price="0"), Kind.FOUND, 5),
    ],
)
def test_movements(tmp_path: Path, text: str, kind: Kind, quantity: int) -> None:
    plan = plan_of(tmp_path, text)
    assert movements(plan) == [(kind, "85123A", quantity)]
    assert not sales(plan) and not plan.skipped


@pytest.mark.parametrize("sku", ["POST", "M", "BANK CHARGES", "C2", "dot", "AmazonFee", "CRUK"])
@pytest.mark.parametrize("quantity", ["1", "-1", "0", "many"])
def test_charges_are_counted_and_left_out(tmp_path: Path, sku: str, quantity: str) -> None:
    plan = plan_of(tmp_path, line(sku=sku, quantity=quantity), line())
    assert plan.skipped == {"charge": 1}
    assert not plan.broken and len(plan.units) == 1 and plan.lines == 2


@pytest.mark.parametrize("sku", ["gift_0001_20", "8512A", "PADS", "DCGSSBOY", "TSHIRT-RED", "12"])
def test_whatever_fits_and_is_no_charge_is_a_sku(tmp_path: Path, sku: str) -> None:
    (sale,) = sales(plan_of(tmp_path, line(sku=sku)))
    assert sale.lines == {sku.upper(): 6}


def test_charge_codes_can_be_replaced_and_extended(tmp_path: Path) -> None:
    lines = [line("1", sku="POST"), line("2", sku="FREIGHT"), line("3", sku="71053")]

    def charged(text: str) -> list[str]:
        plan = plan_of(tmp_path, *lines, charge_codes=parse_charge_codes(text))
        return sorted({"1", "2", "3"} - {sale.order_id for sale in sales(plan)})

    assert charged("FREIGHT") == ["2"]
    assert charged("+ freight , 71053") == ["1", "2", "3"]
    assert charged("") == []
    assert charged("+") == ["1"]


def test_an_invoice_with_a_broken_line_is_left_out_whole(tmp_path: Path) -> None:
    """Whatever is broken: a value, the columns, the quotes. Its opening stock is there all the same."""
    broken = {
        "1": line("1", quantity="six"),
        "2": "2,85123A,LANTERN",
        "3": line("3", description='"never closed'),
        "4": line("4", quantity="1,000"),
        "5": '"5",85123A,LANTERN',
    }
    lines = [line(name, sku="10001") for name in (*broken, "6")]
    lines += [line("1", sku="10002", quantity="-1"), *broken.values()]
    plan = plan_of(tmp_path, *lines)
    assert [sale.order_id for sale in sales(plan)] == ["6"] and not movements(plan)
    assert plan.left_out == ("1", "2", "3", "4", "5")
    assert plan.skipped["invoice_left_out"] == 6 and len(plan.broken) == 5
    assert sum(plan.skipped.values()) + plan.sale_lines == plan.lines == 12
    assert opening(plan) == {"10001": 36, "10002": 1}

    plan = plan_of(tmp_path, *lines, partial=True)
    assert [sale.order_id for sale in sales(plan)] == ["1", "2", "3", "4", "5", "6"]
    assert movements(plan) == [(Kind.DAMAGE, "10002", 1)]
    assert plan.left_out == () and len(plan.broken) == 5
    assert opening(plan) == {"10001": 36, "10002": 1}


def test_a_broken_line_of_no_invoice_leaves_no_other_out(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, line("1"), line("2"), line("", quantity="x"), ",,,", line("3"))
    assert [sale.order_id for sale in sales(plan)] == ["1", "2", "3"]
    assert plan.left_out == ()


@pytest.mark.parametrize("invoice", ["2011/0042", "INV 7", "№ 12", "5" * 65, "A" * 100])
def test_an_invoice_number_that_is_no_id_is_kept_as_it_is(tmp_path: Path, invoice: str) -> None:
    (sale,) = sales(plan_of(tmp_path, line(invoice)))
    assert sale.order_id == invoice and ID.fullmatch(sale.reservation_id)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("536365,85123A,LANTERN", Reason.WRONG_COLUMNS),
        (line() + ",more", Reason.WRONG_COLUMNS),
        (line(quantity=""), Reason.BAD_QUANTITY),
        (line(quantity="six"), Reason.BAD_QUANTITY),
        (line(quantity="2.5"), Reason.BAD_QUANTITY),
        (line(quantity="nan"), Reason.BAD_QUANTITY),
        (line(quantity="1_000"), Reason.BAD_QUANTITY),
        (line(quantity="٣"), Reason.BAD_QUANTITY),
        (line(quantity="9" * 5000), Reason.BAD_QUANTITY),
        (line(quantity="0"), Reason.ZERO_QUANTITY),
        (line(quantity="1000001"), Reason.QUANTITY_TOO_LARGE),
        (line(quantity="-1000000001"), Reason.QUANTITY_TOO_LARGE),
        (line(quantity="1000000001", price="0"), Reason.QUANTITY_TOO_LARGE),
        (line("C1", quantity="-1000000001"), Reason.QUANTITY_TOO_LARGE),
        (line("C1", quantity="3"), Reason.CANCELLATION_NOT_NEGATIVE),
        (line("C1", quantity="0"), Reason.CANCELLATION_NOT_NEGATIVE),
        (line(price=""), Reason.BAD_PRICE),
        (line(price="free"), Reason.BAD_PRICE),
        (line(price="-1"), Reason.BAD_PRICE),
        (line(price="nan"), Reason.BAD_PRICE),
        (line(price="inf"), Reason.BAD_PRICE),
        (line(invoice=""), Reason.BAD_INVOICE_NUMBER),
        (line(invoice="53\x1b[2J"), Reason.BAD_INVOICE_NUMBER),
        (line(invoice="5" * 101), Reason.BAD_INVOICE_NUMBER),
        (line(sku=""), Reason.BAD_STOCK_CODE),
        (line(sku="85123 A"), Reason.BAD_STOCK_CODE),
        (line(sku="?"), Reason.BAD_STOCK_CODE),
        (line(quantity='"1,234"'), Reason.THOUSANDS_SEPARATOR),
        (line(quantity="1.234"), Reason.THOUSANDS_SEPARATOR),
        (line(quantity="-1 234 567"), Reason.THOUSANDS_SEPARATOR),
        (line(quantity="1'234"), Reason.THOUSANDS_SEPARATOR),
        (line(quantity="1\xa0234"), Reason.THOUSANDS_SEPARATOR),
        (line(quantity='"12,34,567"'), Reason.THOUSANDS_SEPARATOR),
        (line(quantity='"1.234,00"'), Reason.THOUSANDS_SEPARATOR),
        (line(quantity="1,234"), Reason.THOUSANDS_SEPARATOR),
        (line(price='"1,234.50"'), Reason.THOUSANDS_SEPARATOR),
        (line(price="1.234.567"), Reason.THOUSANDS_SEPARATOR),
        (line(price="1,234.50"), Reason.THOUSANDS_SEPARATOR),
        (line(quantity="6.0"), Reason.BAD_QUANTITY),
        (line(quantity='"1,23"'), Reason.BAD_QUANTITY),
        (line(sku="85123\x00"), Reason.BAD_STOCK_CODE),
        (line(sku="8" * 65), Reason.BAD_STOCK_CODE),
        (line(customer="1\x1b[2J"), Reason.BAD_CUSTOMER_ID),
        (line(customer="1" * 129), Reason.BAD_CUSTOMER_ID),
        (line(description='"never closed'), Reason.BAD_QUOTES),
        (line(description='"6" PLATE"'), Reason.BAD_QUOTES),
    ],
)
def test_a_broken_line_is_told_and_costs_no_other(
    tmp_path: Path, text: str, reason: Reason
) -> None:
    plan = plan_of(tmp_path, line("1"), text, line("2", description='"SET, OF 3"'), line("3"))
    assert [(broken.line, broken.reason) for broken in plan.broken] == [(3, reason)]
    assert plan.broken[0].detail.isprintable()
    assert plan.skipped == {reason: 1}
    assert [sale.order_id for sale in sales(plan)] == ["1", "2", "3"]
    assert plan.lines == 4


def test_a_sum_above_the_limit_of_a_line_leaves_out_what_goes_beyond(tmp_path: Path) -> None:
    lines = [line(quantity="999999"), line(quantity="2"), line(quantity="1")]
    plan = plan_of(tmp_path, *lines, partial=True)
    assert sales(plan)[0].lines == {"85123A": 1_000_000}
    assert [(b.line, b.reason) for b in plan.broken] == [(3, Reason.QUANTITY_TOO_LARGE)]


def test_an_invoice_of_more_skus_than_a_reservation_takes(tmp_path: Path) -> None:
    lines = [*(line(sku=f"{10000 + i}") for i in range(2_001)), line(sku="10000")]
    plan = plan_of(tmp_path, *lines, partial=True)
    (sale,) = sales(plan)
    assert len(sale.lines) == 2_000 and sale.lines["10000"] == 12
    assert [(b.line, b.reason) for b in plan.broken] == [(2002, Reason.TOO_MANY_LINES)]


def test_a_scattered_invoice_stands_at_its_first_line(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path,
        line("1", sku="POST"),
        line("2", sku="10001"),
        line("1", sku="10001"),
        line("C3", sku="10001", quantity="-1"),
        line("2", sku="10002"),
    )
    names = [u.order_id if isinstance(u, Sale) else u.reference for u in plan.units]
    assert names == ["2", "1", "C3"]
    assert sales(plan)[0].lines == {"10001": 6, "10002": 6}


def test_customers(tmp_path: Path) -> None:
    texts = ["17850.0", "17850", "", "  ", "AB-1.0", "1.5"]
    plan = plan_of(tmp_path, *(line(str(i), customer=c) for i, c in enumerate(texts)))
    told = [sale.customer_id for sale in sales(plan)]
    assert told == ["17850", "17850", None, None, "AB-1.0", "1.5"]


def test_columns_are_found_by_name_and_quotes_are_read(tmp_path: Path) -> None:
    path = tmp_path / "orders.csv"
    path.write_text(
        '\ufeff"Quantity", UnitPrice ,Note,CustomerID,StockCode,InvoiceNo\r\n'
        '\r\n6,2.55,"a ""quote"", a comma\r\nand a new line",,85123a,1\r\n'
        '1,1,6 inch 2" wide,,85123A,2\r\n',
        newline="",
    )
    plan = read_plan(path)
    assert [(s.order_id, s.lines) for s in sales(plan)] == [
        ("1", {"85123A": 6}),
        ("2", {"85123A": 1}),
    ]
    assert not plan.broken and plan.lines == 2


@pytest.mark.parametrize(
    ("ratio", "sold", "expected"),
    [
        ("1.0", 10, 14),
        ("0.7", 10, 11),  # 0.7 as a float times ten would already be 7.000…1 for some
        ("0.7", 30, 25),
        ("0.7", 11, 12),
        ("0.1", 3, 5),
        ("0", 10, 4),
        ("1.1", 10, 15),
        ("2", 10, 24),
    ],
)
def test_opening_stock(tmp_path: Path, ratio: str, sold: int, expected: int) -> None:
    """ceil(ratio × sold) + written off; neither returns nor found stock count."""
    plan = plan_of(
        tmp_path,
        line("1", quantity=str(sold - 1)),
        line("2", quantity="1"),
        line("3", quantity="-4", price="0"),
        line("C4", quantity="-9"),
        line("5", quantity="9", price="0"),
        ratio=ratio,
    )
    assert opening(plan) == {"85123A": expected}


def test_only_skus_sold_or_written_off_are_opened(tmp_path: Path) -> None:
    lines = [line("C1", quantity="-1"), line("2", sku="10001"), line("3", sku="10002", price="0")]
    assert opening(plan_of(tmp_path, *lines)) == {"10001": 6}
    assert opening(plan_of(tmp_path, *lines, ratio="0")) == {}


def test_an_opening_larger_than_a_movement_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(OrderFileError, match="opening stock of 2,000,000,000 85123A"):
        plan_of(tmp_path, line(quantity="1000000"), ratio="2000")
    assert QUANTITY_MAX_MOVEMENT == 1_000_000_000


@pytest.mark.parametrize("text", ["", "-1", "nan", "inf", "1e999999999", "1/3", "0,7", "seven"])
def test_what_is_no_ratio(text: str) -> None:
    with pytest.raises(ValueError, match="is not a ratio"):
        parse_ratio(text)


def test_ratio_is_exact() -> None:
    assert parse_ratio("0.7") == Fraction(7, 10) == parse_ratio(" 0.70 ")


_FIELD = st.one_of(
    st.sampled_from(
        ["536365", "C536366", "85123A", "71053", "POST", "-3", "0", "4", "1.5", '"', ""]
    ),
    st.text(max_size=6),
)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=st.lists(st.lists(_FIELD, min_size=7, max_size=9), min_size=1), tail=st.binary())
def test_any_content_is_accounted_for(tmp_path: Path, rows: list[list[str]], tail: bytes) -> None:
    """Given any bytes after a header, when read, then each line is played or skipped, once."""
    path = tmp_path / "orders.csv"
    text = "\n".join([HEADER, *(",".join(row) for row in rows), ""])
    path.write_bytes(text.encode("utf-8", "replace") + tail)
    try:
        plan = read_plan(path)
    except OrderFileError:
        return
    played = plan.sale_lines + len(movements(plan))
    assert played + sum(plan.skipped.values()) == plan.lines
    others = plan.skipped.get("charge", 0) + plan.skipped.get("invoice_left_out", 0)
    assert len(plan.broken) == plan.lines - played - others


_ROW = st.tuples(
    st.integers(1, 6), st.integers(10000, 10003), st.integers(-5, 9).filter(bool), st.booleans()
)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=st.lists(_ROW, min_size=1, max_size=40), tenths=st.integers(0, 20))
def test_units_are_neither_lost_nor_made(
    tmp_path: Path, rows: list[tuple[int, int, int, bool]], tenths: int
) -> None:
    """Given any good lines, then sales and movements hold exactly the units of the file."""
    texts = [line(str(i), str(s), str(q), "1.5" if p else "0.00") for i, s, q, p in rows]
    plan = plan_of(tmp_path, *texts, ratio=f"{tenths // 10}.{tenths % 10}")
    sold: Counter[str] = Counter()
    for sale in sales(plan):
        sold.update(sale.lines)
    assert sold == +Counter(_sum(rows, lambda q, paid: q if q > 0 and paid else 0))
    damaged = +Counter(_sum(rows, lambda q, paid: -q if q < 0 else 0))
    assert len({sale.reservation_id for sale in sales(plan)}) == len(sales(plan))
    for sku in {*sold, *damaged}:
        expected = -(-sold[sku] * tenths // 10) + damaged[sku]
        assert opening(plan).get(sku, 0) == expected


def _sum(rows: list[tuple[int, int, int, bool]], units: object) -> dict[str, int]:
    assert callable(units)
    sums: Counter[str] = Counter()
    for _, sku, quantity, paid in rows:
        sums[str(sku)] += units(quantity, paid)
    return dict(sums)


def test_the_excerpt_of_the_real_file() -> None:
    plan = read_plan(EXCERPT)
    kinds = Counter(kind for kind, _, _ in movements(plan))
    assert kinds == {Kind.RETURN: 692, Kind.FOUND: 203, Kind.DAMAGE: 69}
    assert (plan.lines, plan.sale_lines, plan.skipped) == (41_621, 40_468, {"charge": 189})
    assert len(sales(plan)) == 1_530 and not plan.broken
    assert sum(sum(sale.lines.values()) for sale in sales(plan)) == 353_829
    assert len(plan.openings) == 2_712 and sum(opening(plan).values()) == 353_829 + 4_010
