"""A process that makes load, from both sides: it reads its orders, says ``ready``, begins at the next
line, and tells what it did; the ids that were acknowledged go to a file, a line each."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec
import uvloop

from bench.place import REPOSITORY, BenchError


class WithIds(Protocol):
    """Orders that name the file for acknowledged ids; '' for none."""

    @property
    def acknowledged(self) -> str: ...


OrdersT = TypeVar("OrdersT", bound=WithIds)
#: Makes ready, waits for a line, works: what was done, and the ids that were acknowledged.
Work = Callable[[OrdersT], Coroutine[Any, Any, tuple[Any, list[str]]]]


def serve(kind: type[OrdersT], work: Work[OrdersT]) -> None:
    """The child's side, to its end."""
    orders = msgspec.json.decode(sys.stdin.readline(), type=kind)
    done, acknowledged = uvloop.run(work(orders))
    if orders.acknowledged:
        Path(orders.acknowledged).write_text("".join([f"{each}\n" for each in acknowledged]))
    print(msgspec.json.encode(done).decode(), flush=True)


def start(module: str, orders: object) -> subprocess.Popen[str]:
    """A child that is ready. BenchError where it could not begin."""
    process = subprocess.Popen(
        [sys.executable, "-m", module],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    go(process, msgspec.json.encode(orders).decode())
    if process.stdout is None or process.stdout.readline() != "ready\n":
        raise BenchError(f"{module} could not begin; its words stand above")
    return process


def go(process: subprocess.Popen[str], line: str = "go") -> None:
    """The next line of its input."""
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def told(process: subprocess.Popen[str], timeout_s: float) -> str:
    """What it did, as JSON. BenchError where it has failed."""
    text, _ = process.communicate(timeout=timeout_s)
    if process.returncode:
        raise BenchError("a load process has failed; its words stand above")
    return text
