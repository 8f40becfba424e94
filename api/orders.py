"""An order file, read into a plan of what to play. No network, no clock, no chance in it.

The same lines give the same plan with the same ids, however the file is written, so what is played twice
is recognised order by order. A line that can't be used is told with its number and its reason, and its
invoice is left out whole; only a file that is no order file at all raises :class:`OrderFileError`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection
from enum import StrEnum
from fractions import Fraction
from pathlib import Path

import msgspec

from api.order_file import Format, OrderFile, Record
from api.order_file import OrderFileError as OrderFileError
from api.order_file import Reason as Reason
from api.order_ids import ID, Ids, opening_id

QUANTITY_MAX_SALE = 1_000_000
QUANTITY_MAX_MOVEMENT = 1_000_000_000
LINES_MAX_SALE = 2_000
#: Stock codes that are no goods: postage, carriage, fees, manual entries, discounts, samples, donations.
CHARGE_CODES = frozenset(
    {"POST", "DOT", "C2", "M", "D", "S", "B", "BANK CHARGES", "AMAZONFEE", "CRUK"}
)

_COLUMNS = ("InvoiceNo", "StockCode", "Quantity", "UnitPrice", "CustomerID")
_NUMBERS = (2, 3)
_INTEGER = re.compile(r"[+-]?[0-9]{1,30}")  # int() refuses thousands of digits
_PRICE = re.compile(r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
_DECIMAL_COMMA = re.compile(r"[0-9]+,[0-9]+")
#: 1,234 and 1.234, 1 234, 1'234, 1.234,50 and 12,34,567: what means another number to whoever wrote it.
_THOUSANDS = re.compile(
    r"[+-]?[1-9][0-9]{0,2}(?:[.,' \u2019\xa0\u2009\u202f][0-9]{2,3})*[.,' \u2019\xa0\u2009\u202f][0-9]{3}"
    r"(?:[.,][0-9]+)?"
)
_RATIO = re.compile(r"[0-9]{1,9}(?:\.[0-9]{0,9})?|\.[0-9]{1,9}")
_WHOLE = re.compile(r"([0-9]+)\.0+")  # a customer number that once was a float
_CUSTOMER = re.compile(r"[^\x00-\x1f\x7f-\x9f]{1,128}")
_INVOICE = re.compile(r"[^\x00-\x1f\x7f-\x9f]{1,100}")


class Kind(StrEnum):
    """What a movement of the plan is, in the words of the order file."""

    OPENING = "opening"
    FOUND = "found"
    RETURN = "return"
    DAMAGE = "damage"


class BrokenLine(msgspec.Struct, frozen=True):
    """A line that can't be used: its number in the file (from 1), and why."""

    line: int
    reason: Reason
    detail: str


class Sale(msgspec.Struct, frozen=True):
    """All sale lines of one invoice, added up by sku: one reservation, then confirmed."""

    reservation_id: str
    order_id: str
    customer_id: str | None
    lines: dict[str, int]


class Movement(msgspec.Struct, frozen=True):
    """Stock that comes or goes without a reservation; the quantity is positive."""

    movement_id: str
    kind: Kind
    sku: str
    quantity: int
    reference: str


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to play at ``location``: the openings, then the units in the file's order.

    ``lines`` (header and empty lines not counted) is ``sale_lines``, the movements among ``units``
    and all of ``skipped`` together. ``left_out``: invoices with a broken line.
    """

    location: str
    namespace: str
    ratio: Fraction
    openings: tuple[Movement, ...]
    units: tuple[Sale | Movement, ...]
    lines: int
    sale_lines: int
    skipped: dict[str, int]
    broken: tuple[BrokenLine, ...]
    left_out: tuple[str, ...]
    format: Format


class _Misfit(Exception):
    """This line can't be used: a Reason, and a detail for a person."""


def parse_ratio(text: str) -> Fraction:
    """The stock ratio as written (0.7 is seven tenths, exactly); ValueError if it isn't one."""
    if not _RATIO.fullmatch(text.strip()):
        raise ValueError(f"{_shown(text)} is not a ratio such as 1.0 or 0.7")
    return Fraction(text.strip())


