"""An order file as records: unpacked, decoded, cut into lines and fields. What it is taken for can be told.

A file that can't be read raises :class:`OrderFileError`; a line that can't is a record that says why.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path

import msgspec

from engine.errors import HoldfastError

#: A quoted field may hold line breaks; a quote that stays open for longer is a broken line.
LINES_MAX_RECORD = 8

_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
_BOMS = (  # that of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32-le", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32-be", "UTF-32"),
    (codecs.BOM_UTF8, "utf-8", "UTF-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16-be", "UTF-16"),
)
_OTHER_FILES = (
    (b"PK\x03\x04", "a zip archive or an Excel workbook; save it as CSV"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook; save it as CSV"),
    (b"%PDF", "a PDF; save it as CSV"),
    (b"PAR1", "a Parquet file; save it as CSV"),
    (b"BZh", "compressed with bzip2; only gzip is read"),
    (b"\xfd7zXZ\x00", "compressed with xz; only gzip is read"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd; only gzip is read"),
)
_UNDECODED = re.compile(r"[\ud800-\udfff]")  # what surrogateescape makes of a bad byte
_GROUP = re.compile(r"[+-]?[0-9]{1,3}")
_THREE = re.compile(r"[0-9]{3}(?:\.[0-9]+)?")


class OrderFileError(HoldfastError):
    """The file as a whole can't be played."""


class Reason(StrEnum):
    """Why a line of the file isn't played. All but the last two are broken lines."""

    UNDECODABLE = "undecodable"
    BAD_QUOTES = "bad_quotes"
    WRONG_COLUMNS = "wrong_columns"
    BAD_INVOICE_NUMBER = "bad_invoice_number"
    BAD_STOCK_CODE = "bad_stock_code"
    BAD_CUSTOMER_ID = "bad_customer_id"
    BAD_QUANTITY = "bad_quantity"
    THOUSANDS_SEPARATOR = "thousands_separator"
    ZERO_QUANTITY = "zero_quantity"
    CANCELLATION_NOT_NEGATIVE = "cancellation_not_negative"
    QUANTITY_TOO_LARGE = "quantity_too_large"
    BAD_PRICE = "bad_price"
    TOO_MANY_LINES = "too_many_lines"
    CHARGE = "charge"
    INVOICE_LEFT_OUT = "invoice_left_out"


class Format(msgspec.Struct, frozen=True):
    """What a file was taken for, in words."""

    encoding: str
    delimiter: str
    line_ends: str


class Record(msgspec.Struct, frozen=True):
    """The values of the asked columns, and the number of its first line (from 1). Where it can't be read
    ``wrong`` says why, and the values are what seems to stand there, '' where nothing does."""

    line: int
    values: list[str]
    wrong: tuple[Reason, str] | None = None


