"""The wire: a body is never lost, "all that is left" is only what says so, what was decided is answered."""

from __future__ import annotations

import pytest
from wire_kit import Shop, Talk, chunked, part, request

UPGRADES = {
    "h2c": ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAAAAIAAAAB"],
    "TLS": ["Upgrade: TLS/1.2", "Connection: Upgrade"],
    "websocket": ["upgrade: websocket", "connection: keep-alive, Upgrade", "Sec-WebSocket-Version: 13",
                  "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="],
    "twice": ["Upgrade: h2c", "Upgrade: websocket", "Connection: upgrade"],
    "without connection": ["Upgrade: h2c"],
    "without upgrade": ["Connection: Upgrade"],
    "none": [],
}  # fmt: skip
HALF = b"POST /v1/movements HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def cuts(data: bytes) -> dict[str, list[bytes]]:
    """Ways in which bytes may arrive."""
    head, _, body = data.partition(b"\r\n\r\n")
    return {
        "at once": [data],
        "head and body": [head + b"\r\n\r\n", body],
        "within the empty line": [head + b"\r\n\r", b"\n" + body[:1], body[1:]],
        "byte by byte": [data[at : at + 1] for at in range(len(data))],
    }


@pytest.mark.parametrize("upgrade", UPGRADES)
@pytest.mark.parametrize("chunks", [0, 1, 7])
@pytest.mark.parametrize("cut", cuts(b""))
def test_a_part_takes_its_part_whatever_else_is_offered(
    shop: Shop, upgrade: str, chunks: int, cut: str
) -> None:
    """Given 10 units held, when one is confirmed in a request that offers another protocol, then one is,
    and the connection goes on."""
    name = shop.hold(10)
    data = request(
        f"/v1/reservations/{name}/confirm", part(name), *UPGRADES[upgrade], chunks=chunks
    )
    with Talk(shop.service) as talk:
        answer = talk.send(*cuts(data)[cut]).answer()
        assert (answer.status, answer.json()["lines"][0]["confirmed"]) == (200, 1)
        assert shop.left(name) == (9, 9)
        after = talk.send(request(f"/v1/stock/{name}", method="GET")).answer()
        assert (after.status, after.json()["on_hand"]) == (200, 9)


@pytest.mark.parametrize("upgrade", UPGRADES)
@pytest.mark.parametrize("chunks", [0, 3])
def test_requests_that_come_together_are_answered_in_order(
    shop: Shop, upgrade: str, chunks: int
) -> None:
    """Parts of 1, 2 and 3 units, in one segment, and each byte for itself."""
    for cut in ("at once", "byte by byte"):
        name = shop.hold(10)
        path = f"/v1/reservations/{name}/confirm"
        parts = [part(name, units) | {"request_id": f"p{units}"} for units in (1, 2, 3)]
        data = b"".join([request(path, each, *UPGRADES[upgrade], chunks=chunks) for each in parts])
        with Talk(shop.service) as talk:
            talk.send(*cuts(data + request("/nowhere", method="GET"))[cut])
            taken = [talk.answer().json()["lines"][0]["confirmed"] for _ in parts]
            assert taken == [1, 3, 6]
            assert talk.answer().code == "not_found"
        assert shop.left(name) == (4, 4)


def test_a_thousand_requests_in_one_segment_are_answered(shop: Shop) -> None:
    name = shop.hold(1)
    with Talk(shop.service) as talk:
        talk.send(request(f"/v1/stock/{name}", method="GET") * 1000)
        assert {talk.answer().status for _ in range(1000)} == {200}


@pytest.mark.parametrize("upgrade", UPGRADES)
def test_who_waits_for_a_word_is_told_to_continue(shop: Shop, upgrade: str) -> None:
    name = shop.hold(10)
    data = request(
        f"/v1/reservations/{name}/confirm", part(name), *UPGRADES[upgrade], "Expect: 100-continue"
    )
    head, _, body = data.partition(b"\r\n\r\n")
    with Talk(shop.service) as talk:
        assert talk.send(head + b"\r\n\r\n").answer().status == 100
        assert talk.send(body).answer().status == 200
    assert shop.left(name) == (9, 9)


def test_no_tunnel_is_made(shop: Shop) -> None:
    name = shop.hold()
    behind = request(f"/v1/reservations/{name}/confirm", None)
    with Talk(shop.service) as talk:
        talk.send(b"CONNECT 127.0.0.1:80 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" + behind)
        assert talk.answer().code == "method_not_allowed"
        assert talk.ends()
    assert shop.left(name) == (10, 10)


