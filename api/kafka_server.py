"""A real Kafka broker as a child process: one node, on loopback, without Docker.

`make setup` fetches the jars by api/kafka.pom.xml; Java 17 or newer is the machine's own. Used by
the embedded stack and the tests. Production has a Kafka of several brokers.
"""

import base64
import fcntl
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from api.ports import free_port, port_is_free
from api.private import Owner, write_private
from api.privileges import hand_over_all, let_reach, let_run
from api.processes import ProcessId, last_line, processes_in, spawn
from api.servers import Server, ServerError

_HOST = "127.0.0.1"
_JAVA_MIN = 17
_LOCK_WAIT_S = 5.0
_REMEDY = (
    "install Java 17 or newer and Maven (apt install openjdk-17-jre-headless maven, "
    "brew install openjdk maven) and run 'make -B setup', "
    "or set HOLDFAST_KAFKA_BOOTSTRAP to a Kafka of yours"
)
_MEMORY = ["-Xmx512m", "-XX:+ExitOnOutOfMemoryError"]
# A metadata request: api key 3, version 1, correlation id, client id, and of no topic.
_METADATA = struct.pack(">hhih8si", 3, 1, 1, 8, b"holdfast", 0)
_LOGGING = """\
status = error
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{ISO8601} %p %m (%c{1})%n%rEx{6}
rootLogger.level = warn
rootLogger.appenderRef.console.ref = console
"""


@dataclass(frozen=True, slots=True)
class KafkaInstall:
    """What a broker is started from: the java program and the directory of Kafka's jars."""

    java: Path
    jars: Path
    version: str


def find_kafka(
    environ: Mapping[str, str] = os.environ, prefix: Path = Path(sys.prefix)
) -> KafkaInstall:
    """The Kafka that `make setup` put below `prefix`, with the java on the PATH of `environ`.

    ServerError, with what to install, where one of them is missing.
    """
    java = shutil.which("java", path=environ.get("PATH", ""))
    if java is None:
        raise ServerError(f"no Java found, and Kafka needs it: {_REMEDY}")
    version = _java_version(java)
    if version < _JAVA_MIN:
        raise ServerError(f"the java on PATH ({java}) is not Java 17 or newer: {_REMEDY}")
    jars = prefix / "share" / "kafka"
    brokers = list(jars.glob("kafka_*-*.jar"))
    if len(brokers) != 1:
        raise ServerError(f"no Kafka in {jars}: {_REMEDY}")
    return KafkaInstall(Path(java).absolute(), jars, brokers[0].stem.rpartition("-")[2])


