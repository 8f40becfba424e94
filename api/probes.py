"""Short questions to Redis, PostgreSQL and Kafka: do they answer, and which version are they?"""

import psycopg
import redis
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from redis.backoff import NoBackoff
from redis.retry import Retry

from api.servers import ServerError
from engine.addresses import place_of, why
from engine.scripts import Scripts
from persister import database
from persister.ledger import Ledger, Position
from persister.outbox import Outbox
from persister.persister import connect_redis
from persister.sources import why_not_directly

_TIMEOUT_S = 3.0


def probe_redis(url: str) -> str:
    """Name, version and address of the server behind a URL; ServerError if it can't be asked."""
    try:
        with redis.Redis.from_url(
            url,
            socket_connect_timeout=_TIMEOUT_S,
            socket_timeout=_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
        ) as client:
            info = client.info("server")
    except (redis.RedisError, ValueError, OSError) as error:
        raise ServerError(_unreachable("HOLDFAST_REDIS_URL", url, error)) from error
    assert isinstance(info, dict)
    server = "valkey" if "valkey_version" in info else "redis"
    return f"{server} {info.get(f'{server}_version', '?')} at {place_of(url)}"


def probe_postgres(url: str) -> str:
    """Version and address of the server behind a URL; ServerError if it can't be asked."""
    try:
        with psycopg.connect(url, connect_timeout=round(_TIMEOUT_S)) as connection:
            version = connection.info.parameter_status("server_version")
    except (psycopg.Error, ValueError, OSError) as error:
        raise ServerError(_unreachable("HOLDFAST_POSTGRES_URL", url, error)) from error
    return f"{version} at {place_of(url)}"


def probe_kafka(bootstrap: str) -> str:
    """How many brokers are behind an address; ServerError if they can't be asked."""
    variable = "HOLDFAST_KAFKA_BOOTSTRAP"
    try:
        admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
        brokers = len(admin.list_topics(timeout=_TIMEOUT_S).brokers)
    except KafkaException as error:
        raise ServerError(
            f"{variable}: no broker at {bootstrap} ({error.args[0].str()});"
            " start it, or unset the variable"
        ) from error
    return f"{brokers} broker{'' if brokers == 1 else 's'} behind {bootstrap}"


def perhaps_in_kafka(redis_url: str, postgres_url: str, partition: int = 0) -> str:
    """Why the outbox can't be read without Kafka (persister/sources.py); '' where it can."""
    with connect_redis(redis_url) as client, database.connect(postgres_url) as connection:
        outbox = Outbox(client, Scripts.for_server(client.info("server")), partition, "persister")
        try:
            position = Ledger(connection, partition).position()
        except psycopg.errors.UndefinedTable:
            position = Position(0, 0)  # no persister was ever here
        return why_not_directly(client, outbox, partition, position)


def _unreachable(variable: str, url: str, error: Exception) -> str:
    return (
        f"{variable}: no server at {place_of(url)} ({why(error)}); start it, or unset the variable"
    )