class OrderFile:
    """A .csv or .csv.gz with a header that names these columns, in any order and among others.

    Raises OrderFileError for a file that can't be read, is no text or has no such header.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        try:
            text, encoding = _decode(_unpack(path))
            self._lines, line_ends = _lines(text)
            delimiter, self._width, self._columns = _header(self._lines[0], columns)
        except (OSError, EOFError, zlib.error) as error:
            raise OrderFileError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
        except OrderFileError as error:
            raise OrderFileError(f"{path}: {error}") from None
        self._delimiter = delimiter
        self._replaced = encoding in ("UTF-16", "UTF-32")  # there a bad unit has become U+FFFD
        self._encoding = encoding
        self.format = Format(encoding, _DELIMITERS[delimiter], line_ends)

    def records(self, numbers: Sequence[int] = ()) -> Iterator[Record]:
        """The records after the header, empty lines passed over.

        A quote that never closes costs its own line only: csv.reader would swallow the lines after it.
        ``numbers``: the columns that hold numbers, by which a thousands separator without quotes is found.
        """
        at, width = 1, self._width
        while at < len(self._lines):
            text, line, taken = self._lines[at], at + 1, 1
            fields = _fields(text, self._delimiter)
            while fields is None and taken < LINES_MAX_RECORD and at + taken < len(self._lines):
                text += "\n" + self._lines[at + taken]
                taken += 1
                fields = _fields(text, self._delimiter)
            if fields is None or (taken > 1 and len(fields) != width):
                why = Reason.BAD_QUOTES, "a quote isn't closed or is out of place"
                yield self._broken(line, self._lines[at], why)
                taken = 1
            elif not text.isascii() and self._is_undecoded(text):
                why = Reason.UNDECODABLE, f"bytes that are not {self._encoding}"
                yield self._broken(line, text, why)
            elif len(fields) == width:
                yield Record(line, self._pick(fields))
            elif text.strip():
                why = Reason.WRONG_COLUMNS, f"{len(fields)} columns, not {width}"
                if len(fields) > width and self._has_groups(fields, numbers):
                    why = Reason.THOUSANDS_SEPARATOR, f"{why[1]}: perhaps a thousands separator"
                yield self._broken(line, text, why)
            at += taken

    def _is_undecoded(self, text: str) -> bool:
        return bool(_UNDECODED.search(text)) or (self._replaced and "\ufffd" in text)

    def _has_groups(self, fields: list[str], numbers: Sequence[int]) -> bool:
        """Does a number seem to have been cut in two, as 1,234 is without quotes?"""
        places = [self._columns[number] for number in numbers]
        return self._delimiter == "," and any(
            _GROUP.fullmatch(fields[at].strip()) and _THREE.fullmatch(fields[at + 1].strip())
            for at in places
        )

    def _broken(self, line: int, text: str, why: tuple[Reason, str]) -> Record:
        fields = _fields(text, self._delimiter) or text.split(self._delimiter)
        return Record(line, self._pick([field.strip('"') for field in fields]), why)

    def _pick(self, fields: list[str]) -> list[str]:
        return [fields[at].strip() if at < len(fields) else "" for at in self._columns]


def _unpack(path: Path) -> bytes:
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    elif content and path.suffix == ".gz":
        raise OrderFileError("is named .gz but isn't compressed with gzip")
    if not content.strip(b"\r\n \t\xef\xbb\xbf"):
        raise OrderFileError("the file is empty")
    for start, what in _OTHER_FILES:
        if content.startswith(start):
            raise OrderFileError(f"is {what}")
    return content


def _decode(content: bytes) -> tuple[str, str]:
    """The text and the name of its encoding. A byte that isn't of that stays in it as a surrogate (of
    UTF-16 as U+FFFD), so that it breaks its own line only."""
    for bom, codec, name in _BOMS:
        if content.startswith(bom):
            errors = "surrogateescape" if name == "UTF-8" else "replace"
            return content[len(bom) :].decode(codec, errors), name
    # A header is ASCII, so UTF-16 has a zero in every other byte of it.
    even, odd = content[0:64:2], content[1:64:2]
    for zeros, others, codec in ((odd, even, "utf-16-le"), (even, odd, "utf-16-be")):
        if len(zeros) > 8 and not any(zeros) and all(others):
            return content.decode(codec, "replace"), "UTF-16"
    header = re.split(rb"[\r\n]", content, maxsplit=1)[0]
    if re.search(rb"[\x00-\x08\x0e-\x1f\x7f]", header):
        raise OrderFileError("is not text but binary data")
    try:
        return content.decode(), "UTF-8"
    except UnicodeDecodeError:
        pass
    lines = [line for line in re.split(rb"[\r\n]", content) if not line.isascii()]
    if 2 * sum(not _is_utf8(line) for line in lines) <= len(lines):
        return content.decode("utf-8", "surrogateescape"), "UTF-8"
    try:
        return content.decode("windows-1252"), "latin-1 (windows-1252)"
    except UnicodeDecodeError:
        return content.decode("latin-1"), "latin-1"


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _lines(text: str) -> tuple[list[str], str]:
    """Lines, without what ends them, and its name. A CR is one only where it ends the header, since else
    it may stand within a field."""
    header, newline, _ = text.partition("\n")
    if "\r" in header.removesuffix("\r"):
        return text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), "CR"
    name = "CRLF" if header.endswith("\r") else "LF" if newline else "none"
    return [line.removesuffix("\r") for line in text.split("\n")], name


def _header(line: str, columns: Sequence[str]) -> tuple[str, int, list[int]]:
    """Delimiter, number of columns, and where the asked ones are."""
    headers = {
        delimiter: [name.strip().removeprefix("\ufeff") for name in _fields(line, delimiter) or []]
        for delimiter in _DELIMITERS
    }
    missing = {
        delimiter: [name for name in columns if name not in names]
        for delimiter, names in headers.items()
    }
    best = min(_DELIMITERS, key=lambda delimiter: len(missing[delimiter]))
    if missing[best]:
        raise OrderFileError(f"the first line is no header with {', '.join(missing[best])}")
    names = headers[best]
    for name in columns:
        if names.count(name) > 1:
            raise OrderFileError(f"the header names {name} twice")
    return best, len(names), [names.index(name) for name in columns]


def _fields(text: str, delimiter: str) -> list[str] | None:
    """The fields of a record; None where its quotes don't fit."""
    if '"' not in text:  # nearly every line, and many times faster
        return text.split(delimiter)
    try:
        return next(csv.reader([text], delimiter=delimiter, strict=True))
    except csv.Error:
        return None
