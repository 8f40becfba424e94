"""Real Redis and PostgreSQL servers as child processes, on loopback, each in its own directory.

Used by the embedded stack, the tests and the benchmark.
"""

import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from abc import abstractmethod
from pathlib import Path

from api.binaries import (
    INSTALL_REDIS,
    RECOMMENDED_REDIS,
    RedisBinary,
    ServerError,
    choose_redis,
    find_postgres,
    find_redis_binaries,
    postgres_version,
)
from api.ports import free_port, port_is_free
from api.private import Owner, write_private
from api.privileges import (
    hand_over,
    hand_over_all,
    let_reach,
    let_run,
    let_run_program,
    unprivileged_owner,
)
from api.processes import (
    Child,
    ProcessId,
    identify,
    last_line,
    machine_memory_bytes,
    processes_in,
    spawn,
)

__all__ = [
    "PostgresServer",
    "RedisBinary",
    "RedisServer",
    "Server",
    "ServerError",
    "choose_redis",
    "find_redis_binaries",
]

_PORTS_TRIED = 3
_START_TIMEOUT_S = 600.0  # loading a large AOF or recovering a ledger takes its time
_HOST = "127.0.0.1"
#: pg_hba.conf of a server of ours.
_RULES = """\
# Written by holdfast for the password with the SHA-256 {told}
host all         all 127.0.0.1/32 scram-sha-256
host replication all 127.0.0.1/32 scram-sha-256
"""


class Server(Child):
    """A server with a port and a directory of its own."""

    def __init__(self, name: str, directory: Path, port: int, log: Path | None) -> None:
        self.directory = directory.resolve()
        super().__init__(name, (log or self.directory / f"{name}.log").resolve())
        self.port = port or free_port()
        self._chooses_port = not port

    @property
    @abstractmethod
    def url(self) -> str:
        """Where clients reach it."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether it serves clients now; asks this very process, never a stranger on the port."""

    def is_ready(self) -> bool:
        """Whether it serves clients now. ServerError with its last log line if it has ended."""
        if not self.running():
            why = self.last_words(self.telling)
            raise ServerError(f"{self.name} did not start: {why} (log: {self.log})")
        return self.answers()

    def start(self) -> None:
        """Launch and wait until it serves clients; ServerError (and nothing left) if it won't. Where somebody
        took a port meanwhile that it had chosen itself, it chooses another."""
        for _ in range(_PORTS_TRIED - 1):
            try:
                self._start()
                return
            except ServerError:
                if not self._chooses_again():
                    raise
        self._start()

    def _chooses_again(self) -> bool:
        """Has somebody taken a port that was its own choice? Then it has another one now."""
        if not self._chooses_port or port_is_free(self.port):
            return False
        self.port = free_port()
        return True

    def _start(self) -> None:
        self.launch()
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self.is_ready():
            if time.monotonic() > deadline:
                self.kill()
                raise ServerError(
                    f"{self.name} gave no answer for {_START_TIMEOUT_S:.0f} s (log: {self.log})"
                )
            time.sleep(0.02)


