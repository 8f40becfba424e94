"""A flash sale for Locust: `make locust`, or `locust -f bench/locustfile.py` with options of its own.

It receives stock for skus of its own, sells it to shoppers who pay, leave, come back, lose replies, and
tells at the end what was answered and how fast, then audits: is what clients were told what the ledger
has, was any unit sold twice. Exit code 0: clean, no failures, gates met; 1: not; 2: it could not be done.

The load comes in four parts: quiet (a tenth of the users), spike (all), sold out (half), returns of
expired holds (a quarter). It ends by itself. `--batch N` instead has users who send N operations a
request, for high rates from one machine.

    HOLDFAST_LOCUST_USERS            200   at the spike (8 with --batch)
    HOLDFAST_LOCUST_SECONDS          60    the whole sale
    HOLDFAST_LOCUST_UNITS            1000  of the hot sku
    HOLDFAST_LOCUST_BUYERS           0     come in the spike, each for one unit of the hot sku, one after
                                           another on the users' connections; the spike lasts until all
                                           have come. 0: users buy as they like, as long as it lasts
    HOLDFAST_LOCUST_SKUS             50    other skus, each at two locations
    HOLDFAST_LOCUST_SKU_UNITS        500   of each of them at each location
    HOLDFAST_LOCUST_HOT              70    percent of purchases that are the hot sku; the rest are carts
    HOLDFAST_LOCUST_PAY              60    weights of how a purchase ends: paid,
    HOLDFAST_LOCUST_ABANDON          20      left to expire,
    HOLDFAST_LOCUST_FAIL             10      payment failed, released,
    HOLDFAST_LOCUST_PART             5       shipped in part, the rest released,
    HOLDFAST_LOCUST_EXTEND           5       extended, then paid
    HOLDFAST_LOCUST_LOST             5     percent of replies that are lost: the same id is sent again
    HOLDFAST_LOCUST_ABANDON_SECONDS  10    how long what is abandoned is held
    HOLDFAST_LOCUST_WAIT_MS          500   a shopper's mean pause
    HOLDFAST_LOCUST_AUDIT_SECONDS    600   how long the audit may wait for the ledger
    HOLDFAST_LOCUST_ANY_HOST         0     1: also hosts other than loopback
    HOLDFAST_LOCUST_P99_MS           -     gate: the p99 of the spike may be so many ms
    HOLDFAST_LOCUST_MAX_503          -     gate: so many may be answered 503

Where there are workers the master's values count.
"""

from __future__ import annotations

import os
import random
import secrets
import sys
from typing import Any

import gevent
from locust import FastHttpUser, LoadTestShape, constant, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.exception import StopTest

from bench.sale import SPIKE, Sale
from bench.shop import Shop
from bench.sizes import Sizes

_HOLD_SECONDS = 900
#: Until which part of the time, with which part of the users.
_PHASES = ((0.2, 0.1), (0.5, 1.0), (0.75, 0.5), (1.0, 0.25))
_STOP_TIMEOUT_S = 3
_DEFAULT_HOST = "http://127.0.0.1:8080"


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser) -> None:
    parser.add_argument(
        "--batch",
        type=int,
        default=0,
        metavar="N",
        help="users that send /v1/batch of N operations (1 to 2000) instead of shoppers",
    )


@events.init.add_listener
def prepare(environment: Environment, **_: Any) -> None:
    try:
        sizes = Sizes.from_environment(os.environ)
    except ValueError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    # A sale that can't begin says why in one line, without the traceback of the greenlet it was in.
    hub = gevent.get_hub()
    hub.NOT_ERROR = (*hub.NOT_ERROR, StopTest)
    # Users end what they have begun: less is left whose outcome nobody was told.
    environment.stop_timeout = environment.stop_timeout or _STOP_TIMEOUT_S
    Buyer.sale = Sale(environment, sizes, _DEFAULT_HOST)


