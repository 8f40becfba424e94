"""``GET /v1/status``: how Redis, the partitions and the ledger stand, for whoever is called at 3 a.m."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from redis.exceptions import RedisError

from api.asgi import Call
from api.audit_trail import LedgerState, ledger_states
from api.handlers import engine_of
from api.problems import Problem, Reply, json_reply
from engine.engine import PartitionState


def _partition_out(state: PartitionState, ledger: LedgerState | None) -> dict[str, Any]:
    return {
        "partition": state.partition,
        "open": state.open,
        "epoch": state.epoch,
        "seq": state.seq,
        "clock_ahead_ms": state.clock_ahead_ms,
        "outbox": {"entries": state.outbox_length, "trimmed_by": state.trimmer or None},
        "ledger": {
            "epoch": ledger.epoch,
            "seq": ledger.seq,
            "behind_events": state.seq - ledger.seq,
            "stopped": ledger.stopped,
        }
        if ledger
        else None,
    }


async def status(call: Call) -> Reply:
    """Always 200 while Redis answers; what is wrong stands in the body."""
    engine = engine_of(call)
    try:
        server, states = await engine.server(), await engine.states()
        durability = await engine.durability()
    except (RedisError, OSError) as error:
        raise Problem("unavailable", f"Redis did not answer: {error}") from None
    try:
        ledgers, ledger_word = await ledger_states(call), "ok"
    except Problem as problem:
        ledgers, ledger_word = {}, problem.detail
    return json_reply(
        200,
        {
            "version": version("holdfast"),
            "redis": {
                "name": server.get("server_name", "redis"),
                "version": server.get("valkey_version", server["redis_version"]),
                "durability": durability,
                "used_memory_bytes": server["used_memory"],
                "maxmemory_bytes": server["maxmemory"],
                "maxmemory_policy": server.get("maxmemory_policy", "unknown"),
            },
            "ledger": ledger_word,
            "partitions": [_partition_out(state, ledgers.get(state.partition)) for state in states],
        },
    )
