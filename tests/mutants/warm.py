"""What the nursery runs itself: by these the servers that all tests share are there before it forks."""

from __future__ import annotations

from api.servers import PostgresServer, RedisServer


def test_redis(redis_server: RedisServer) -> None:
    assert redis_server.url


def test_postgres(postgres_server: PostgresServer) -> None:
    assert postgres_server.url


def test_kafka(kafka_bootstrap: str) -> None:
    assert kafka_bootstrap
