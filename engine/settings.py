"""Settings, read once at the door from the environment and passed down."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec
from redis import ConnectionPool

from engine.errors import SettingError

HOUR_MS = 3_600_000


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All that can be set. The environment variable of a field is ``HOLDFAST_`` + its name in capitals.

    ``redis_url``, ``postgres_url``: the servers. ``retention_ms``: how long an ended reservation, a
    movement id and a request id are remembered. ``lifetime_max_ms``: how far past its creation a
    reservation can be extended. ``unavailable_after_ms``: how long the engine tries to reach Redis
    before it answers ``unavailable``. ``partitions``: 1 is the only value there is yet.
    ``kafka_bootstrap``: host:port of a broker; set, events go to the ledger through Kafka, by
    ``kafka_topic`` (made with ``kafka_replication_factor`` where it is missing; 0 is the brokers' own
    default). ``outbox_max_events``, ``outbox_max_bytes``: with more than that not yet shipped, reserve
    and receive are refused.
    """

    redis_url: str = "redis://127.0.0.1:6379/0"
    postgres_url: str = "postgresql://postgres@127.0.0.1:5432/postgres"
    partitions: int = 1
    retention_ms: int = 24 * HOUR_MS
    lifetime_max_ms: int = 4 * HOUR_MS
    unavailable_after_ms: int = 800
    body_max_bytes: int = 4 * 1024 * 1024
    sweep_interval_ms: int = 200
    kafka_bootstrap: str = ""
    kafka_topic: str = "holdfast.events"
    kafka_replication_factor: int = 0
    outbox_max_events: int = 10_000_000
    outbox_max_bytes: int = 1024 * 1024 * 1024


def without_password(url: str) -> str:
    """A URL that can be shown and logged."""
    return re.sub(r":[^:@/]*@", ":***@", url)


def settings_from(environ: Mapping[str, str]) -> Settings:
    """Settings from ``HOLDFAST_…`` variables; SettingError names the one that does not fit."""
    found: dict[str, object] = {}
    for field in msgspec.structs.fields(Settings):
        name = "HOLDFAST_" + field.name.upper()
        text = environ.get(name)
        if text is None or text == "":
            continue
        if field.type is int:
            if not text.isascii() or not text.isdecimal() or int(text) < 1:
                raise SettingError(f"{name} is {text!r}; it must be a whole number above 0")
            found[field.name] = int(text)
        else:
            found[field.name] = text
    settings = msgspec.convert(found, Settings)
    try:
        ConnectionPool.from_url(settings.redis_url)
    except ValueError as error:
        raise SettingError(
            f"HOLDFAST_REDIS_URL is {without_password(settings.redis_url)!r}: {error}; it must be one such as"
            f" {Settings().redis_url}"
        ) from None
    if settings.partitions != 1:
        raise SettingError(
            f"HOLDFAST_PARTITIONS is {settings.partitions}; 1 is the only value there is yet"
        )
    return settings
