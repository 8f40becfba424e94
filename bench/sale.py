"""A sale in Locust: receives its stock at the start, gathers what clients were told, audits at the end."""

from __future__ import annotations

import logging
import secrets
import time
from pathlib import Path
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
from bench.answers import Answers
from bench.locust_log import OncePerUser
from bench.oversell import Place, Service, Told, Unauditable, audit
from bench.sale_page import Page
from bench.sizes import PREFIX, Sizes
from bench.verdict import Ended, missed, text, units_left_csv
from engine.addresses import service_fault, service_of

_WORKERS_TELL_WITHIN_S = 60
SPIKE = 1


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
        self.answers = Answers()
        self.page = Page()
        self.run = ""
        self.has_begun = False
        self._phase = 0
        self._buyers_left = self._came = 0
        self._through: set[str] = set()
        self._rushing: set[str] = set()
        # A line for each request of ours would drown the report.
        logging.getLogger("httpx").setLevel(logging.WARNING)
        logging.getLogger("locust.runners").addFilter(OncePerUser())
        runner = environment.runner
        hooks = environment.events
        hooks.test_start.add_listener(self._begin)
        hooks.request.add_listener(
            lambda name, response_time, exception, start_time, **_: self.answers.request(
                name, response_time, exception, start_time
            )
        )
        if isinstance(runner, WorkerRunner):
            runner.register_message("tell", self._tell)
            runner.register_message("phase", self._take_phase)
            hooks.quitting.add_listener(self._tell)
            return
        if isinstance(runner, MasterRunner):
            runner.register_message("told", self._take)
            runner.register_message("through", lambda msg, **_: self._through.add(msg.node_id))
            hooks.worker_connect.add_listener(lambda client_id, **_: self._workers.add(client_id))
        hooks.test_stop.add_listener(self._end)
        if environment.web_ui is not None:
            self.page.put_on(environment.web_ui)

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
        self.told, self.answers = Told(), Answers()
        self._phase = self._buyers_left = self._came = 0
        self._through, self._rushing = set(), set()
        if isinstance(self._environment.runner, WorkerRunner):
            self.run, sizes = options.holdfast_run, options.holdfast_sizes
            self._sizes = Sizes(**sizes)
            return
        self._received = {}
        self._messages.clear()
        self.run = f"sale-{secrets.token_hex(4)}"
        self._host = host = self._environment.host or self._default_host
        place = service_of(host)
        try:
            self._check(host)
            self._received = self._receive()
        except httpx.HTTPError as error:
            self._exit_with(2)
            raise StopTest(f"{place}: {error}; `make run` starts a service to try") from None
        except ValueError as error:
            self._exit_with(2)
            raise StopTest(f"{place}: {error}") from None
        # Workers get the options with each order to spawn, before they begin.
        options.holdfast_run = self.run
        options.holdfast_sizes = msgspec.structs.asdict(self._sizes)
        print(f"sale {self.run} on {place}: {self._sizes.told()} batch={self.batch}", flush=True)
        self.page.begin(self.run, self._sizes)
        self.has_begun = True

    def _check(self, host: str) -> None:
        if not 0 <= self.batch <= 2_000:
            raise ValueError(
                f"--batch {self.batch}: 1 to 2000 operations a request, 0 for shoppers"
            )
        if fault := service_fault(host):
            raise ValueError(fault)
        if not self._sizes.any_host and not is_loopback(urlsplit(host).hostname or ""):
            raise ValueError(
                f"not this machine. A flash sale takes a service's whole capacity: set {PREFIX}ANY_HOST=1"
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

    # The phases.

    def enter(self, phase: int) -> None:
        """The shape has come to that part of the sale; workers are told, and how many buyers are theirs."""
        if phase == self._phase:
            return
        self._phase = phase
        buyers = self._sizes.buyers if phase == SPIKE else 0
        runner = self._environment.runner
        if not isinstance(runner, MasterRunner):
            self._rushing = {"here"} if buyers else set()
            self._begin_phase(phase, buyers)
            return
        there = [client.id for client in runner.clients.all if client.state != STATE_MISSING]
        for number, client_id in enumerate(there):
            share = buyers // len(there) + (number < buyers % len(there))
            if share:
                self._rushing.add(client_id)
            runner.send_message("phase", {"phase": phase, "buyers": share}, client_id)

    def _take_phase(self, msg: Any, **_: Any) -> None:
        self._begin_phase(msg.data["phase"], msg.data["buyers"])

    def _begin_phase(self, phase: int, buyers: int) -> None:
        self._phase, self._buyers_left = phase, buyers
        if phase == SPIKE:
            self.answers.begin_spike()
        else:
            self.answers.end_spike()

    @property
    def in_rush(self) -> bool:
        """In a spike that is told as a number of buyers."""
        return bool(self._sizes.buyers) and self._phase == SPIKE

    def buyers(self, at_most: int) -> int:
        """So many buyers come now; 0 once all of this process's have come."""
        count = min(at_most, self._buyers_left)
        self._buyers_left -= count
        self._came += count
        return count

    def has_served(self) -> None:
        """A user has nobody left to buy for."""
        runner = self._environment.runner
        if isinstance(runner, WorkerRunner):
            if self.run not in self._through:
                self._through.add(self.run)
                runner.send_message("through", {"run": self.run})
        else:
            self._through.add("here")

    @property
    def rush_is_over(self) -> bool:
        """Every buyer has come, of the processes that are still there."""
        runner = self._environment.runner
        if isinstance(runner, MasterRunner):
            gone = {client.id for client in runner.clients.all if client.state == STATE_MISSING}
            return self._phase == SPIKE and self._rushing <= self._through | gone
        return self._phase == SPIKE and self._rushing <= self._through

    # What workers were told.

    def _tell(self, **_: Any) -> None:
        """A worker's part: no more sales, then all that its clients were told, to the master."""
        runner = self._environment.runner
        if runner is None or not self.run:
            return
        with self._telling:
            runner.stop()
            told = {"told": self.told.message(), "answers": self.answers.message()}
            runner.send_message("told", {"run": self.run, "came": self._came, **told})

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
        self.told, self.answers = Told(), Answers()
        for message in self._messages.values():
            self.told.merge(message["told"])
            self.answers.merge(message["answers"])
            self._came += message["came"]
        return [
            f"worker {client_id} is gone: what its clients were told is not known"
            for client_id in sorted(self._workers - self._messages.keys())
        ]

    # The end.

    def _end(self, **_: Any) -> None:
        if not self._received:
            return
        received, self._received, self.has_begun = self._received, {}, False
        print(f"sale {self.run}: waiting for the ledger, then auditing", flush=True)
        self.page.audits()
        start_s = time.monotonic()
        self.answers.end_spike()
        gone = self._gather()
        service = Service(self._host)
        try:
            trail, findings = audit(
                service, self.told, received, self._sizes.audit_seconds, self.hot
            )
        except Unauditable as error:
            self._exit_with(2)
            print(f"sale {self.run} COULD NOT BE AUDITED: {error}", flush=True)
            self.page.fail(f"COULD NOT BE AUDITED: {error}")
            return
        finally:
            service.close()
        ended = Ended(
            self.run,
            self._sizes,
            self.hot,
            self._came,
            self.answers,
            self.told,
            trail,
            gone + findings,
            time.monotonic() - start_s,
        )
        print(text(ended), flush=True)
        self.page.end(ended)
        if self._options.csv_prefix:
            Path(f"{self._options.csv_prefix}_units_left.csv").write_text(units_left_csv(trail))
        if ended.findings or missed(ended):
            self._exit_with(1)

    def _exit_with(self, code: int) -> None:
        self._environment.process_exit_code = max(self._environment.process_exit_code or 0, code)