def parse_charge_codes(text: str) -> frozenset[str]:
    """Codes with commas between, instead of CHARGE_CODES; with a ``+`` in front, beside them."""
    codes = {code.strip().upper() for code in text.removeprefix("+").split(",")} - {""}
    return CHARGE_CODES | codes if text.startswith("+") else frozenset(codes)


def read_plan(
    path: Path,
    *,
    ratio: Fraction = Fraction(1),
    location: str = "MAIN",
    namespace: str = "",
    charge_codes: Collection[str] = CHARGE_CODES,
    partial: bool = False,
) -> Plan:
    """Read a .csv or .csv.gz with the columns of the Online Retail data set, found by their names.

    Opening stock of a sku that is sold or written off is ``ceil(ratio × sold) + written off``, invoices
    that are left out included, so that they find stock once their lines are right. ``partial``: an
    invoice with a broken line is played without it.
    Raises OrderFileError for a file that can't be read, has no header or no line.
    """
    file = OrderFile(path, _COLUMNS)
    reader = _Reader(Ids(namespace), charge_codes)
    for record in file.records(_NUMBERS):
        reader.take(record)
    if not reader.lines:
        raise OrderFileError(f"{path}: the file has a header but no lines")
    left_out = set() if partial else reader.invoices & reader.broken_invoices
    return Plan(
        location=location,
        namespace=namespace,
        ratio=ratio,
        openings=tuple(reader.openings(path, ratio, location)),
        units=tuple([unit for invoice, unit in reader.units if invoice not in left_out]),
        lines=reader.lines,
        sale_lines=sum(
            [count for name, count in reader.sale_lines.items() if name not in left_out]
        ),
        skipped=dict(reader.skipped + reader.lines_of(left_out)),
        broken=tuple(reader.broken),
        left_out=tuple(sorted(left_out)),
        format=file.format,
    )


