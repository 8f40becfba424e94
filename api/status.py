"""``GET /v1/status``: how Redis, the partitions and the ledger stand, for whoever is called at 3 a.m."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from api.asgi import Call
from api.problems import Reply, json_reply
from api.schema import rfc3339
from api.selling import NotSelling
from api.snapshot import Lag, LedgerState, PartitionSnapshot, Reconciled, take_snapshot
from engine.settings import Settings
from engine.states import PartitionState, RedisState


def _not_selling_out(not_selling: NotSelling | None) -> dict[str, Any] | None:
    if not_selling is None:
        return None
    return {
        "code": not_selling.code,
        "detail": not_selling.detail,
        "since": rfc3339(not_selling.since_ms),
    }


def _redis_out(redis: RedisState) -> dict[str, Any]:
    return {
        "name": redis.name,
        "version": redis.version,
        "durability": redis.durability,
        "used_memory_bytes": redis.used_memory_bytes,
        "maxmemory_bytes": redis.maxmemory_bytes,
        "maxmemory_policy": redis.maxmemory_policy,
        "risks": redis.risks,
    }


def _lag_out(lag: Lag | None) -> dict[str, Any]:
    return {
        "behind_events": lag.events if lag else None,
        "behind_seconds": lag.seconds if lag else None,
    }


def _ledger_out(ledger: LedgerState, lag: Lag | None) -> dict[str, Any]:
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


def _outbox_out(
    state: PartitionState, oldest_seconds: float | None, settings: Settings
) -> dict[str, Any]:
    return {
        "entries": state.outbox_entries,
        "events": state.outbox_events,
        "max_events": settings.outbox_max_events,
        "bytes": state.outbox_bytes,
        "max_bytes": settings.outbox_max_bytes,
        "kept_events": state.outbox_kept_events,
        "kept_bytes": state.outbox_kept_bytes,
        "oldest_seconds": oldest_seconds,
        "trimmed_by": state.trimmer or None,
    }


def _partition_out(each: PartitionSnapshot, settings: Settings) -> dict[str, Any]:
    state = each.redis
    return {
        "partition": each.partition,
        "selling": each.not_selling is None,
        "not_selling": _not_selling_out(each.not_selling),
        "open": state and state.open,
        "epoch": state and state.epoch,
        "seq": state and state.seq,
        "clock_ahead_ms": state and state.clock_ahead_ms,
        "overdue_seconds": state and state.overdue_ms / 1000,
        "outbox": state and _outbox_out(state, each.outbox_oldest_seconds, settings),
        "relay": each.relay and _lag_out(each.relay),
        "ledger": each.ledger and _ledger_out(each.ledger, each.persister),
        "reconciliation": each.reconciled and _reconciled_out(each.reconciled),
    }


async def status(call: Call) -> Reply:
    """Always 200, also without Redis and without the ledger; what is wrong stands in the body."""
    snapshot = await take_snapshot(call)
    not_selling = [each.not_selling for each in snapshot.partitions if each.not_selling]
    return json_reply(
        200,
        {
            "version": version("holdfast"),
            "selling": not not_selling,
            "not_selling": _not_selling_out(not_selling[0]) if not_selling else None,
            "redis": snapshot.redis and _redis_out(snapshot.redis),
            "redis_error": None if snapshot.redis else snapshot.redis_word,
            "ledger": snapshot.ledger_word,
            "failing": snapshot.failing,
            "partitions": [
                _partition_out(each, call.state.settings) for each in snapshot.partitions
            ],
        },
    )
