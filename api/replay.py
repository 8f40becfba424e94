"""Plays a plan of orders through the HTTP API of a running service, and counts what it answers.

Order is kept per sku: a unit (an invoice, or a movement) is sent only when every earlier unit that
names one of its skus has been answered, or goes before it in the same request and both are invoices. What
got no answer is sent again under the same ids.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence

import httpx
import msgspec
import orjson

from api.orders import Kind, Movement, Plan, Sale
from api.replay_summary import Changed, Summary, percentile
from engine.addresses import service_fault, service_of
from engine.errors import HoldfastError
from engine.statuses import RETRYABLE

OPERATIONS_MAX = 2_000
BODY_BYTES_MAX = 2 * 1024 * 1024
REQUESTS_IN_FLIGHT = 4
PATIENCE_S = 60.0
DETAILS_KEPT = 5

_RETRY = frozenset({*RETRYABLE, "backlog_full"})
#: What a movement is to the service, and the summary's fields for how many and their units.
_KINDS = {
    Kind.OPENING: ("receive", "openings", "units_opening"),
    Kind.FOUND: ("receive", "found", "units_found"),
    Kind.RETURN: ("return", "returns", "units_returned"),
    Kind.DAMAGE: ("damage", "write_offs", "units_written_off"),
}


class ReplayError(HoldfastError):
    """The replay can't go on."""


class Schedule:
    """Which units may be sent: those that share no sku with an earlier one not yet answered.

    ``chained`` units (sales) may also follow others of their kind within one request, since the service
    decides the reserves of a batch in the order given.
    """

    def __init__(self, skus: Sequence[Collection[str]], chained: Sequence[bool]) -> None:
        self.chained = chained
        self.waits_for = [0] * len(skus)
        self.frees: list[list[int]] = [[] for _ in skus]
        self.ready: list[int] = []
        self.taken: set[int] = set()
        last: dict[str, int] = {}
        for unit, names in enumerate(skus):
            before = {last[sku] for sku in names if sku in last}
            for earlier in before:
                self.frees[earlier].append(unit)
            self.waits_for[unit] = len(before)
            if not before:
                self.ready.append(unit)
            last.update(dict.fromkeys(names, unit))

    def answered(self, unit: int) -> None:
        for later in self.frees[unit]:
            self.waits_for[later] -= 1
            if not self.waits_for[later] and later not in self.taken:
                heapq.heappush(self.ready, later)


