"""Where a way of the textbook loses a unit or sells one too often, done step by step, without luck.

Each is a real process that dies or is stopped at the one point that matters, and the numbers that are
left afterwards. What is shown belongs to the peer; it is no fault of the benchmark.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.process import BaseProcess

import msgspec
import psutil  # type: ignore[import-untyped]

from bench.peers.buyers import PeerError
from bench.peers.redis_decr import DecrBuyer, RedisDecr
from bench.peers.redis_lock import LOCK, LockBuyer, RedisLock
from bench.peers.redis_shop import connect

WITHIN_S = 60.0
LOCK_TTL_MS = 300


class Weakness(msgspec.Struct, frozen=True):
    """``shown`` tells it in words, ``note`` and ``count`` as a number: units, or buyers."""

    shown: str
    note: str
    count: int


def lost_by_crash(redis_url: str, units: int = 3) -> Weakness:
    """DECR, then the process is killed before it writes the hold; all others buy until refused."""
    shop = RedisDecr(redis_url)
    shop.reset(units)
    victim = _start(_take_and_die, redis_url)
    victim.join(WITHIN_S)
    if victim.exitcode != -signal.SIGKILL:
        raise PeerError(f"the buyer should have been killed; its exit code is {victim.exitcode}")
    buyer = shop.buyer()
    sold = 0
    while buyer.hold(f"order-{sold}"):
        sold += 1
    buyer.close()
    books = shop.books()
    lost = units - books.left - books.holds
    return Weakness(
        f"redis_decr: a buyer was killed between DECR and the hold; of {units} units {sold} were sold,"
        f" {books.holds} are held, {books.left} can be sold: {lost} lost",
        "units_lost_by_a_crash",
        lost,
    )


def refused_wrongly(redis_url: str) -> Weakness:
    """One unit is left. One buyer wants two, and before that one has given them back another wants one."""
    shop = RedisDecr(redis_url)
    shop.reset(1)
    greedy, modest = DecrBuyer(redis_url), DecrBuyer(redis_url)
    if greedy.take(2) >= 0:
        raise PeerError("two units were taken where there was one")
    got = modest.hold("order-modest")
    greedy.give_back(2)
    greedy.close()
    modest.close()
    left = shop.books().left
    refused = int(not got and left >= 1)
    return Weakness(
        "redis_decr: 1 unit was left; a buyer of 2 counted down, a buyer of 1 came before the INCR back"
        f" and was {'sold it' if got else 'refused'}; then {left} could be sold, and nobody had it",
        "buyers_refused_wrongly",
        refused,
    )


def oversold_by_expired_lock(redis_url: str) -> Weakness:
    """One unit. Its buyer is stopped between read and write for longer than its lock lasts."""
    shop = RedisLock(redis_url)
    shop.reset(1)
    first = _start(_lock_read_stop_write, redis_url)
    try:
        _wait("the first buyer has the lock and is stopped", lambda: _is_stopped(first))
        with connect(redis_url) as redis:
            _wait("the lock has run out", lambda: not redis.exists(LOCK))
        second = shop.buyer()
        sold = int(second.hold("order-second"))
        second.close()
        os.kill(first.pid or 0, signal.SIGCONT)
        first.join(WITHIN_S)
    finally:
        first.kill()
        first.join()
    if first.exitcode != 0:
        raise PeerError(f"the first buyer should have ended; its exit code is {first.exitcode}")
    sold += 1
    books = shop.books()
    return Weakness(
        f"redis_lock: a buyer was stopped for longer than its lock of {LOCK_TTL_MS} ms; of 1 unit {sold}"
        f" were sold, {books.holds} are held, the stock says {books.left}: {books.holds - 1} too many",
        "units_oversold_by_an_expired_lock",
        books.holds - 1,
    )


def _take_and_die(redis_url: str) -> None:
    DecrBuyer(redis_url).take(1)
    os.kill(os.getpid(), signal.SIGKILL)


def _lock_read_stop_write(redis_url: str) -> None:
    buyer = LockBuyer(redis_url, LOCK_TTL_MS)
    buyer.lock()
    units = buyer.read()
    os.kill(os.getpid(), signal.SIGSTOP)
    buyer.write_and_unlock("order-first", units - 1)


def _start(target: Callable[[str], None], redis_url: str) -> BaseProcess:
    process = get_context("spawn").Process(target=target, args=(redis_url,), daemon=True)
    process.start()
    return process


def _is_stopped(process: BaseProcess) -> bool:
    if not process.is_alive():
        raise PeerError(f"the first buyer ended early, with exit code {process.exitcode}")
    return bool(psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)


def _wait(what: str, check: Callable[[], bool]) -> None:
    until = time.monotonic() + WITHIN_S
    while not check():
        if time.monotonic() > until:
            raise PeerError(f"not within {WITHIN_S:.0f} s: {what}")
        time.sleep(0.01)


#: Peer, and what shows its weakness on an empty Redis.
ALL: tuple[tuple[str, Callable[[str], Weakness]], ...] = (
    ("redis_decr", lost_by_crash),
    ("redis_decr", refused_wrongly),
    ("redis_lock", oversold_by_expired_lock),
)
