"""Holdfast against its peers: measured in turn, audited, at several numbers of connections."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from api.servers import PostgresServer, RedisServer, choose_redis
from bench.figures import Figure, Run, figure, in_turn, not_measured, say
from bench.peers import at_best, tigerbeetle, weaknesses
from bench.peers.buyers import Shop, measure
from bench.peers.holdfast import Holdfast
from bench.peers.postgres_for_update import PostgresForUpdate
from bench.peers.postgres_optimistic import PostgresOptimistic
from bench.peers.redis_decr import RedisDecr
from bench.peers.redis_lock import RedisLock
from bench.peers.tigerbeetle import TigerBeetle

CONNECTIONS = (2, 8, 64)
UNIT = "reservations/s"
SHOPS: dict[str, Callable[[str], Shop]] = {
    "holdfast": Holdfast,
    "postgres_for_update": PostgresForUpdate,
    "postgres_optimistic": PostgresOptimistic,
    "redis_lock": RedisLock,
    "redis_decr": RedisDecr,
}
PEERS = {
    "postgres_for_update": "PostgreSQL, SELECT … FOR UPDATE",
    "postgres_optimistic": "PostgreSQL, optimistic by version",
    "redis_lock": "Redis, distributed lock around read and write",
    "redis_decr": "Redis, DECR with INCR back",
}
TARGETS = {"postgres_for_update": 40.0, "postgres_optimistic": 40.0}

Runs = dict[tuple[str, int], list[Run]]


def figures(
    seconds: float = 3.0, repeats: int = 3, connections: Sequence[int] = CONNECTIONS
) -> list[Figure]:
    """Two figures a peer, and TigerBeetle's.

    ``<peer>``: the same number of connections on both sides, the largest of ``connections``; the
    targets are for that. ``<peer>_best``: as many buyers for Holdfast, but the peer with the number of
    connections that suits it best, as behind a pool of that size which costs nothing. Notes tell every
    number of connections.
    """
    runs = measure_all(seconds, repeats, connections)
    shown = show_weaknesses()
    found = []
    for peer in PEERS:
        found += compare(peer, runs, connections, shown.get(peer, {}))
    return [*found, tigerbeetle_figure(seconds, repeats)]


def measure_all(seconds: float, repeats: int, connections: Sequence[int]) -> Runs:
    """The runs of every shop at every number of connections, all of them in turn."""
    keys = [(name, count) for count in connections for name in SHOPS]
    with _postgres() as postgres_url:
        measures = [partial(_measure, name, count, seconds, postgres_url) for name, count in keys]
        return dict(zip(keys, in_turn(repeats, *measures), strict=True))


def compare(
    peer: str, runs: Runs, connections: Sequence[int], notes: dict[str, float]
) -> list[Figure]:
    """The two figures of a peer. A finding in either side's books leaves them without a value."""
    most = max(connections)
    best = max(connections, key=lambda count: _median(runs[peer, count]))
    notes = dict(notes)
    for count in connections:
        ours, theirs = _median(runs["holdfast", count]), _median(runs[peer, count])
        notes |= {
            f"holdfast_at_{count}": ours,
            f"peer_at_{count}": theirs,
            f"peer_retries_per_unit_at_{count}": statistics.median(
                run.notes["retries_per_unit"] for run in runs[peer, count]
            ),
        }
        if theirs:
            notes[f"ratio_at_{count}"] = ours / theirs
    against = f"Holdfast's engine against {PEERS[peer]}"
    same = _figure(peer, runs, most, most, f"{against}: {most} connections each", TARGETS.get(peer))
    at_best = _figure(
        peer, runs, most, best, f"{against}: {most} callers; the peer with {best}, its best number"
    )
    return [
        msgspec.structs.replace(same, notes=notes),
        msgspec.structs.replace(
            at_best, name=f"{peer}_best", notes={"peer_connections": float(best)}
        ),
    ]


def _figure(
    peer: str, runs: Runs, ours: int, theirs: int, what: str, target: float | None = None
) -> Figure:
    """Holdfast at ``ours`` connections, its baseline the peer at ``theirs``."""
    pairs = zip(runs["holdfast", ours], runs[peer, theirs], strict=True)
    judged = [_with_findings(one, other, peer) for one, other in pairs]
    return figure(peer, UNIT, judged, runs[peer, theirs], what=what, target=target)


def show_weaknesses() -> dict[str, dict[str, float]]:
    """Show each weakness once, tell it, and give its number as a note of its peer."""
    notes: dict[str, dict[str, float]] = {}
    with _redis() as url:
        for peer, show in weaknesses.ALL:
            weakness = show(url)
            say(f"shown: {weakness.shown}")
            notes.setdefault(peer, {})[weakness.note] = weakness.count
    return notes


def tigerbeetle_figure(seconds: float, repeats: int) -> Figure:
    """Both at their best, for five seconds a run at least; notes tell the ways and smaller calls."""
    what = (
        "Holdfast's engine against TigerBeetle from its Python client, both at their best: 2 client processes"
        " each, with the size of a call and the number under way that suit it"
    )
    why = tigerbeetle.why_not()
    if why:
        return not_measured("tigerbeetle", UNIT, f"{why}. {tigerbeetle.ELSEWHERE}", what=what)
    with tigerbeetle.address() as address:
        return at_best.compare(
            "tigerbeetle",
            at_best.Side("holdfast", measure_batches, at_best.OURS),
            at_best.Side(
                "tigerbeetle",
                lambda way, s: measure(TigerBeetle(address, way.size), way.calls, s),
                at_best.THEIRS,
            ),
            what=what,
            seconds=max(seconds, at_best.SECONDS_MIN),
            repeats=repeats,
        )


def measure_batches(way: at_best.Way, seconds: float) -> Run:
    """Holdfast with two client processes, on a fresh Redis."""
    with _redis() as url:
        shop = Holdfast(url, way.size)
        shop.processes = 2
        return measure(shop, way.calls, seconds)


def _measure(name: str, connections: int, seconds: float, postgres_url: str) -> Run:
    say(f"{name}, {connections} connections")
    make = SHOPS[name]
    if name.startswith("postgres"):
        return measure(make(postgres_url), connections, seconds)
    with _redis() as url:
        return measure(make(url), connections, seconds)


@contextmanager
def _redis() -> Iterator[str]:
    """A fresh server with fsync at every write: no run inherits the memory or the file of another."""
    with TemporaryDirectory(prefix="holdfast-peers-") as directory:
        server = RedisServer(choose_redis(), Path(directory) / "redis")
        server.start()
        try:
            yield server.url
        finally:
            server.stop()


@contextmanager
def _postgres() -> Iterator[str]:
    with TemporaryDirectory(prefix="holdfast-peers-") as directory:
        server = PostgresServer(Path(directory) / "postgres")
        server.start()
        try:
            yield server.url
        finally:
            server.stop()


def _median(runs: Sequence[Run]) -> float:
    return statistics.median(run.value for run in runs)


def _with_findings(ours: Run, theirs: Run, peer: str) -> Run:
    """Our run with what the audit of either side found."""
    findings = [f"holdfast: {finding}" for finding in ours.findings or []]
    findings += [f"{peer}: {finding}" for finding in theirs.findings or []]
    return msgspec.structs.replace(ours, findings=findings)
