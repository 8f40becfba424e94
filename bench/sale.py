"""A sale in Locust: receives its stock at the start, gathers what clients were told, audits at the end."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import gevent
import httpx
import msgspec
from gevent.lock import Semaphore
from locust.env import Environment
from locust.exception import StopTest
from locust.runners import STATE_MISSING, MasterRunner, WorkerRunner

from api.address import is_loopback
from bench.oversell import Place, Service, Told, Trail, Unauditable, audit

_PREFIX = "HOLDFAST_LOCUST_"
_WORKERS_TELL_WITHIN_S = 60
_FINDINGS_SHOWN_MAX = 20
_RANGES = {
    "users": (1, 100_000),
    "seconds": (1, 86_400),
    "units": (1, 10**9),
    "skus": (1, 1_000),
    "sku_units": (1, 10**9),
    "hot": (0, 100),
    "lost": (0, 100),
    "abandon_seconds": (1, 86_400),
    "any_host": (0, 1),
}


class Sizes(msgspec.Struct, frozen=True):
    """What the environment variables say; bench/locustfile.py describes them. ``users`` 0: by kind."""

    users: int = 0
    seconds: int = 60
    units: int = 1_000
    skus: int = 50
    sku_units: int = 500
    hot: int = 70
    pay: int = 60
    abandon: int = 20
    fail: int = 10
    part: int = 5
    extend: int = 5
    lost: int = 5
    abandon_seconds: int = 10
    wait_ms: int = 500
    audit_seconds: int = 600
    any_host: int = 0

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Sizes:
        """ValueError with what is wrong: an unknown name, a value that is no fitting number."""
        known = {_PREFIX + name.upper(): name for name in cls.__struct_fields__}
        values: dict[str, int] = {}
        for variable, text in environ.items():
            if not variable.startswith(_PREFIX):
                continue
            if variable not in known:
                raise ValueError(f"{variable} is not a setting; there are: {', '.join(known)}")
            name = known[variable]
            least, most = _RANGES.get(name, (0, 10**9))
            if not (text.isascii() and text.isdecimal() and least <= int(text) <= most):
                raise ValueError(f"{variable}={text!r}: a whole number from {least} to {most}")
            values[name] = int(text)
        sizes = cls(**values)
        if not any((sizes.pay, sizes.abandon, sizes.fail, sizes.part, sizes.extend)):
            raise ValueError(f"{_PREFIX}PAY, ABANDON, FAIL, PART, EXTEND: one must be above 0")
        return sizes


class Sale:
    """One process's part in the sales of a Locust session, one run after the other.

    The runner without a master, or the master, receives the stock and audits; workers sell and tell the
    master what they were told. ``told`` is of this process and of the present run.
    """

    locations = ("MAIN", "EAST")

    def __init__(self, environment: Environment, sizes: Sizes, default_host: str) -> None:
        self._environment = environment
        self._options: Any = environment.parsed_options
        self._sizes = sizes
        self._default_host = default_host
        self._workers: set[str] = set()
        self._messages: dict[str, dict[str, Any]] = {}
        # Asked by the master and ended by Ctrl-C at once: users can be stopped one time only.
        self._telling = Semaphore()
        self._received: dict[Place, int] = {}
        self._host = default_host
        self.told = Told()
        self.run = ""
        # A line for each request of ours would drown the report.
        logging.getLogger("httpx").setLevel(logging.WARNING)
        runner = environment.runner
        hooks = environment.events
        hooks.test_start.add_listener(self._begin)
        if isinstance(runner, WorkerRunner):
            runner.register_message("tell", self._tell)
            hooks.quitting.add_listener(self._tell)
            return
        if isinstance(runner, MasterRunner):
            runner.register_message("told", self._take)
            hooks.worker_connect.add_listener(lambda client_id, **_: self._workers.add(client_id))
        hooks.test_stop.add_listener(self._end)

    @property
    def sizes(self) -> Sizes:
        return self._sizes

    @property
    def batch(self) -> int:
        """Operations a request; 0 for single shoppers."""
        return int(self._options.batch)

    @property
    def users(self) -> int:
        return self._sizes.users or (8 if self.batch else 200)

    @property
    def hot(self) -> str:
        return f"{self.run}-hot"

    @property
    def others(self) -> list[str]:
        return [f"{self.run}-{number}" for number in range(self._sizes.skus)]

    # The start.

    def _begin(self, **_: Any) -> None:
        """Receive the stock, or (a worker) take over the master's run."""
        options = self._options
        self.told = Told()
        if isinstance(self._environment.runner, WorkerRunner):
            self.run, sizes = options.holdfast_run, options.holdfast_sizes
            self._sizes = Sizes(**sizes)
            return
        self._received = {}
        self._messages.clear()
        self.run = f"sale-{secrets.token_hex(4)}"
        self._host = host = self._environment.host or self._default_host
        try:
            self._check(host)
            self._received = self._receive()
        except httpx.HTTPError as error:
            self._exit_with(2)
            raise StopTest(f"{host}: {error}; `make run` starts a service to try") from None
        except ValueError as error:
            self._exit_with(2)
            raise StopTest(f"{host}: {error}") from None
        # Workers get the options with each order to spawn, before they begin.
        options.holdfast_run = self.run
        options.holdfast_sizes = msgspec.structs.asdict(self._sizes)
        values = " ".join(f"{name}={value}" for name, value in options.holdfast_sizes.items())
        print(f"sale {self.run} on {host}: {values} batch={self.batch}", flush=True)
        if self._environment.shape_class is not None:
            self._environment.shape_class.reset_time()

    def _check(self, host: str) -> None:
        if not 0 <= self.batch <= 2_000:
            raise ValueError(
                f"--batch {self.batch}: 1 to 2000 operations a request, 0 for shoppers"
            )
        if not self._sizes.any_host and not is_loopback(urlsplit(host).hostname or ""):
            raise ValueError(
                f"not this machine. A flash sale takes a service's whole capacity: set {_PREFIX}ANY_HOST=1"
                " if that is what you want"
            )

    def _receive(self) -> dict[Place, int]:
        received = {
            (sku, at): self._sizes.sku_units for sku in self.others for at in self.locations
        }
        received[self.hot, "MAIN"] = self._sizes.units
        with httpx.Client(base_url=self._host, trust_env=False, timeout=30) as http:
            for number, ((sku, location), quantity) in enumerate(received.items()):
                movement = {
                    "movement_id": f"{self.run}-in-{number}",
                    "type": "receive",
                    "sku": sku,
                    "location": location,
                    "quantity": quantity,
                }
                answer = http.post("/v1/movements", json=movement)
                if answer.status_code != 201:
                    raise ValueError(f"could not receive {sku}: {answer.status_code} {answer.text}")
        return received

    # What workers were told.

    def _tell(self, **_: Any) -> None:
        """A worker's part: no more sales, then all that its clients were told, to the master."""
        runner = self._environment.runner
        if runner is None or not self.run:
            return
        with self._telling:
            runner.stop()
            runner.send_message("told", {"run": self.run, **self.told.message()})

    def _take(self, msg: Any, **_: Any) -> None:
        if msg.data["run"] == self.run:
            self._messages[msg.node_id] = msg.data

    def _gather(self) -> list[str]:
        """All that clients were told, from the workers too; findings about those that are gone."""
        runner = self._environment.runner
        if not isinstance(runner, MasterRunner):
            return []
        runner.send_message("tell")
        there = {client.id for client in runner.clients.all if client.state != STATE_MISSING}
        deadline = time.monotonic() + _WORKERS_TELL_WITHIN_S
        while not there <= self._messages.keys() and time.monotonic() < deadline:
            gevent.sleep(0.05)
        self.told = Told()
        for message in self._messages.values():
            self.told.merge(message)
        return [
            f"worker {client_id} is gone: what its clients were told is not known"
            for client_id in sorted(self._workers - self._messages.keys())
        ]

    # The end.

    def _end(self, **_: Any) -> None:
        if not self._received:
            return
        received, self._received = self._received, {}
        print(f"sale {self.run}: waiting for the ledger, then auditing", flush=True)
        start_s = time.monotonic()
        gone = self._gather()
        service = Service(self._host)
        try:
            trail, findings = audit(service, self.told, received, self._sizes.audit_seconds)
        except Unauditable as error:
            self._exit_with(2)
            print(f"sale {self.run} COULD NOT BE AUDITED: {error}", flush=True)
            return
        finally:
            service.close()
        findings = gone + findings
        print(self._report(trail, findings, time.monotonic() - start_s), flush=True)
        if findings:
            self._exit_with(1)

    def _exit_with(self, code: int) -> None:
        self._environment.process_exit_code = max(self._environment.process_exit_code or 0, code)

    def _report(self, trail: Trail, findings: list[str], took_s: float) -> str:
        columns = ("received", "on_hand", "held", "confirmed")
        rows = {"hot sku": [0] * 4, f"{self._sizes.skus} other skus": [0] * 4}
        hot, others = rows.values()
        for (sku, _), position in trail.places.items():
            row = hot if sku == self.hot else others
            for i, column in enumerate(columns):
                row[i] += getattr(position, column)
        told = self.told
        return "\n".join(
            [
                f"oversell audit of {self.run}: {len(told.reservations):,} acknowledged reservations, "
                f"{trail.count:,} movements, {took_s:.1f} s",
                f"{'units':16}" + "".join(f"{column:>12}" for column in columns),
                *(f"{name:16}" + "".join(f"{n:12,}" for n in row) for name, row in rows.items()),
                *(f"{count:12,} {outcome}" for outcome, count in sorted(told.tally.items())),
                *([f"{len(told.open_ids):,} without an answer"] if told.open_ids else []),
                *(f"  {finding}" for finding in findings[:_FINDINGS_SHOWN_MAX]),
                *(["  ..."] if len(findings) > _FINDINGS_SHOWN_MAX else []),
                f"OVERSOLD OR LOST: {len(findings):,} findings"
                if findings
                else "CLEAN: nothing oversold, nothing lost",
            ]
        )
