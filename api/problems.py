"""What an outcome is in HTTP: one table of status codes, and RFC 9457 problem details."""

from __future__ import annotations

from typing import Any

import msgspec

from engine.statuses import Status

#: HTTP status of what a command can answer, by operation. The only place where they are paired.
_EVERYWHERE = {
    Status.PARTITION_CLOSED: 503,
    Status.STORE_FULL: 503,
    Status.UNAVAILABLE: 503,
    Status.INVALID_REQUEST: 400,
}
_CHANGES = _EVERYWHERE | {
    Status.UNKNOWN_RESERVATION: 404,
    Status.ALREADY_CONFIRMED: 409,
    Status.ALREADY_RELEASED: 409,
    Status.RESERVATION_EXPIRED: 409,
}
_SETTLES = _CHANGES | {Status.REQUEST_MISMATCH: 422}
_PARTS = _SETTLES | {Status.EXCEEDS_RESERVATION: 409}
HTTP_STATUS: dict[str, dict[Status, int]] = {
    "reserve": _EVERYWHERE
    | {
        Status.BACKLOG_FULL: 503,
        Status.RESERVATION_MISMATCH: 422,
        # Not all of it is held or confirmed: whoever looks at 2xx alone must not sell without a hold.
        Status.ALREADY_RELEASED: 409,
        Status.RESERVATION_EXPIRED: 409,
        Status.ALREADY_RESERVED: 200,
        Status.UNKNOWN_SKU: 404,
        Status.INSUFFICIENT_STOCK: 409,
        Status.RESERVED: 201,
    },
    # Without lines: all that is left. What was done already, or needs no doing, is a success.
    "confirm": _SETTLES | {Status.ALREADY_CONFIRMED: 200, Status.CONFIRMED: 200},
    "release": _SETTLES
    | {Status.ALREADY_RELEASED: 200, Status.RESERVATION_EXPIRED: 200, Status.RELEASED: 200},
    # With lines: a new part of a reservation that has ended is refused.
    "confirm part": _PARTS | {Status.CONFIRMED: 200},
    "release part": _PARTS | {Status.RELEASED: 200},
    "extend": _CHANGES | {Status.LIFETIME_EXCEEDED: 409, Status.EXTENDED: 200},
    "reservation": _EVERYWHERE | {Status.UNKNOWN_RESERVATION: 404, Status.FOUND: 200},
    "stock": _EVERYWHERE | {Status.UNKNOWN_SKU: 404, Status.FOUND: 200},
    "movement": _EVERYWHERE
    | {
        Status.BACKLOG_FULL: 503,
        Status.ALREADY_APPLIED: 200,
        Status.REQUEST_MISMATCH: 422,
        Status.UNKNOWN_SKU: 404,
        Status.STALE_EXPECTATION: 409,
        Status.WOULD_BREAK_HOLDS: 409,
        Status.APPLIED: 201,
    },
}

#: Code → (HTTP status, title, detail where the outcome brings none).
PROBLEMS: dict[str, tuple[int, str, str]] = {
    "invalid_request": (400, "The request does not fit", "see the documentation of this call"),
    "unauthenticated": (401, "No valid key", "send an API key"),
    "forbidden": (403, "Not from there, or not with this key", "see detail"),
    "not_found": (404, "Nothing there", "there is nothing at this address"),
    "method_not_allowed": (405, "Not with this method", "see the Allow header"),
    "request_timeout": (408, "The request took too long", "send it faster"),
    "body_too_large": (413, "The body is too large", "send it in parts"),
    "unsupported_media_type": (415, "Not JSON", "send application/json"),
    "headers_too_large": (431, "Too many headers", "send less before the body"),
    "internal_error": (500, "Our mistake", "the log has more"),
    "unavailable": (
        503,
        "Not to be reached right now",
        "the outcome is unknown: send the same id again and you will be told",
    ),
    "overloaded": (
        503,
        "Too much at once",
        "this worker has too many connections, or too much to read; nothing was changed",
    ),
    Status.PARTITION_CLOSED: (
        503,
        "Closed until checked",
        "the stock is being checked after a restart; nothing was changed, try again",
    ),
    Status.BACKLOG_FULL: (
        503,
        "Too much is waiting for the ledger",
        "nothing was changed; confirm and release still work",
    ),
    Status.STORE_FULL: (
        503,
        "No memory left for new holds",
        "nothing was changed; confirm and release still work",
    ),
    Status.RESERVATION_MISMATCH: (
        422,
        "Same id, other content",
        "this reservation_id was used for another order, customer or lines; choose a new one",
    ),
    Status.REQUEST_MISMATCH: (
        422,
        "Same id, other content",
        "this id was used for something else; choose a new one",
    ),
    Status.UNKNOWN_SKU: (404, "No such sku", "no movement has ever named this sku"),
    Status.UNKNOWN_RESERVATION: (
        404,
        "No such reservation",
        "it was never made, or ended longer ago than reservations are kept",
    ),
    Status.INSUFFICIENT_STOCK: (409, "Not enough stock", "lines tells what is available"),
    Status.ALREADY_CONFIRMED: (409, "Already confirmed", "what was left of it has been confirmed"),
    Status.ALREADY_RELEASED: (409, "Already released", "units of it have been given back"),
    Status.RESERVATION_EXPIRED: (
        409,
        "Expired",
        "its deadline has passed, and what was left of it can be sold again",
    ),
    Status.LIFETIME_EXCEEDED: (
        409,
        "Can't be held any longer",
        "nothing was changed; a reservation can't be extended past its longest lifetime",
    ),
    Status.EXCEEDS_RESERVATION: (409, "More than is left", "nothing was changed"),
    Status.STALE_EXPECTATION: (409, "on_hand has changed", "nothing was changed"),
    Status.WOULD_BREAK_HOLDS: (
        409,
        "Units are promised",
        "it would leave fewer units than are held and quarantined; nothing was changed",
    ),
}

RETRY_AFTER_S = 1
_to_json = msgspec.json.Encoder().encode


class Reply(msgspec.Struct, frozen=True):
    """Status, body and headers of an answer."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()
    content_type: bytes = b"application/json"


def json_reply(status: int, content: Any, *headers: tuple[bytes, bytes]) -> Reply:
    return Reply(status, _to_json(content), headers)


class Problem(Exception):
    """A refusal at the door. ``code`` is a key of PROBLEMS."""

    def __init__(
        self, code: str, detail: str = "", headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.headers = headers

    def reply(self) -> Reply:
        return refuse(self.code, self.detail, headers=self.headers)


def refuse(
    code: str,
    detail: str = "",
    *,
    status: int | None = None,
    headers: tuple[tuple[bytes, bytes], ...] = (),
    **members: Any,
) -> Reply:
    """Problem details for a code, with further members (lines, reservation)."""
    usual, title, usual_detail = PROBLEMS[code]
    status = status or usual
    if status == 503:
        headers = (*headers, (b"retry-after", str(RETRY_AFTER_S).encode()))
    content = {
        "type": f"urn:holdfast:problem:{code}",
        "title": title,
        "status": status,
        "detail": detail or usual_detail,
        "code": str(code),
        **members,
    }
    return Reply(status, _to_json(content), headers, b"application/problem+json")
