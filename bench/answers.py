"""What a sale's requests were answered, how long those of the spike took, what the generator used."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from math import inf
from typing import Any

import psutil  # type: ignore[import-untyped]

#: Above that share of its one core a process of Locust is what limits the sale.
CORE_BUSY = 0.9
_REFUSALS = ("sold out", "unknown sku", "too late")
#: What a batch tells of an operation where a request of its own would be answered 503.
_UNAVAILABLE = ("unavailable", "partition_closed", "store_full", "backlog_full")
_SUCCESSES = ("reserved", "already_reserved", "confirmed", "already_confirmed", "released")
_SUCCESSES_TOO = ("already_released", "extended", "applied", "already_applied")


class Answers:
    """Counts of one process, or of several together (``merge``).

    ``outcomes``: requests by ``as meant``, the refusals, ``503 <code>`` and ``error``. ``errors``: the first
    detail of each kind. ``spike``: milliseconds, rounded, and how often, by the request's name. ``cores``:
    the share of a core that each process used in the spike; ``machine``: the share of all cores in use.
    """

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.errors: dict[str, str] = {}
        self.spike: dict[str, Counter[float]] = defaultdict(Counter)
        self.cores: list[float] = []
        self.machine: list[float] = []
        self._process = psutil.Process()
        self._began: tuple[float, float] | None = None
        self._from_s, self._until_s = inf, -inf

    def request(self, name: str, response_ms: float, error: object, began_at_s: float) -> None:
        """One request as Locust tells it; ``name`` as bench/shop.py labels it. One that was begun in the
        spike is of the spike, whenever its answer came: the slowest come after it."""
        base, _, label = name.partition(" (")
        label = label.removesuffix(")")
        if error:
            outcome = "error"
        elif label.startswith("503 ") or label in _REFUSALS:
            outcome = label
        else:
            outcome = "as meant"
        self.outcomes[outcome] += 1
        if self._from_s <= began_at_s <= self._until_s:
            self.spike[base][round(response_ms, 1 if response_ms < 100 else 0)] += 1

    def operation(self, code: str) -> None:
        """One operation of a batch."""
        if code in _UNAVAILABLE:
            self.outcomes[f"503 {code}"] += 1
        elif code not in (*_SUCCESSES, *_SUCCESSES_TOO):
            self.outcomes[code] += 1

    def failed(self, kind: str, detail: str) -> None:
        self.errors.setdefault(kind, detail)

    def begin_spike(self) -> None:
        psutil.cpu_percent()  # from here on
        self._began = time.monotonic(), self._used_s()
        self._from_s, self._until_s = time.time(), inf

    def end_spike(self) -> None:
        if self._began is None:
            return
        began_s, used_s = self._began
        self._began = None
        self._until_s = time.time()
        self.cores.append((self._used_s() - used_s) / max(0.001, time.monotonic() - began_s))
        self.machine.append(psutil.cpu_percent() / 100)

    def _used_s(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def message(self) -> dict[str, Any]:
        """All of it, for another process; see ``merge``."""
        self.end_spike()
        return {
            "outcomes": dict(self.outcomes),
            "errors": self.errors,
            "spike": {name: list(times.items()) for name, times in self.spike.items()},
            "cores": self.cores,
            "machine": self.machine,
        }

    def merge(self, message: Mapping[str, Any]) -> None:
        """Take in another process's ``message``."""
        self.outcomes.update(message["outcomes"])
        self.errors = message["errors"] | self.errors
        for name, times in message["spike"].items():
            for response_ms, count in times:
                self.spike[name][response_ms] += count
        self.cores += message["cores"]
        self.machine += message["machine"]

    @property
    def unavailable(self) -> int:
        """Requests, and operations of batches, that were answered 503."""
        return sum(n for outcome, n in self.outcomes.items() if outcome.startswith("503 "))

    @property
    def refusals(self) -> dict[str, int]:
        """By kind."""
        return {
            outcome: count
            for outcome, count in sorted(self.outcomes.items())
            if outcome not in ("as meant", "error") and not outcome.startswith("503 ")
        }

    def spike_of_all(self) -> Counter[float]:
        """Every request of the spike."""
        return sum(self.spike.values(), Counter())


def percentile(times: Counter[float], percent: int) -> float:
    """The value that ``percent`` of all don't exceed; 0 of none."""
    wanted, seen = -(-times.total() * percent // 100), 0
    for value in sorted(times):
        seen += times[value]
        if seen >= wanted:
            return value
    return 0.0
