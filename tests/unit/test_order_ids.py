"""The ids of a replay: the same for the same order in any file, never the same for two."""

from __future__ import annotations

import re
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from api.order_ids import Ids, opening_id
from api.orders import Plan, Sale, read_plan

ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~-]{0,63}")
HEADER = "InvoiceNo,StockCode,Quantity,UnitPrice,CustomerID"
LINES = [
    "1,A,6,2.55,",
    "1,AB,1,1,",
    "C2,A,-3,2,",
    "C2,A,-3,2,",
    "C2,A,-5,2,",
    "3,A,-4,0,",
    "3,A,4,0,",
]
INVOICES = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=100)


def plan_of(tmp_path: Path, lines: list[str], namespace: str = "", location: str = "MAIN") -> Plan:
    path = tmp_path / "orders.csv"
    path.write_text("\n".join([HEADER, *lines]))
    return read_plan(path, namespace=namespace, location=location)


def ids(plan: Plan) -> set[str]:
    units = [u.reservation_id if isinstance(u, Sale) else u.movement_id for u in plan.units]
    assert len(set(units)) == len(units) and all(ID.fullmatch(name) for name in units)
    return set(units)


def openings(plan: Plan) -> set[str]:
    return {unit.movement_id for unit in plan.openings}


def test_ids_come_from_what_the_lines_say(tmp_path: Path) -> None:
    """Not from their order, from what else is in the file, or from the case of letters."""
    plan = plan_of(tmp_path, LINES)
    assert len(ids(plan)) == 6
    assert ids(plan_of(tmp_path, LINES[::-1])) == ids(plan)
    assert ids(plan_of(tmp_path, [line.lower() for line in LINES])) == ids(plan)
    assert ids(plan_of(tmp_path, ["0,Z,1,1,", *LINES, "4,A,1,1,"])) > ids(plan)
    assert openings(plan_of(tmp_path, ["0,Z,1,1,", *LINES])) > openings(plan)


def test_another_line_has_another_id_and_leaves_the_others_theirs(tmp_path: Path) -> None:
    before = ids(plan_of(tmp_path, LINES))
    for number, (old, new) in {
        2: ("-3", "-4"),
        3: ("A", "AB"),
        5: ("-4", "-9"),
        6: ("4", "5"),
    }.items():
        lines = [*LINES[:number], LINES[number].replace(old, new, 1), *LINES[number + 1 :]]
        after = ids(plan_of(tmp_path, lines))
        assert len(after) == len(before) and len(after & before) == len(before) - 1, number


def test_a_namespace_keeps_the_orders_of_two_shops_apart_and_opens_no_place_again(
    tmp_path: Path,
) -> None:
    one, other = plan_of(tmp_path, LINES), plan_of(tmp_path, LINES, "shop-b")
    assert not ids(one) & ids(other)
    assert openings(one) == openings(other)
    assert not openings(one) & openings(plan_of(tmp_path, LINES, location="EAST"))
    orders = {u.order_id if isinstance(u, Sale) else u.reference for u in other.units}
    assert orders == {"shop-b/1", "shop-b/C2", "shop-b/3"}


@settings(deadline=None)
@given(st.lists(st.tuples(INVOICES, st.sampled_from(["", "a", "a-b", "inv"])), unique=True))
def test_no_two_invoices_share_an_id(orders: list[tuple[str, str]]) -> None:
    found = {Ids(namespace).reservation(invoice) for invoice, namespace in orders}
    found |= {Ids(n).movement(i, "return", "A", 1, 1) for i, n in orders}
    assert len(found) == 2 * len(orders)
    assert all(ID.fullmatch(name) for name in found)


def test_parts_of_an_id_can_not_run_into_one_another() -> None:
    ids = Ids()
    assert ids.movement("C1-A", "return", "B", 1, 1) != ids.movement("C1", "return", "A-B", 1, 1)
    assert ids.movement("C1", "return", "A", 1, 11) != ids.movement("C1", "return", "A", 11, 1)
    assert opening_id("A-B", "C") != opening_id("A", "B-C")


def test_an_invoice_is_told_from_its_order_again() -> None:
    for ids, invoice in ((Ids(), "a/b"), (Ids("shop"), "a/b"), (Ids("shop"), "1")):
        assert ids.invoice(ids.order(invoice)) == invoice


def test_movements_of_others_are_not_taken_for_ours() -> None:
    ours, theirs = Ids("a"), Ids()
    movement_id = ours.movement("C1", "return", "A", 1, 1)
    assert ours.is_movement(movement_id) and not theirs.is_movement(movement_id)
    assert not Ids("b").is_movement(movement_id)
    assert not theirs.is_movement("mov-return-7")