class Request:
    """Units for one request, in the file's order."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._earlier: Counter[int] = Counter()  # of what a unit waits for, so many are in here
        self._following: list[int] = []

    def _heap(self) -> list[int]:
        ready, following = self._schedule.ready, self._following
        return following if following and (not ready or following[0] < ready[0]) else ready

    def first(self) -> int | None:
        """The unit that may be sent next, if there is one."""
        heap = self._heap()
        return heap[0] if heap else None

    def take(self) -> int:
        """Take that unit."""
        schedule = self._schedule
        unit = heapq.heappop(self._heap())
        schedule.taken.add(unit)
        for later in schedule.frees[unit] if schedule.chained[unit] else ():
            self._earlier[later] += 1
            if schedule.chained[later] and self._earlier[later] == schedule.waits_for[later]:
                heapq.heappush(self._following, later)
        return unit


class _Result(msgspec.Struct):
    """What a replay reads of one result; the reservation itself is passed over."""

    code: str
    detail: str = ""


class _Results(msgspec.Struct):
    results: list[_Result]


class _Batch(msgspec.Struct):
    """Units on their way in one request, with their operations encoded."""

    bodies: dict[int, bytes]
    sent_s: float


class _Replay:
    """One run: a few senders take what is ready, send it as one batch, and count the answers."""

    def __init__(self, plan: Plan, client: httpx.AsyncClient, url: str, concurrency: int) -> None:
        self.units: list[Sale | Movement] = [*plan.openings, *plan.units]
        self.schedule = Schedule(
            [u.lines if isinstance(u, Sale) else (u.sku,) for u in self.units],
            [isinstance(u, Sale) for u in self.units],
        )
        # Without opening stock nothing has named the sku yet, so this is the refusal to expect.
        self.refusals = {"insufficient_stock"} | ({"unknown_sku"} if not plan.ratio else set())
        self.client = client
        self.url = url.rstrip("/") + "/v1/batch"
        self.place = service_of(url)
        self.location = plan.location
        self.concurrency = concurrency
        self.left = len(self.units)
        self.in_flight = 0
        self.changed = asyncio.Event()
        self.progress_s = time.monotonic()
        self.decode = msgspec.json.Decoder(_Results).decode
        self.counts: Counter[str] = Counter()
        self.unexpected: Counter[str] = Counter()
        self.details: list[str] = []
        self.changed_invoices: list[Changed] = []
        self.latencies_ms: list[float] = []

    async def send(self, on_progress: Callable[[int], None], patience_s: float) -> None:
        """One of the senders: batch after batch until every unit is answered."""
        while self.left:
            batch = self._take()
            if not batch.bodies:
                self.changed.clear()
                await self.changed.wait()
                continue
            self.in_flight += len(batch.bodies)
            pause_s = 0.05
            while True:
                before, trouble = len(batch.bodies), await self._post(batch)
                if answered := before - len(batch.bodies):
                    on_progress(answered)
                if not batch.bodies:
                    break
                if time.monotonic() - self.progress_s > patience_s:
                    raise ReplayError(f"gave up after {patience_s:g} s without progress: {trouble}")
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, 2.0)

    def _take(self) -> _Batch:
        """Units to send together, within the limits of a request and of the run."""
        batch = _Batch({}, time.monotonic())
        operations = size = 0
        request = Request(self.schedule)
        while self.in_flight + len(batch.bodies) < self.concurrency:
            if (unit := request.first()) is None:
                break
            body = self._encode(self.units[unit])
            operations += 2
            size += len(body) + 1
            if batch.bodies and (operations > OPERATIONS_MAX or size > BODY_BYTES_MAX):
                break
            batch.bodies[request.take()] = body
        return batch

    def _encode(self, unit: Sale | Movement) -> bytes:
        """The operations of a unit, with commas between but no brackets around them."""
        where = self.location
        if isinstance(unit, Movement):
            movement = {
                "op": "movement",
                "movement_id": unit.movement_id,
                "type": _KINDS[unit.kind][0],
                "sku": unit.sku,
                "location": where,
                "quantity": unit.quantity,
                "reference": unit.reference,
            }
            restock = {"disposition": "restock"} if unit.kind is Kind.RETURN else {}
            return orjson.dumps(movement | restock)
        lines = [{"sku": s, "quantity": q, "location": where} for s, q in unit.lines.items()]
        name = {"reservation_id": unit.reservation_id}
        customer = {"customer_id": unit.customer_id} if unit.customer_id else {}
        reserve = {"op": "reserve", **name, "order_id": unit.order_id, **customer, "lines": lines}
        return orjson.dumps([reserve, {"op": "confirm", **name}])[1:-1]

    async def _post(self, batch: _Batch) -> str:
        """Send the batch and take out what is answered; why the rest has to be sent again."""
        body = b'{"operations":[' + b",".join(batch.bodies.values()) + b"]}"
        try:
            response = await self.client.post(self.url, content=body)
        except httpx.RequestError as error:
            return f"{self.place}: {error or type(error).__name__}"
        if response.status_code != 200:
            told = f"{self.place} answered {response.status_code}: {_detail(response)}"
            if response.status_code in (429, 503):
                return told
            raise ReplayError(told)
        try:
            results = self.decode(response.content).results
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ReplayError(f"{self.place} answered no batch results: {error}") from error
        counts = [2 if isinstance(self.units[unit], Sale) else 1 for unit in batch.bodies]
        if len(results) != sum(counts):
            raise ReplayError(f"{self.place} answered {len(results)} results to {sum(counts)}")
        answers = iter(results)
        return self._settle(batch, [[next(answers) for _ in range(n)] for n in counts])

    def _settle(self, batch: _Batch, answers: list[list[_Result]]) -> str:
        """Count what is decided and free what waited for it; why the rest isn't decided."""
        trouble = ""
        now_s = time.monotonic()
        for unit, own in zip(list(batch.bodies), answers, strict=True):
            undecided = next((result for result in own if result.code in _RETRY), None)
            if undecided:
                trouble = f"{self.place}: {undecided.code} {undecided.detail}"
                continue
            self._count(self.units[unit], own)
            self.latencies_ms.append((now_s - batch.sent_s) * 1000)
            self.schedule.answered(unit)
            del batch.bodies[unit]
            self.left -= 1
            self.in_flight -= 1
            self.progress_s = now_s
        self.changed.set()
        return trouble

    def _count(self, unit: Sale | Movement, results: list[_Result]) -> None:
        counts = self.counts
        first, last = results[0], results[-1]
        if isinstance(unit, Movement):
            _, movements, units = _KINDS[unit.kind]
            if first.code == "would_break_holds" and unit.kind is Kind.DAMAGE:
                # Below ratio 1 the sales may have taken what the file writes off later.
                movements, units = "write_offs_refused", "units_write_off_refused"
            elif first.code == "already_applied" or (
                # A place is opened once, with whatever it was opened then.
                first.code == "request_mismatch" and unit.kind is Kind.OPENING
            ):
                counts["movements_replayed"] += 1
                return
            elif first.code != "applied":
                self._surprise(unit.movement_id, first)
                return
            counts[movements] += 1
            counts[units] += unit.quantity
            return
        quantity = sum(unit.lines.values())
        if first.code == "reserved" or last.code == "confirmed":
            counts["units_reserved"] += quantity
        if first.code in self.refusals and last.code == "unknown_reservation":
            counts["invoices_refused"] += 1
            counts["units_refused"] += quantity
        elif first.code == "reservation_mismatch":
            self.changed_invoices.append(Changed(unit.order_id, first.detail))
        elif first.code not in ("reserved", "already_reserved"):
            self._surprise(unit.reservation_id, first)
        elif last.code == "confirmed":
            counts["invoices_confirmed"] += 1
            counts["units_confirmed"] += quantity
        elif last.code == "already_confirmed":
            counts["invoices_replayed"] += 1
        else:
            self._surprise(unit.reservation_id, last)

    def _surprise(self, name: str, result: _Result) -> None:
        self.unexpected[result.code] += 1
        if len(self.details) < DETAILS_KEPT:
            self.details.append(f"{name}: {result.code} {result.detail}".rstrip())


