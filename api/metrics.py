"""``GET /metrics``: the snapshot as Prometheus text. Gauges only, read at the scrape: nothing is
counted in this process, so every HTTP worker tells the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.metadata import version

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from api.asgi import Call
from api.problems import Reply
from api.snapshot import PartitionSnapshot, Snapshot, take_snapshot
from engine.settings import Settings
from engine.states import RedisState

_OF_PARTITION = ("partition",)
#: Name → labels and help. docs/api.md has a row for each.
GAUGES: dict[str, tuple[tuple[str, ...], str]] = {
    "holdfast_build_info": (("version",), "Always 1; the version of the service."),
    "holdfast_redis_up": ((), "1 while Redis answers, else 0 and what it knows is missing."),
    "holdfast_postgres_up": (
        (),
        "1 while the ledger can be read, else 0 and what it knows is missing.",
    ),
    "holdfast_children_failing": (
        (),
        "Processes of the stack that keep ending; only where `holdfast up` runs.",
    ),
    "holdfast_redis_info": (
        ("name", "version", "durability", "maxmemory_policy"),
        "Always 1; durability is appendfsync, or none without an append-only file.",
    ),
    "holdfast_redis_used_memory_bytes": ((), "Memory that Redis uses."),
    "holdfast_redis_maxmemory_bytes": ((), "Memory that Redis may use; 0 is no limit."),
    "holdfast_outbox_max_events": ((), "With so many events in an outbox reserves are refused."),
    "holdfast_outbox_max_bytes": ((), "With so many bytes in an outbox reserves are refused."),
    "holdfast_selling": (
        _OF_PARTITION,
        "1 while a reserve in the partition would be decided, else 0.",
    ),
    "holdfast_overdue_seconds": (
        _OF_PARTITION,
        "How long ago the oldest deadline passed that nobody has swept; 0 where there is none.",
    ),
    "holdfast_partition_open": (_OF_PARTITION, "1 while the partition takes writes."),
    "holdfast_partition_epoch": (_OF_PARTITION, "Epoch of the partition."),
    "holdfast_partition_seq": (_OF_PARTITION, "Seq of the last event."),
    "holdfast_partition_clock_ahead_seconds": (
        _OF_PARTITION,
        "How far the partition's clock is ahead of the server's; no deadline passes meanwhile.",
    ),
    "holdfast_outbox_entries": (_OF_PARTITION, "Entries in the outbox, one a script call."),
    "holdfast_outbox_events": (_OF_PARTITION, "Events that wait in the outbox."),
    "holdfast_outbox_bytes": (_OF_PARTITION, "Bytes of the events that wait in the outbox."),
    "holdfast_outbox_kept_events": (
        _OF_PARTITION,
        "Events kept in the outbox after they were shipped.",
    ),
    "holdfast_outbox_kept_bytes": (_OF_PARTITION, "Bytes of these events."),
    "holdfast_outbox_oldest_seconds": (
        _OF_PARTITION,
        "Age of the oldest event that waits in the outbox; 0 where none does.",
    ),
    "holdfast_relay_behind_events": (_OF_PARTITION, "Events that Kafka has not acknowledged."),
    "holdfast_relay_behind_seconds": (
        _OF_PARTITION,
        "Age of the oldest event that Kafka has not acknowledged; 0 where there is none.",
    ),
    "holdfast_ledger_epoch": (_OF_PARTITION, "Epoch of the last event in the ledger."),
    "holdfast_ledger_seq": (_OF_PARTITION, "Seq of the last event in the ledger."),
    "holdfast_ledger_behind_events": (
        _OF_PARTITION,
        "Events that the ledger has not; below 0 where Redis is behind the ledger.",
    ),
    "holdfast_ledger_behind_seconds": (
        _OF_PARTITION,
        "Age of the oldest event that the ledger has not, at most; 0 where there is none.",
    ),
    "holdfast_ledger_stopped": (_OF_PARTITION, "1 while the ledger does not go on by itself."),
    "holdfast_reconciliation_last_run_timestamp_seconds": (
        _OF_PARTITION,
        "When the last reconciliation ended.",
    ),
    "holdfast_reconciliation_last_success_timestamp_seconds": (
        _OF_PARTITION,
        "When the last reconciliation without a difference ended.",
    ),
    "holdfast_reconciliation_differences": (
        _OF_PARTITION,
        "Differences that the last reconciliation found.",
    ),
}

Value = tuple[str, tuple[str, ...], float | None]


class _Gauges(Collector):
    """The gauges of one scrape. One without a value is left out."""

    def __init__(self, snapshot: Snapshot, settings: Settings) -> None:
        self._values = list(_values(snapshot, settings))

    def collect(self) -> Iterable[Metric]:
        for name, (labels, text) in GAUGES.items():
            family = GaugeMetricFamily(name, text, labels=labels)
            for of, labelled, value in self._values:
                if of == name and value is not None:
                    family.add_metric(labelled, value)
            if family.samples:
                yield family


def _values(snapshot: Snapshot, settings: Settings) -> Iterator[Value]:
    yield "holdfast_build_info", (version("holdfast"),), 1
    yield "holdfast_redis_up", (), snapshot.redis is not None
    yield "holdfast_postgres_up", (), snapshot.ledger_word == "ok"
    yield "holdfast_outbox_max_events", (), settings.outbox_max_events
    yield "holdfast_outbox_max_bytes", (), settings.outbox_max_bytes
    if snapshot.failing is not None:
        yield "holdfast_children_failing", (), len(snapshot.failing)
    if snapshot.redis is not None:
        yield from _of_redis(snapshot.redis)
    for each in snapshot.partitions:
        for name, value in _of_partition(each):
            yield name, (str(each.partition),), value


def _of_redis(redis: RedisState) -> Iterator[Value]:
    words = (redis.name, redis.version, redis.durability, redis.maxmemory_policy)
    yield "holdfast_redis_info", words, 1
    yield "holdfast_redis_used_memory_bytes", (), redis.used_memory_bytes
    yield "holdfast_redis_maxmemory_bytes", (), redis.maxmemory_bytes


def _of_partition(each: PartitionSnapshot) -> Iterator[tuple[str, float | None]]:
    state, ledger, reconciled = each.redis, each.ledger, each.reconciled
    yield "holdfast_selling", each.not_selling is None
    if state is not None:
        yield "holdfast_overdue_seconds", state.overdue_ms / 1000
        yield "holdfast_partition_open", state.open
        yield "holdfast_partition_epoch", state.epoch
        yield "holdfast_partition_seq", state.seq
        yield "holdfast_partition_clock_ahead_seconds", state.clock_ahead_ms / 1000
        yield "holdfast_outbox_entries", state.outbox_entries
        yield "holdfast_outbox_events", state.outbox_events
        yield "holdfast_outbox_bytes", state.outbox_bytes
        yield "holdfast_outbox_kept_events", state.outbox_kept_events
        yield "holdfast_outbox_kept_bytes", state.outbox_kept_bytes
        yield "holdfast_outbox_oldest_seconds", each.outbox_oldest_seconds
    for part, lag in (("relay", each.relay), ("ledger", each.persister)):
        if lag is not None:
            yield f"holdfast_{part}_behind_events", lag.events
            yield f"holdfast_{part}_behind_seconds", lag.seconds
    if ledger is not None:
        yield "holdfast_ledger_epoch", ledger.epoch
        yield "holdfast_ledger_seq", ledger.seq
        yield "holdfast_ledger_stopped", ledger.stopped is not None
    if reconciled is not None:
        run, success = reconciled.finished_ms / 1000, reconciled.last_success_ms
        yield "holdfast_reconciliation_last_run_timestamp_seconds", run
        yield (
            "holdfast_reconciliation_last_success_timestamp_seconds",
            None if success is None else success / 1000,
        )
        yield "holdfast_reconciliation_differences", reconciled.differences


async def metrics(call: Call) -> Reply:
    """Always 200: what is away is told by ``holdfast_redis_up`` and ``holdfast_postgres_up``."""
    registry = CollectorRegistry()
    registry.register(_Gauges(await take_snapshot(call), call.state.settings))
    return Reply(200, generate_latest(registry), content_type=CONTENT_TYPE_PLAIN_0_0_4.encode())
