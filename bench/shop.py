"""How a load tester's client talks to the service: every answer is counted as what it is.

A refusal that a flash sale brings with it (sold out, too late, an unknown sku) is a request of a name of
its own, not a failure; 503 with Retry-After is waited for; whatever else was not expected is a failure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gevent
import msgspec

from bench.answers import Answers
from bench.oversell import Told

if TYPE_CHECKING:
    from locust.contrib.fasthttp import FastHttpSession

_TRIES = 20
_JSON = {"Content-Type": "application/json"}
#: (HTTP status, code of a refusal or empty) → what is put behind the name of the request.
Expected = dict[tuple[int, str], str]

_RESERVE: Expected = {
    (201, ""): "",
    (200, ""): " (replayed)",
    (409, "insufficient_stock"): " (sold out)",
    (404, "unknown_sku"): " (unknown sku)",
}
_SETTLE: Expected = {(200, ""): "", (409, "reservation_expired"): " (too late)"}
_STOCK: Expected = {(200, ""): "", (404, "unknown_sku"): " (unknown sku)"}


class Shop:
    """The calls of a checkout, over one of Locust's sessions. What is acknowledged goes into ``told``.

    Each answers the body of a success, and None for a refusal or where no answer came.
    """

    def __init__(self, http: FastHttpSession, told: Told, answers: Answers) -> None:
        self._http = http
        self._told = told
        self._answers = answers

    def stock(self, skus: list[str]) -> None:
        if len(skus) == 1:
            self._ask("GET", "stock of one", f"/v1/stock/{skus[0]}", _STOCK)
        else:
            query = "&".join(f"sku={sku}" for sku in skus)
            self._ask("GET", "stock of several", f"/v1/stock?{query}", _STOCK)

    def reserve(
        self, reservation_id: str, lines: list[dict[str, Any]], ttl_seconds: int, *, lost: bool
    ) -> Any:
        """``lost``: the answer is taken for lost, the same id sent again; it must be replayed."""
        body = {
            "reservation_id": reservation_id,
            "order_id": f"order-{reservation_id}",
            "ttl_seconds": ttl_seconds,
            "lines": lines,
        }
        held = self._change("reserve", "/v1/reservations", reservation_id, _RESERVE, body)
        if held is None or not lost:
            return held
        replayed = {(200, ""): " (replayed)"}
        again = self._change("reserve", "/v1/reservations", reservation_id, replayed, body)
        return again or held

    def confirm(self, reservation_id: str, part: dict[str, Any] | None = None) -> Any:
        name = "confirm part" if part else "confirm"
        return self._settle("confirm", name, reservation_id, part)

    def release(self, reservation_id: str) -> Any:
        return self._settle("release", "release", reservation_id, None)

    def extend(self, reservation_id: str, ttl_seconds: int) -> Any:
        return self._settle("extend", "extend", reservation_id, {"ttl_seconds": ttl_seconds})

    def batch(self, name: str, operations: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The results, in order; empty where no answer came. Outcomes go into ``told.tally``."""
        ids = [operation["reservation_id"] for operation in operations]
        for reservation_id in ids:
            self._told.asks(reservation_id)
        body = {"operations": operations}
        answer = self._ask("POST", name, "/v1/batch", {(200, ""): ""}, body)
        if answer is None:
            return []
        results: list[dict[str, Any]] = answer["results"]
        for reservation_id, operation, result in zip(ids, operations, results, strict=True):
            self._told.tally[f"{operation['op']}: {result['code']}"] += 1
            self._answers.operation(result["code"])
            # The outcome of one that is unavailable is not known, as in an answer of its own.
            if result["code"] != "unavailable":
                self._told.answered(reservation_id, result.get("reservation"))
        return results

    def _settle(self, verb: str, name: str, reservation_id: str, body: Any) -> Any:
        path = f"/v1/reservations/{reservation_id}/{verb}"
        return self._change(name, path, reservation_id, _SETTLE, body)

    def _change(
        self, name: str, path: str, reservation_id: str, expected: Expected, body: Any
    ) -> Any:
        self._told.asks(reservation_id)
        answer = self._ask("POST", name, path, expected, body)
        if answer is not None:
            self._told.answered(reservation_id, None if "code" in answer else answer)
        return None if answer is None or "code" in answer else answer

    def _ask(self, method: str, name: str, path: str, expected: Expected, body: Any = None) -> Any:
        """The answer's body; None where the last try had none either, or a 5xx."""
        data = "" if body is None else msgspec.json.encode(body).decode()
        headers = {} if body is None else _JSON  # JSON that is announced has to come
        for tries_left in reversed(range(_TRIES)):
            with self._http.request(
                method, path, name=name, data=data, headers=headers, catch_response=True
            ) as answer:
                content = _content(answer.content)
                code = content.get("code", "") if answer.status_code >= 400 else ""
                label = expected.get((answer.status_code, code))
                if label is not None:
                    answer.request_meta["name"] = name + label
                    answer.success()
                    return content
                if answer.status_code == 503 and "retry-after" in answer.headers and tries_left:
                    answer.request_meta["name"] = f"{name} (503 {code})"
                    answer.success()
                    wait_s = float(answer.headers["retry-after"])
                elif answer.status_code == 0:
                    # Locust counts it by the error it had. The same id, sent again, tells the outcome.
                    wait_s = 0.2
                else:
                    # Without the detail, which may name an id: Locust has a line for each other text.
                    failure = f"{answer.status_code} {code}".rstrip()
                    self._answers.failed(f"{name}: {failure}", content.get("detail", ""))
                    answer.failure(failure)
                    return content if answer.status_code < 500 else None
            gevent.sleep(wait_s)
        return None


def _content(body: bytes | None) -> dict[str, Any]:
    try:
        content = msgspec.json.decode(body or b"{}")
    except msgspec.DecodeError:
        return {}
    return content if isinstance(content, dict) else {}
