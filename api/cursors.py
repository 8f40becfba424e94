"""Cursors of what is read from the ledger: a place in each partition, from where a poller goes on.

A cursor never ends. Each partition has its own place because each is written by transactions of its own:
one place in an order over all of them would pass over what another partition commits later.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from api.asgi import Call
from api.ledger_reader import Connection, fetch
from api.moments import moment
from api.problems import Problem

LIMIT_MAX = 1_000
_VERSION = "2"
_LENGTH_MAX = 64 * 1024
#: Above what each of partition, epoch, seq and line can be.
_BOUNDS = (2**31, 2**63, 2**63, 2**31)

#: Partition → epoch, seq and line of the last row that was told.
Places = dict[int, tuple[int, int, int]]


def encode_places(places: Mapping[int, tuple[int, int, int]]) -> str:
    """A string that is safe in a URL."""
    parts = [".".join(map(str, (partition, *place))) for partition, place in sorted(places.items())]
    text = f"{_VERSION}:{','.join(parts)}"
    return urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode_places(text: str) -> Places:
    """Problem 400 for what is no cursor of ours."""
    try:
        if len(text) > _LENGTH_MAX:
            raise ValueError
        decoded = urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode("ascii")
        version, colon, listed = decoded.partition(":")
        if version + colon != f"{_VERSION}:":
            raise ValueError
        places: Places = {}
        for part in listed.split(",") if listed else ():
            partition, epoch, seq, line = numbers = [int(number) for number in part.split(".")]
            if not all(0 <= n < bound for n, bound in zip(numbers, _BOUNDS, strict=True)):
                raise ValueError
            places[partition] = (epoch, seq, line)
        return places
    except ValueError:
        raise Problem(
            "invalid_request", f"cursor: got {text[:80]!r}; send a next_cursor as it came"
        ) from None


def advance(places: Places, rows: Iterable[dict[str, Any]]) -> Places:
    """The places after these rows, which are in the order of their partitions."""
    return places | {row["partition"]: (row["epoch"], row["seq"], row["line"]) for row in rows}


async def begin(connection: Connection, places: Places, since: datetime | None) -> Places:
    """The places where reading goes on: those of a cursor, or where ``since`` is if that is later."""
    if since is None:
        return places
    found = await fetch(connection, "places_since", {"since": since})
    begins = {row["partition"]: (row["epoch"], row["seq"], 0) for row in found}
    return places | {p: max(place, places.get(p, place)) for p, place in begins.items()}


def as_arrays(places: Places) -> dict[str, list[int]]:
    """What the queries take."""
    return {
        "partitions": list(places),
        "epochs": [epoch for epoch, _, _ in places.values()],
        "seqs": [seq for _, seq, _ in places.values()],
        "lines": [line for _, _, line in places.values()],
    }


def parameters(call: Call, filters: Iterable[str]) -> dict[str, str]:
    """The query's parameters by name. Problem 400 for an unknown one, one named twice, or one with a
    control character."""
    given: dict[str, str] = {}
    for name, value in call.query(frozenset({*filters, "cursor", "limit"})):
        if name in given:
            raise Problem("invalid_request", f"{name}: named twice; name it once")
        if any(ord(character) < 32 for character in value):
            raise Problem("invalid_request", f"{name}: holds a control character")
        given[name] = value
    return given


def limit_of(given: Mapping[str, str]) -> int:
    """Rows a page, 100 where nothing is said. Problem 400 outside 1 to 1,000."""
    text = given.get("limit", "100")
    if not (text.isascii() and text.isdecimal() and len(text) <= 4 and 1 <= int(text) <= LIMIT_MAX):
        raise Problem("invalid_request", f"limit: got {text[:80]!r}; it must be 1 to {LIMIT_MAX}")
    return int(text)


def places_of(given: Mapping[str, str]) -> Places:
    """Where the cursor stands; no places, which is the beginning, without one."""
    return decode_places(given["cursor"]) if "cursor" in given else {}


def since_of(given: Mapping[str, str]) -> datetime | None:
    """Problem 400 for what is neither a date nor a time with its offset."""
    text = given.get("since")
    if text is None:
        return None
    found = moment(text)
    if found is None:
        raise Problem(
            "invalid_request",
            f"since: got {text[:80]!r}; it must be such as 2026-11-01 or 2026-11-01T08:00:00Z"
            " (a + of an offset is %2B in a URL)",
        )
    return found
