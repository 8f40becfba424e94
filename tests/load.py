"""Buyers that keep a running stack busy, and the proof that nothing they were told was lost."""

from __future__ import annotations

import itertools
import time
from string import ascii_lowercase
from threading import Event, Thread
from typing import Any

import httpx
from running import Up, eventually, holdfast, rows, wait_for_ledger

SKUS = [f"s{n}" for n in range(5)]
STOCK = 1_000_000


class Load:
    """Buyers that reserve, and confirm or release a third each; what got no answer is sent again
    under the same id, as a good client does."""

    def __init__(self, url: str, buyers: int = 4, prefix: str = "r") -> None:
        """``prefix``, letters that begin with r, keeps the ids of one load from those of another."""
        self._url = url
        self._prefix = prefix
        self._stopping = Event()
        self._numbers = itertools.count()
        self.acknowledged: dict[str, str] = {}  # reservation_id → the last state that was answered
        self.wrong: list[str] = []
        self._threads = [Thread(target=self._buy, name=f"buyer-{n}") for n in range(buyers)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(60)
        assert not self.wrong, self.wrong[:3]

    def goes_on(self) -> None:
        """Wait for 150 more acknowledged reservations."""
        target = len(self.acknowledged) + 150
        eventually("the load goes on", lambda: self.wrong or len(self.acknowledged) > target, 60)

    def _buy(self) -> None:
        with httpx.Client(base_url=self._url, timeout=10, trust_env=False) as client:
            while not self._stopping.is_set():
                number = next(self._numbers)
                name = f"{self._prefix}{number}"
                line = {"sku": SKUS[number % len(SKUS)], "quantity": 1, "location": "MAIN"}
                order = {"reservation_id": name, "order_id": f"o-{name}", "ttl_seconds": 3600}
                if self._insist(client, "", {**order, "lines": [line]}) is None:
                    return
                self.acknowledged[name] = "held"
                call, state = [("confirm", "confirmed"), ("release", "released"), ("", "held")][
                    number % 3
                ]
                if call:
                    answer = self._insist(client, f"/{name}/{call}", {})
                    if answer is None:
                        return
                    if answer["status"] != state:
                        self.wrong.append(f"{name}: {answer}")
                    self.acknowledged[name] = state

    def _insist(self, client: httpx.Client, path: str, body: object) -> dict[str, Any] | None:
        """Send until it is answered with a success; None when told to stop before."""
        while not self._stopping.is_set():
            try:
                answer = client.post(f"/v1/reservations{path}", json=body)
            except httpx.TransportError:
                time.sleep(0.05)
                continue
            if answer.is_success:
                content: dict[str, Any] = answer.json()
                return content
            if answer.status_code != 503:
                self.wrong.append(f"{path} {body}: {answer.status_code} {answer.text}")
                return None
            time.sleep(0.05)
        return None


def receive_stock(stack: Up) -> None:
    for sku in SKUS:
        move = {"movement_id": f"m-{sku}", "type": "receive", "sku": sku, "location": "MAIN"}
        answer = httpx.post(
            f"{stack.url}/v1/movements", json=move | {"quantity": STOCK}, trust_env=False
        )
        assert answer.status_code == 201, answer.text


def check_nothing_lost(stack: Up, load: Load) -> None:
    """Every acknowledged reservation is there once in Redis and once in the ledger, in the state
    that was answered; stock, reservations and ledger agree."""
    assert len(load.acknowledged) > 100
    wait_for_ledger(stack.settings())
    url = stack.settings().postgres_url
    told = {"reserve": "held", "confirm": "confirmed", "release": "released"}
    ledger: dict[str, list[str]] = {}
    of_loads = r"^r[a-z]*\d+$"
    query = "SELECT reservation_id, type FROM movements WHERE reservation_id ~ %s ORDER BY seq"
    for name, kind in rows(url, query, of_loads):
        ledger.setdefault(name, []).append(told[kind])
    held = dict.fromkeys(SKUS, 0)
    gone = dict.fromkeys(SKUS, 0)
    with httpx.Client(base_url=stack.url, timeout=10, trust_env=False) as client:
        for name, state in load.acknowledged.items():
            reservation = client.get(f"/v1/reservations/{name}").json()
            steps = ledger[name]
            # The last call before the load was stopped may have been done without an answer.
            assert steps[0] == "held" and len(steps) <= 2 and len(set(steps)) == len(steps), name
            assert reservation["status"] == steps[-1], name
            assert state in steps, (name, state, steps)
        for name, steps in ledger.items():
            sku = SKUS[int(name.lstrip(ascii_lowercase)) % len(SKUS)]
            held[sku] += steps == ["held"]
            gone[sku] += steps[-1] == "confirmed"
        for sku in SKUS:
            stock = client.get(f"/v1/stock/{sku}").json()
            assert (stock["on_hand"], stock["held"]) == (STOCK - gone[sku], held[sku]), sku
    done = holdfast("reconcile", "--data-dir", str(stack.data_dir))
    assert done.returncode == 0, done.stdout + done.stderr


def restarted(stack: Up, name: str, old: int) -> None:
    """The supervisor has started it again, and the service is ready."""
    eventually(f"{name} runs again", lambda: stack.pids().get(name, old) != old, 60)
    eventually("it is ready", stack.ready, 60)
