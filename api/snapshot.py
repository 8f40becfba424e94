"""How everything stands at one moment, read from Redis and PostgreSQL: what ``/v1/status`` and
``/metrics`` tell, right from whichever HTTP worker is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec
from redis.exceptions import RedisError

from api.asgi import Call
from api.handlers import engine_of
from api.ledger_reader import Connection, LedgerReader, fetch
from api.problems import Problem
from api.selling import NotSelling
from api.state_file import failing_children
from engine.addresses import why
from engine.states import PartitionState, Place, RedisState, Waiting


class LedgerState(msgspec.Struct, frozen=True):
    """How far the ledger of a partition has come; ``stopped`` says why it does not go on.
    ``occurred_ms``: when its last event did; None where it has none."""

    epoch: int = 0
    seq: int = 0
    stopped: str | None = None
    occurred_ms: int | None = None


class Reconciled(msgspec.Struct, frozen=True):
    """The last run of reconciliation that was kept, and when the last clean one ended."""

    finished_ms: int
    clean: bool
    differences: int
    last_success_ms: int | None


class Lag(msgspec.Struct, frozen=True):
    """So many events behind, the oldest of them so many seconds old; None where that isn't known."""

    events: int
    seconds: float | None


class PartitionSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """One partition. ``relay`` is None where the persister reads the outbox itself, the rest where
    the server that knows it is away. ``outbox_oldest_seconds`` is 0 where nothing waits in the outbox,
    None where the first entry that does can't be read. ``not_selling`` is None where it sells."""

    partition: int
    not_selling: NotSelling | None
    redis: PartitionState | None = None
    outbox_oldest_seconds: float | None = None
    relay: Lag | None = None
    ledger: LedgerState | None = None
    persister: Lag | None = None
    reconciled: Reconciled | None = None


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """All of it. ``redis_word`` and ``ledger_word`` are ``ok`` or say why a server could not be asked.
    ``failing``: the stack's children that keep ending, None where no stack runs here."""

    redis: RedisState | None
    redis_word: str
    ledger_word: str
    failing: list[str] | None
    partitions: list[PartitionSnapshot]


async def take_snapshot(call: Call) -> Snapshot:
    """Never raises for a server that is away. The ledger is read before Redis, so that it can't seem
    to be ahead of it."""
    partitions = range(call.state.settings.partitions)
    ledgers, reconciled, ledger_word = await _read_ledger(call, list(partitions))
    places = {p: (s.epoch, s.seq) for p, s in ledgers.items()}
    (redis, redis_word), selling = await asyncio.gather(
        _read_redis(call, places), call.state.selling.look()
    )
    return Snapshot(
        redis=redis,
        redis_word=redis_word,
        ledger_word=ledger_word,
        failing=failing_children(call.state.settings.data_dir),
        partitions=[
            _partition(p, selling[p], redis, ledgers.get(p), reconciled.get(p)) for p in partitions
        ],
    )


async def _read_redis(call: Call, after: Mapping[int, Place]) -> tuple[RedisState | None, str]:
    try:
        return await engine_of(call).redis_state(after), "ok"
    except Problem as problem:
        return None, problem.detail
    except (RedisError, OSError, ValueError) as error:
        return None, f"Redis did not answer: {why(error)}"


Ledger = tuple[dict[int, LedgerState], dict[int, Reconciled], str]


async def _read_ledger(call: Call, partitions: list[int]) -> Ledger:
    """Both by partition, empty where PostgreSQL is away."""
    ledgers: dict[int, LedgerState] = {}

    async def read(connection: Connection) -> list[dict[str, Any]]:
        positions = await fetch(connection, "positions", {})
        ledgers.update({p: LedgerState() for p in partitions})
        ledgers.update({row["partition"]: _ledger_state(row) for row in positions})
        return await fetch(connection, "last_reconciliations", {"partitions": partitions})

    reader: LedgerReader = call.state.ledger
    try:
        runs = await reader.within(call, read)
    except Problem as problem:
        return ledgers, {}, problem.detail
    return ledgers, {row["partition"]: _reconciled(row) for row in runs}, "ok"


def _ms(moment: datetime | None) -> int | None:
    return None if moment is None else round(moment.timestamp() * 1000)


def _ledger_state(row: dict[str, Any]) -> LedgerState:
    return LedgerState(row["epoch"], row["seq"], row["stopped"], _ms(row["occurred_at"]))


def _reconciled(row: dict[str, Any]) -> Reconciled:
    return Reconciled(
        _ms(row["finished_at"]) or 0,
        row["clean"],
        row["differences"],
        _ms(row["last_success_at"]),
    )


def _partition(
    partition: int,
    not_selling: NotSelling | None,
    redis: RedisState | None,
    ledger: LedgerState | None,
    reconciled: Reconciled | None,
) -> PartitionSnapshot:
    if redis is None:
        return PartitionSnapshot(
            partition=partition, not_selling=not_selling, ledger=ledger, reconciled=reconciled
        )
    state, outbox = redis.partitions[partition], redis.outboxes[partition]
    oldest = _seconds(outbox.oldest)
    return PartitionSnapshot(
        partition=partition,
        not_selling=not_selling,
        redis=state,
        outbox_oldest_seconds=oldest,
        # What the relay has acknowledged, Kafka has.
        relay=Lag(state.outbox_events, oldest) if state.trimmer == "relay" else None,
        ledger=ledger,
        persister=_persister_lag(redis.now_ms, state, outbox.oldest_after, ledger)
        if ledger
        else None,
        reconciled=reconciled,
    )


def _seconds(waiting: Waiting | None) -> float | None:
    if waiting is None:
        return 0.0
    return None if waiting.age_ms is None else waiting.age_ms / 1000


def _persister_lag(
    now_ms: int, state: PartitionState, waiting: Waiting | None, ledger: LedgerState
) -> Lag:
    """Seconds: how old the oldest event is that the ledger hasn't. While the outbox holds that very
    event, exactly. Where it doesn't (the relay took it away, Kafka has it) it is at most as old as
    the last event that the ledger has: the clock of a partition never runs back."""
    behind = state.seq - ledger.seq
    if behind <= 0:
        return Lag(behind, 0.0)
    if waiting is not None and waiting.seq == ledger.seq + 1 and waiting.age_ms is not None:
        return Lag(behind, waiting.age_ms / 1000)
    if ledger.occurred_ms is None:
        return Lag(behind, None)
    return Lag(behind, max(0, now_ms - ledger.occurred_ms) / 1000)
