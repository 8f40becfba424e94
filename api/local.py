"""The data directory of a stack, and where the servers of the one that runs on it are."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from api.binaries import ServerError
from api.state_file import State, read_state

DEFAULT_DATA_DIR = Path(".holdfast")


@dataclass(slots=True)
class Servers:
    """Where a stack's servers are, with full rights; http_url only while `up` runs, kafka_bootstrap
    only where its events go through Kafka."""

    redis_url: str
    postgres_url: str
    kafka_bootstrap: str | None
    http_url: str | None


def data_dir_from(environ: Mapping[str, str], given: Path | None) -> Path:
    """The given directory, else HOLDFAST_DATA_DIR, else .holdfast here; always absolute."""
    return (given or Path(environ.get("HOLDFAST_DATA_DIR") or DEFAULT_DATA_DIR)).resolve()


def discover(data_dir: Path, environ: Mapping[str, str]) -> Servers:
    """The servers named in the environment, else those of the stack that runs on `data_dir`.

    ServerError, in one line that says how to start one, where neither tells both.
    """
    named = environ.get("HOLDFAST_REDIS_URL") and environ.get("HOLDFAST_POSTGRES_URL")
    try:
        state = read_state(data_dir)
    except ServerError:
        if not named:
            raise
        state = State()  # somebody else's stack, of which nothing is asked
    if state.supervisor is None or not state.supervisor.alive():
        state = State()
    redis_url = environ.get("HOLDFAST_REDIS_URL") or state.redis_url
    postgres_url = environ.get("HOLDFAST_POSTGRES_URL") or state.postgres_url
    if not redis_url or not postgres_url:
        raise ServerError(
            f"no running stack in {data_dir}; start one with 'holdfast up' "
            "or set HOLDFAST_REDIS_URL and HOLDFAST_POSTGRES_URL"
        )
    # Without Kafka is a choice too: the running stack's belongs to its own Redis only.
    of_stack = state.kafka_bootstrap if redis_url == state.redis_url else None
    kafka_bootstrap = environ.get("HOLDFAST_KAFKA_BOOTSTRAP") or of_stack
    return Servers(redis_url, postgres_url, kafka_bootstrap, state.http_url)
