"""One run of the embedded stack, from the first child to the last."""

import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType

import msgspec

from api.address import listen, url_of
from api.binaries import INSTALL_REDIS, RECOMMENDED_REDIS
from api.kafka_server import KafkaServer
from api.ports import port_is_free
from api.private import Owner, Passwords, prepare, take_passwords
from api.probes import (
    perhaps_in_kafka,
    probe_kafka,
    probe_postgres,
    probe_redis,
)
from api.processes import identify
from api.servers import (
    PostgresServer,
    RedisServer,
    Server,
    ServerError,
    choose_redis,
)
from api.service_calls import readiness, stopped
from api.state_file import Part, State, read_state, write_state
from api.supervisor import (
    DirectoryLock,
    Program,
    Supervisor,
    end_leftovers,
)
from api.welcome import curl_lines, fill_demo_stock
from engine.addresses import printable

READY_TIMEOUT_S = 60.0
_POLL_S = 0.1
_ASK_AFTER_S = 1.0
# Whoever writes ends first; then the relay empties the outbox, and the persister what went to Kafka.
_STOP_ORDER = {
    name: order
    for order, name in enumerate(
        ("serve", "sweeper", "relay", "persister", "redis", "kafka", "postgresql")
    )
}
_ORPHAN_WAIT_S = 5.0
_TELL_AFTER_S = 5.0


@dataclass(frozen=True, slots=True)
class Options:
    """What `holdfast up` was asked for."""

    host: str
    port: int
    workers: int
    data_dir: Path
    demo: bool
    kafka: bool = False
    allow_unauthenticated: bool = False


def child_command(name: str, *arguments: str) -> list[str]:
    """How the stack starts one of our own processes."""
    return [sys.executable, "-m", "api.cli", name, *arguments]