@pytest.mark.parametrize("upgrade", ["h2c", "none"])
@pytest.mark.parametrize("chunks", [0, 2])
@pytest.mark.parametrize("missing", [1, 20, "all"])
def test_a_body_that_ends_early_changes_nothing(
    shop: Shop, upgrade: str, chunks: int, missing: int | str
) -> None:
    """The client says that it is done (half-closed) with less than it announced."""
    name = shop.hold(10)
    path = f"/v1/reservations/{name}/confirm"
    data = request(path, part(name), *UPGRADES[upgrade], chunks=chunks)
    end = data.index(b"\r\n\r\n") + 4 if missing == "all" else len(data) - int(missing)
    with Talk(shop.service) as talk:
        answer = talk.send(data[:end]).send_no_more().answer()
        assert (answer.status, answer.code) == (400, "invalid_request")
        assert talk.ends()
    assert shop.left(name) == (10, 10)


@pytest.mark.parametrize("upgrade", UPGRADES)
def test_who_says_that_nothing_more_comes_hears_the_answer(shop: Shop, upgrade: str) -> None:
    name = shop.hold(10)
    data = request(f"/v1/reservations/{name}/confirm", part(name), *UPGRADES[upgrade])
    with Talk(shop.service) as talk:
        talk.send(data + request(f"/v1/stock/{name}", method="GET")).send_no_more()
        assert [talk.answer().status for _ in range(2)] == [200, 200]
        assert talk.ends()


@pytest.mark.parametrize(
    "lines",
    [
        "Content-Length: 3\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 3",
        "Content-Length: 3\r\nContent-Length: 300",
        "Content-Length: +3", "Content-Length: 3, 3", "Content-Length: -1", "Content-Length: 0x3",
        "Content-Length: 99999999999999999999999", "Transfer-Encoding: chunked, gzip",
        "Transfer-Encoding: xchunked", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Content-Length : 3", " Content-Length: 3", "A: b\r\n Content-Length: 3", "A: b\nContent-Length: 3",
    ],
)  # fmt: skip
@pytest.mark.parametrize("upgrade", ["h2c", "none"])
def test_a_head_that_can_be_read_in_two_ways_is_refused(
    shop: Shop, lines: str, upgrade: str
) -> None:
    """Whatever stands behind it, nothing of it runs as a request of its own."""
    name = shop.hold(10)
    path = f"/v1/reservations/{name}/confirm"
    head = "\r\n".join(
        [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", *UPGRADES[upgrade], lines, "\r\n"]
    )
    with Talk(shop.service) as talk:
        talk.send(head.encode(), b"3\r\n{} \r\n0\r\n\r\n", request(path))
        assert talk.answer().code == "invalid_request"
        assert talk.ends()
    assert shop.left(name) == (10, 10)


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n", b"GET /\r\n\r\n", b"GET / HTTP/3.0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /a#b HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"GET /\xc3\xa4 HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nA: \x00\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: localhost\r\n\r\n",
    ],
)  # fmt: skip
def test_what_is_no_request_is_told_so(shop: Shop, data: bytes) -> None:
    with Talk(shop.service) as talk:
        assert talk.send(data).answer().code == "invalid_request"


@pytest.mark.parametrize(
    "garbage", [b"nonsense\r\n\r\n", b"{}", b"\x00" * 1000, b"GET / HTTP/9.9\r\n\r\n"]
)
@pytest.mark.parametrize("chunks", [0, 2])
@pytest.mark.parametrize("closes", [False, True])
def test_what_was_decided_is_answered_whatever_comes_behind_it(
    shop: Shop, garbage: bytes, chunks: int, closes: bool
) -> None:
    """First the 200; then, where the connection goes on, what is wrong with the rest."""
    lines = ["Connection: close"] if closes else []
    for together in (True, False):
        name = shop.hold(10)
        data = request(f"/v1/reservations/{name}/confirm", part(name), *lines, chunks=chunks)
        with Talk(shop.service) as talk:
            talk.send(*([data + garbage] if together else [data, garbage]))
            assert talk.answer().status == 200
            if not closes and garbage != b"{}":
                assert talk.answer().code == "invalid_request"
        assert shop.left(name) == (9, 9)


def test_further_bytes_than_announced_are_no_part_of_the_request(shop: Shop) -> None:
    name = shop.hold(10)
    body = b'{"lines":[{"sku":"%s","quantity":1}],"request_id":"p"}' % name.encode()
    data = request(f"/v1/reservations/{name}/confirm", body)
    with Talk(shop.service) as talk:
        talk.send(data + b"x" * 10 + b"\r\n\r\n")
        assert talk.answer().status == 200
        assert talk.answer().code == "invalid_request"
    assert shop.left(name) == (9, 9)