class RedisServer(Server):
    """A durable Redis: what it has answered survives `kill -9` and, with `always`, power loss."""

    stop_timeout_s = 30.0

    def __init__(
        self,
        binary: RedisBinary,
        directory: Path,
        *,
        port: int = 0,
        appendfsync: str = "always",
        maxmemory_bytes: int | None = None,
        log: Path | None = None,
        owner: Owner | None = None,
        password: str | None = None,
    ) -> None:
        """``owner``: who it runs as; None as this process."""
        super().__init__("redis", directory, port, log)
        self.binary = binary
        self._owner = owner
        self._password = password
        self.appendfsync = appendfsync
        self.maxmemory_bytes = (
            machine_memory_bytes() // 2 if maxmemory_bytes is None else maxmemory_bytes
        )

    @property
    def url(self) -> str:
        login = f"default:{self._password}@" if self._password else ""
        return f"redis://{login}{_HOST}:{self.port}/0"

    def launch(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        if self.binary.version < RECOMMENDED_REDIS and (self.directory / "appendonlydir").exists():
            # An older server would not see that directory, and start empty.
            raise ServerError(
                f"the data in {self.directory} was written by Redis 7.0 or newer and "
                f"{self.binary.version_text} can't read it: {INSTALL_REDIS}"
            )
        settings = {
            "bind": _HOST,
            "port": str(self.port),
            "dir": str(self.directory),
            "daemonize": "no",
            "appendonly": "yes",
            "appendfsync": self.appendfsync,
            "save": "",
            "maxmemory": str(self.maxmemory_bytes),
            "maxmemory-policy": "noeviction",
            # A rewrite takes a core for seconds, in the middle of a sale if it comes at 64 MB.
            "auto-aof-rewrite-min-size": "1gb",
        }
        arguments = [part for key, value in settings.items() for part in (f"--{key}", value)]
        # Not as an argument: others can see those.
        config = self.directory / "redis.conf"
        write_private(config, f"requirepass {self._password}\n" if self._password else "")
        if self._owner is not None:
            let_run_program(self.binary.path, self._owner)
            let_reach(self.directory, self._owner)
            hand_over_all(self.directory, self._owner)
        command = [str(self.binary.path), str(config), *arguments]
        self._spawn(command, owner=self._owner, cwd=self.directory)

    def answers(self) -> bool:
        try:
            with socket.create_connection((_HOST, self.port), timeout=1) as connection:
                login = f"AUTH {self._password}\r\n" if self._password else ""
                connection.sendall(login.encode() + b"INFO server\r\nPING\r\n")
                reply = b""
                while not reply.endswith(b"+PONG\r\n"):
                    received = connection.recv(65536)
                    if not received or b"-LOADING" in received:
                        return False
                    reply += received
        except OSError:
            return False
        return f"process_id:{self.pid}\r\n".encode() in reply


class PostgresServer(Server):
    """A PostgreSQL for the ledger: fsync on, one superuser `postgres`, loopback only."""

    stop_signal = signal.SIGINT  # fast shutdown: ends sessions, writes a checkpoint
    stop_timeout_s = 60.0
    telling = r"FATAL|PANIC|error:"

    def __init__(
        self,
        directory: Path,
        *,
        port: int = 0,
        log: Path | None = None,
        password: str | None = None,
    ) -> None:
        """``password`` is that of `postgres`, also of data that had another one or none; None leaves
        data as it is, and lets everybody in where it is new."""
        super().__init__("postgresql", directory, port, log)
        self._password = password
        self.data = self.directory / "data"
        self._bin = find_postgres(self.data)
        self.version = postgres_version(self._bin)

    @property
    def url(self) -> str:
        login = f"postgres:{self._password}" if self._password else "postgres"
        return f"postgresql://{login}@{_HOST}:{self.port}/postgres"

    def leftover(self) -> ProcessId | None:
        """A server that still runs on this data, started by somebody else than this object."""
        server = identify(self._pid_in_file() or 0)
        return server if server in processes_in(self.data, "postgres") else None

    def launch(self) -> None:
        owner = self._prepare()
        if not (self.data / "PG_VERSION").exists():
            self._initialise(owner)
        self._clear_stale_pid_file()
        if self._password is not None:
            self._let_in_by(self._password, owner)
        settings = {
            "listen_addresses": _HOST,
            "port": str(self.port),
            "unix_socket_directories": "",  # a socket's path may have 107 bytes only
            "shared_buffers": "256MB",
            "max_wal_size": "2GB",
            "fsync": "on",
            "synchronous_commit": "on",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "log_checkpoints": "off",
        }
        arguments = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        self._spawn(
            [str(self._bin / "postgres"), "-D", str(self.data), *arguments],
            environ=_plain_environ(),
            owner=owner,
            cwd=Path("/"),  # root's own working directory may be closed to the server's user
        )

    def answers(self) -> bool:
        # The server writes its pid first and its state on the eighth line.
        lines = self._pid_file_lines()
        return len(lines) >= 8 and lines[0] == str(self.pid) and lines[7].strip() == "ready"

    def _prepare(self) -> tuple[int, int] | None:
        self.directory.mkdir(parents=True, exist_ok=True)
        try:
            owner = unprivileged_owner(self.data)
        except (OSError, subprocess.CalledProcessError) as error:
            raise ServerError(
                "PostgreSQL can't run as root and no user 'pgserver' could be made "
                f"({error}): run as another user, or set HOLDFAST_POSTGRES_URL"
            ) from error
        if owner is not None:
            let_run(self._bin.parent, owner)
            let_reach(self.data, owner)
            if self.data.exists():
                hand_over(self.data, owner)
        return owner

    def _initialise(self, owner: tuple[int, int] | None) -> None:
        """Make the data directory under another name first: initdb writes PG_VERSION early."""
        fresh = self.directory / "initdb"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        if owner is not None:
            os.chown(fresh, *owner)
        options = ["-U", "postgres", "--auth=trust", "--encoding=UTF8", "--no-locale"]
        initdb = spawn(
            [str(self._bin / "initdb"), "-D", str(fresh), *options],
            self.log,
            stop_signal=signal.SIGTERM,
            environ=_plain_environ(),
            owner=owner,
            cwd=Path("/"),
        )
        if initdb.wait() != 0:
            raise ServerError(
                f"PostgreSQL could not set up {self.data}: "
                f"{last_line(self.log, telling=self.telling)} (log: {self.log})"
            )
        fresh.rename(self.data)

    def _let_in_by(self, password: str, owner: Owner | None) -> None:
        """Set the password and ask everybody for it, before the first client can come; once, for it takes
        a recovery's time after a crash."""
        told = hashlib.sha256(password.encode()).hexdigest()
        rules = _RULES.format(told=told)
        file = self.data / "pg_hba.conf"
        if file.read_text() == rules:
            return
        done = subprocess.run(
            [
                *(str(self._bin / "postgres"), "--single", "-D", str(self.data)),
                *("-c", "exit_on_error=on", "-c", "log_min_error_statement=panic", "postgres"),
            ],
            input=f"ALTER USER postgres PASSWORD '{password}'\n",
            capture_output=True,
            text=True,
            check=False,
            env=_plain_environ(),
            user=None if owner is None else owner[0],
            group=None if owner is None else owner[1],
            extra_groups=None if owner is None else [],
            cwd="/",
        )
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if re.search(self.telling, line)]
            raise ServerError(
                f"PostgreSQL took no password for {self.data}: {(lines or ['it ended'])[-1]}"
            )
        write_private(file, rules, owner)

    def _clear_stale_pid_file(self) -> None:
        """After `kill -9` the file stays, and its pid may be anybody's by now."""
        if not self._pid_file().exists():
            return
        server = self.leftover()
        if server is not None:
            raise ServerError(
                f"a PostgreSQL (pid {server.pid}) already runs on {self.data}: end it first"
            )
        # Sessions outlive their killed server for a moment and hold its shared memory.
        for session in processes_in(self.data, "postgres"):
            session.end(signal.SIGKILL, 10)
        self._pid_file().unlink(missing_ok=True)

    def _pid_file(self) -> Path:
        return self.data / "postmaster.pid"

    def _pid_file_lines(self) -> list[str]:
        try:
            return self._pid_file().read_text().splitlines()
        except OSError:
            return []

    def _pid_in_file(self) -> int | None:
        lines = self._pid_file_lines()
        return int(lines[0]) if lines and lines[0].strip().isdigit() else None


def _plain_environ() -> dict[str, str]:
    """Ours without what would change the server: PG… settings and the language of its log."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "LC_"))}
    return kept | {"LC_ALL": "C"}
