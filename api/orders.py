"""An order file, read into a plan of what to play. No network, no clock, no chance in it.

The same content gives the same plan with the same ids, compressed or not, so a file that is played
twice is recognised line by line. A line that can't be used is told with its number and its reason
and left out; only a file that is no order file at all raises :class:`OrderFileError`.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from enum import StrEnum
from fractions import Fraction
from pathlib import Path

import msgspec

QUANTITY_MAX_SALE = 1_000_000
QUANTITY_MAX_MOVEMENT = 1_000_000_000
LINES_MAX_SALE = 2_000
#: A quoted field may hold line breaks; a quote that stays open for longer is a broken line.
LINES_MAX_RECORD = 8

_COLUMNS = ("InvoiceNo", "StockCode", "Quantity", "UnitPrice", "CustomerID")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~-]{0,63}")
_GOODS = re.compile(r"[0-9]{5}")
_INTEGER = re.compile(r"[+-]?[0-9]{1,30}")  # int() refuses thousands of digits
_PRICE = re.compile(r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
_RATIO = re.compile(r"[0-9]{1,9}(?:\.[0-9]{0,9})?|\.[0-9]{1,9}")
_WHOLE = re.compile(r"([0-9]+)\.0+")  # a customer number that once was a float
_CUSTOMER = re.compile(r"[^\x00-\x1f\x7f-\x9f]{1,128}")
_SURROGATE = re.compile(r"[\ud800-\udfff]")  # what surrogateescape makes of a bad byte


class OrderFileError(Exception):
    """The file as a whole can't be played; the message is one line for a person."""


class Reason(StrEnum):
    """Why a line of the file isn't played. All but ``charge`` are broken lines."""

    CHARGE = "charge"
    UNDECODABLE = "undecodable"
    BAD_QUOTES = "bad_quotes"
    WRONG_COLUMNS = "wrong_columns"
    BAD_INVOICE_NUMBER = "bad_invoice_number"
    BAD_STOCK_CODE = "bad_stock_code"
    BAD_CUSTOMER_ID = "bad_customer_id"
    BAD_QUANTITY = "bad_quantity"
    ZERO_QUANTITY = "zero_quantity"
    CANCELLATION_NOT_NEGATIVE = "cancellation_not_negative"
    QUANTITY_TOO_LARGE = "quantity_too_large"
    BAD_PRICE = "bad_price"
    TOO_MANY_LINES = "too_many_lines"


class Kind(StrEnum):
    """What a movement of the plan is, in the words of the order file."""

    OPENING = "opening"
    FOUND = "found"
    RETURN = "return"
    DAMAGE = "damage"


class BrokenLine(msgspec.Struct, frozen=True):
    """A line that was left out: its number in the file (from 1), and why."""

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


class Plan(msgspec.Struct, frozen=True):
    """What to play: the openings, then the units in the file's order.

    ``lines`` (header and empty lines not counted) is ``sale_lines``, the movements among ``units``
    and all of ``skipped`` together.
    """

    ratio: Fraction
    openings: tuple[Movement, ...]
    units: tuple[Sale | Movement, ...]
    lines: int
    sale_lines: int
    skipped: dict[str, int]
    broken: tuple[BrokenLine, ...]


class _Misfit(Exception):
    """This line can't be used: a Reason, and a detail for a person."""


def parse_ratio(text: str) -> Fraction:
    """The stock ratio as written (0.7 is seven tenths, exactly); ValueError if it isn't one."""
    if not _RATIO.fullmatch(text.strip()):
        raise ValueError(f"{_shown(text)} is not a ratio such as 1.0 or 0.7")
    return Fraction(text.strip())


def read_plan(path: Path, *, ratio: Fraction = Fraction(1)) -> Plan:
    """Read a .csv or .csv.gz with the columns of the Online Retail data set, found by their names.

    Opening stock of a sku that is sold or written off is ``ceil(ratio × sold) + written off``.
    Raises OrderFileError for a file that can't be read, has no header or no line.
    """
    try:
        with path.open("rb") as file:
            if file.peek(2)[:2] == b"\x1f\x8b":
                content = gzip.GzipFile(fileobj=file).read()
            else:
                content = file.read()
                if content and path.suffix == ".gz":
                    raise OrderFileError("is named .gz but isn't compressed with gzip")
        reader = _Reader(hashlib.sha256(content).hexdigest()[:16])
        reader.read(content.decode("utf-8", "surrogateescape").split("\n"))
        return reader.plan(ratio)
    except (OSError, EOFError, zlib.error) as error:
        raise OrderFileError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    except OrderFileError as error:
        raise OrderFileError(f"{path}: {error}") from None


