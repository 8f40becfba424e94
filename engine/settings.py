"""Settings, read once at the door from the environment and passed down."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import msgspec

from engine.addresses import (
    kafka_fault,
    postgres_fault,
    redis_fault,
    without_kafka_password,
    without_password,
)
from engine.errors import SettingError

HOUR_MS = 3_600_000
#: Up to 15 digits: exact in Lua and JSON, and a time in ms for 30,000 years.
_WHOLE = re.compile(r"[0-9]{1,15}")
_MAY_BE_0 = frozenset({"outbox_keep_ms", "outbox_keep_bytes"})


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All that can be set. The environment variable of a field is ``HOLDFAST_`` + its name in capitals.

    ``redis_url``, ``postgres_url``: the servers. ``retention_ms``: how long an ended reservation, a
    movement id and a request id are remembered. ``lifetime_max_ms``: how far past its creation a
    reservation can be extended. ``unavailable_after_ms``: how long the engine tries to reach Redis
    before it answers ``unavailable``. ``partitions``: 1 is the only value there is yet.
    ``kafka_bootstrap``: host:port of a broker; set, events go to the ledger through Kafka, by
    ``kafka_topic`` (made with ``kafka_replication_factor`` where it is missing; 0 is the brokers' own
    default). ``outbox_max_events``, ``outbox_max_bytes``: with more than that not yet shipped, reserve
    and receive are refused. ``outbox_keep_ms``, ``outbox_keep_bytes``: what was shipped stays in the outbox
    for so long, of all partitions together so many bytes of it; 0 is not at all. ``data_dir``: of the stack
    that started this process, if one did.

    Of an HTTP worker: ``head_max_bytes`` of request line and headers together, ``head_timeout_ms`` for
    them to arrive, ``keep_alive_ms`` for the next request, ``send_timeout_ms`` for an answer to be taken;
    ``connections_max`` at once; ``bodies_max_bytes`` of requests under way, and ``unsent_max_bytes`` of
    answers that clients have not taken, each in all. ``hosts``: names by which it may be called,
    separated by commas, beside its own address.
    """

    redis_url: str = "redis://127.0.0.1:6379/0"
    postgres_url: str = "postgresql://postgres@127.0.0.1:5432/postgres"
    partitions: int = 1
    retention_ms: int = 24 * HOUR_MS
    lifetime_max_ms: int = 4 * HOUR_MS
    unavailable_after_ms: int = 800
    body_max_bytes: int = 4 * 1024 * 1024
    head_max_bytes: int = 64 * 1024
    head_timeout_ms: int = 10_000
    keep_alive_ms: int = 75_000
    send_timeout_ms: int = 30_000
    connections_max: int = 4_096
    bodies_max_bytes: int = 64 * 1024 * 1024
    unsent_max_bytes: int = 64 * 1024 * 1024
    hosts: str = ""
    sweep_interval_ms: int = 200
    kafka_bootstrap: str = ""
    kafka_topic: str = "holdfast.events"
    kafka_replication_factor: int = 0
    outbox_max_events: int = 10_000_000
    outbox_max_bytes: int = 1024 * 1024 * 1024
    outbox_keep_ms: int = 60_000
    outbox_keep_bytes: int = 64 * 1024 * 1024
    data_dir: str = ""


def settings_from(environ: Mapping[str, str]) -> Settings:
    """Settings from ``HOLDFAST_…`` variables; SettingError names the one that does not fit."""
    found: dict[str, object] = {}
    for field in msgspec.structs.fields(Settings):
        name = "HOLDFAST_" + field.name.upper()
        text = environ.get(name)
        if text is None or text == "":
            continue
        if field.type is int:
            may_be_0 = field.name in _MAY_BE_0
            number = int(text) if _WHOLE.fullmatch(text) else -1
            if number < 1 - may_be_0:
                least = "from 0" if may_be_0 else "from 1"
                raise SettingError(
                    f"{name} is {text[:40]!r}; it must be a whole number {least} to {10**15 - 1:,}"
                )
            found[field.name] = number
        else:
            found[field.name] = text
    settings = msgspec.convert(found, Settings)
    _check("HOLDFAST_REDIS_URL", settings.redis_url, redis_fault, Settings().redis_url)
    _check("HOLDFAST_POSTGRES_URL", settings.postgres_url, postgres_fault, Settings().postgres_url)
    if settings.kafka_bootstrap and (fault := kafka_fault(settings.kafka_bootstrap)):
        shown = without_kafka_password(settings.kafka_bootstrap)
        raise SettingError(f"HOLDFAST_KAFKA_BOOTSTRAP is {shown!r}; {fault}")
    if settings.partitions != 1:
        raise SettingError(
            f"HOLDFAST_PARTITIONS is {settings.partitions}; 1 is the only value there is yet"
        )
    return settings


def _check(name: str, value: str, fault_of: Callable[[str], str | None], such_as: str) -> None:
    fault = fault_of(value)
    if fault is not None:
        raise SettingError(f"{name} is {without_password(value)!r}: {fault}; one such as {such_as}")