class Stack:
    """One run of `up`: starts the parts in order, watches them, ends them in order."""

    def __init__(self, options: Options, environ: Mapping[str, str]) -> None:
        self._options = options
        self._environ = environ
        self._data_dir = options.data_dir.resolve()
        self._supervisor = Supervisor(_say, self._parts_changed)
        self._state = State()
        self._lines: list[str] = []  # one a part, for the moment it is ready
        self._stopping = False
        self._owner: Owner | None = None
        self._passwords = Passwords("", "")

    def run(self) -> int:
        self._owner = _prepare(self._data_dir)
        with DirectoryLock(self._data_dir):
            self._passwords = take_passwords(self._data_dir)
            self._catch_signals()
            before = read_state(self._data_dir)
            ended = end_leftovers(before)
            if ended:
                _say(f"ended what an earlier run left: {', '.join(ended)}")
            # A worker that was started in the very moment of a kill isn't in the state file.
            patience_s = 0.0 if before.supervisor is None else _ORPHAN_WAIT_S
            with listen(self._options.host, self._options.port, patience_s=patience_s) as listener:
                try:
                    self._start(before, listener)
                    if self._wait_ready():
                        self._greet()
                    while not self._stopping:
                        self._supervisor.watch()
                        time.sleep(_POLL_S)
                finally:
                    self._supervisor.stop()
                    self._update(
                        supervisor=None,
                        parts=[],
                        failing=[],
                        redis_url=None,
                        postgres_url=None,
                        kafka_bootstrap=None,
                        http_url=None,
                    )
        return 0

    def _catch_signals(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True

    def _start(self, before: State, listener: socket.socket) -> None:
        self._update(
            supervisor=identify(os.getpid()),
            redis_port=before.redis_port,
            postgres_port=before.postgres_port,
            kafka_port=before.kafka_port,
            kafka_controller_port=before.kafka_controller_port,
            http_url=url_of(self._options.host, listener.getsockname()[1]),
        )
        kafka = self._launch_kafka(before)  # first, for it takes longest to be there
        self._update(redis_url=self._start_redis(before.redis_port))
        self._update(postgres_url=self._start_postgres(before.postgres_port))
        if kafka is not None:
            self._wait_for(kafka)
        if self._state.kafka_bootstrap:
            self._start_program("relay", "relay")
        elif not self._stopping:
            self._check_none_left_in_kafka()
        for name in ("persister", "sweeper"):
            self._start_program(name, name)
        for number in range(1, self._options.workers + 1):
            self._start_program("serve", f"http-{number}", listener)
        workers = f"{self._options.workers} worker{'s' if self._options.workers > 1 else ''}"
        self._lines.append(f"{'http':<11} {_our_version()}, {workers} on {self._state.http_url}")

    def _launch_kafka(self, before: State) -> KafkaServer | None:
        """A broker of our own, not waited for; None where it is somebody else's, or none is wanted."""
        given = self._environ.get("HOLDFAST_KAFKA_BOOTSTRAP")
        if given:
            self._lines.append(f"{'kafka':<11} {probe_kafka(given)}")
            self._update(kafka_bootstrap=given)
        if given or not self._options.kafka:
            return None
        server = KafkaServer(
            self._data_dir / "kafka",
            port=_still_free(before.kafka_port),
            controller_port=_still_free(before.kafka_controller_port),
            log=self._log("kafka"),
            owner=self._owner,
        )
        self._update(
            kafka_bootstrap=server.url,
            kafka_port=server.port,
            kafka_controller_port=server.controller_port,
        )
        self._end_leftover(server)
        self._launch(server)
        self._lines.append(
            f"{'kafka':<11} {server.version} at {server.url}, data in {server.directory}"
        )
        return server

    def _start_redis(self, port: int) -> str:
        given = self._environ.get("HOLDFAST_REDIS_URL")
        if given:
            self._lines.append(f"{'redis':<11} {probe_redis(given)}")
            return given
        binary = choose_redis()
        server = RedisServer(
            binary,
            self._data_dir / "redis",
            port=_still_free(port),
            log=self._log("redis"),
            owner=self._owner,
            password=self._passwords.redis,
        )
        self._update(redis_port=server.port)
        self._start_server(server)
        self._lines.append(
            f"{'redis':<11} {binary.name} {binary.version_text} at 127.0.0.1:{server.port}, "
            f"data in {server.directory}"
        )
        if binary.version < RECOMMENDED_REDIS:
            self._lines.append(f"{'':<11} it works, but better {INSTALL_REDIS}")
        return server.url

    def _start_postgres(self, port: int) -> str:
        given = self._environ.get("HOLDFAST_POSTGRES_URL")
        if given:
            self._lines.append(f"{'postgresql':<11} {probe_postgres(given)}")
            return given
        server = PostgresServer(
            self._data_dir / "postgres",
            port=_still_free(port),
            log=self._log("postgresql"),
            password=self._passwords.postgres,
        )
        self._end_leftover(server)
        self._update(postgres_port=server.port)
        self._start_server(server)
        self._lines.append(
            f"{'postgresql':<11} {server.version} at 127.0.0.1:{server.port}, "
            f"data in {server.directory}"
        )
        return server.url

    def _end_leftover(self, server: PostgresServer | KafkaServer) -> None:
        leftover = server.leftover()  # we hold the directory's lock: whose it was is gone
        if leftover is not None:
            leftover.end(server.stop_signal, server.stop_timeout_s)

    def _start_server(self, server: Server) -> None:
        self._launch(server)
        self._wait_for(server)

    def _launch(self, server: Server) -> None:
        if not self._stopping:
            self._supervisor.start(server, stop_order=_STOP_ORDER[server.name])

    def _wait_for(self, server: Server) -> None:
        tell_s = time.monotonic() + _TELL_AFTER_S
        while not self._stopping and not server.is_ready():
            if time.monotonic() > tell_s:
                _say(f"{server.name} is reading its data …")
                tell_s = float("inf")
            time.sleep(0.02)

    def _start_program(
        self, command: str, name: str, listener: socket.socket | None = None
    ) -> None:
        if self._stopping:
            return
        descriptors = () if listener is None else (listener.fileno(),)
        arguments = [part for number in descriptors for part in ("--fd", str(number))]
        if listener is not None:
            arguments += ["--host", self._options.host]  # a name that it may be called by
        program = Program(
            name,
            child_command(command, *arguments),
            environ={
                **self._environ,
                "HOLDFAST_REDIS_URL": self._state.redis_url or "",
                "HOLDFAST_POSTGRES_URL": self._state.postgres_url or "",
                "HOLDFAST_KAFKA_BOOTSTRAP": self._state.kafka_bootstrap or "",
                "HOLDFAST_DATA_DIR": str(self._data_dir),
                "PYTHONUNBUFFERED": "1",
            },
            log=self._log(name),
            # `python -m` looks in the working directory first: ours, not one with another `api`.
            cwd=Path(__file__).resolve().parent.parent,
            pass_fds=descriptors,
        )
        self._supervisor.start(program, stop_order=_STOP_ORDER[command])
        if command != "serve":
            self._lines.append(f"{name:<11} {_our_version()}, log in {program.log}")

    def _check_none_left_in_kafka(self) -> None:
        """ServerError where an earlier run may have left events in Kafka that the ledger has not."""
        why_not = perhaps_in_kafka(self._state.redis_url or "", self._state.postgres_url or "")
        if why_not:
            raise ServerError(
                f"{why_not}: run 'holdfast up --kafka' on {self._data_dir} (or with the"
                " HOLDFAST_KAFKA_BOOTSTRAP it last had), which takes all to the ledger; after it has ended"
                " in order, plain 'holdfast up' goes on"
            )

    def _wait_ready(self) -> bool:
        """Wait for the service; False when told to stop. ServerError if a child won't stay up.

        Alive but not ready (a partition that stays closed, say) goes on, and says why.
        """
        deadline: float = time.monotonic() + READY_TIMEOUT_S
        ask_at, told = time.monotonic() + _ASK_AFTER_S, set[str]()
        while not self._stopping:
            self._supervisor.watch()
            why_not = readiness(self._state.http_url or "")
            if why_not is None:
                return True
            hopeless = self._supervisor.hopeless()
            if hopeless is not None:
                raise ServerError(f"{hopeless} (logs: {self._data_dir / 'logs'})")
            if time.monotonic() > ask_at:
                ask_at = time.monotonic() + _ASK_AFTER_S
                for reason in stopped(self._state.http_url or ""):
                    if reason not in told:
                        _say(reason)
                    told.add(reason)
            if time.monotonic() > deadline:
                _say(f"not ready after {READY_TIMEOUT_S:.0f} s, still trying: {why_not}")
                deadline = float("inf")
            time.sleep(_POLL_S)
        return False

    def _greet(self) -> None:
        url = self._state.http_url or ""
        if self._options.demo:
            fill_demo_stock(url, _say)
        for line in self._lines:
            _say(line)
        _say(f"ready at {url} (Ctrl-C stops it). Try:")
        for line in curl_lines(url):
            _say(line)

    def _log(self, name: str) -> Path:
        return self._data_dir / "logs" / f"{name}.log"

    def _parts_changed(self, parts: list[Part]) -> None:
        self._update(parts=parts, failing=self._supervisor.failing())

    def _update(self, **changes: object) -> None:
        self._state = msgspec.structs.replace(self._state, **changes)
        try:
            write_state(self._data_dir, self._state)
        except OSError as error:  # a full disk must not end a running stack
            _say(f"could not write {self._data_dir / 'stack.json'}: {error.strerror}")


def _prepare(data_dir: Path) -> Owner | None:
    """Who the servers are to run as."""
    try:
        owner = prepare(data_dir)
        with tempfile.TemporaryFile(dir=data_dir):
            pass
    except OSError as error:
        where = f" ({error.filename})" if error.filename not in (None, str(data_dir)) else ""
        raise ServerError(
            f"can't use the data directory {data_dir}: {error.strerror}{where}; "
            "choose another with --data-dir"
        ) from error
    return owner


def _still_free(port: int) -> int:
    """The recorded port if it can be had again, else 0 for a new one."""
    return port if port and port_is_free(port) else 0


def _our_version() -> str:
    try:
        return version("holdfast")
    except PackageNotFoundError:
        return "not installed"


def _say(line: str) -> None:
    try:
        print(printable(line), flush=True)
    except OSError:  # the terminal is gone; the stack still has to be ended in order
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
