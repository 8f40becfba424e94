"""The oversell audit of a load test: what clients were told, what the ledger has, what Redis has.

All over HTTP. A finding is a sentence; no finding means that nothing was oversold and nothing lost.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import httpx
import msgspec

Place = tuple[str, str]
#: sku, location, quantity, confirmed, released: a line as a client was told last.
ToldLine = tuple[str, str, int, int, int]

_SKUS_A_REQUEST = 100
_MOVEMENTS_A_PAGE = 1_000
LIVE_MAX = 1_000


class Told:
    """What the service acknowledged to the clients of one process, in one run.

    ``reservations``: the lines of each, as last told. ``open_ids``: reservations that were asked for
    something without an answer yet, so their outcome is unknown. ``tally``: outcomes that are counted
    here because they are no requests of their own.
    """

    def __init__(self) -> None:
        self.reservations: dict[str, tuple[ToldLine, ...]] = {}
        self.open_ids: set[str] = set()
        self.tally: Counter[str] = Counter()
        # Most reservations of a sale are alike: each set of lines is kept once.
        self._alike: dict[tuple[ToldLine, ...], tuple[ToldLine, ...]] = {}

    def asks(self, reservation_id: str) -> None:
        self.open_ids.add(reservation_id)

    def answered(self, reservation_id: str, reservation: dict[str, Any] | None = None) -> None:
        """``reservation`` as HTTP tells it, None where the answer was a refusal."""
        self.open_ids.discard(reservation_id)
        if reservation is not None:
            names = ("sku", "location", "quantity", "confirmed", "released")
            lines = tuple(sorted(tuple(line[n] for n in names) for line in reservation["lines"]))
            self.reservations[reservation_id] = self._alike.setdefault(lines, lines)

    def message(self) -> dict[str, Any]:
        """All of it, for another process; see ``merge``."""
        return {
            "reservations": self.reservations,
            "open_ids": list(self.open_ids),
            "tally": dict(self.tally),
        }

    def merge(self, message: dict[str, Any]) -> None:
        """Take in another process's ``message``."""
        for reservation_id, told in message["reservations"].items():
            lines = tuple(tuple(line) for line in told)
            self.reservations[reservation_id] = self._alike.setdefault(lines, lines)
        self.open_ids.update(message["open_ids"])
        self.tally.update(message["tally"])


class Position(msgspec.Struct):
    """Units at a place, or what the ledger did to them."""

    received: int = 0
    on_hand: int = 0
    held: int = 0
    quarantined: int = 0
    confirmed: int = 0


class Held(msgspec.Struct):
    """A line of a reservation in the ledger, in units."""

    reserved: int = 0
    confirmed: int = 0
    released: int = 0
    left: int = 0


class Moment(NamedTuple):
    """Units of a sku after an event, at the time of Redis in ms since 1970."""

    ms: int
    available: int
    held: int
    on_hand: int


class Trail:
    """The movements of a run's skus, added up in their order. ``timeline``: the units of the ``watched``
    one, which must be at one location, after each of its events."""

    def __init__(self, watched: str = "") -> None:
        self.timeline: list[Moment] = []
        self._watched = watched
        self.places: dict[Place, Position] = defaultdict(Position)
        self.reservations: dict[str, dict[Place, Held]] = defaultdict(lambda: defaultdict(Held))
        self.reserve_seqs: dict[str, set[int]] = defaultdict(set)
        self.findings: list[str] = []
        self.count = 0
        self._oversold: set[Place] = set()

    def add(self, movements: Iterable[dict[str, Any]]) -> None:
        """All movements of one sku, oldest first."""
        before: tuple[int, Place] | None = None
        for movement in movements:
            self.count += 1
            place = (movement["sku"], movement["location"])
            # An event is judged once all its lines are in.
            if before is not None and before != (movement["seq"], place):
                self._judge(before)
            before = (movement["seq"], place)
            self._add(movement, place)
            if place[0] == self._watched:
                self._watch(movement, self.places[place])
        if before is not None:
            self._judge(before)

    def _watch(self, movement: dict[str, Any], units: Position) -> None:
        ms = round(datetime.fromisoformat(movement["occurred_at"]).timestamp() * 1000)
        available = units.on_hand - units.held - units.quarantined
        self.timeline.append(Moment(ms, available, units.held, units.on_hand))

    def _add(self, movement: dict[str, Any], place: Place) -> None:
        kind, units = movement["type"], self.places[place]
        units.on_hand += movement["on_hand_delta"]
        units.held += movement["held_delta"]
        units.quarantined += movement["quarantined_delta"]
        if kind == "receive":
            units.received += movement["on_hand_delta"]
        elif kind == "confirm":
            units.confirmed -= movement["on_hand_delta"]
        reservation_id = movement["reservation_id"]
        if reservation_id is None:
            return
        held = self.reservations[reservation_id][place]
        held.left += movement["held_delta"]
        if kind == "reserve":
            held.reserved += movement["held_delta"]
            self.reserve_seqs[reservation_id].add(movement["seq"])
        elif kind == "confirm":
            held.confirmed -= movement["on_hand_delta"]
        elif kind == "release":
            held.released -= movement["held_delta"]

    def _judge(self, event: tuple[int, Place]) -> None:
        seq, place = event
        units = self.places[place]
        available = units.on_hand - units.held - units.quarantined
        if min(available, units.held, units.on_hand) < 0 and place not in self._oversold:
            self._oversold.add(place)
            self.findings.append(
                f"{_at(place)} oversold at seq {seq}: on_hand {units.on_hand}, "
                f"held {units.held}, available {available}"
            )