class FlashSale(LoadTestShape):
    """Quiet, spike, sold out, returns; then it ends."""

    def __init__(self) -> None:
        super().__init__()
        self._runs = False
        self._shift_s: float | None = None

    def tick(self) -> tuple[int, float, list[type[Any]]] | None:
        sale = Buyer.sale
        self._begin_once_there_are_users(sale)
        part = self._part(sale, self.get_run_time(), sale.sizes.seconds)
        for phase, (until, share) in enumerate(_PHASES):
            if part < until:
                sale.enter(phase)
                users = max(1, round(sale.users * share))
                return users, users, [BatchBuyer if sale.batch else Shopper]
        return None

    def _begin_once_there_are_users(self, sale: Sale) -> None:
        """The shape's clock runs before the stock has been received and the first user, perhaps in a
        worker that is slow to start, has come: what it showed until then is none of the sale's."""
        if not sale.has_begun:
            self._runs = False
        elif not self._runs and self.runner is not None and self.runner.user_count:
            self.reset_time()
            self._runs, self._shift_s = True, None

    def _part(self, sale: Sale, run_s: float, seconds: int) -> float:
        """How far the sale is, from 0 to 1. A spike of so many buyers ends when all have come."""
        if not self._runs:
            return 0.0
        begins, ends = _PHASES[SPIKE - 1][0], _PHASES[SPIKE][0]
        if not sale.sizes.buyers or run_s < begins * seconds:
            return run_s / seconds
        if self._shift_s is None:
            if not sale.rush_is_over:
                return begins
            self._shift_s = ends * seconds - run_s
        return (run_s + self._shift_s) / seconds


class Buyer(FastHttpUser):
    """What shoppers have in common."""

    abstract = True
    host = _DEFAULT_HOST
    sale: Sale

    def on_start(self) -> None:
        self.sizes = self.sale.sizes
        self.shop = Shop(self.client, self.sale.told, self.sale.answers)
        self._name = f"{self.sale.run}-{secrets.token_hex(4)}"
        self._count = 0

    def new_id(self) -> str:
        self._count += 1
        return f"{self._name}-{self._count}"

    def cart(self) -> list[dict[str, Any]]:
        """One or two units of the hot sku, or two to five lines, every other without a location.

        Where buyers are counted, one unit of the hot sku in the spike, and none at other times."""
        if self.sale.in_rush:
            return [{"sku": self.sale.hot, "quantity": 1, "location": "MAIN"}]
        if not self.sizes.buyers and self.chance(self.sizes.hot):
            return [{"sku": self.sale.hot, "quantity": random.randint(1, 2), "location": "MAIN"}]
        skus = random.sample(self.sale.others, min(len(self.sale.others), random.randint(2, 5)))
        lines: list[dict[str, Any]] = []
        for sku in skus:
            line = {"sku": sku, "quantity": random.randint(1, 3)}
            if random.random() < 0.5:
                line["location"] = random.choice(self.sale.locations)
            lines.append(line)
        return lines

    def wait_for_the_rest(self) -> None:
        """All buyers of this process have come; those of others may still be coming."""
        self.sale.has_served()
        gevent.sleep(0.05)

    def end(self) -> str:
        sizes = self.sizes
        weights = (sizes.pay, sizes.abandon, sizes.fail, sizes.part, sizes.extend)
        return random.choices(("pay", "abandon", "fail", "part", "extend"), weights)[0]

    def ttl_seconds(self, end: str) -> int:
        return self.sizes.abandon_seconds if end == "abandon" else _HOLD_SECONDS

    @staticmethod
    def chance(percent: int) -> bool:
        return random.random() * 100 < percent


