"""What hostile or broken clients send takes neither the memory nor the service of the others."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest
from running import eventually, serving
from wire_kit import Shop, Talk, part, request, talks

from engine.settings import Settings

MIB = 2**20
LIVE = request("/health/live", method="GET")
#: Twice this is what was measured, or more; without bounds it was hundreds.
GROWTH_MAX_MIB = 60


@contextmanager
def limited(
    settings: Settings, tmp_path: Path, files_max: int = 0, **environ: Any
) -> Iterator[Shop]:
    """A service with limits of its own, given as ``head_timeout_ms=…``."""
    named = {f"HOLDFAST_{name.upper()}": str(value) for name, value in environ.items()}
    log = tmp_path / "serve.log"
    with (
        serving(settings, log, files_max=files_max, **named) as service,
        Shop(service) as shop,
    ):
        yield shop
        assert "Traceback" not in log.read_text()


def serves(shop: Shop) -> bool:
    """Is an ordinary request answered, on a connection of its own?"""
    with Talk(shop.service) as talk:
        return talk.send(LIVE).answer().status == 200


def flood(talk: Talk, start: bytes, size: int) -> Thread:
    """Send a start and then so many bytes more, for as long as they are taken."""

    def send() -> None:
        with suppress(OSError):
            talk.send(start, *([b"a" * MIB] * (size // MIB)))

    thread = Thread(target=send)
    thread.start()
    return thread


ENDLESS = {
    "a URL": b"GET /v1/stock/",
    "a header": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ",
    "a name of a header": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX",
    "a method": b"GET",
    "an offer": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: ",
    "a field behind chunks": request("/v1/batch", b"{}", chunks=1).removesuffix(b"\r\n") + b"X: ",
    "a word behind a chunk's size": request("/v1/batch", b"", chunks=1).removesuffix(b"0\r\n\r\n")
    + b"1;x=",
}


@pytest.mark.parametrize("start", ENDLESS)
def test_what_never_ends_is_refused(shop: Shop, start: str) -> None:
    """40 MB each, and memory stays as it was. Where it is no HTTP at all, that is told."""
    assert serves(shop)
    before_mib = shop.memory_mib()
    with Talk(shop.service) as talk:
        sending = flood(talk, ENDLESS[start], 40 * MIB)
        assert talk.answer().code in ("headers_too_large", "invalid_request")
        sending.join(30)
    assert shop.memory_mib() - before_mib < GROWTH_MAX_MIB
    assert serves(shop)


@pytest.mark.parametrize("over", [0, 1])
def test_a_head_may_have_64_kib(shop: Shop, over: int) -> None:
    """Request line, headers and the empty line together, one long header or many short ones."""
    start = b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    room = 65_536 - len(start) - 2 + over
    many = b"X: a\r\n" * 10_000
    for lines in (
        b"X: " + b"a" * (room - 5) + b"\r\n",
        many + b"Y: " + b"a" * (room - len(many) - 5) + b"\r\n",
    ):
        data = start + lines + b"\r\n"
        assert len(data) == 65_536 + over
        with Talk(shop.service) as talk:
            answer = talk.send(data).answer()
            assert answer.code == "headers_too_large" if over else answer.status == 200


def test_large_heads_and_silent_clients_take_neither_memory_nor_service(shop: Shop) -> None:
    """Twenty heads of 10 MiB and two hundred clients that say nothing, and others are served."""
    assert serves(shop)
    before_mib = shop.memory_mib()
    with talks(shop.service, 200), talks(shop.service, 20) as loud:
        sending = [flood(talk, ENDLESS["a header"], 10 * MIB) for talk in loud]
        name = shop.hold(10)
        confirmed = shop.client.post(f"/v1/reservations/{name}/confirm", json=part(name))
        assert confirmed.status_code == 200
        assert [talk.answer().code for talk in loud] == ["headers_too_large"] * 20
        for each in sending:
            each.join(30)
        assert shop.memory_mib() - before_mib < GROWTH_MAX_MIB


def test_who_takes_too_long_is_told_or_closed(wire_settings: Settings, tmp_path: Path) -> None:
    """A head that doesn't come whole is 408; a client that says nothing at all, or nothing more, is closed.
    A request that is being answered may take longer."""
    with limited(wire_settings, tmp_path, head_timeout_ms=1000, keep_alive_ms=1000) as shop:
        with Talk(shop.service) as silent, Talk(shop.service) as slow, Talk(shop.service) as idle:
            idle.send(LIVE)
            slow.send(LIVE[:20])
            assert idle.answer().status == 200
            assert slow.answer().code == "request_timeout"
            assert slow.ends() and silent.ends() and idle.ends()
        with Talk(shop.service) as blank:
            assert blank.send(LIVE, b"\r\n").answer().status == 200
            assert blank.ends()
        body = request("/v1/reservations/r/confirm", b"{}")
        with Talk(shop.service) as sending, Talk(shop.service) as other:
            sending.send(body[:-1])
            assert other.ends()  # by now a second has passed
            assert sending.send(body[-1:]).answer().code == "unknown_reservation"


def test_one_connection_too_many_is_refused_and_told(
    wire_settings: Settings, tmp_path: Path
) -> None:
    with limited(wire_settings, tmp_path, connections_max=20) as shop:
        shop.client.close()
        with talks(shop.service, 20) as open_ones:
            for talk in open_ones:
                assert talk.send(LIVE).answer().status == 200
            with Talk(shop.service) as one_more:
                assert one_more.answer().code == "overloaded"
                assert one_more.ends()
            with talks(shop.service, 300):  # more than are told so
                assert open_ones[0].send(LIVE).answer().status == 200
            for talk in open_ones:
                assert talk.send(LIVE).answer().status == 200
        eventually("there is room again", lambda: serves_again(shop))
        eventually("it is in the log", lambda: "were refused" in shop.service.log.read_text())


def serves_again(shop: Shop) -> bool:
    try:
        return serves(shop)
    except (ConnectionError, AssertionError):
        return False


def test_without_file_descriptors_others_keep_their_connections(
    wire_settings: Settings, tmp_path: Path
) -> None:
    """`ulimit -n 180`: 52 connections are taken, and it is said; Redis' own go on."""
    with limited(wire_settings, tmp_path, files_max=180) as shop:
        name = shop.hold(10)
        with talks(shop.service, 400):
            answer = shop.client.post(f"/v1/reservations/{name}/confirm", json=part(name))
            assert answer.status_code == 200
        log = shop.service.log
        eventually("it is in the log", lambda: "were refused" in log.read_text())
        assert "52 connections are taken" in log.read_text()
        eventually("there is room again", lambda: serves_again(shop))


