"""The named queries and the migrations: the only place that reads ``sql/``."""

from __future__ import annotations

import re
from pathlib import Path

SQL = Path(__file__).parent / "sql"


def _load_queries() -> dict[str, str]:
    text = (SQL / "queries.sql").read_text(encoding="utf-8")
    blocks = re.split(r"^-- name: (\w+)\n", text, flags=re.MULTILINE)[1:]
    return {name: block.strip() for name, block in zip(blocks[::2], blocks[1::2], strict=True)}


#: The queries of ``sql/queries.sql`` by name; written by us, so no text of a user is ever in one.
QUERIES = _load_queries()


def migrations() -> list[tuple[int, Path]]:
    """The numbered migrations, in order."""
    return sorted((int(path.name[:4]), path) for path in (SQL / "migrations").glob("*.sql"))