def judge(
    trail: Trail,
    stock: dict[Place, Position],
    told: Told,
    received: dict[Place, int],
) -> list[str]:
    """What is wrong; nothing where all agrees.

    ``stock``: what the service offers now, at the moment the trail ends. ``received``: what the run
    put in. Guarantees of an empty list: no place was ever below 0; received = on_hand + confirmed;
    each acknowledged reservation is in the ledger exactly once, with the units and what became of
    them as told; the ledger has none that nobody was told of; stock and ledger have the same numbers.
    """
    return [
        *trail.findings,
        *_judge_places(trail, stock, received),
        *_judge_reservations(trail, told),
    ]


def _judge_places(
    trail: Trail, stock: dict[Place, Position], received: dict[Place, int]
) -> Iterator[str]:
    for place in sorted(received.keys() | trail.places.keys() | stock.keys()):
        units, now = trail.places.get(place, Position()), stock.get(place, Position())
        if units.received != received.get(place, 0):
            yield (
                f"{_at(place)}: the run put {received.get(place, 0)} in, "
                f"the ledger has {units.received} received"
            )
        if units.received != units.on_hand + units.confirmed:
            yield (
                f"{_at(place)}: received {units.received} is not on_hand {units.on_hand} "
                f"+ confirmed {units.confirmed} in the ledger"
            )
        for name in ("on_hand", "held", "quarantined"):
            if getattr(units, name) != getattr(now, name):
                yield (
                    f"{_at(place)}: stock says {name} {getattr(now, name)}, "
                    f"the ledger {getattr(units, name)}"
                )


def _judge_reservations(trail: Trail, told: Told) -> Iterator[str]:
    for reservation_id, lines in told.reservations.items():
        times = len(trail.reserve_seqs.get(reservation_id, ()))
        if times != 1:
            yield (
                f"reservation {reservation_id} was acknowledged and is in the ledger {times} times"
                + (": lost" if times == 0 else ": held twice")
            )
            continue
        ledger = trail.reservations[reservation_id]
        asked = {(sku, location): quantity for sku, location, quantity, _, _ in lines}
        if asked != {place: held.reserved for place, held in ledger.items()}:
            yield f"reservation {reservation_id}: the ledger holds other units than were told"
            continue
        unknown = reservation_id in told.open_ids
        for sku, location, _, confirmed, released in lines:
            held = ledger[sku, location]
            for word, was_told, has in (
                ("confirmed", confirmed, held.confirmed),
                ("released", released, held.released),
            ):
                if has < was_told or (has > was_told and not unknown):
                    yield (
                        f"reservation {reservation_id}, {_at((sku, location))}: "
                        f"told {word} {was_told}, the ledger has {has}"
                    )
            if held.left < 0:
                yield f"reservation {reservation_id}, {_at((sku, location))}: given back twice"
    for reservation_id in trail.reserve_seqs:
        if reservation_id not in told.reservations and reservation_id not in told.open_ids:
            yield f"reservation {reservation_id} is in the ledger and was told to nobody"


def _at(place: Place) -> str:
    return f"{place[0]} at {place[1]}"


class Unauditable(Exception):
    """The audit can't be done; the text says why."""