def test_bodies_under_way_are_bounded_in_all(shop: Shop) -> None:
    """Two hundred clients send 4 MiB less one byte and no more: who is too many is told, small requests
    go on, and memory is bounded by HOLDFAST_BODIES_MAX_BYTES."""
    assert serves(shop)
    before_mib = shop.memory_mib()
    data = request("/v1/batch", b" " * (4 * MIB))[:-1]
    with talks(shop.service, 200) as senders:
        sending = [Thread(target=_send, args=(talk, data)) for talk in senders]
        for each in sending:
            each.start()
        for each in sending:
            each.join(60)
        grown_mib = shop.memory_mib() - before_mib
        name = shop.hold(10)
        assert shop.left(name) == (10, 10)
        refused = [talk for talk in senders if _has_answer(talk)]
        assert 100 < len(refused) < 200
        assert {talk.answer().code for talk in refused} == {"overloaded"}
    assert grown_mib < 64 + 2 * GROWTH_MAX_MIB
    eventually("there is room again", lambda: _batch_is_read(shop))


def _send(talk: Talk, data: bytes) -> None:
    with suppress(OSError):
        talk.send(data)


def _has_answer(talk: Talk) -> bool:
    talk.socket.settimeout(0.05)
    try:
        talk._read += talk.socket.recv(1)
    except TimeoutError:
        return False
    finally:
        talk.socket.settimeout(30)
    return True


def _batch_is_read(shop: Shop) -> bool:
    answer = shop.client.post(
        "/v1/batch", content=b" " * MIB, headers={"content-type": "application/json"}
    )
    code: str = answer.json()["code"]
    return code == "invalid_request"


def cart(shop: Shop, lines: int) -> dict[str, Any]:
    """A reservation of so many lines, each of a sku of its own; the order."""
    skus = [f"cart-{number}" for number in range(lines)]
    for at in range(0, lines, 2000):
        moves = [
            {"op": "movement", "movement_id": sku, "type": "receive", "sku": sku, "location": "M",
             "quantity": 1000}
            for sku in skus[at : at + 2000]
        ]  # fmt: skip
        assert shop.client.post("/v1/batch", json={"operations": moves}).status_code == 200
    order = {"reservation_id": "cart", "order_id": "cart",
             "lines": [{"sku": sku, "quantity": 1, "location": "M"} for sku in skus]}  # fmt: skip
    assert shop.client.post("/v1/reservations", json=order).status_code == 201
    return order


