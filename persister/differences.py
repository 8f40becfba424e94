"""What a reconciliation tells: kinds of differences, what each side has, the report of a run."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from persister.holes import Hole


class Kind(StrEnum):
    """How Redis and the ledger differ (docs/operations.md says what to do about each)."""

    COUNTER_DRIFT = "counter_drift"
    MISSING_IN_LEDGER = "missing_in_ledger"
    MISSING_IN_REDIS = "missing_in_redis"
    LEAKED_HOLD = "leaked_hold"
    ORPHAN_RESERVATION = "orphan_reservation"
    LEDGER_BEHIND = "ledger_behind"


class Counters(msgspec.Struct, frozen=True):
    """Units of a sku at a location, and the seq they stand at."""

    on_hand: int
    held: int
    quarantined: int
    seq: int

    @property
    def units(self) -> tuple[int, int, int]:
        return self.on_hand, self.held, self.quarantined


class Hold(msgspec.Struct, frozen=True):
    """A reservation on one side; ``lines``: sku, location and what is left of its units."""

    status: str
    seq: int
    deadline_ms: int
    lines: tuple[tuple[str, str, int], ...]


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that differs: a stock record (``sku``, ``location``), or a reservation.

    ``drift``: Redis minus ledger in on_hand, held and quarantined, at the same seq. It stays the same
    whatever happens meanwhile, since both sides get the same deltas. ``repairable``: a compensating
    event can mend it; what is wrong with the ledger itself never is.
    """

    kind: Kind
    partition: int
    sku: str = ""
    location: str = ""
    reservation_id: str | None = None
    redis: Counters | Hold | None = None
    ledger: Counters | Hold | None = None
    detail: str
    repairable: bool = False
    drift: tuple[int, int, int] | None = None

    @property
    def what(self) -> str:
        """What differs, for a person."""
        if self.reservation_id is not None:
            return f"reservation {self.reservation_id}"
        return f"{self.sku} at {self.location}" if self.location else self.sku


class Repair(msgspec.Struct, frozen=True, kw_only=True):
    """What was done about a difference. ``event`` is its epoch-seq; None where nothing was written:
    ``outcome`` says why, or (of a dry run) what would be done."""

    kind: Kind
    sku: str
    location: str
    reservation_id: str | None
    outcome: str
    event: str | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a run found: so many stock records and reservations compared, and each that differs.

    ``holes``: events that the ledger has lost for good, which are adopted and no difference.
    ``reconciliation_id`` is None where the run could not be kept (``not_kept`` says why) or wasn't
    meant to be. ``started_at`` is RFC 3339 in UTC. ``repaired_by``: who asked for the repair.
    """

    checked: int
    reservations_checked: int
    differences: list[Difference]
    holes: list[Hole] = []
    started_at: str
    duration_ms: int
    reconciliation_id: int | None = None
    repaired: list[Repair] = []
    repaired_by: str | None = None
    not_kept: str | None = None

    @property
    def clean(self) -> bool:
        return not self.differences
