"""The door: whatever does not fit gets its 4xx with problem details, never a 500."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from running import Receive, on_one_redis

pytestmark = [pytest.mark.anyio, on_one_redis]

LINE: dict[str, Any] = {"sku": "tea", "quantity": 1, "location": "MAIN"}
ORDER: dict[str, Any] = {"reservation_id": "r1", "order_id": "o1", "lines": [LINE]}
MOVE: dict[str, Any] = {
    "movement_id": "m1", "type": "receive", "sku": "tea", "location": "MAIN", "quantity": 1,
}  # fmt: skip
DEEP = b"[" * 100_000 + b"]" * 100_000
HUGE = "9" * 5000
JSON = {"content-type": "application/json"}


def check(answer: httpx.Response, status: int = 400, code: str = "invalid_request") -> str:
    """The answer is problem details with this status and code; its detail."""
    assert (answer.status_code, answer.headers["content-type"]) == (
        status,
        "application/problem+json",
    ), answer.text
    problem = answer.json()
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["type"] and problem["title"]
    detail: str = problem["detail"]
    assert "Traceback" not in detail and "\n" not in detail
    return detail


async def post_raw(client: httpx.AsyncClient, path: str, body: bytes) -> httpx.Response:
    return await client.post(path, content=body, headers=JSON)


def with_raw(body: dict[str, Any], value: str) -> bytes:
    """The body as JSON, with the text "RAW" replaced by a value as it is."""
    return json.dumps(body).replace('"RAW"', value).encode()


@pytest.mark.parametrize(
    "value",
    ["0", "-1", "1000001", "9223372036854775808", "18446744073709551616", "1" + "0" * 25,
     HUGE, "-" + HUGE, "1.5", "1e400", "-1e400", "NaN", "true", "null", '"1"', "[]", "{}", "[1]"],
    ids=lambda value: value[:24],
)  # fmt: skip
async def test_a_bad_quantity_is_refused_and_named(client: httpx.AsyncClient, value: str) -> None:
    reserve = with_raw(ORDER | {"lines": [LINE | {"quantity": "RAW"}]}, value)
    answer = await post_raw(client, "/v1/reservations", reserve)
    detail = check(answer)
    if value not in ("NaN", HUGE, "-" + HUGE, "1e400", "-1e400"):
        assert "quantity" in detail
        assert "lines[0]" in detail
    part = with_raw({"lines": [LINE | {"quantity": "RAW"}], "request_id": "p"}, value)
    check(await post_raw(client, "/v1/reservations/r1/confirm", part))
    if value != "1000001":
        check(await post_raw(client, "/v1/movements", with_raw(MOVE | {"quantity": "RAW"}, value)))
        extend = with_raw({"ttl_seconds": "RAW"}, value)
        check(await post_raw(client, "/v1/reservations/r1/extend", extend))
    if value not in ("1000001", "null"):  # an optional member may be null
        check(
            await post_raw(
                client, "/v1/reservations", with_raw(ORDER | {"ttl_seconds": "RAW"}, value)
            )
        )
    one = with_raw({"operations": [{"op": "reserve", **ORDER, "ttl_seconds": "RAW"}]}, value)
    answer = await post_raw(client, "/v1/batch", one)
    if answer.status_code == 200:
        code = "unknown_sku" if value == "null" else "invalid_request"
        assert answer.json()["results"][0]["code"] == code
    else:
        check(answer)


async def test_null_is_as_if_it_were_missing(client: httpx.AsyncClient, receive: Receive) -> None:
    """Every optional member of every call, in a batch and alone; but for lines of confirm and release."""
    await receive("tea", 100)
    nothing = {"reservation_id": None, "customer_id": None, "ttl_seconds": None,
               "lines": [LINE | {"location": None}]}  # fmt: skip
    answer = await client.post("/v1/reservations", json=ORDER | nothing)
    assert answer.status_code == 201
    assert answer.json()["customer_id"] is None and answer.json()["lines"][0]["location"] == "MAIN"
    name = answer.json()["reservation_id"]
    names = ("to_location", "reference", "reason", "expected_on_hand", "disposition")
    unset = dict.fromkeys(names)
    assert (await client.post("/v1/movements", json=MOVE | unset)).status_code == 201
    key = {"idempotency-key": "m2"}
    keyed = MOVE | unset | {"movement_id": None}
    assert (await client.post("/v1/movements", json=keyed, headers=key)).status_code == 201
    operations = [{"op": "reserve", **ORDER, **nothing},
                  {"op": "movement", **MOVE, **unset, "movement_id": "m3"},
                  {"op": "release", "reservation_id": name, "request_id": None},
                  {"op": "confirm", "reservation_id": name, "lines": None}]  # fmt: skip
    results = (await client.post("/v1/batch", json={"operations": operations})).json()["results"]
    codes = [result["code"] for result in results]
    assert codes == ["reserved", "applied", "released", "invalid_request"]
    for call in ("confirm", "release"):
        path = f"/v1/reservations/{results[0]['reservation']['reservation_id']}/{call}"
        assert "lines" in check(await client.post(path, json={"lines": None}))
        assert "lines" in check(await client.post(path, json={"lines": None, "request_id": "p"}))


BAD_IDS = ["", "-a", ".a", "a b", "a/b", "a:b", "{a}", "a" * 65, "ä", "a\n", "a\x00", "tea\u2028",
           "a\x7f", "\U0001f375"]  # fmt: skip


@pytest.mark.parametrize("name", BAD_IDS)
async def test_a_bad_id_is_refused_wherever_it_stands(client: httpx.AsyncClient, name: str) -> None:
    for body in [
        ORDER | {"reservation_id": name},
        ORDER | {"lines": [LINE | {"sku": name}]},
        ORDER | {"lines": [LINE | {"location": name}]},
    ]:
        check(await client.post("/v1/reservations", json=body))
    for field in ("movement_id", "sku", "location"):
        assert field in check(await client.post("/v1/movements", json=MOVE | {field: name}))
    transfer = MOVE | {"type": "transfer", "to_location": name}
    check(await client.post("/v1/movements", json=transfer))
    part = {"lines": [LINE], "request_id": name}
    check(await client.post("/v1/reservations/r1/confirm", json=part))
    check(await client.get("/v1/stock", params={"sku": name}))


@pytest.mark.parametrize(
    "path", ["/v1/reservations/{}", "/v1/stock/{}", "/v1/reservations/{}/confirm"]
)
@pytest.mark.parametrize(
    "name",
    ["%00", "a%00b", "%0a", "a%0A", "%20", "-a", "a" * 65, "%C3%A4", "%ff", "%ED%A0%80", "%7Ba%7D",
     "a:b", "*", "a%5C"],
)  # fmt: skip
async def test_a_bad_id_in_a_path_is_refused(
    client: httpx.AsyncClient, path: str, name: str
) -> None:
    method = "POST" if path.endswith("confirm") else "GET"
    check(await client.request(method, path.format(name)))


@pytest.mark.parametrize("text", ["", "a" * 129, "a\x00", "a\nb", "\x1b[31m", "\x7f", "\x9f"])
async def test_a_bad_text_is_refused(client: httpx.AsyncClient, text: str) -> None:
    """order_id, customer_id and reference: 1 to 128 characters, none a control character."""
    for body in [ORDER | {"order_id": text}, ORDER | {"customer_id": text}]:
        check(await client.post("/v1/reservations", json=body))
    check(await client.post("/v1/movements", json=MOVE | {"reference": text}))
    if len(text) != 129:
        check(await client.post("/v1/movements", json=MOVE | {"reason": text}))
    check(await client.post("/v1/movements", json=MOVE | {"reason": "a" * 1001}))


@pytest.mark.parametrize("text", [r"\ud800", r"\udc00", r"a\ud83d", r"\udc00\ud800"])
async def test_a_lone_surrogate_is_refused(client: httpx.AsyncClient, text: str) -> None:
    """Whether escaped in JSON or written as the bytes UTF-8 does not have."""
    for field in ("order_id", "customer_id", "reservation_id"):
        body = with_raw(ORDER | {field: "RAW"}, f'"{text}"')
        check(await post_raw(client, "/v1/reservations", body))
    for field in ("reference", "reason", "movement_id"):
        body = with_raw(MOVE | {field: "RAW"}, f'"{text}"')
        check(await post_raw(client, "/v1/movements", body))
    raw = with_raw(ORDER | {"order_id": "RAW"}, '"x"').replace(b'"x"', b'"\xed\xa0\x80"')
    check(await post_raw(client, "/v1/reservations", raw))


BROKEN = {
    "empty": b"", "blank": b"  ", "open": b"{", "word": b"nonsense", "two": b"{}{}", "null": b"null",
    "list": b"[]", "string": b'"a"', "number": b"1", "NaN": b"NaN", "latin-1": b'{"a":"\xe4"}',
    "bad UTF-8 key": b'{"\xff":1}', "only bad UTF-8": b"\xff\xfe", "NUL": b"\x00",
    "UTF-16": '{"a":1}'.encode("utf-16"), "BOM": b"\xef\xbb\xbf{}", "deep": DEEP,
    "deep objects": b'{"a":' * 100_000, "deep in unknown": b'{"zzz":' + DEEP + b"}",
    "deep in order_id": b'{"order_id":' + DEEP + b"}", "deep in lines": b'{"lines":' + DEEP + b"}",
    "deep in operations": b'{"operations":[{"zzz":' + DEEP + b',"op":"reserve"}]}',
    "deep operations": b'{"operations":' + DEEP + b"}",
    "bad UTF-8 in batch": b'{"operations":[{"op":"reserve","order_id":"\xff"}]}',
    "bad UTF-8 op": b'{"operations":[{"op":"\xff"}]}',
    "huge op": b'{"operations":[{"op":' + HUGE.encode() + b"}]}",
    "huge operations": b'{"operations":' + HUGE.encode() + b"}",
    "big operations": b'{"operations":100000000000000000000000}',
    "big order_id": b'{"order_id":100000000000000000000000}',
}  # fmt: skip


@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize(
    "path",
    ["/v1/reservations", "/v1/reservations/r1/confirm", "/v1/reservations/r1/extend",
     "/v1/movements", "/v1/batch"],
)  # fmt: skip
async def test_a_body_that_is_not_ours_is_400(
    client: httpx.AsyncClient, path: str, body: bytes
) -> None:
    answer = await post_raw(client, path, body)
    if path == "/v1/batch" and answer.status_code == 200:
        assert [result["code"] for result in answer.json()["results"]] == ["invalid_request"]
    else:
        check(answer)


async def test_an_unknown_field_is_named(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/reservations", json=ORDER | {"ttl": 5})
    assert "ttl" in check(answer)
    answer = await client.post("/v1/reservations", json=ORDER | {"lines": [LINE | {"qty": 1}]})
    assert "qty" in check(answer)
    assert "to" in check(await client.post("/v1/movements", json=MOVE | {"to": "X"}))
    check(await client.post("/v1/reservations/r1/confirm", json={"zzz": 1}))
    check(await client.post("/v1/reservations/r1/extend", json={"ttl_seconds": 1, "z": 1}))
    check(await client.post("/v1/batch", json={"operations": [], "z": 1}))


@pytest.mark.parametrize("field", ["order_id", "lines"])
async def test_a_missing_field_is_named(client: httpx.AsyncClient, field: str) -> None:
    body = {name: value for name, value in ORDER.items() if name != field}
    assert field in check(await client.post("/v1/reservations", json=body))


async def test_too_many_lines_and_sums_above_the_limit_are_refused(
    client: httpx.AsyncClient, receive: Receive
) -> None:
    """2,000 lines are the limit, and so are 1,000,000 of one sku and location, added up."""
    await receive("tea", 3_000_000)
    for lines in ([], [LINE] * 2001, [LINE | {"quantity": 1_000_000}, LINE]):
        check(await client.post("/v1/reservations", json=ORDER | {"lines": lines}))
        part = {"lines": lines, "request_id": "p"}
        check(await client.post("/v1/reservations/r1/release", json=part))
    full = [LINE | {"quantity": 500}] * 2000
    answer = await client.post("/v1/reservations", json=ORDER | {"lines": full})
    assert (answer.status_code, answer.json()["lines"][0]["quantity"]) == (201, 1_000_000)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "json"])
async def test_another_content_type_is_415(client: httpx.AsyncClient, kind: str) -> None:
    for path in ("/v1/reservations", "/v1/movements", "/v1/batch", "/v1/reservations/r1/confirm"):
        answer = await client.post(path, content=b"{}", headers={"content-type": kind})
        check(answer, 415, "unsupported_media_type")


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON"])
async def test_json_may_be_announced_with_parameters(
    client: httpx.AsyncClient, receive: Receive, kind: str
) -> None:
    await receive("tea", 1)
    body = json.dumps(ORDER).encode()
    answer = await client.post("/v1/reservations", content=body, headers={"content-type": kind})
    assert answer.status_code == 201


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/reservations", {"GET", "POST"}),
        ("/v1/reservations/r1", {"GET"}),
        ("/v1/reservations/r1/confirm", {"POST"}),
        ("/v1/reservations/r1/release", {"POST"}),
        ("/v1/reservations/r1/extend", {"POST"}),
        ("/v1/batch", {"POST"}),
        ("/v1/stock", {"GET"}),
        ("/v1/stock/tea", {"GET"}),
        ("/v1/movements", {"GET", "POST"}),
        ("/v1/status", {"GET"}),
        ("/metrics", {"GET"}),
        ("/health/live", {"GET"}),
        ("/health/ready", {"GET"}),
    ],
)
async def test_a_wrong_method_is_405_and_tells_the_right_ones(
    client: httpx.AsyncClient, path: str, allowed: set[str]
) -> None:
    for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "BREW"} - allowed:
        answer = await client.request(method, path)
        check(answer, 405, "method_not_allowed")
        assert allowed <= set(answer.headers["allow"].split(", ")) <= allowed | {"HEAD", "OPTIONS"}


@pytest.mark.parametrize(
    "path",
    ["/v1", "/v1/reservations/", "/v1/reservations/a/b", "/v2/stock", "//", "/%00", "/v1/%ff",
     "/v1/reservations/r1/confirm/", "/V1/stock", "/" + "a" * 5000],
)  # fmt: skip
async def test_an_unknown_path_is_404(client: httpx.AsyncClient, path: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        check(await client.request(method, path), 404, "not_found")


async def test_a_body_above_4_mib_is_413_and_one_at_the_limit_is_read(
    client: httpx.AsyncClient,
) -> None:
    limit = 4 * 1024 * 1024
    for path in ("/v1/reservations", "/v1/batch", "/v1/reservations/r1/confirm"):
        check(await post_raw(client, path, b" " * (limit + 1)), 413, "body_too_large")
    check(await post_raw(client, "/v1/reservations", b" " * limit))


QUERIES = [
    "/v1/stock", "/v1/stock?sku=", "/v1/stock?sku=a&sku=%00", "/v1/stock?sku=a%ff", "/v1/stock?a=b",
    "/v1/stock?sku=a&limit=1", "/v1/stock?sku", "/v1/stock?sku=a&" + "&".join(["sku=a:"] * 3000),
    "/v1/stock?" + "&".join(f"sku=s{n}" for n in range(2001)),
    "/v1/movements?limit=0", "/v1/movements?limit=1001", "/v1/movements?limit=-1",
    "/v1/movements?limit=a", "/v1/movements?limit=", "/v1/movements?limit=1.0",
    "/v1/movements?limit=" + HUGE, "/v1/movements?limit=000000001" + "9" * 30,
    "/v1/movements?limit=000000001" + HUGE, "/v1/movements?limit=0000000019999",
    "/v1/movements?limit=%D9%A1", "/v1/movements?limit=1&limit=2", "/v1/movements?sku=a&sku=b",
    "/v1/movements?cursor=", "/v1/movements?cursor=!!", "/v1/movements?cursor=%00",
    "/v1/movements?cursor=MC4wLjAuMA&cursor=MC4wLjAuMA", "/v1/movements?cursor=%C3%A4",
    "/v1/movements?cursor=" + "A" * 9000, "/v1/movements?cursor=OTk5OTk5OTk5OTk5OTk5OTk5OTkuMC4wLjA",
    "/v1/movements?order_id=%00", "/v1/movements?sku=a%00", "/v1/movements?colour=red",
]  # fmt: skip


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query[:60])
async def test_a_query_that_does_not_fit_is_400(client: httpx.AsyncClient, query: str) -> None:
    check(await client.get(query))
