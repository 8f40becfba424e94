"""``python -m bench engine|http|pipeline|peers|memory|all``: measure, audit, tell."""

from __future__ import annotations

import sys
from importlib.util import find_spec

#: What is imported from outside Holdfast and isn't among what it needs to run.
NEEDED = ("click", "msgspec", "psutil", "hdrh", "matplotlib")


def main() -> None:
    """Say what to install where something is missing, else measure."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        print(
            f"bench: {', '.join(missing)} can't be imported; `make bench` installs what a benchmark needs and"
            " runs it, as in make bench BENCH='http --seconds 1'; without make: python -m pip install"
            " --require-hashes -r requirements/bench.txt",
            file=sys.stderr,
        )
        sys.exit(2)
    from bench.main import main as measure

    measure()


if __name__ == "__main__":
    main()
