"""What `up` keeps is for its user alone: permissions of the data directory, passwords of its servers."""

import contextlib
import os
import secrets
import stat
import subprocess
import tempfile
from pathlib import Path

import msgspec

from api.binaries import ServerError
from api.privileges import unprivileged_owner

Owner = tuple[int, int]
_OURS = {"redis", "postgres", "kafka", "logs", "lock", "stack.json", "passwords.json"}


class Passwords(msgspec.Struct, frozen=True):
    """Of the servers of one stack, as ``passwords.json`` keeps them; letters and digits."""

    redis: str
    postgres: str


def take_passwords(data_dir: Path) -> Passwords:
    """Those of the last start; new ones where there are none that can be read."""
    path = data_dir / "passwords.json"
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode(path.read_bytes(), type=Passwords)
    passwords = Passwords(secrets.token_hex(24), secrets.token_hex(24))
    write_private(path, msgspec.json.encode(passwords).decode())
    return passwords


def write_private(path: Path, text: str, owner: Owner | None = None) -> None:
    """Replace a file in one step by one that only its owner may read.

    What stood there is never written through: in a directory of another user it may be a link.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        if owner is not None:
            os.fchown(file.fileno(), *owner)
    Path(name).replace(path)


def prepare(data_dir: Path) -> Owner | None:
    """Make the data directory and those in it, closed to others; who the servers are to run as (None:
    as this process). OSError where that can't be done.

    All that this process and its children make from now on is closed to others, too. A directory that
    holds other things than a stack's keeps its own permissions; what is in it of ours doesn't.
    """
    os.umask(0o077)
    data_dir.mkdir(parents=True, exist_ok=True)
    owner = _owner(data_dir)
    if all(path.name in _OURS or path.name.startswith(".stack-") for path in data_dir.iterdir()):
        _close(data_dir, owner)
    for name in ("redis", "postgres", "logs"):
        (data_dir / name).mkdir(exist_ok=True)
    _close(data_dir / "postgres", owner)
    for name in ("redis", "kafka", "logs"):
        if (data_dir / name).exists():
            _close_tree(data_dir / name)
    for name in ("lock", "stack.json"):
        with contextlib.suppress(FileNotFoundError):
            (data_dir / name).chmod(0o600)
    return owner


def _owner(data_dir: Path) -> Owner | None:
    try:
        return unprivileged_owner(data_dir / "postgres" / "data")
    except (OSError, subprocess.CalledProcessError) as error:
        raise ServerError(
            "the servers of a stack don't run as root, and no user 'pgserver' could be made "
            f"({error}): run as another user, or set HOLDFAST_POSTGRES_URL and HOLDFAST_REDIS_URL"
        ) from error


def _close(directory: Path, owner: Owner | None) -> None:
    """To all but its owner; the servers' user may pass through, not look."""
    if owner is None or directory.stat().st_uid == owner[0]:
        directory.chmod(0o700)
        return
    os.chown(directory, -1, owner[1])
    directory.chmod(0o710)


def _close_tree(tree: Path) -> None:
    for path in (tree, *tree.rglob("*")):
        status = path.lstat()
        if not stat.S_ISLNK(status.st_mode) and status.st_mode & 0o077:
            path.chmod(stat.S_IMODE(status.st_mode) & 0o700)
