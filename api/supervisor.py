"""The supervisor of a stack: restarts who died, ends all in order, keeps the state file (api/state_file.py).

One lock file a directory keeps two supervisors apart.
"""

import fcntl
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Self

from api.processes import Child, identify
from api.servers import ServerError
from api.state_file import Part, State

_STEADY_S = 10.0  # a child that lived this long died anew, not again
_BACKOFF_FIRST_S = 0.5
_BACKOFF_MAX_S = 10.0
_DEATHS_MAX = 5
_MINUTE_S = 60.0
_BACK_AFTER_S = 1.0  # a program of ours that has lived so long is taken for back


def end_leftovers(state: State) -> list[str]:
    """End what a dead supervisor left running, in the order of a normal stop; names them."""
    ended = []
    for _, group in groupby(_in_stop_order(state.parts), key=lambda part: part.stop_order):
        living = [part for part in group if part.process.alive()]
        for part in living:
            part.process.send(signal.Signals(part.stop_signal))
        for part in living:
            part.process.wait_or_kill(part.stop_timeout_s)
            ended.append(part.name)
    return ended


class DirectoryLock:
    """Held by the one supervisor of a directory; the kernel lets go of it with the process."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / "lock"
        self._descriptor = -1

    def __enter__(self) -> Self:
        # Not inherited by children, so that an orphan can't keep it.
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._descriptor, 32).decode(errors="replace").strip() or "unknown"
            os.close(self._descriptor)
            raise ServerError(
                f"already running on {self._path.parent}, pid {holder}: "
                "stop it first, or choose another --data-dir"
            ) from None
        os.ftruncate(self._descriptor, 0)
        os.write(self._descriptor, f"{os.getpid()}\n".encode())
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


class Program(Child):
    """A program of our own: `command` with `environ`, given the sockets in `pass_fds`."""

    def __init__(
        self,
        name: str,
        command: list[str],
        *,
        environ: Mapping[str, str],
        log: Path,
        cwd: Path,
        pass_fds: tuple[int, ...] = (),
    ) -> None:
        super().__init__(name, log)
        self._command = command
        self._environ = environ
        self._cwd = cwd
        self._pass_fds = pass_fds
        self._launched_s = 0.0

    def launch(self) -> None:
        self._launched_s = time.monotonic()
        self._spawn(self._command, environ=self._environ, pass_fds=self._pass_fds, cwd=self._cwd)

    def answers(self) -> bool:
        return self.running() and time.monotonic() - self._launched_s >= _BACK_AFTER_S


class _Watched:
    """A child with its history of deaths."""

    def __init__(self, child: Child, stop_order: int) -> None:
        self.child = child
        self.stop_order = stop_order
        self.launched_s = time.monotonic()
        self.delay_s = 0.0
        self.launch_at_s: float | None = None
        self.ended_s: float | None = None  # it isn't back yet
        self.deaths: deque[float] = deque(maxlen=_DEATHS_MAX)  # since its last steady run
        self.why = ""
        self.failing = False
        self.said_s = 0.0
        self.unsaid = 0

    def keeps_ending(self, now_s: float) -> bool:
        """Five times within a minute?"""
        return len(self.deaths) == _DEATHS_MAX and now_s - self.deaths[0] <= _MINUTE_S


class Supervisor:
    """Children under watch. All calls belong in the main thread (see processes.Child).

    `say` tells the terminal one line, `changed` is called after every start, and when a child begins or
    ceases to keep ending, with what runs.
    """

    def __init__(self, say: Callable[[str], None], changed: Callable[[list[Part]], None]) -> None:
        self._say_line = say
        self._changed = changed
        self._watched: list[_Watched] = []

    def _say(self, line: str) -> None:
        self._say_line(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {line}")

    def start(self, child: Child, *, stop_order: int) -> None:
        """Launch a child and keep it running from now on. Lower orders are stopped first."""
        child.launch()
        self._watched.append(_Watched(child, stop_order))
        self._changed(self.parts())

    def parts(self) -> list[Part]:
        found = []
        for watched in self._watched:
            child = watched.child
            process = identify(child.pid) if child.running() else None
            if process is not None:
                part = Part(
                    child.name, process, child.stop_signal, child.stop_timeout_s, watched.stop_order
                )
                found.append(part)
        return found

    def hopeless(self) -> str | None:
        """The name and last words of a child that ends again and again, if there is one."""
        for watched in self._watched:
            if len(watched.deaths) >= _DEATHS_MAX:
                return f"{watched.child.name} keeps ending: {watched.why}"
        return None

    def failing(self) -> list[str]:
        """The names of those that ended five times within a minute and had no steady run since."""
        return [watched.child.name for watched in self._watched if watched.failing]

    def watch(self) -> None:
        """Restart whoever has died: at once after a steady run, else after a growing pause."""
        now_s = time.monotonic()
        for watched in self._watched:
            if watched.launch_at_s is not None:
                if now_s >= watched.launch_at_s:
                    self._relaunch(watched)
            elif not watched.child.running():
                self._plan_relaunch(watched, watched.child.last_words(watched.child.telling))
            else:
                self._look_after(watched, now_s)

    def _look_after(self, watched: _Watched, now_s: float) -> None:
        """Of one that runs: is it back, and has it become steady?"""
        if watched.ended_s is not None and not watched.failing and watched.child.answers():
            self._say(
                f"{watched.child.name} is back, {now_s - watched.ended_s:.1f} s after it ended"
            )
            watched.ended_s = None
        if watched.deaths and now_s - watched.launched_s >= _STEADY_S:
            watched.delay_s = 0.0
            watched.deaths.clear()
            if watched.failing:
                watched.failing = False
                self._changed(self.parts())

    def stop(self) -> None:
        """End all in order, each within its bound, and say so in one line a child."""
        ordered = sorted(self._watched, key=lambda watched: watched.stop_order)
        for _, group in groupby(ordered, key=lambda watched: watched.stop_order):
            children = [watched.child for watched in group]
            for child in children:
                child.terminate()
            for child in children:
                in_time = child.wait_or_kill()
                limit = f"killed, it did not end within {child.stop_timeout_s:.0f} s"
                self._say(f"{child.name}: {'stopped' if in_time else limit}")
        self._watched.clear()

    def _plan_relaunch(self, watched: _Watched, why: str) -> None:
        now_s = time.monotonic()
        if now_s - watched.launched_s >= _STEADY_S:
            watched.delay_s = 0.0
            watched.deaths.clear()
        watched.deaths.append(now_s)
        watched.why = why
        watched.ended_s = watched.ended_s or now_s
        watched.launch_at_s = now_s + watched.delay_s
        self._tell_end(watched, now_s)
        watched.delay_s = min(max(2 * watched.delay_s, _BACKOFF_FIRST_S), _BACKOFF_MAX_S)

    def _tell_end(self, watched: _Watched, now_s: float) -> None:
        name = watched.child.name
        if watched.failing:
            watched.unsaid += 1
            if now_s - watched.said_s >= _MINUTE_S:
                self._say(
                    f"CRITICAL {name} keeps ending, {watched.unsaid} times more: {watched.why}"
                )
                watched.said_s, watched.unsaid = now_s, 0
        elif watched.keeps_ending(now_s):
            watched.failing, watched.said_s, watched.unsaid = True, now_s, 0
            self._say(
                f"CRITICAL {name} keeps ending, {_DEATHS_MAX} times within a minute; it is started again"
                f" for ever, a line a minute tells of it: {watched.why}"
            )
            self._changed(self.parts())
        else:
            pause = f" in {watched.delay_s:g} s" if watched.delay_s else ""
            self._say(f"{name} ended, restarting{pause}: {watched.why}")

    def _relaunch(self, watched: _Watched) -> None:
        watched.launch_at_s = None
        watched.launched_s = time.monotonic()
        try:
            watched.child.launch()
            self._changed(self.parts())
        except (ServerError, OSError) as error:
            self._plan_relaunch(watched, str(error))


def _in_stop_order(parts: list[Part]) -> list[Part]:
    return sorted(parts, key=lambda part: part.stop_order)
