"""A batch of the usual operations, decoded without a pattern on each of its strings.

All strings are checked against their patterns together: one by one that took two thirds of decoding. A
batch that does not pass here is decoded anew by the strict types of api/schema.py, which tell what is
wrong and where; so nothing is let in that they would refuse.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from api import schema
from engine.model import ID_PATTERN, LINES_MAX, TEXT_PATTERN, Command, Confirm, Release, Reserve


class Line(schema.LineIn, forbid_unknown_fields=True, gc=False):
    sku: str
    quantity: schema.Quantity
    location: str | None = None


class ReserveOp(
    schema.ReserveIn,
    tag="reserve",
    tag_field="op",
    forbid_unknown_fields=True,
    gc=False,
    kw_only=True,
):
    order_id: str
    lines: Annotated[list[Line], Meta(min_length=1, max_length=LINES_MAX)]  # type: ignore[assignment]
    reservation_id: str | None = None
    customer_id: str | None = None
    ttl_seconds: schema.TtlSeconds | None = None

    def command(self, key: str | None = None) -> Reserve:
        return super().command(None if self.reservation_id else key)


class ConfirmOp(
    msgspec.Struct, tag="confirm", tag_field="op", forbid_unknown_fields=True, gc=False
):
    reservation_id: str

    def command(self, key: str | None = None) -> Confirm:
        return Confirm(reservation_id=self.reservation_id, request_id=key)


class ReleaseOp(
    msgspec.Struct, tag="release", tag_field="op", forbid_unknown_fields=True, gc=False
):
    reservation_id: str

    def command(self, key: str | None = None) -> Release:
        return Release(reservation_id=self.reservation_id, request_id=key)


Op = ReserveOp | ConfirmOp | ReleaseOp


class Batch(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    operations: Annotated[list[Op], Meta(min_length=1, max_length=schema.OPERATIONS_MAX)]


_decode = msgspec.json.Decoder(Batch).decode
_all_ids = re.compile(f"(?:{ID_PATTERN[1:-2]}\n)*").fullmatch
_all_texts = re.compile(f"(?:{TEXT_PATTERN[1:-2]}\n)*").fullmatch


def read_commands(body: bytes, key: str | None = None) -> list[Command] | None:
    """The commands of a batch, in order, those without an id named by ``key`` and their place; None where
    it needs the strict types."""
    try:
        operations = _decode(body).operations
        if not _are_well_named(operations):
            return None
        if key is not None:
            return [op.command(f"{key}.{place}") for place, op in enumerate(operations)]
        return [op.command() for op in operations]
    except (
        ValueError,
        RecursionError,
    ):  # msgspec's errors, UnicodeDecodeError and Misfit are ValueErrors
        return None


def _are_well_named(operations: Sequence[Op]) -> bool:
    ids, texts = [], []
    for op in operations:
        if op.reservation_id is not None:
            ids.append(op.reservation_id)
        if not isinstance(op, ReserveOp):
            continue
        texts.append(op.order_id)
        if op.customer_id is not None:
            texts.append(op.customer_id)
        for line in op.lines:
            ids.append(line.sku)
            if line.location is not None:
                ids.append(line.location)
    return _fit(_all_ids, ids) and _fit(_all_texts, texts)


def _fit(match: Callable[[str], object], names: list[str]) -> bool:
    """Does each fit? One that holds a newline would look like two."""
    joined = "\n".join([*names, ""])
    return joined.count("\n") == len(names) and match(joined) is not None
