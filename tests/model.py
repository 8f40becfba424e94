"""What Holdfast must answer, written from the design alone: one partition in plain Python.

Integers, dicts and one event a change; no batching, no bytes, no limits a call. The tests play the
same commands to it and to the real scripts, and compare answers, stock and events.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from engine.model import Confirm, Extend, Line, Movement, Release, Reserve

At = tuple[str, str]  # sku, location
CREATES = ("receive", "return", "count")


@dataclass
class Stock:
    on_hand: int = 0
    held: int = 0
    quarantined: int = 0
    safety_stock: int = 0
    seq: int = 0

    @property
    def available(self) -> int:
        return self.on_hand - self.held - self.quarantined - self.safety_stock


@dataclass
class Held:
    """A reservation; ``left`` is what is neither confirmed nor released nor expired."""

    asked: Any
    created: int
    deadline: int
    lines: dict[At, int]
    left: dict[At, int]
    state: str = "held"
    released: int = 0
    parts: dict[str, tuple[str, Any]] = field(default_factory=dict)

    def status(self, now: int) -> str:
        return "expired" if self.state == "held" and self.deadline <= now else self.state


class Model:
    """Each method answers a status. ``units`` tells where every unit ever received went."""

    def __init__(self, lifetime_max_ms: int) -> None:
        self.lifetime_max_ms = lifetime_max_ms
        self.seq = 0
        self.stocks: dict[At, Stock] = {}
        self.reservations: dict[str, Held] = {}
        self.entries: list[tuple[int, int, str]] = []  # deadline, seq that set it, reservation
        self.movements: dict[str, Movement] = {}
        self.sums: dict[str, int] = defaultdict(int)

    # Reserve.

    def reserve(self, command: Reserve, now: int) -> str:
        wanted: dict[tuple[str, str | None], int] = defaultdict(int)
        candidates: dict[tuple[str, str | None], tuple[str, ...]] = {}
        for line in command.lines:
            wanted[line.sku, line.location] += line.quantity
            candidates.setdefault((line.sku, line.location), line.candidates)
        asked = (command.order_id, command.customer_id, dict(wanted))
        kept = self.reservations.get(command.reservation_id)
        if kept:
            return self._repeated(kept, now) if kept.asked == asked else "reservation_mismatch"
        if any(not self._locations(sku) for sku, _ in wanted):
            return "unknown_sku"
        takes = self._source(wanted, candidates)
        if takes is None:
            self.expire(now)  # short: what is due comes back first
            takes = self._source(wanted, candidates)
        if takes is None:
            return "insufficient_stock"
        self.seq += 1
        for at, quantity in takes.items():
            self._change(at, held=quantity)
        deadline = -(-(now + command.ttl_ms) // 100) * 100
        self.reservations[command.reservation_id] = Held(asked, now, deadline, takes, dict(takes))
        self.entries.append((deadline, self.seq, command.reservation_id))
        return "reserved"

    @staticmethod
    def _repeated(kept: Held, now: int) -> str:
        """A success only while every unit of it is held or confirmed."""
        if kept.released:
            return "already_released"
        expired = kept.status(now) == "expired"
        return "reservation_expired" if expired else "already_reserved"

    def _locations(self, sku: str) -> list[str]:
        return [location for known, location in self.stocks if known == sku]

    def _source(
        self,
        wanted: dict[tuple[str, str | None], int],
        candidates: dict[tuple[str, str | None], tuple[str, ...]],
    ) -> dict[At, int] | None:
        """Lines with location first; the others: one location if any can, else split; or None."""
        takes: dict[At, int] = defaultdict(int)

        def free(sku: str, location: str) -> int:
            stock = self.stocks.get((sku, location))
            return stock.available - takes.get((sku, location), 0) if stock else 0

        for (sku, location), quantity in wanted.items():
            if location is not None:
                if free(sku, location) < quantity:
                    return None
                takes[sku, location] += quantity
        for (sku, location), quantity in wanted.items():
            if location is not None:
                continue
            known = self._locations(sku)
            preferred = [c for c in dict.fromkeys(candidates[sku, None]) if c in known]
            others = [at for at in known if at not in preferred]
            order = preferred + sorted(others, key=lambda at: (-free(sku, at), at))
            whole = [at for at in order if free(sku, at) >= quantity]
            if whole:
                takes[sku, whole[0]] += quantity
                continue
            for at in order:
                part = min(max(free(sku, at), 0), quantity)
                if part:
                    takes[sku, at] += part
                    quantity -= part
            if quantity:
                return None
        return dict(takes)

    # Confirm, release, extend, expire.

    def settle(self, command: Confirm | Release, now: int) -> str:
        success = "confirmed" if isinstance(command, Confirm) else "released"
        kept = self.reservations.get(command.reservation_id)
        content = self._content(command.lines)
        if kept and command.lines and command.request_id in kept.parts:
            same = kept.parts[command.request_id] == (success, content)
            return success if same else "request_mismatch"
        refusal = self._ended(kept, now)
        if refusal or kept is None:
            return refusal or "unknown_reservation"
        part = dict(kept.left)
        if command.lines:
            part = defaultdict(int)
            for sku, location, quantity in content:
                places = [at for at in kept.lines if at[0] == sku and location in (None, at[1])]
                if len(places) > 1:
                    return "invalid_request"
                if not places or part[places[0]] + quantity > kept.left[places[0]]:
                    return "exceeds_reservation"
                part[places[0]] += quantity
            kept.parts[command.request_id or ""] = (success, content)
        self._take(kept, part, success)
        return success

    @staticmethod
    def _content(lines: tuple[Line, ...]) -> list[tuple[str, str | None, int]]:
        sums: dict[tuple[str, str | None], int] = defaultdict(int)
        for line in lines:
            sums[line.sku, line.location] += line.quantity
        return sorted(((*at, n) for at, n in sums.items()), key=lambda x: (x[0], x[1] or ""))

    @staticmethod
    def _ended(kept: Held | None, now: int) -> str | None:
        if kept is None:
            return "unknown_reservation"
        status = kept.status(now)
        if status == "expired":
            return "reservation_expired"
        return None if status == "held" else f"already_{status}"

    def _take(self, kept: Held, part: dict[At, int], ended: str) -> None:
        self.seq += 1
        for at, quantity in part.items():
            if quantity:
                kept.left[at] -= quantity
                leaves = quantity if ended == "confirmed" else 0
                self._change(at, held=-quantity, on_hand=-leaves)
                self.sums[ended] += quantity
                kept.released += quantity if ended == "released" else 0
        if not any(kept.left.values()):
            kept.state = ended

    def extend(self, command: Extend, now: int) -> str:
        kept = self.reservations.get(command.reservation_id)
        refusal = self._ended(kept, now)
        if refusal or kept is None:
            return refusal or "unknown_reservation"
        deadline = -(-(now + command.ttl_ms) // 100) * 100
        if deadline <= kept.deadline:
            return "extended"
        if now + command.ttl_ms > kept.created + self.lifetime_max_ms:
            return "lifetime_exceeded"
        self.seq += 1
        kept.deadline = deadline
        self.entries.append((deadline, self.seq, command.reservation_id))
        return "extended"

    def expire(self, now: int) -> int:
        """Entries in the order of their deadlines; each reservation is looked at itself."""
        count = 0
        for _, _, reservation_id in sorted(e for e in self.entries if e[0] <= now):
            kept = self.reservations[reservation_id]
            if kept.state == "held" and kept.deadline <= now:
                self._take(kept, dict(kept.left), "expired")
                count += 1
        self.entries = [entry for entry in self.entries if entry[0] > now]
        return count

    # Movements.

    def move(self, command: Movement) -> str:
        known = self.movements.get(command.movement_id)
        if known is not None:
            return "already_applied" if known == command else "request_mismatch"
        at, kind, n = (command.sku, command.location), command.type, command.quantity
        if kind not in CREATES and not self._locations(command.sku):
            return "unknown_sku"
        stock = self.stocks.get(at, Stock())
        if command.expected_on_hand not in (None, stock.on_hand):
            return "stale_expectation"
        on_hand, quarantined = {
            "receive": (n, 0),
            "return": (n, 0 if command.restock else n),
            "damage": (-n, 0),
            "transfer": (-n, 0),
            "count": (n - stock.on_hand, 0),
            "inspect_pass": (0, -n),
            "inspect_fail": (-n, -n),
        }[kind]
        checked, left = stock.quarantined + quarantined, stock.on_hand + on_hand
        if kind not in ("receive", "return") and (checked < 0 or left < stock.held + checked):
            return "would_break_holds"
        self.movements[command.movement_id] = command
        self.seq += 1
        self._change(at, on_hand=on_hand, quarantined=quarantined)
        if kind == "transfer":
            self._change((command.sku, command.to_location or ""), on_hand=n)
        else:
            self.sums["moved"] += on_hand
        return "applied"

    def _change(self, at: At, *, on_hand: int = 0, held: int = 0, quarantined: int = 0) -> None:
        stock = self.stocks.setdefault(at, Stock())
        stock.on_hand += on_hand
        stock.held += held
        stock.quarantined += quarantined
        stock.seq = self.seq
