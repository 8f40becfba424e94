"""What the settings of a Redis risk, told at the start, in ``/v1/status`` and by ``holdfast check``: it
sells, but holds may be lost, or units promised twice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def risks_of(info: Mapping[str, Any]) -> list[str]:
    """A line each, from Redis' INFO."""
    return [*_eviction(info), *_sells_when_cut_off(info)]


def _eviction(info: Mapping[str, Any]) -> list[str]:
    policy = info.get("maxmemory_policy", "unknown")
    if policy == "noeviction":
        return []
    return [f"maxmemory-policy of Redis is {policy}: it may throw holds away; set noeviction"]


def _sells_when_cut_off(info: Mapping[str, Any]) -> list[str]:
    """INFO counts the good replicas only where both settings make Redis mind how many there are."""
    replicas = info.get("connected_slaves", 0)
    if not replicas or "min_slaves_good_slaves" in info:
        return []
    return [
        f"Redis has {replicas} replica{'' if replicas == 1 else 's'} and min-replicas-to-write is 0 or"
        " min-replicas-max-lag is 0: a master that is cut off sells on beside its successor"
        " (docs/operations.md, 'Replicas')"
    ]
