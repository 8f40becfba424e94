"""``GET /v1/status``: how Redis, the partitions and the ledger stand, for whoever is called at 3 a.m."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from api.asgi import Call
from api.problems import Problem, Reply, json_reply
from api.schema import rfc3339
from api.snapshot import Lag, LedgerState, PartitionSnapshot, Reconciled, take_snapshot
from engine.settings import Settings


def _lag_out(lag: Lag) -> dict[str, Any]:
    return {"behind_events": lag.events, "behind_seconds": lag.seconds}


def _ledger_out(ledger: LedgerState, lag: Lag) -> dict[str, Any]:
    return {
        "epoch": ledger.epoch,
        "seq": ledger.seq,
        **_lag_out(lag),
        "stopped": ledger.stopped,
    }


def _reconciled_out(reconciled: Reconciled) -> dict[str, Any]:
    success = reconciled.last_success_ms
    return {
        "finished_at": rfc3339(reconciled.finished_ms),
        "clean": reconciled.clean,
        "differences": reconciled.differences,
        "last_success_at": None if success is None else rfc3339(success),
    }


def _partition_out(each: PartitionSnapshot, settings: Settings) -> dict[str, Any]:
    state = each.redis
    assert state is not None  # Redis answered
    return {
        "partition": state.partition,
        "open": state.open,
        "epoch": state.epoch,
        "seq": state.seq,
        "clock_ahead_ms": state.clock_ahead_ms,
        "outbox": {
            "entries": state.outbox_entries,
            "events": state.outbox_events,
            "max_events": settings.outbox_max_events,
            "bytes": state.outbox_bytes,
            "max_bytes": settings.outbox_max_bytes,
            "oldest_seconds": each.outbox_oldest_seconds,
            "trimmed_by": state.trimmer or None,
        },
        "relay": _lag_out(each.relay) if each.relay else None,
        "ledger": _ledger_out(each.ledger, each.persister)
        if each.ledger and each.persister
        else None,
        "reconciliation": _reconciled_out(each.reconciled) if each.reconciled else None,
    }


async def status(call: Call) -> Reply:
    """Always 200 while Redis answers; what is wrong stands in the body. Problem 503 without Redis."""
    snapshot = await take_snapshot(call)
    redis = snapshot.redis
    if redis is None:
        raise Problem("unavailable", snapshot.redis_word)
    return json_reply(
        200,
        {
            "version": version("holdfast"),
            "redis": {
                "name": redis.name,
                "version": redis.version,
                "durability": redis.durability,
                "used_memory_bytes": redis.used_memory_bytes,
                "maxmemory_bytes": redis.maxmemory_bytes,
                "maxmemory_policy": redis.maxmemory_policy,
            },
            "ledger": snapshot.ledger_word,
            "partitions": [
                _partition_out(each, call.state.settings) for each in snapshot.partitions
            ],
        },
    )
