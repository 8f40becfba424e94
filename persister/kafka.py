"""Kafka: what every client of ours is given, and the topic of the events."""

from __future__ import annotations

import logging
import time
from typing import Any

from confluent_kafka import KafkaError as KafkaCode
from confluent_kafka import KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from engine.errors import StoreError
from engine.settings import Settings

log = logging.getLogger("holdfast.kafka")

ANSWER_S = 5.0
RETENTION_MS = 14 * 24 * 3_600_000
#: A cart of 2,000 lines, each split over many locations, is one event: 235 bytes a line with long names.
MESSAGE_BYTES_MAX = 64 * 1024 * 1024


class KafkaUnavailable(StoreError):
    """Kafka can't be asked now."""


def client_settings(settings: Settings) -> dict[str, Any]:
    """What every client of ours is given. Its own log lines come by ours, or not at all."""
    return {
        "bootstrap.servers": settings.kafka_bootstrap,
        "client.id": "holdfast",
        "reconnect.backoff.max.ms": 1_000,
        "topic.metadata.refresh.interval.ms": 30_000,
        "log_level": 2,
        "error_cb": _told,
    }


def _told(error: KafkaCode) -> None:
    log.debug("Kafka: %s", error)


def ensure_topic(settings: Settings) -> str:
    """The id of the topic, made with a partition each of ours where it is missing.

    KafkaUnavailable where no broker answers; StoreError where the topic has too few partitions.
    """
    admin = AdminClient(client_settings(settings))
    name = settings.kafka_topic
    topic = _describe(admin, name)
    if topic is None:
        _make(admin, settings)
        give_up_at = time.monotonic() + ANSWER_S
        while topic is None and time.monotonic() < give_up_at:
            time.sleep(0.05)
            topic = _describe(admin, name)
        if topic is None:
            raise KafkaUnavailable(f"topic {name} was made and can't be seen yet")
    if len(topic.partitions) < settings.partitions:
        raise StoreError(
            f"topic {name} has {len(topic.partitions)} partitions, {settings.partitions} are needed;"
            " add some, or name another with HOLDFAST_KAFKA_TOPIC"
        )
    return str(topic.topic_id)


def _make(admin: AdminClient, settings: Settings) -> None:
    config = {
        "cleanup.policy": "delete",
        "retention.ms": str(RETENTION_MS),
        "max.message.bytes": str(MESSAGE_BYTES_MAX),
    }
    new = NewTopic(
        settings.kafka_topic,
        num_partitions=settings.partitions,
        replication_factor=settings.kafka_replication_factor or -1,
        config=config,
    )
    try:
        admin.create_topics([new], request_timeout=ANSWER_S)[new.topic].result()
    except KafkaException as error:
        if error.args[0].code() != KafkaCode.TOPIC_ALREADY_EXISTS:
            settings_of_topic = ", ".join([f"{key}={value}" for key, value in config.items()])
            raise KafkaUnavailable(
                f"topic {settings.kafka_topic} can't be made with {settings_of_topic}:"
                f" {error.args[0].str()}; where that is forbidden make it yourself, with"
                f" {settings.partitions} partitions"
            ) from None


def _describe(admin: AdminClient, name: str) -> Any:
    try:
        return admin.describe_topics(TopicCollection([name]), request_timeout=ANSWER_S)[
            name
        ].result()
    except KafkaException as error:
        if error.args[0].code() == KafkaCode.UNKNOWN_TOPIC_OR_PART:
            return None
        raise KafkaUnavailable(f"Kafka does not answer: {error.args[0].str()}") from None
