"""``python -m bench engine|http|pipeline|peers|memory|all``: measure, audit, tell."""

from __future__ import annotations

from bench.main import main

if __name__ == "__main__":
    main()
