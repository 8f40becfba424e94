"""Child processes: started so that they end with us, logged to a file, ended within a bound.

A child runs in a session of its own, so that Ctrl-C in the terminal reaches only the supervisor,
which then ends its children in order. On Linux the kernel signals a child when the supervisor is
gone, however it went; elsewhere the next start ends what was left (by pid and start time).
"""

import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from engine.addresses import printable

_PR_SET_PDEATHSIG = 1
_LOG_BYTES_MAX = 10 * 1024 * 1024
_START_TOLERANCE_S = 2.0
_LINES_SHOWN = 3


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process, told apart from a later one with the same pid by its start time."""

    pid: int
    started: float

    def alive(self) -> bool:
        """Whether it still runs; one that only waits to be reaped doesn't."""
        return self._find() is not None

    def end(self, stop_signal: signal.Signals, timeout_s: float) -> bool:
        """Send the signal, wait, then kill; False if it had to be killed. Gone is fine."""
        self.send(stop_signal)
        return self.wait_or_kill(timeout_s)

    def send(self, stop_signal: signal.Signals) -> None:
        process = self._find()
        if process is not None:
            _quietly(lambda: process.send_signal(stop_signal))

    def wait_or_kill(self, timeout_s: float) -> bool:
        process = self._find()
        if process is None or _wait_gone(process, timeout_s):
            return True
        _quietly(process.kill)
        _wait_gone(process, timeout_s)
        return False

    def _find(self) -> psutil.Process | None:
        process = _living(self.pid)
        if process is None:
            return None
        try:
            same = abs(process.create_time() - self.started) <= _START_TOLERANCE_S
        except psutil.Error:
            return None
        return process if same else None


def identify(pid: int) -> ProcessId | None:
    """The living process with that pid, if there is one."""
    process = _living(pid)
    try:
        return None if process is None else ProcessId(pid, process.create_time())
    except psutil.Error:
        return None


def processes_in(directory: Path, name: str) -> list[ProcessId]:
    """The living processes of that name whose working directory is `directory`."""
    found = []
    for process in psutil.process_iter(["name", "cwd", "create_time", "status"]):
        info = process.info
        if (
            info["name"] == name
            and info["cwd"] == str(directory)
            and info["status"] != psutil.STATUS_ZOMBIE
        ):
            found.append(ProcessId(process.pid, info["create_time"]))
    return found


def machine_memory_bytes() -> int:
    """The memory this process may use: the machine's, or its container's where that is less."""
    total = int(psutil.virtual_memory().total)
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


class Child(ABC):
    """One child process: how it is started, what its log says, how it is ended.

    `launch` may be called again after the process has ended. It must be called in the main thread
    of a process that should take its children along: the kernel's signal follows the thread.
    """

    stop_signal = signal.SIGTERM
    stop_timeout_s = 15.0
    telling = ""  # what the line of its log looks like that says why it could not go on

    def __init__(self, name: str, log: Path) -> None:
        self.name = name
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @abstractmethod
    def launch(self) -> None:
        """Start the process and return at once."""

    @property
    def pid(self) -> int:
        if self.process is None:
            raise RuntimeError(f"{self.name} was not started")
        return self.process.pid

    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def terminate(self) -> None:
        """Ask the process to end; returns at once."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(self.stop_signal)

    def wait_or_kill(self) -> bool:
        """Wait for the end within the bound, then kill; False if it had to be killed."""
        if self.process is None:
            return True
        try:
            self.process.wait(self.stop_timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return False
        return True

    def stop(self) -> bool:
        """Ask, wait, then kill; False if it had to be killed."""
        self.terminate()
        return self.wait_or_kill()

    def kill(self) -> None:
        """SIGKILL and wait until it is gone."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def answers(self) -> bool:
        """Whether it does its work, as far as can be told from outside."""
        return self.running()

    def last_words(self, telling: str = "") -> str:
        """How the process ended, and what stands at the end of its log since its launch: no reason for a
        signal, so it is marked as what it is.

        Where it ended by itself, the last line that matches the pattern `telling` is taken for the reason.
        """
        code = None if self.process is None else self.process.poll()
        if code is None:
            ending = "still running"
        elif code < 0:
            ending = f"killed by {signal_name(-code)}"
        else:
            ending = f"exit code {code}"
        lines = last_lines(self.log, self._log_start)
        reasons = [line for line in lines if telling and re.search(telling, line)]
        if code is not None and code >= 0 and reasons:
            return f"{ending}: {reasons[-1]}"
        shown = " / ".join(lines[-_LINES_SHOWN:])
        return f"{ending}; its log ends with: {shown}" if shown else ending

    def _spawn(
        self,
        command: Sequence[str],
        *,
        environ: Mapping[str, str] | None = None,
        owner: tuple[int, int] | None = None,
        pass_fds: Sequence[int] = (),
        cwd: Path | None = None,
    ) -> None:
        _rotate(self.log)
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        self.process = spawn(
            command,
            self.log,
            stop_signal=self.stop_signal,
            environ=environ,
            owner=owner,
            pass_fds=pass_fds,
            cwd=cwd,
        )


