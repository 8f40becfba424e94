"""Outcomes of a command, in order of precedence (the first that applies is answered).

Expected outcomes are statuses, never exceptions. The scripts in ``lua/`` return these very words;
``tests/unit/test_contract.py`` compares the headers of the scripts with this file and with the HTTP
table in ``api/problems.py``.
"""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    """What became of one command."""

    # Before all others, for every operation.
    PARTITION_CLOSED = "partition_closed"
    STORE_FULL = "store_full"
    BACKLOG_FULL = "backlog_full"
    UNAVAILABLE = "unavailable"

    # Internal: not decided by this script call, the engine asks again. Never leaves the engine.
    MORE_DUE = "more_due"

    # Reserve. Between the first two: already_released, reservation_expired.
    RESERVATION_MISMATCH = "reservation_mismatch"
    ALREADY_RESERVED = "already_reserved"
    UNKNOWN_SKU = "unknown_sku"
    INSUFFICIENT_STOCK = "insufficient_stock"
    RESERVED = "reserved"

    # Confirm, release, extend, read.
    UNKNOWN_RESERVATION = "unknown_reservation"
    REQUEST_MISMATCH = "request_mismatch"
    ALREADY_CONFIRMED = "already_confirmed"
    ALREADY_RELEASED = "already_released"
    RESERVATION_EXPIRED = "reservation_expired"
    LIFETIME_EXCEEDED = "lifetime_exceeded"
    INVALID_REQUEST = "invalid_request"
    EXCEEDS_RESERVATION = "exceeds_reservation"
    CONFIRMED = "confirmed"
    RELEASED = "released"
    EXTENDED = "extended"
    FOUND = "found"

    # Movements.
    ALREADY_APPLIED = "already_applied"
    STALE_EXPECTATION = "stale_expectation"
    WOULD_BREAK_HOLDS = "would_break_holds"
    APPLIED = "applied"


class State(StrEnum):
    """Where a reservation stands. It leaves ``held`` once and for all."""

    HELD = "held"
    CONFIRMED = "confirmed"
    RELEASED = "released"
    EXPIRED = "expired"


#: The same call, sent again later, may have another outcome.
RETRYABLE = frozenset(
    {Status.PARTITION_CLOSED, Status.STORE_FULL, Status.BACKLOG_FULL, Status.UNAVAILABLE}
)