def test_fields_behind_a_chunked_body_are_no_headers(shop: Shop) -> None:
    name = shop.hold(10)
    data = request(f"/v1/reservations/{name}/confirm", part(name), kind=None, chunks=1)
    data = data.removesuffix(b"\r\n") + b"Content-Type: application/json\r\n\r\n"
    with Talk(shop.service) as talk:
        assert talk.send(data).answer().code == "unsupported_media_type"
    assert shop.left(name) == (10, 10)


#: Header lines and bytes behind them → code; "" is all that is left.
JSON = "Content-Type: application/json\r\n"
BODIES = {
    "nothing": ("", b"", ""),
    "nothing, with its length": ("Content-Length: 0\r\n", b"", ""),
    "an empty chunk": ("Transfer-Encoding: chunked\r\n", b"0\r\n\r\n", ""),
    "an empty form": ("Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 0\r\n", b"", ""),
    "an object without lines": (JSON + "Content-Length: 2\r\n", b"{}", ""),
    "a request_id": (JSON + "Content-Length: 18\r\n", b'{"request_id":"a"}', ""),
    "a request_id of null": (JSON + "Content-Length: 19\r\n", b'{"request_id":null}', ""),
    "JSON without length": (JSON, b"", "invalid_request"),
    "JSON of length 0": (JSON + "Content-Length: 0\r\n", b"", "invalid_request"),
    "JSON of an empty chunk": (JSON + "Transfer-Encoding: chunked\r\n", b"0\r\n\r\n", "invalid_request"),
    "other JSON": ("Content-Type: text/json; a=b\r\n", b"", "invalid_request"),
    "JSON of another kind": ("Content-Type: Application/Problem+JSON\r\n", b"", "invalid_request"),
    "a blank": (JSON + "Content-Length: 1\r\n", b" ", "invalid_request"),
    "lines of null": (JSON + "Content-Length: 14\r\n", b'{"lines":null}', "invalid_request"),
    "no lines": (JSON + "Content-Length: 12\r\n", b'{"lines":[]}', "invalid_request"),
    "null": (JSON + "Content-Length: 4\r\n", b"null", "invalid_request"),
    "no type": ("Content-Length: 2\r\n", b"{}", "unsupported_media_type"),
    "a blank without type": ("Content-Length: 1\r\n", b" ", "unsupported_media_type"),
    "a form": ("Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 2\r\n", b"{}",
               "unsupported_media_type"),
    "two types": (JSON + "Content-Type: text/plain\r\nContent-Length: 2\r\n", b"{}",
                  "unsupported_media_type"),
    "packed": (JSON + "Content-Encoding: gzip\r\nContent-Length: 2\r\n", b"{}", "unsupported_media_type"),
}  # fmt: skip


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("upgrade", ["h2c", "none"])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_all_that_is_left_is_only_what_says_so(
    shop: Shop, body: str, upgrade: str, version: str
) -> None:
    lines, data, code = BODIES[body]
    head = "\r\n".join(["Host: 127.0.0.1", *UPGRADES[upgrade], lines])
    for call, after in (("confirm", (0, 0)), ("release", (10, 0))):
        name = shop.hold(10)
        start = f"POST /v1/reservations/{name}/{call} HTTP/{version}\r\n{head}\r\n"
        with Talk(shop.service) as talk:
            answer = talk.send(start.encode() + data).answer()
            assert answer.status == 200 if not code else answer.code == code, answer
        assert shop.left(name) == ((10, 10) if code else after)


@pytest.mark.parametrize(
    "path",
    ["/v1/reservations", "/v1/reservations/r/extend", "/v1/movements", "/v1/batch",
     "/v1/reconciliations"],
)  # fmt: skip
@pytest.mark.parametrize("empty", ["Content-Length: 0\r\n", "Transfer-Encoding: chunked\r\n", ""])
def test_json_that_did_not_come_is_missed_everywhere(shop: Shop, path: str, empty: str) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{JSON}{empty}\r\n"
    with Talk(shop.service) as talk:
        talk.send(head.encode() + (chunked(b"", 1) if "chunked" in empty else b""))
        assert talk.answer().code == "invalid_request"


def test_head_of_http_1_0_closes_and_a_blank_line_is_no_request(shop: Shop) -> None:
    with Talk(shop.service) as talk:
        answer = talk.send(request("/health/live", method="GET", version="1.0")).answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert talk.ends()
    with Talk(shop.service) as talk:
        live = request("/health/live", method="GET")
        talk.send(b"\r\n\r\n" + live + b"\r\n\r\n\r\n" + live)
        assert [talk.answer().status for _ in range(2)] == [200, 200]