class KafkaServer(Server):
    """A Kafka broker and its own KRaft controller in one process, plain text, loopback only.

    What it has acknowledged has reached the kernel and survives `kill -9`. It does not survive a
    power cut: Kafka by default never waits for fsync, it relies on replicas on other machines, and
    this node has none.

    A topic must be created before use. `port` and `controller_port` are kept over restarts; data
    may be started on other ports than before.
    """

    stop_timeout_s = 30.0
    telling = r"^\S*(Exception|Error)\b"

    def __init__(
        self,
        directory: Path,
        *,
        port: int = 0,
        controller_port: int = 0,
        log: Path | None = None,
        owner: Owner | None = None,
    ) -> None:
        """``owner``: who it runs as; None as this process."""
        super().__init__("kafka", directory, port, log)
        self._owner = owner
        self.controller_port = controller_port or free_port()
        self._chooses_controller_port = not controller_port
        while not controller_port and self.controller_port == self.port:
            self.controller_port = free_port()
        self.data = self.directory / "data"
        self._install = find_kafka()
        self.version = self._install.version

    def _chooses_again(self) -> bool:
        chosen = super()._chooses_again()
        if self._chooses_controller_port and not port_is_free(self.controller_port):
            self.controller_port = free_port()
            chosen = True
        return chosen

    @property
    def url(self) -> str:
        """The bootstrap address for clients, host:port."""
        return f"{_HOST}:{self.port}"

    def leftover(self) -> ProcessId | None:
        """A broker that runs on this directory, whoever started it."""
        found = processes_in(self.directory, "java")
        return found[0] if found else None

    def launch(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        lock = self._take_lock()
        try:
            write_private(self.directory / "log4j2.properties", _LOGGING)
            self._empty("tmp")
            if not (self.data / "meta.properties").exists():
                self._format()
            self._write_properties("server.properties", data="data")
            self._hand_over()
            self._spawn(
                self._command("kafka.Kafka", "server.properties"),
                environ=_plain_environ(),
                owner=self._owner,
                pass_fds=(lock,),
                cwd=self.directory,
            )
        finally:
            os.close(lock)  # the broker has inherited it

    def answers(self) -> bool:
        try:
            with socket.create_connection((_HOST, self.port), timeout=1) as connection:
                connection.sendall(struct.pack(">i", len(_METADATA)) + _METADATA)
                with connection.makefile("rb") as stream:
                    reply = stream.read(12)
        except OSError:
            return False
        # Size, correlation id, number of brokers: 0 as long as the controller knows of none alive.
        brokers = struct.unpack(">iii", reply)[2] if len(reply) == 12 else 0
        return brokers == 1 and self._is_ours()

    def _is_ours(self) -> bool:
        try:
            sockets = psutil.Process(self.pid).net_connections(kind="tcp")
        except psutil.Error:
            return False
        return any(
            each.status == psutil.CONN_LISTEN and each.laddr.port == self.port for each in sockets
        )

    def _take_lock(self) -> int:
        """A lock that lasts as long as the broker lives, for it holds the descriptor too.

        Kafka's own lock comes too late: a second node on the same data first takes over the
        metadata log, and the one that was there never ends when asked.
        """
        lock = os.open(self.directory / "kafka.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        give_up_at = time.monotonic() + _LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return lock
            except BlockingIOError:
                holder = self.leftover()
                # One that has just ended looks gone before the last of its threads lets go of it.
                if holder is None and time.monotonic() < give_up_at:
                    time.sleep(0.02)
                    continue
                os.close(lock)
                pid = f" (pid {holder.pid})" if holder else ""
                raise ServerError(
                    f"a Kafka{pid} already runs on {self.directory}: end it first"
                ) from None

    def _format(self) -> None:
        """Make the data directory under another name first, so that half of one is never used."""
        fresh = self._empty("format")
        self._write_properties("format.properties", data="format")
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        options = ["format", f"--cluster-id={cluster}", "-c", "format.properties"]
        self._hand_over()
        storage_tool = spawn(
            self._command("kafka.tools.StorageTool", *options),
            self.log,
            stop_signal=signal.SIGTERM,
            environ=_plain_environ(),
            owner=self._owner,
            cwd=self.directory,
        )
        if storage_tool.wait() != 0:
            raise ServerError(
                f"Kafka could not set up {self.data}: "
                f"{last_line(self.log, telling=self.telling)} (log: {self.log})"
            )
        fresh.rename(self.data)

    def _hand_over(self) -> None:
        if self._owner is not None:
            let_run(self._install.jars, self._owner)
            let_reach(self.directory, self._owner)
            hand_over_all(self.directory, self._owner)

    def _empty(self, name: str) -> Path:
        path = self.directory / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        return path

    def _command(self, main: str, *arguments: str) -> list[str]:
        return [
            str(self._install.java),
            *_MEMORY,
            "-XX:-UsePerfData",  # neither this nor the libraries it unpacks leave files in /tmp
            f"-Djava.io.tmpdir={self.directory / 'tmp'}",
            "-Dlog4j2.configurationFile=log4j2.properties",
            "-cp",
            f"{self._install.jars}/*",
            main,
            *arguments,
        ]

    def _write_properties(self, name: str, *, data: str) -> None:
        settings = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@{_HOST}:{self.controller_port}",
            "listeners": f"PLAINTEXT://{self.url},CONTROLLER://{_HOST}:{self.controller_port}",
            "controller.listener.names": "CONTROLLER",
            # Relative to the working directory: a list of paths, it would part at a comma.
            "log.dirs": data,
            "auto.create.topics.enable": "false",
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "1",
            "group.initial.rebalance.delay.ms": "0",
            # After `kill -9` a broker must wait until its own old registration has timed out.
            "broker.session.timeout.ms": "1000",
            "broker.heartbeat.interval.ms": "200",
            "log.cleaner.dedupe.buffer.size": str(16 * 1024 * 1024),  # 128 MB of heap if not set
        }
        lines = [f"{key}={value}\n" for key, value in settings.items()]
        write_private(self.directory / name, "".join(lines))


def _java_version(java: str) -> int:
    """The major version; 0 if it doesn't run or is too old to know the option."""
    try:
        done = subprocess.run(
            [java, "--version"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            env=_plain_environ(),
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    match = re.match(r"\S+ (\d+)", done.stdout)
    return int(match[1]) if match else 0


def _plain_environ() -> dict[str, str]:
    """Ours without options for other Java programs, in a locale that knows every file name."""
    others = ("CLASSPATH", "JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS")
    kept = {
        key: value
        for key, value in os.environ.items()
        if key not in others and not key.startswith("LC_")
    }
    return kept | {"LC_ALL": "C.UTF-8"}