class _Reader:
    """Sorts the records of one file into sales, movements and what is left out."""

    def __init__(self, ids: Ids, charge_codes: Collection[str]) -> None:
        self.ids = ids
        self.charge_codes = charge_codes
        self.lines = 0
        self.sale_lines: Counter[str] = Counter()  # by invoice
        self.movement_lines: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        self.broken: list[BrokenLine] = []
        self.broken_invoices: set[str] = set()
        self.sales: dict[str, Sale] = {}
        self.units: list[
            tuple[str, Sale | Movement]
        ] = []  # each with its invoice, in the file's order
        self.occurrences: Counter[tuple[str, Kind, str, int]] = Counter()
        self.sold: Counter[str] = Counter()
        self.written_off: Counter[str] = Counter()

    @property
    def invoices(self) -> set[str]:
        """Those with a line that can be used."""
        return {*self.sale_lines, *self.movement_lines}

    def lines_of(self, invoices: Collection[str]) -> Counter[str]:
        """Their usable lines, as what is left out."""
        count = sum(self.sale_lines[name] + self.movement_lines[name] for name in invoices)
        return Counter({Reason.INVOICE_LEFT_OUT.value: count} if count else {})

    def take(self, record: Record) -> None:
        """Sort one record in. A charge is one whatever else its line holds."""
        self.lines += 1
        invoice, sku, *_ = record.values
        invoice = invoice.upper() if invoice.isascii() else invoice
        try:
            if record.wrong:
                raise _Misfit(*record.wrong)
            if sku.upper() in self.charge_codes:
                self.skipped[Reason.CHARGE] += 1
            else:
                self._sort(invoice, sku.upper(), *record.values[2:])
        except _Misfit as misfit:
            reason, detail = misfit.args
            self.skipped[reason] += 1
            self.broken.append(BrokenLine(record.line, reason, detail))
            self.broken_invoices.add(invoice)

    def _sort(self, invoice: str, sku: str, quantity: str, price: str, customer: str) -> None:
        if not _INVOICE.fullmatch(invoice):
            raise _Misfit(Reason.BAD_INVOICE_NUMBER, f"invoice number {_shown(invoice)}")
        if not ID.fullmatch(sku):
            raise _Misfit(Reason.BAD_STOCK_CODE, f"stock code {_shown(sku)}")
        if not _INTEGER.fullmatch(quantity):
            _refuse_thousands("quantity", quantity)
            raise _Misfit(Reason.BAD_QUANTITY, f"quantity {_shown(quantity)} is not an integer")
        if not _PRICE.fullmatch(price):
            _refuse_thousands("price", price)
            if not _DECIMAL_COMMA.fullmatch(price):
                raise _Misfit(Reason.BAD_PRICE, f"price {_shown(price)} is not a number from 0 up")
        if customer and not _CUSTOMER.fullmatch(customer):
            raise _Misfit(Reason.BAD_CUSTOMER_ID, f"customer id {_shown(customer)}")
        units = int(quantity)
        if invoice.startswith("C"):
            if units >= 0:
                raise _Misfit(Reason.CANCELLATION_NOT_NEGATIVE, f"cancelled quantity {units}")
            self._move(invoice, Kind.RETURN, sku, -units)
        elif units == 0:
            raise _Misfit(Reason.ZERO_QUANTITY, "quantity 0")
        elif units < 0:
            self._move(invoice, Kind.DAMAGE, sku, -units)
            self.written_off[sku] -= units
        elif _is_free(price):
            self._move(invoice, Kind.FOUND, sku, units)
        else:
            self._sell(invoice, sku, units, customer)

    def _move(self, invoice: str, kind: Kind, sku: str, units: int) -> None:
        if units > QUANTITY_MAX_MOVEMENT:
            wrong = f"quantity {units:,} is above {QUANTITY_MAX_MOVEMENT:,}, a movement's limit"
            raise _Misfit(Reason.QUANTITY_TOO_LARGE, wrong)
        line = invoice, kind, sku, units
        self.occurrences[line] += 1
        name = self.ids.movement(*line, self.occurrences[line])
        self.units.append((invoice, Movement(name, kind, sku, units, self.ids.order(invoice))))
        self.movement_lines[invoice] += 1

    def _sell(self, invoice: str, sku: str, units: int, customer: str) -> None:
        sale = self.sales.get(invoice)
        lines = sale.lines if sale else {}
        total = lines.get(sku, 0) + units
        if total > QUANTITY_MAX_SALE:
            wrong = f"{total:,} of {sku} is above {QUANTITY_MAX_SALE:,}, the limit of an invoice"
            raise _Misfit(Reason.QUANTITY_TOO_LARGE, wrong)
        if sku not in lines and len(lines) == LINES_MAX_SALE:
            raise _Misfit(Reason.TOO_MANY_LINES, f"an invoice of over {LINES_MAX_SALE:,} skus")
        if sale is None:
            whole = _WHOLE.fullmatch(customer)
            customer_id = (whole[1] if whole else customer) or None
            ids = self.ids
            sale = Sale(ids.reservation(invoice), ids.order(invoice), customer_id, lines)
            self.sales[invoice] = sale
            self.units.append((invoice, sale))
        lines[sku] = total
        self.sold[sku] += units
        self.sale_lines[invoice] += 1

    def openings(self, path: Path, ratio: Fraction, location: str) -> list[Movement]:
        openings = []
        for sku in {**self.sold, **self.written_off}:
            quantity = math.ceil(ratio * self.sold[sku]) + self.written_off[sku]
            if quantity > QUANTITY_MAX_MOVEMENT:
                raise OrderFileError(
                    f"{path}: opening stock of {quantity:,} {sku} is beyond the limits"
                )
            if quantity > 0:
                name = opening_id(sku, location)
                openings.append(Movement(name, Kind.OPENING, sku, quantity, "opening"))
        return openings


def _refuse_thousands(name: str, text: str) -> None:
    if _THOUSANDS.fullmatch(text):
        digits = re.sub(r"[.,][0-9]{1,2}$", "", text)
        plain = re.sub(r"[^0-9+-]", "", digits)
        raise _Misfit(
            Reason.THOUSANDS_SEPARATOR,
            f"{name} {_shown(text)} has a thousands separator; if {plain} is meant, write that",
        )


def _is_free(price: str) -> bool:
    """Is it 0? Exactly: 1e-999 isn't."""
    return not price.lower().partition("e")[0].strip("0.,")


def _shown(text: str) -> str:
    """A value of the file, safe on a terminal and short."""
    return ascii(text if len(text) <= 40 else text[:40] + "…")