class Shopper(Buyer):
    """Looks, puts into the cart, pays or not."""

    def wait_time(self) -> float:
        if self.sale.in_rush:
            return 0.0
        return random.uniform(0, 2 * self.sizes.wait_ms / 1000)

    @task(3)
    def browse(self) -> None:
        if self.sale.in_rush:
            return
        look = random.random()
        if look < 0.6:
            self.shop.stock([self.sale.hot])
        elif look < 0.95:
            self.shop.stock(random.sample(self.sale.others, min(len(self.sale.others), 10)))
        else:
            self.shop.stock([f"{self.sale.run}-never-seen"])

    @task(6)
    def buy(self) -> None:
        if self.sale.in_rush and not self.sale.buyers(1):
            self.wait_for_the_rest()
            return
        end, reservation_id = self.end(), self.new_id()
        lost = self.chance(self.sizes.lost)
        held = self.shop.reserve(reservation_id, self.cart(), self.ttl_seconds(end), lost=lost)
        if held is None or end == "abandon":
            return
        gevent.sleep(self.wait_time())
        if end == "extend":
            self.shop.extend(reservation_id, 2 * _HOLD_SECONDS)
        if end == "fail":
            self.shop.release(reservation_id)
        elif end == "part":
            self.ship_a_part(reservation_id, held)
        else:
            self.shop.confirm(reservation_id)
            if lost:
                self.shop.confirm(reservation_id)

    def ship_a_part(self, reservation_id: str, held: dict[str, Any]) -> None:
        """One unit of the first line; a lost reply must not take a second one."""
        line = held["lines"][0]
        part = {
            "request_id": "parcel-1",
            "lines": [{"sku": line["sku"], "location": line["location"], "quantity": 1}],
        }
        shipped = self.shop.confirm(reservation_id, part)
        if shipped is None:
            return
        if self.chance(self.sizes.lost):
            self.shop.confirm(reservation_id, part)
        if shipped["status"] == "held":
            self.shop.release(reservation_id)

    @task(1)
    def ask_for_an_unknown_sku(self) -> None:
        if not self.sale.in_rush and self.chance(10):
            lines = [{"sku": f"{self.sale.run}-never-seen", "quantity": 1}]
            self.shop.reserve(self.new_id(), lines, _HOLD_SECONDS, lost=False)


class BatchBuyer(Buyer):
    """Many shoppers in one request: a batch of reserves, then what becomes of those that were held."""

    wait_time = constant(0)

    @task
    def buy(self) -> None:
        size = self.sale.batch
        if self.sale.in_rush and not (size := self.sale.buyers(size)):
            self.wait_for_the_rest()
            return
        ends = {self.new_id(): self.end() for _ in range(size)}
        operations: list[dict[str, Any]] = [
            {
                "op": "reserve",
                "reservation_id": reservation_id,
                "order_id": f"order-{reservation_id}",
                "ttl_seconds": self.ttl_seconds(end),
                "lines": self.cart(),
            }
            for reservation_id, end in ends.items()
        ]
        results = self.shop.batch("batch of reserves", operations)
        if results and self.chance(self.sizes.lost):
            self.shop.batch("batch of reserves (sent again)", operations)
        settled = [
            self.settle(operation["reservation_id"], ends[operation["reservation_id"]], result)
            for operation, result in zip(operations, results, strict=bool(results))
            if result["code"] == "reserved"
        ]
        self.settle_all([operation for operation in settled if operation])

    def settle_all(self, operations: list[dict[str, Any]]) -> None:
        if operations:
            self.shop.batch("batch of confirms and releases", operations)

    @staticmethod
    def settle(reservation_id: str, end: str, result: dict[str, Any]) -> dict[str, Any] | None:
        operation: dict[str, Any] = {"reservation_id": reservation_id}
        if end == "abandon":
            return None
        if end == "extend":
            return operation | {"op": "extend", "ttl_seconds": 2 * _HOLD_SECONDS}
        if end == "part":
            line = result["reservation"]["lines"][0]
            part = {"sku": line["sku"], "location": line["location"], "quantity": 1}
            return operation | {"op": "confirm", "request_id": "parcel-1", "lines": [part]}
        return operation | {"op": "release" if end == "fail" else "confirm"}