async def run(
    plan: Plan,
    *,
    url: str,
    concurrency: int,
    on_progress: Callable[[int], None],
    patience_s: float = PATIENCE_S,
) -> Summary:
    """Play the whole plan; ``on_progress`` is told how many more units have been answered.

    At most ``concurrency`` units are in flight, and one at least. Raises ReplayError for a url that
    is none, for an answer no running service gives, and after ``patience_s`` without any answer.
    """
    check_url(url)
    headers = {"content-type": "application/json"}
    began_s = time.monotonic()
    # A proxy of the environment has no business between us and a service on this machine.
    async with httpx.AsyncClient(timeout=30, trust_env=False, headers=headers) as client:
        replay = _Replay(plan, client, url, max(1, concurrency))
        try:
            async with asyncio.TaskGroup() as senders:
                for _ in range(REQUESTS_IN_FLIGHT):
                    senders.create_task(replay.send(on_progress, patience_s))
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
    seconds = time.monotonic() - began_s
    invoices = sum(isinstance(unit, Sale) for unit in plan.units)
    latencies = sorted(replay.latencies_ms)
    return msgspec.convert(
        {
            **replay.counts,
            "lines": plan.lines,
            "invoices": invoices,
            "skipped": plan.skipped,
            "broken": plan.broken,
            "left_out": plan.left_out,
            "format": plan.format,
            "changed": tuple(replay.changed_invoices),
            "unexpected": dict(replay.unexpected),
            "unexpected_details": replay.details,
            "seconds": round(seconds, 3),
            "invoices_per_second": round(invoices / seconds, 1),
            "p50_ms": percentile(latencies, 50),
            "p95_ms": percentile(latencies, 95),
            "p99_ms": percentile(latencies, 99),
        },
        Summary,
    )


def check_url(url: str) -> None:
    if fault := service_fault(url):
        raise ReplayError(f"the service's URL is {service_of(url)}: {fault}")


def _detail(response: httpx.Response) -> str:
    """What a refused request says of itself, on one line."""
    try:
        detail = orjson.loads(response.content)["detail"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        detail = response.reason_phrase
    return " ".join(str(detail).split())
