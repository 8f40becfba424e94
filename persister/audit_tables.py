"""Are the tables that only grow still protected: is the trigger that refuses changes there, whole and on?"""

from __future__ import annotations

import re
from collections.abc import Iterator

from persister.database import QUERIES, Connection
from persister.grants import APPEND_ONLY
from persister.queries import migrations

#: BEFORE UPDATE OR DELETE OR TRUNCATE, for each statement, as ``pg_trigger.tgtype`` has it.
_REFUSES_ALL = 2 + 8 + 16 + 32
_OFF = {
    "D": "is switched off",
    "O": "doesn't fire under session_replication_role=replica",
    "R": "fires under session_replication_role=replica only",
}


def unprotected(connection: Connection) -> list[tuple[str, str]]:
    """Table and what is wrong with it, of those that could be changed by now. Readable by anybody."""
    rows = connection.execute(QUERIES["audit_tables"], {"tables": list(APPEND_ONLY)}).fetchall()
    return [(row[0], why) for row in rows for why in _why(*row)]


def _why(
    table: str,
    enabled: str | bytes | None,
    kind: int | None,
    for_all: bool | None,
    source: str | None,
    has_children: bool,
) -> Iterator[str]:
    name = f"its trigger {table}_append_only"
    state = enabled.decode() if isinstance(enabled, bytes) else enabled
    if state is None:
        yield f"{name} is gone"
    elif state != "A":
        yield (
            f"{name} {_OFF.get(state, state)}; find out who did that and what was changed, then ALTER"
            f" TABLE {table} ENABLE ALWAYS TRIGGER {table}_append_only"
        )
    elif kind != _REFUSES_ALL or not for_all:
        yield f"{name} isn't for every UPDATE, DELETE and TRUNCATE"
    elif source != _refusal():
        yield f"the function of {name} isn't that of the migration"
    if has_children:
        yield "it has child tables, whose rows no trigger protects"


def _refusal() -> str:
    """The body of the function as the migrations make it."""
    text = "".join(path.read_text(encoding="utf-8") for _, path in migrations())
    bodies = re.findall(r"FUNCTION refuse_change\(\).*?AS \$\$(.*?)\$\$", text, re.DOTALL)
    return str(bodies[-1])