def spawn(
    command: Sequence[str],
    log: Path,
    *,
    stop_signal: signal.Signals,
    environ: Mapping[str, str] | None = None,
    owner: tuple[int, int] | None = None,
    pass_fds: Sequence[int] = (),
    cwd: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Start a process as uid and gid `owner`, its output added to `log`.

    It gets `stop_signal` when this process is gone, where the kernel can do that.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output, warnings.catch_warnings():
        # Python 3.12 warns of any code between fork and exec where there are threads. Ours is two
        # system calls and takes no lock.
        warnings.simplefilter("ignore", DeprecationWarning)
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environ,
            cwd=cwd,
            pass_fds=pass_fds,
            start_new_session=True,
            preexec_fn=_end_with_parent(stop_signal),
            user=None if owner is None else owner[0],
            group=None if owner is None else owner[1],
            extra_groups=None if owner is None else [],
        )


def _end_with_parent(stop_signal: signal.Signals) -> Callable[[], None] | None:
    """What a child runs before exec so that the kernel signals it when this process is gone.

    None where there is no such thing, and in a thread other than the main one: the child would
    be signalled when that *thread* ends.
    """
    if sys.platform != "linux" or threading.current_thread() is not threading.main_thread():
        return None
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def in_child() -> None:
        prctl(_PR_SET_PDEATHSIG, int(stop_signal), 0, 0, 0)
        if os.getppid() != parent:  # it went before the call above
            os._exit(1)

    return in_child


def last_line(log: Path, telling: str = "") -> str:
    """The last line of a log that isn't empty; one that matches the pattern `telling` goes before a later
    one that doesn't."""
    lines = last_lines(log)
    found = [line for line in lines if re.search(telling, line)] or lines
    return found[-1] if found else ""


def last_lines(log: Path, start: int = 0) -> list[str]:
    """The last lines of a log that aren't empty, looking no further back than `start` bytes."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            if size < start:  # somebody rotated it
                start = 0
            file.seek(max(start, size - 4096))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    return [printable(line.strip())[:300] for line in lines if line.strip()]


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _rotate(log: Path) -> None:
    """Keep one older log; only at a start, since the child holds its log open."""
    if log.exists() and log.stat().st_size > _LOG_BYTES_MAX:
        log.replace(log.with_suffix(".log.1"))


def _living(pid: int) -> psutil.Process | None:
    try:
        process = psutil.Process(pid)
        # In a container whose init reaps nothing, an orphan stays a zombie for ever.
        return None if process.status() == psutil.STATUS_ZOMBIE else process
    except (psutil.Error, ValueError, OverflowError):
        return None


def _wait_gone(process: psutil.Process, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while _living(process.pid) is not None and process.is_running():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _quietly(call: Callable[[], object]) -> None:
    """Signal a process that may be gone by now."""
    try:
        call()
    except psutil.NoSuchProcess:
        return
