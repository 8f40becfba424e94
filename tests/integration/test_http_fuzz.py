"""Whatever a stranger sends: no 500, and problem details on every refusal. Also over a real socket."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis
from running import NO_POSTGRES, in_process, on_one_redis, open_by_hand, served

from api.servers import RedisServer
from engine.settings import Settings

pytestmark = on_one_redis

LINE = {"sku": "tea", "quantity": 1, "location": "MAIN"}
ORDER = {
    "reservation_id": "r1",
    "order_id": "o1",
    "customer_id": "c",
    "ttl_seconds": 9,
    "lines": [LINE],
}
PART = {"lines": [LINE], "request_id": "p"}
MOVE = {"movement_id": "m1", "type": "receive", "sku": "tea", "location": "MAIN", "quantity": 5,
        "reason": "r"}  # fmt: skip
BATCH = {
    "operations": [
        {"op": "reserve", **ORDER},
        {"op": "confirm", "reservation_id": "r1", **PART},
        {"op": "release", "reservation_id": "r1"},
        {"op": "extend", "reservation_id": "r1", "ttl_seconds": 60},
        {"op": "movement", **MOVE},
    ]
}
BODIES = {
    "/v1/reservations": ORDER,
    "/v1/reservations/r1/confirm": PART,
    "/v1/reservations/r1/release": PART,
    "/v1/reservations/r1/extend": {"ttl_seconds": 60},
    "/v1/movements": MOVE,
    "/v1/batch": BATCH,
}
NAMES = [
    "op",
    "lines",
    "sku",
    "quantity",
    "location",
    "order_id",
    "operations",
    "type",
    "request_id",
]
RAW = ["1e400", "-0", "1e2", "1.0", "9" * 400, "[" * 5000 + "]" * 5000, '"\\ud800"', "NaN", "01",
       '"\\u0000"', "{" * 3, "-", "10000000000000000000000", '"' + "a" * 2000 + '"']  # fmt: skip

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["tea", "r1", "MAIN", "receive", "reserve", "a" * 65, "p"])
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)


@st.composite
def mutated(draw: st.DrawFn) -> tuple[str, bytes]:
    """A path and the body that belongs there, damaged in a few places."""
    path = draw(st.sampled_from(sorted(BODIES)))
    text = json.dumps(BODIES[path])
    body: Any = json.loads(text)
    for _ in range(draw(st.integers(1, 3))):
        at = body
        while isinstance(at, dict | list) and at:
            key = draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
            if draw(st.integers(0, 2)) == 0 or not isinstance(at[key], dict | list):
                at[key] = draw(values | st.sampled_from([f"RAW{n}" for n in range(len(RAW))]))
                break
            at = at[key]
    data = json.dumps(body)
    for number, raw in enumerate(RAW):
        data = data.replace(f'"RAW{number}"', raw)
    sent = bytearray(data.encode("utf-8", "surrogatepass"))
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 3]))):
        sent[draw(st.integers(0, len(sent) - 1))] = draw(st.integers(0, 255))
    return path, bytes(sent)


anything = st.tuples(
    st.sampled_from(sorted(BODIES)),
    values.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=200),
)
paths = st.builds(
    lambda start, rest, query: start + rest + query,
    st.sampled_from(["/", "/v1/", "/v1/stock/", "/v1/reservations/", "/v1/reservations/r1/", "/health/",
                     "/v1/stock", "/v1/movements"]),
    st.text("ab%/.:~\\{}0fF", max_size=8) | st.sampled_from(["%00", "%ff", "%ED%A0%80", "tea", ""]),
    st.just("") | st.text("?&=;%0fsku limit+", max_size=12).map(lambda text: "?" + text)
    | st.sampled_from(["?sku=%00", "?sku=tea&sku=", "?limit=" + "0" * 9 + "1", "?cursor=AAAA"]),
)  # fmt: skip


def check(answer: httpx.Response) -> None:
    assert answer.status_code in {200, 201, 400, 404, 405, 409, 415, 422, 503}, answer.text
    if answer.status_code == 503:  # the audit trail has no PostgreSQL here
        assert answer.request.url.path == "/v1/movements" and answer.request.method != "POST"
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == "application/problem+json"
        problem = answer.json()
        assert {"type", "title", "status", "detail", "code"} <= set(problem)
        assert problem["status"] == answer.status_code
    elif "results" in answer.text:
        assert all(result["code"] != "internal_error" for result in answer.json()["results"])


def test_nothing_a_stranger_sends_is_answered_500(redis: Redis, redis_server: RedisServer) -> None:
    """Mutated bodies, arbitrary ones, and paths and queries of all kinds."""
    open_by_hand(redis_server.url)

    async def call(client: httpx.AsyncClient, method: str, path: str, body: bytes) -> None:
        headers = {"content-type": "application/json"} if body else {}
        url = client.base_url.copy_with(
            raw_path=path.encode()
        )  # as it is: also one that begins with //
        check(await client.request(method, url, content=body, headers=headers))

    with asyncio.Runner() as runner:
        # One application for all examples: entered and left in the same runner.
        service = in_process(Settings(redis_url=redis_server.url, postgres_url=NO_POSTGRES))
        client = runner.run(service.__aenter__())
        few = settings(
            max_examples=250, deadline=None, database=None, print_blob=True,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip

        @few
        @given(mutated() | anything)
        def bodies(sent: tuple[str, bytes]) -> None:
            runner.run(call(client, "POST", *sent))

        @few
        @given(st.sampled_from(["GET", "POST", "DELETE"]), paths)
        def addresses(method: str, path: str) -> None:
            if "movements?" in path and method == "GET":
                method = "PUT"  # waits 2 s for a PostgreSQL that isn't there
            runner.run(call(client, method, path, b""))

        try:
            bodies()
            addresses()
        finally:
            runner.run(service.__aexit__(None, None, None))


@pytest.fixture
def address(redis: Redis, redis_server: RedisServer, tmp_path: Path) -> Any:
    open_by_hand(redis_server.url)
    service = Settings(redis_url=redis_server.url, postgres_url=NO_POSTGRES)
    with served(service, tmp_path / "serve.log") as url:
        yield url


def _talk(url: str, data: bytes) -> bytes:
    """Send bytes, all of them, then read until the other side has answered and closed."""
    with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=20) as talk:
        talk.sendall(data)
        answer = b""
        while received := talk.recv(65536):
            answer += received
    return answer


@pytest.mark.parametrize("path", ["/v1/reservations", "/v1/batch", "/nowhere", "/v1/stock/tea"])
@pytest.mark.parametrize("size", [5_000_000, 15_000_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_client_that_sends_too_much_hears_why(
    address: str, path: str, size: int, chunked: bool
) -> None:
    """It sends everything before it listens, as simple clients do."""
    body = b"x" * size
    lines = "Host: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close\r\n"
    head = f"POST {path} HTTP/1.1\r\n{lines}"
    if chunked:
        framed = b"".join(
            b"%x\r\n%s\r\n" % (len(part), part)
            for part in (body[at : at + 65536] for at in range(0, size, 65536))
        )
        data = head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + framed + b"0\r\n\r\n"
    else:
        data = head.encode() + b"Content-Length: %d\r\n\r\n" % size + body
    answer = _talk(address, data)
    status = int(answer.split(b" ", 2)[1])
    assert status in {"/nowhere": {404, 413}, "/v1/stock/tea": {405, 413}}.get(path, {413})
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["status"] == status


def test_over_a_real_socket_a_reservation_and_its_refusals(address: str) -> None:
    """HEAD has no body; the address goes on after what it could not read."""
    assert _talk(address, b"nonsense\r\n\r\n").startswith(b"HTTP/1.1 400")
    lines = b"Host: 127.0.0.1\r\nConnection: close\r\n"
    answer = _talk(address, b"HEAD /health/live HTTP/1.1\r\n%s\r\n" % lines)
    assert answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"\r\n\r\n")
    with httpx.Client(base_url=address, trust_env=False) as client:
        assert client.post("/v1/movements", json=MOVE).status_code == 201
        assert client.post("/v1/reservations", json=ORDER).status_code == 201
        assert client.post("/v1/reservations", content=b"\xff").status_code == 415
        assert client.get("/v1/stock/%00").status_code == 400
        assert client.delete("/v1/stock").status_code == 405
