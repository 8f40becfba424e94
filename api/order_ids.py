"""The ids of a replay: made from what a line says, so that the same order has the same id in any file.

A saved, converted or corrected copy of a file therefore names what was played before by the same ids.
Different content never shares an id: what doesn't fit one as it is, is in it as a hash.
"""

from __future__ import annotations

import hashlib
import re

ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~-]{0,63}")
NAMESPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,15}")
_INVOICE_IN_AN_ID = re.compile(r"[A-Za-z0-9._~-]{1,40}")


class Ids:
    """Ids within a namespace: two shops whose invoice numbers are the same need one each.

    ``order``: what reservations and movements name as their order or reference.
    """

    def __init__(self, namespace: str = "") -> None:
        self._namespace = namespace
        self._start = f"{namespace}~" if namespace else ""

    def order(self, invoice: str) -> str:
        return f"{self._namespace}/{invoice}" if self._namespace else invoice

    def invoice(self, order: str) -> str:
        """What ``order`` was made of."""
        return order[len(self.order("")) :]

    def reservation(self, invoice: str) -> str:
        """``inv-`` and the invoice number where it fits, else ``inv~`` and its hash."""
        if _INVOICE_IN_AN_ID.fullmatch(invoice):
            return f"{self._start}inv-{invoice}"
        return f"{self._start}inv~{_hash(invoice)}"

    def movement(self, invoice: str, kind: str, sku: str, quantity: int, occurrence: int) -> str:
        """``occurrence`` (from 1) tells equal lines of an invoice apart."""
        return f"{self._start}mov-{_hash(invoice, kind, sku, str(quantity), str(occurrence))}"

    def is_movement(self, movement_id: str) -> bool:
        """Can it be one of this namespace?"""
        return re.fullmatch(re.escape(self._start) + "mov-[0-9a-f]{40}", movement_id) is not None


def opening_id(sku: str, location: str) -> str:
    """Of the one opening that a place ever gets, whatever the file, the ratio or the namespace."""
    return f"open-{_hash(sku, location)}"


def _hash(*parts: str) -> str:
    """160 bits; the parts can't run into one another, since none holds a control character."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:40]
