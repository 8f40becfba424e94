"""docker-compose.yml without an engine: read, and each of its services run here as its lines say."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import yaml
from running import REPOSITORY, environment, eventually

from api.kafka_server import KafkaServer
from api.ports import free_port
from api.servers import PostgresServer, RedisServer, Server, choose_redis

#: As compose reads it where no variable is set: `${NAME:-default}` is its default.
COMPOSE: dict[str, Any] = yaml.safe_load(
    re.sub(r"\$\{\w+:-(\w+)\}", r"\1", (REPOSITORY / "docker-compose.yml").read_text())
)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}


def words_of(name: str) -> list[str]:
    """Entrypoint and command of a service of ours, as its container gets them."""
    command = OURS[name]["command"]
    words = shlex.split(command) if isinstance(command, str) else command
    words = [word.replace("$$", "$") for word in words]
    return [*OURS[name].get("entrypoint", ["holdfast"]), *words]


def kafka_properties() -> dict[str, str]:
    """What the image makes of KAFKA_…: lower case, `_` for `.`."""
    variables = SERVICES["kafka"]["environment"]
    return {
        name.removeprefix("KAFKA_").lower().replace("_", "."): str(value)
        for name, value in variables.items()
    }


class ComposedRedis(RedisServer):
    """The redis service's command, with a port and a directory of its own."""

    def launch(self) -> None:
        self.directory.mkdir(parents=True)
        options = shlex.split(SERVICES["redis"]["command"])[1:]
        own = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.directory)]
        self._spawn([str(self.binary.path), *options, *own])


class ComposedKafka(KafkaServer):
    """A broker with the properties of the kafka service, on ports and in a directory of its own."""

    def _write_properties(self, name: str, *, data: str) -> None:
        places = {
            "kafka:9092": self.url,
            "//:9092": f"//{self.url}",
            "kafka:9093": f"127.0.0.1:{self.controller_port}",
            "//:9093": f"//127.0.0.1:{self.controller_port}",
            "/var/lib/kafka/data": data,
        }
        lines = [f"{key}={moved(value, places)}\n" for key, value in kafka_properties().items()]
        (self.directory / name).write_text("".join(lines))


class ComposedPostgres(PostgresServer):
    """A server with the user, password and database that the image makes, and passwords asked for."""

    def start(self) -> None:
        super().start()
        given = SERVICES["postgres"]["environment"]
        user, database = given["POSTGRES_USER"], given["POSTGRES_DB"]
        with psycopg.connect(self.url, autocommit=True) as connection:
            password = given["POSTGRES_PASSWORD"]
            connection.execute(f"CREATE ROLE {user} SUPERUSER LOGIN PASSWORD '{password}'")
            connection.execute(f"CREATE DATABASE {database} OWNER {user}")
            rules = (
                "host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
            )
            (self.data / "pg_hba.conf").write_text(rules)
            connection.execute("SELECT pg_reload_conf()")


class Composed:
    """The services, started in the order of their `depends_on`; ended by ``close``, last ones first."""

    def __init__(self, directory: Path) -> None:
        self.redis = ComposedRedis(choose_redis(), directory / "redis")
        self.kafka = ComposedKafka(directory / "kafka")
        self.postgres = ComposedPostgres(directory / "postgres")
        self._servers: dict[str, Server] = {
            "redis": self.redis,
            "kafka": self.kafka,
            "postgres": self.postgres,
        }
        self.port = free_port()
        self._places = {
            "redis:6379": f"127.0.0.1:{self.redis.port}",
            "kafka:9092": self.kafka.url,
            "postgres:5432": f"127.0.0.1:{self.postgres.port}",
            "--host 0.0.0.0 --port 8080": f"--port {self.port}",
            "127.0.0.1:8080": f"127.0.0.1:{self.port}",
        }
        self._directory = directory
        self._running: dict[str, subprocess.Popen[bytes] | None] = {}
        self._ends = ExitStack()

    def up(self) -> None:
        for name in SERVICES:
            self._start(name)

    def close(self) -> None:
        self._ends.close()

    def log(self, name: str) -> str:
        return (self._directory / f"{name}.log").read_text()

    def _start(self, name: str) -> None:
        if name in self._running:
            return
        for other, wanted in SERVICES[name].get("depends_on", {}).items():
            self._start(other)
            self._wait(other, wanted["condition"])
        if name in self._servers:
            server = self._servers[name]
            self._running[name] = None
            self._ends.callback(server.stop)
            # What another is to be healthy for is waited for there; passwords are to be set at once.
            server.start() if server is self.postgres else server.launch()
            return
        words = shlex.split(moved(shlex.join(words_of(name)), self._places))
        variables = OURS[name]["environment"]
        # `holdfast` and `python` as in the container: those of the environment it is installed in.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        with (self._directory / f"{name}.log").open("wb") as log:
            self._running[name] = subprocess.Popen(
                words,
                cwd=REPOSITORY,
                env=environment(PATH=path)
                | {key: moved(value, self._places) for key, value in variables.items()},
                stdout=log,
                stderr=log,
            )
        self._ends.callback(self._end, name)

    def _end(self, name: str) -> None:
        process = self._running[name]
        assert process is not None
        process.terminate()
        assert process.wait(30) == 0, self.log(name)

    def _wait(self, name: str, condition: str) -> None:
        process = self._running[name]
        if condition == "service_completed_successfully":
            assert process is not None
            assert process.wait(60) == 0, self.log(name)
        elif process is None:
            eventually(f"{name} is healthy", self._servers[name].is_ready)
        else:
            kind, *check = SERVICES[name]["healthcheck"]["test"]
            assert (kind, check[0]) == ("CMD", "python")
            check = [sys.executable, *[moved(word, self._places) for word in check[1:]]]
            eventually(
                f"{name} is healthy",
                lambda: subprocess.run(check, capture_output=True, check=False).returncode == 0,
            )


def moved(text: str, places: dict[str, str]) -> str:
    """A text with other addresses in it."""
    for old, new in places.items():
        text = text.replace(old, new)
    return text
