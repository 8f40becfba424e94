"""Moments as people and programs write them."""

from __future__ import annotations

import re
from datetime import UTC, datetime

_MOMENT = re.compile(
    r"\d{4}-\d\d-\d\d(T\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d))?", re.IGNORECASE | re.ASCII
)


def moment(text: str) -> datetime | None:
    """A date (it begins in UTC) or a time as RFC 3339 has it, in UTC; None for anything else."""
    try:
        if not _MOMENT.fullmatch(text):
            return None
        found = datetime.fromisoformat(text.upper())
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
