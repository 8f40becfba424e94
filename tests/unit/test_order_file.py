"""An order file in whatever way it was saved: encodings, line ends, delimiters, packing, and what is none."""

from __future__ import annotations

import codecs
import gzip
from pathlib import Path

import pytest

from api.orders import Movement, OrderFileError, Plan, Reason, Sale, read_plan

HEADER = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country"
TEXT = "\n".join(
    [
        HEADER,
        "1,85123a,£ LANTERN,6,2010-12-01 08:26:00,2.55,17850.0,UK",
        '1,71053,"a ""quote"", a comma\nand a new line",2,2010-12-01,1.00,17850.0,UK',
        "C2,85123A,caf\u00e9 \u2013 SIGN,-1,2010-12-01,2.55,,UK",
        "3,85123A,,-4,2010-12-01,0,,UK",
        "",
    ]
)


def plan_of(tmp_path: Path, content: bytes, name: str = "orders.csv") -> Plan:
    path = tmp_path / name
    path.write_bytes(content)
    return read_plan(path)


def units(plan: Plan) -> tuple[tuple[Sale | Movement, ...], tuple[Movement, ...]]:
    assert not plan.broken and len(plan.units) == 3
    return plan.units, plan.openings


@pytest.mark.parametrize(
    ("codec", "bom", "told"),
    [
        ("utf-8", b"", "UTF-8"),
        ("utf-8", codecs.BOM_UTF8, "UTF-8"),
        ("windows-1252", b"", "latin-1 (windows-1252)"),
        ("utf-16-le", codecs.BOM_UTF16_LE, "UTF-16"),
        ("utf-16-be", codecs.BOM_UTF16_BE, "UTF-16"),
        ("utf-16-le", b"", "UTF-16"),
        ("utf-16-be", b"", "UTF-16"),
        ("utf-32-le", codecs.BOM_UTF32_LE, "UTF-32"),
        ("utf-32-be", codecs.BOM_UTF32_BE, "UTF-32"),
    ],
)
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_every_encoding_and_line_end_gives_the_same_orders(
    tmp_path: Path, codec: str, bom: bytes, told: str, ends: str
) -> None:
    plan = plan_of(tmp_path, bom + TEXT.replace("\n", ends).encode(codec))
    assert units(plan) == units(plan_of(tmp_path, TEXT.encode()))
    assert plan.format.encoding == told
    assert plan.format.line_ends == {"\n": "LF", "\r\n": "CRLF", "\r": "CR"}[ends]


def test_line_numbers_are_those_of_an_editor_whatever_ends_the_lines(tmp_path: Path) -> None:
    for ends in ("\n", "\r\n", "\r"):
        text = TEXT.replace("-4", "x").replace("\n", ends)
        assert [each.line for each in plan_of(tmp_path, text.encode()).broken] == [6], ends


def test_line_ends_may_be_mixed(tmp_path: Path) -> None:
    """As in files put together from several; a CR within the field of a file that ends lines with LF is
    no line end."""
    lines = TEXT.split("\n")
    mixed = "\r".join(lines[:2]) + "\r\n" + "\n".join(lines[2:])
    assert units(plan_of(tmp_path, mixed.encode())) == units(plan_of(tmp_path, TEXT.encode()))
    inner = TEXT.replace("LANTERN", "LAN\rTERN")
    assert units(plan_of(tmp_path, inner.encode())) == units(plan_of(tmp_path, TEXT.encode()))


@pytest.mark.parametrize(
    ("delimiter", "told"), [(";", "semicolon"), ("\t", "tab"), ("|", "bar"), (",", "comma")]
)
def test_every_delimiter_gives_the_same_orders(tmp_path: Path, delimiter: str, told: str) -> None:
    """A decimal comma in a price is one, as whoever uses semicolons writes it."""
    rows = [
        line.split(",") for line in TEXT.replace('"a ""quote"", a comma\nand', "and").split("\n")
    ]
    for row in rows[1:3]:
        row[5] = f'"{row[5].replace(".", ",")}"'
    text = "\n".join([delimiter.join(row) for row in rows])
    plan = plan_of(tmp_path, text.replace(' a new line"', " a new line").encode())
    assert units(plan) == units(plan_of(tmp_path, TEXT.encode()))
    assert plan.format.delimiter == told


def test_columns_in_another_order_are_the_same_orders(tmp_path: Path) -> None:
    rows = [
        line.split(",") for line in TEXT.replace('"a ""quote"", a comma\nand', "and").split("\n")
    ]
    text = "\n".join([",".join(reversed(row)) for row in rows]).replace(' a new line"', "")
    assert units(plan_of(tmp_path, text.encode())) == units(plan_of(tmp_path, TEXT.encode()))


