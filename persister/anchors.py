"""The heads of the chains at some time, kept in a file elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from engine.errors import LedgerError


class Anchor(msgspec.Struct, frozen=True):
    """The head of a partition's chain at some time. Kept elsewhere, it also proves that nobody has
    rewritten the ledger as a whole, hashes and all."""

    epoch: int
    seq: int
    hash: str


def read_anchors(path: Path) -> dict[int, Anchor]:
    """Anchors of an earlier audit; empty where there is no file. LedgerError where it can't be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[int, Anchor])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError) as error:
        raise LedgerError(f"the anchor file {path} can't be read: {error}") from None


def write_anchors(path: Path, anchors: Mapping[int, Anchor]) -> None:
    """Replace the file in one step."""
    new = path.with_name(path.name + ".new")
    new.write_bytes(msgspec.json.format(msgspec.json.encode(anchors)) + b"\n")
    new.replace(path)
