"""TigerBeetle by its Python client: a hold is a pending transfer with a timeout out of one hot account.

Its server is on no package index, so it is measured only where ``TIGERBEETLE_ADDRESS`` names one (an
empty cluster 0, or one whose accounts can be added to), or a binary ``tigerbeetle`` is on PATH. The
client must be of the server's version: ``pip install tigerbeetle==…``.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from api.ports import free_port
from bench.peers.buyers import HOLD_MS, Books, PeerError, Shop, Sold, added_up

ELSEWHERE = (
    "TigerBeetle 0.17.9, measured elsewhere and not here, in turn with Holdfast: 79,000–94,000/s against"
    " 81,000–97,000/s, while redis-benchmark's DECR made 42,000–51,000/s"
)
_LEDGER, _CODE = 1, 1
_START_TIMEOUT_S = 30.0


def why_not() -> str:
    """Why it can't be measured here; empty where it can."""
    if not os.environ.get("TIGERBEETLE_ADDRESS") and shutil.which("tigerbeetle") is None:
        return "TIGERBEETLE_ADDRESS is not set and no tigerbeetle is on PATH"
    if importlib.util.find_spec("tigerbeetle") is None:
        return "its Python client is missing: pip install tigerbeetle, of the server's version"
    return ""


@contextmanager
def address() -> Iterator[str]:
    """Where a TigerBeetle listens: the one that is given, else one of our own with an empty file."""
    given = os.environ.get("TIGERBEETLE_ADDRESS")
    if given:
        _wait_until_it_listens(given)
        yield given
        return
    binary, port = shutil.which("tigerbeetle") or "tigerbeetle", free_port()
    with TemporaryDirectory(prefix="holdfast-tigerbeetle-") as directory:
        file = str(Path(directory) / "0_0.tigerbeetle")
        layout = ["--cluster=0", "--replica=0", "--replica-count=1"]
        formatted = subprocess.run(
            [binary, "format", *layout, file], capture_output=True, text=True, check=False
        )
        if formatted.returncode != 0:
            raise PeerError(f"tigerbeetle format: {' '.join(formatted.stderr.split())[-300:]}")
        with (Path(directory) / "log").open("wb") as log:
            server = subprocess.Popen(
                [binary, "start", f"--addresses=127.0.0.1:{port}", file], stdout=log, stderr=log
            )
        try:
            _wait_until_it_listens(str(port))
            yield str(port)
        finally:
            server.terminate()
            server.wait()


def _wait_until_it_listens(address: str) -> None:
    """The client waits for ever for a server that isn't there; PeerError instead. ``address``: as the
    client takes it, [host:]port of one replica or several with commas between."""
    host, _, port = address.split(",")[0].rpartition(":")
    until = time.monotonic() + _START_TIMEOUT_S
    while True:
        try:
            socket.create_connection((host or "127.0.0.1", int(port)), timeout=1).close()
            return
        except ValueError:
            raise PeerError(f"TIGERBEETLE_ADDRESS is {address!r}; give it as host:port") from None
        except OSError as error:
            if time.monotonic() > until:
                raise PeerError(f"no TigerBeetle answers at {address}: {error}") from None
            time.sleep(0.1)


class TigerBeetle(Shop):
    """Two client processes; ``batch`` transfers a call, as many calls under way as there are connections."""

    processes = 2

    def __init__(self, url: str, batch: int) -> None:
        super().__init__(url)
        self.batch = batch
        self._stock = self._holds = 0

    def reset(self, units: int) -> None:
        """Nothing can be deleted there: a new pair of accounts has the units."""
        tb = _client_library()
        self._stock, self._holds = tb.id(), tb.id()
        source = tb.id()
        limit = tb.AccountFlags.DEBITS_MUST_NOT_EXCEED_CREDITS
        with tb.ClientSync(0, self.url) as client:
            made = client.create_accounts(
                [
                    tb.Account(id=self._stock, ledger=_LEDGER, code=_CODE, flags=limit),
                    tb.Account(id=self._holds, ledger=_LEDGER, code=_CODE),
                    tb.Account(id=source, ledger=_LEDGER, code=_CODE),
                ]
            )
            filled = client.create_transfers(
                [
                    tb.Transfer(
                        id=tb.id(),
                        debit_account_id=source,
                        credit_account_id=self._stock,
                        amount=units,
                        ledger=_LEDGER,
                        code=_CODE,
                    )
                ]
            )
        for result in (*made, *filled):
            if result.status.name != "CREATED":
                raise PeerError(f"TigerBeetle refused the stock: {result.status.name}")

    def books(self) -> Books:
        """Holds are the units pending at the account that they go to: each transfer is of one unit."""
        with _client_library().ClientSync(0, self.url) as client:
            stock, holds = client.lookup_accounts([self._stock, self._holds])
        left = stock.credits_posted - stock.debits_posted - stock.debits_pending
        return Books(left, holds.credits_pending)

    def work(
        self, number: int, connections: int, seconds: float, begin: Callable[[], None]
    ) -> Sold:
        return asyncio.run(self._work(connections, seconds, begin))

    async def _work(self, connections: int, seconds: float, begin: Callable[[], None]) -> Sold:
        tb = _client_library()
        async with tb.ClientAsync(0, self.url) as client:
            await client.lookup_accounts([self._stock])
            begin()
            begun = time.monotonic()
            parts = await asyncio.gather(
                *[self._closed_loop(tb, client, begun + seconds) for _ in range(connections)]
            )
            return added_up(parts, min(seconds, time.monotonic() - begun))

    async def _closed_loop(self, tb: Any, client: Any, until_mono_s: float) -> Sold:
        units = in_time = refused = 0
        while time.monotonic() < until_mono_s and not refused:
            transfers = [self._hold(tb) for _ in range(self.batch)]
            held = _created(await client.create_transfers(transfers))
            units += held
            refused = self.batch - held
            in_time += held if time.monotonic() <= until_mono_s else 0
        return Sold(units, in_time, refused, 0, 0.0)

    def _hold(self, tb: Any) -> Any:
        return tb.Transfer(
            id=tb.id(),
            debit_account_id=self._stock,
            credit_account_id=self._holds,
            amount=1,
            timeout=HOLD_MS // 1000,
            ledger=_LEDGER,
            code=_CODE,
            flags=tb.TransferFlags.PENDING,
        )


def _created(results: Any) -> int:
    """How many transfers took effect; PeerError for a refusal that is no lack of units."""
    names = [result.status.name for result in results]
    created = names.count("CREATED")
    others = set(names) - {"CREATED", "EXCEEDS_CREDITS"}
    if others:
        raise PeerError(f"TigerBeetle answered {sorted(others)}")
    return created


def _client_library() -> Any:
    return importlib.import_module("tigerbeetle")