class Service:
    """What the audit reads of a running service. Unauditable where it can't."""

    def __init__(self, base_url: str) -> None:
        self._http = httpx.Client(base_url=base_url, trust_env=False, timeout=60)

    def close(self) -> None:
        self._http.close()

    def get(
        self,
        path: str,
        parameters: Sequence[tuple[str, str | int]] = (),
        statuses: tuple[int, ...] = (200,),
    ) -> Any:
        try:
            answer = self._http.get(path, params=list(parameters))
        except httpx.HTTPError as error:
            raise Unauditable(f"GET {path}: {error}") from None
        if answer.status_code not in statuses:
            raise Unauditable(f"GET {path}: {answer.status_code} {answer.text[:200]}")
        return msgspec.json.decode(answer.content)

    def stock(self, skus: Sequence[str]) -> dict[Place, Position]:
        found: dict[Place, Position] = {}
        for start in range(0, len(skus), _SKUS_A_REQUEST):
            some = skus[start : start + _SKUS_A_REQUEST]
            for entry in self.get("/v1/stock", [("sku", sku) for sku in some])["stock"]:
                for at in entry["locations"]:
                    found[entry["sku"], at["location"]] = Position(
                        on_hand=at["on_hand"], held=at["held"], quarantined=at["quarantined"]
                    )
        return found

    def movements(self, sku: str) -> Iterator[dict[str, Any]]:
        cursor = ""
        while True:
            parameters: list[tuple[str, str | int]] = [("sku", sku), ("limit", _MOVEMENTS_A_PAGE)]
            page = self.get("/v1/movements", parameters + ([("cursor", cursor)] if cursor else []))
            if not page["movements"]:
                return
            yield from page["movements"]
            cursor = page["next_cursor"]

    def wait_for_ledger(self, deadline_s: float) -> None:
        """Wait until the ledger has all that Redis had decided when this was called."""
        seqs: dict[int, int] = {}
        while True:
            status = self.get("/v1/status")
            if status["redis"] is None:
                raise Unauditable(f"the service can't ask Redis: {status['redis_error']}")
            partitions = status["partitions"]
            seqs = seqs or {entry["partition"]: entry["seq"] for entry in partitions}
            behind = 0
            for entry in partitions:
                ledger = entry["ledger"] or {"seq": 0, "stopped": None}
                if ledger["stopped"]:
                    raise Unauditable(f"the ledger has stopped: {ledger['stopped']}")
                behind += max(0, seqs[entry["partition"]] - ledger["seq"])
            if not behind:
                return
            if time.monotonic() > deadline_s:
                raise Unauditable(f"the ledger is still {behind} events behind")
            time.sleep(0.05)

    def check_live(self, trail: Trail) -> list[str]:
        """Findings about the reservations that the ledger holds units for; of more than LIVE_MAX about
        so many, evenly chosen."""
        live = [
            reservation_id
            for reservation_id, lines in trail.reservations.items()
            if any(held.left for held in lines.values())
        ]
        findings = []
        for reservation_id in live[:: len(live) // LIVE_MAX + 1]:
            answer = self.get(f"/v1/reservations/{reservation_id}", statuses=(200, 404))
            left = {
                (line["sku"], line["location"]): line["quantity"]
                - line["confirmed"]
                - line["released"]
                for line in answer.get("lines", ())
            }
            expected = {
                place: held.left for place, held in trail.reservations[reservation_id].items()
            }
            # One past its deadline is told as expired before the sweeper comes.
            if answer.get("status") not in ("held", "expired") or left != expected:
                findings.append(
                    f"reservation {reservation_id} is held in the ledger, "
                    f"the service says {answer.get('status') or answer.get('code')}"
                )
        return findings


def audit(
    service: Service, told: Told, received: dict[Place, int], within_s: float, watched: str = ""
) -> tuple[Trail, list[str]]:
    """The trail of a run and what is wrong. Unauditable where it can't be done in time.

    Traffic of others may go on; nobody else may touch the run's skus. Units that come back meanwhile,
    because holds expire, make it look again. ``watched``: see Trail.
    """
    deadline_s = time.monotonic() + within_s
    skus = sorted({sku for sku, _ in received})
    while True:
        before = service.stock(skus)
        service.wait_for_ledger(deadline_s)
        trail = Trail(watched)
        for sku in skus:
            trail.add(service.movements(sku))
        stock = service.stock(skus)
        if stock == before:
            return trail, judge(trail, stock, told, received) + service.check_live(trail)
        if time.monotonic() > deadline_s:
            raise Unauditable(
                "the stock of the run's skus still changes; is someone else using them?"
            )
