"""stack.json: it tells other commands where a stack's servers are, and the next start what a predecessor left
running."""

import os
import tempfile
from pathlib import Path

import msgspec

from api.binaries import ServerError
from api.processes import ProcessId


class Part(msgspec.Struct, frozen=True):
    """One running child as the state file keeps it."""

    name: str
    process: ProcessId
    stop_signal: int
    stop_timeout_s: float
    stop_order: int


class State(msgspec.Struct, frozen=True):
    """What stack.json holds. Ports outlive the stack, so that its next start can keep them."""

    supervisor: ProcessId | None = None
    parts: list[Part] = []
    failing: list[str] = []  # children that keep ending
    redis_port: int = 0
    postgres_port: int = 0
    kafka_port: int = 0
    kafka_controller_port: int = 0
    redis_url: str | None = None
    postgres_url: str | None = None
    kafka_bootstrap: str | None = None
    http_url: str | None = None


def state_file(data_dir: Path) -> Path:
    return data_dir / "stack.json"


def read_state(data_dir: Path) -> State:
    """The state of the last stack on this directory; an empty one where there is none, or nothing that can be
    read. ServerError where only somebody else may read it: a stack may run there all the same."""
    try:
        return msgspec.json.decode(state_file(data_dir).read_bytes(), type=State)
    except PermissionError:
        raise ServerError(
            f"{state_file(data_dir)} is closed to this user; ask as the one who started the stack, or name"
            " the servers (HOLDFAST_URL, HOLDFAST_REDIS_URL, HOLDFAST_POSTGRES_URL)"
        ) from None
    except (OSError, msgspec.MsgspecError):
        return State()


def failing_children(data_dir: str) -> list[str] | None:
    """The names of the stack's children that keep ending; None where no stack runs on the directory."""
    state = read_state(Path(data_dir)) if data_dir else State()
    if state.supervisor is None or not state.supervisor.alive():
        return None
    return state.failing


def write_state(data_dir: Path, state: State) -> None:
    """Replace the file in one step; only its owner may read it, for URLs may hold passwords."""
    descriptor, name = tempfile.mkstemp(dir=data_dir, prefix=".stack-")
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(state)))
    Path(name).replace(state_file(data_dir))