class _Reader:
    """Sorts the records of one file into sales, movements and what is left out."""

    def __init__(self, file_hash: str) -> None:
        self.file_hash = file_hash
        self.lines = 0
        self.sale_lines = 0
        self.skipped: Counter[str] = Counter()
        self.broken: list[BrokenLine] = []
        self.invoices: dict[str, Sale] = {}
        self.units: list[Sale | Movement] = []  # in the file's order
        self.sold: Counter[str] = Counter()
        self.written_off: Counter[str] = Counter()

    def read(self, lines: list[str]) -> None:
        header = [name.strip() for name in _fields(lines[0].removeprefix("\ufeff")) or []]
        if lines == [""]:
            raise OrderFileError("the file is empty")
        if missing := [name for name in _COLUMNS if name not in header]:
            raise OrderFileError(f"the first line is no header with {', '.join(missing)}")
        columns = [header.index(name) for name in _COLUMNS]
        for number, fields in _records(lines, len(header)):
            self.lines += 1
            try:
                if isinstance(fields, _Misfit):
                    raise fields
                self._sort(number, [fields[column].strip() for column in columns])
            except _Misfit as misfit:
                reason, detail = misfit.args
                self.skipped[reason] += 1
                if reason is not Reason.CHARGE:
                    self.broken.append(BrokenLine(number, reason, detail))
        if not self.lines:
            raise OrderFileError("the file has a header but no lines")

    def _sort(self, number: int, values: list[str]) -> None:
        """Decide what one line is. A charge is one whatever else its line holds."""
        invoice, sku, quantity, price, customer = values
        if sku and not _GOODS.match(sku):
            raise _Misfit(Reason.CHARGE, "")
        invoice, sku = invoice.upper(), sku.upper()
        if not _ID.fullmatch(invoice):
            raise _Misfit(Reason.BAD_INVOICE_NUMBER, f"invoice number {_shown(invoice)}")
        if not _ID.fullmatch(sku):
            raise _Misfit(Reason.BAD_STOCK_CODE, f"stock code {_shown(sku)}")
        if not _INTEGER.fullmatch(quantity):
            raise _Misfit(Reason.BAD_QUANTITY, f"quantity {_shown(quantity)} is not an integer")
        if not _PRICE.fullmatch(price):
            raise _Misfit(Reason.BAD_PRICE, f"price {_shown(price)} is not a number from 0 up")
        if customer and not _CUSTOMER.fullmatch(customer):
            raise _Misfit(Reason.BAD_CUSTOMER_ID, f"customer id {_shown(customer)}")
        units = int(quantity)
        if invoice.startswith("C"):
            if units >= 0:
                raise _Misfit(Reason.CANCELLATION_NOT_NEGATIVE, f"cancelled quantity {units}")
            self._move(number, Kind.RETURN, sku, -units, invoice)
        elif units == 0:
            raise _Misfit(Reason.ZERO_QUANTITY, "quantity 0")
        elif units < 0:
            self._move(number, Kind.DAMAGE, sku, -units, invoice)
            self.written_off[sku] -= units
        elif float(price) == 0:
            self._move(number, Kind.FOUND, sku, units, invoice)
        else:
            self._sell(sku, units, invoice, customer)

    def _move(self, number: int, kind: Kind, sku: str, units: int, invoice: str) -> None:
        if units > QUANTITY_MAX_MOVEMENT:
            wrong = f"quantity {units:,} is above {QUANTITY_MAX_MOVEMENT:,}, a movement's limit"
            raise _Misfit(Reason.QUANTITY_TOO_LARGE, wrong)
        name = _id("mov", f"{self.file_hash}-{number}")
        self.units.append(Movement(name, kind, sku, units, invoice))

    def _sell(self, sku: str, units: int, invoice: str, customer: str) -> None:
        sale = self.invoices.get(invoice)
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
            self.invoices[invoice] = Sale(_id("inv", invoice), invoice, customer_id, lines)
            self.units.append(self.invoices[invoice])
        lines[sku] = total
        self.sold[sku] += units
        self.sale_lines += 1

    def plan(self, ratio: Fraction) -> Plan:
        openings = []
        for sku in {**self.sold, **self.written_off}:
            quantity = math.ceil(ratio * self.sold[sku]) + self.written_off[sku]
            if quantity > QUANTITY_MAX_MOVEMENT:
                raise OrderFileError(f"opening stock of {quantity:,} {sku} is beyond the limits")
            if quantity > 0:
                name = f"{self.file_hash}-{sku}-{ratio.numerator}_{ratio.denominator}"
                openings.append(Movement(_id("open", name), Kind.OPENING, sku, quantity, "opening"))
        units, skipped, broken = tuple(self.units), dict(self.skipped), tuple(self.broken)
        return Plan(ratio, tuple(openings), units, self.lines, self.sale_lines, skipped, broken)


def _records(lines: list[str], columns: int) -> Iterator[tuple[int, list[str] | _Misfit]]:
    """Number of the first line and the fields of each record after the header.

    A quote that never closes costs its own line only: csv.reader would swallow the lines after it.
    """
    at = 1
    while at < len(lines):
        text, number, taken = lines[at], at + 1, 1
        fields = _fields(text)
        while fields is None and taken < LINES_MAX_RECORD and at + taken < len(lines):
            text += "\n" + lines[at + taken]
            taken += 1
            fields = _fields(text)
        if fields is None or (taken > 1 and len(fields) != columns):
            yield number, _Misfit(Reason.BAD_QUOTES, "a quote isn't closed or is out of place")
            taken = 1
        elif not text.isascii() and _SURROGATE.search(text):
            yield number, _Misfit(Reason.UNDECODABLE, "bytes that are not UTF-8")
        elif len(fields) == columns:
            yield number, fields
        elif text.strip():
            yield number, _Misfit(Reason.WRONG_COLUMNS, f"{len(fields)} columns, not {columns}")
        at += taken


def _fields(text: str) -> list[str] | None:
    """The fields of a record; None where its quotes don't fit."""
    if '"' not in text:  # nearly every line, and many times faster
        return text.split(",")
    try:
        return next(csv.reader([text], strict=True))
    except csv.Error:
        return None


def _id(prefix: str, name: str) -> str:
    """An id that fits: 64 characters at most, the name itself as long as it leaves room."""
    plain = f"{prefix}-{name}"
    if len(plain) <= 64:
        return plain
    return f"{prefix}-{hashlib.sha256(name.encode()).hexdigest()[:40]}"


def _shown(text: str) -> str:
    """A value of the file, safe on a terminal and short."""
    return ascii(text if len(text) <= 40 else text[:40] + "…")
