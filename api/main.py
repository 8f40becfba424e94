"""Entry point of the console script: a Ctrl-C while Python is still importing ends in silence too."""

from __future__ import annotations

import sys


def main() -> None:
    try:
        from api.cli import run

        run()
    except KeyboardInterrupt:
        sys.exit(130)