def test_packing_makes_no_difference(tmp_path: Path) -> None:
    plain = units(plan_of(tmp_path, TEXT.encode()))
    for name in ("orders.csv.gz", "orders.csv", "orders"):
        assert units(plan_of(tmp_path, gzip.compress(TEXT.encode()), name)) == plain
    half = TEXT.encode()[:70], TEXT.encode()[70:]
    assert units(plan_of(tmp_path, b"".join(map(gzip.compress, half)), "two.csv.gz")) == plain


@pytest.mark.parametrize(
    ("codec", "bad"), [("utf-8", b"\xa3"), ("utf-16-le", b"\x00\xd8"), ("utf-32-be", b"\xff" * 4)]
)
def test_what_can_not_be_decoded_breaks_its_line_only(
    tmp_path: Path, codec: str, bad: bytes
) -> None:
    """Given other lines that show the encoding."""
    bom = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-32-be": codecs.BOM_UTF32_BE}.get(codec, b"")
    bad_line = "2,85123A,@,6,2010-12-01,2.55,,UK\n".encode(codec).replace("@".encode(codec), bad)
    plan = plan_of(tmp_path, bom + TEXT.encode(codec) + bad_line)
    assert [(each.line, each.reason) for each in plan.broken] == [(7, Reason.UNDECODABLE)]
    assert len(plan.units) == 3
    assert "UTF" in plan.broken[0].detail


def test_bytes_that_are_latin_1_on_most_lines_are_taken_for_latin_1(tmp_path: Path) -> None:
    """One line that is UTF-8 by chance (here the two characters Â£) doesn't make the others unreadable."""
    by_chance = "4,85123A,\u00c2\u00a3 SIGN,1,2010-12-01,2.55,,UK\n"
    plan = plan_of(tmp_path, (TEXT + by_chance).encode("windows-1252"))
    assert not plan.broken and plan.format.encoding == "latin-1 (windows-1252)"
    plan = plan_of(tmp_path, TEXT.replace("£", "\x81").encode("latin-1", "replace"))
    assert not plan.broken and plan.format.encoding == "latin-1"


def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    whole = gzip.compress(TEXT.encode())
    cases: dict[str, tuple[bytes | None, str]] = {
        "missing.csv": (None, "No such file"),
        "empty.csv": (b"", "empty"),
        "blank.csv": (b"\r\n \n", "empty"),
        "bom.csv": (codecs.BOM_UTF8, "empty"),
        "empty.csv.gz": (b"", "empty"),
        "packed-empty.csv.gz": (gzip.compress(b""), "empty"),
        "no-header.csv": (TEXT.partition("\n")[2].encode(), "no header with InvoiceNo"),
        "part-header.csv": (b"InvoiceNo,StockCode,Quantity,UnitPrice\n", "with CustomerID"),
        "semicolons.csv": (b"InvoiceNo;StockCode;Quantity;UnitPrice\n", "with CustomerID"),
        "twice.csv": (HEADER.encode() + b",Quantity\n1,2,3\n", "names Quantity twice"),
        "binary.csv": (bytes(range(256)), "not text but binary"),
        "picture.csv": (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", "no header"),
        "sheet.csv": (b"PK\x03\x04\x14\x00", "zip archive or an Excel workbook; save it as CSV"),
        "old-sheet.csv": (b"\xd0\xcf\x11\xe0\xa1\xb1", "old Excel workbook"),
        "page.csv": (b"%PDF-1.7\n", "a PDF"),
        "columns.csv": (b"PAR1\x15\x04", "Parquet"),
        "other.csv.bz2": (b"BZh91AY&SY", "bzip2; only gzip is read"),
        "other.csv.xz": (b"\xfd7zXZ\x00\x00", "xz; only gzip is read"),
        "other.csv.zst": (b"\x28\xb5\x2f\xfd\x04", "zstd; only gzip is read"),
        "only-header.csv": (HEADER.encode(), "no lines"),
        "plain.csv.gz": (HEADER.encode(), "isn't compressed"),
        "cut.csv.gz": (whole[:-12], "ended before"),
        "damaged.csv.gz": (whole[:40] + b"\xff\xff\xff" + whole[43:], "damaged.csv.gz"),
        "junk-behind.csv.gz": (whole + b"junk", "Not a gzipped file"),
    }
    for name, (content, told) in cases.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(OrderFileError, match=told) as caught:
            read_plan(path)
        assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value), name
    with pytest.raises(OrderFileError, match="directory"):
        read_plan(tmp_path)