def test_a_batch_is_bounded_by_the_lines_it_answers_with(
    wire_settings: Settings, tmp_path: Path
) -> None:
    """Given a cart of 2,000 lines that is confirmed 500 times in one batch, then each is told by its code,
    ten of them with the reservation and the others as truncated, and memory is bounded, also with clients
    that don't read."""
    with limited(wire_settings, tmp_path, send_timeout_ms=1000, unsent_max_bytes=8 * MIB) as shop:
        cart(shop, 2000)
        before_mib = shop.memory_mib()
        confirm = {"op": "confirm", "reservation_id": "cart"}
        answer = shop.client.post("/v1/batch", json={"operations": [confirm] * 500})
        results = answer.json()["results"]
        assert [result["code"] for result in results] == ["confirmed"] + ["already_confirmed"] * 499
        told = [result for result in results if "reservation" in result]
        assert len(told) == 10 and all(len(each["reservation"]["lines"]) == 2000 for each in told)
        assert all(("reservation" in each) != each.get("truncated", False) for each in results)
        confirms = request("/v1/batch", {"operations": [confirm] * 12})
        with talks(shop.service, 6, receive_bytes=4096) as deaf:
            for talk in deaf:
                talk.send(confirms * 10)
            assert serves(shop)
            eventually(
                "who doesn't read is closed", lambda: all(_is_reset(talk) for talk in deaf), 150
            )
        assert shop.memory_mib() - before_mib < 2 * GROWTH_MAX_MIB


def _is_reset(talk: Talk) -> bool:
    """Reset by the server; nothing is read from it."""
    return talk.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0 or _is_closed(talk)


def _is_closed(talk: Talk) -> bool:
    try:
        talk.socket.send(b"\r\n")
    except (ConnectionError, BrokenPipeError):
        return True
    return False


def test_stock_records_in_one_answer_are_bounded(shop: Shop) -> None:
    """11 skus at 2,000 locations each are more than 20,000 records; 10 are not."""
    skus = [f"wide-{number}" for number in range(11)]
    for sku in skus:
        moves = [
            {"op": "movement", "movement_id": f"{sku}-{at}", "type": "receive", "sku": sku,
             "location": f"L{at}", "quantity": 1}
            for at in range(2000)
        ]  # fmt: skip
        assert shop.client.post("/v1/batch", json={"operations": moves}).status_code == 200
    many = shop.client.get("/v1/stock", params={"sku": skus})
    assert (many.status_code, many.json()["code"]) == (400, "invalid_request")
    few = shop.client.get("/v1/stock", params={"sku": skus[:10]}).json()["stock"]
    assert [each["on_hand"] for each in few] == [2000] * 10


def test_a_client_that_left_is_no_traceback(wire_settings: Settings, tmp_path: Path) -> None:
    """It goes before its body is whole, while it is served, with an answer unread, with requests waiting."""
    with limited(wire_settings, tmp_path) as shop:
        name = shop.hold(10)
        confirm = request(
            "/v1/batch", {"operations": [{"op": "confirm", "reservation_id": name}] * 2000}
        )
        ways = [confirm[:-5], confirm, confirm * 3, LIVE * 500, LIVE[:9], b"",
                request("/v1/movements", method="GET"), request("/v1/reconciliations")]  # fmt: skip
        for data in ways * 3:
            for resets in (True, False):
                with Talk(shop.service) as talk:
                    if resets:
                        talk.socket.setsockopt(
                            socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
                        )
                    talk.send(data)
        assert serves(shop)
        shop.client.close()
        # The ledger isn't there: whoever asks it waits 2 s, and answers then.
        eventually("all is done", lambda: _connections(shop) == 0)
        log = shop.service.log.read_text()
    for word in ("Traceback", "Exception", "unable to perform"):
        assert word not in log, log


def _connections(shop: Shop) -> int:
    ours = psutil.Process(shop.service.pid).net_connections()
    return sum(
        each.status == "ESTABLISHED" and each.laddr.port == shop.service.port for each in ours
    )


def test_the_largest_bodies_at_once_are_bounded(shop: Shop) -> None:
    """As many of the largest batches as may be under way: what is made of them counts, too."""
    line = json.dumps({"sku": "none", "quantity": 1, "location": "M"}).encode()
    op = b'{"op":"reserve","order_id":"o","lines":[' + b",".join([line] * 40) + b"]}"
    body = b'{"operations":[' + b",".join([op] * 1999) + b"]}"
    assert 3.5 * MIB < len(body) < 4 * MIB, len(body)
    before_mib = shop.memory_mib()
    with talks(shop.service, 80) as senders:
        sending = [
            Thread(target=_send, args=(talk, request("/v1/batch", body))) for talk in senders
        ]
        for each in sending:
            each.start()
        peak_mib = max(shop.memory_mib() for _ in range(200) if serves(shop))
        for each in sending:
            each.join(60)
        statuses = {talk.answer().status for talk in senders}
        assert statuses <= {200, 503} and 200 in statuses
    assert peak_mib - before_mib < 4 * GROWTH_MAX_MIB
