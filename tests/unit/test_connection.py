"""A connection over a pair of sockets: however bytes are cut, the same requests come out, in turn."""

from __future__ import annotations

import asyncio
import socket
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send
from uvicorn import Config
from uvicorn.server import ServerState

from api.connections import Connections
from engine.settings import Settings


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with method, target and body, after a turn of the loop."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message["body"]
        more = message["more_body"]
    await asyncio.sleep(0)
    told = b"<%s %s %s>" % (scope["method"].encode(), scope["raw_path"], body)
    headers = [(b"content-length", b"%d" % len(told))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": told})


async def answers(pieces: list[bytes], **limits: int) -> tuple[bytes, Connections]:
    """What comes back when these pieces arrive one by one, and then the end."""
    loop = asyncio.get_running_loop()
    config = Config(echo, log_config=None)
    config.load()
    connections, state = Connections(Settings(**limits)), ServerState()
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    transport, _ = await loop.connect_accepted_socket(
        lambda: connections(config, state, {}, loop), ours
    )
    reading = asyncio.create_task(_read(theirs))
    for piece in pieces:
        await loop.sock_sendall(theirs, piece)
        await asyncio.sleep(0)
    theirs.shutdown(socket.SHUT_WR)
    written = await reading
    theirs.close()
    transport.abort()
    for _ in range(20):  # whoever is still asked hears that the client has left
        await asyncio.sleep(0)
    return written, connections


async def _read(theirs: socket.socket) -> bytes:
    written = b""
    while received := await asyncio.get_running_loop().sock_recv(theirs, 65_536):
        written += received
    return written


OFFER = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
bodies = st.sampled_from([b"", b"{}", b"\r\n\r\n", b"0\r\n\r\n", b"\r\n\r\nGET /x HTTP/1.1\r\n\r\n",
                          b"a" * 70, b"\r", b"\n\r\n\r",
                          b"POST / HTTP/1.1\r\nUpgrade: h2c\r\n\r\n"])  # fmt: skip


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A request, and what the echo tells of it."""
    body, path = draw(bodies), draw(st.sampled_from([b"/", b"/a", b"/a%2Fb"]))
    head = b"%sPOST %s HTTP/1.1\r\n" % (draw(st.sampled_from([b"", b"\r\n", b"\r\n\r\n"])), path)
    head += draw(st.sampled_from([b"", OFFER]))
    told = b"<POST %s %s>" % (path, body)
    if draw(st.booleans()):
        return head + b"Content-Length: %d\r\n\r\n%s" % (len(body), body), told
    size = draw(st.integers(1, 9))
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    chunks = b"".join([b"%x\r\n%s\r\n" % (len(part), part) for part in parts])
    trailer = draw(st.sampled_from([b"", b"A: b\r\n"]))
    return (
        head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n" + trailer + b"\r\n",
        told,
    )


def bodies_of(written: bytes) -> list[bytes]:
    found = []
    while written:
        head, _, rest = written.partition(b"\r\n\r\n")
        size = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        found.append(rest[:size])
        written = rest[size:]
    return found


@settings(max_examples=300, deadline=None, database=None, print_blob=True)
@given(st.lists(requests(), min_size=1, max_size=4), st.lists(st.integers(0, 400), max_size=12))
def test_however_it_is_cut_the_same_is_read(
    sent: list[tuple[bytes, bytes]], cuts: list[int]
) -> None:
    data = b"".join([request for request, _ in sent])
    places = sorted({0, len(data), *[at for at in cuts if at < len(data)]})
    pieces = [data[a:b] for a, b in pairwise(places)]
    for way in (pieces, [data], [bytes([byte]) for byte in data]):
        written, _ = asyncio.run(answers(way))
        assert bodies_of(written) == [told for _, told in sent]


def test_what_is_held_is_given_back() -> None:
    """Whether it was answered, refused, cut off, or left behind while it was decided."""
    body = b"a" * 50_000
    whole = b"POST / HTTP/1.1\r\nContent-Length: 50000\r\n\r\n" + body
    for pieces in (
        [whole],
        [whole + whole],
        [whole[:-1]],
        [whole, b"nonsense\r\n\r\n"],
        [whole * 3],
    ):
        written, connections = asyncio.run(answers(pieces))
        assert connections.held == 0, written[:200]
        assert not connections.unsent


@pytest.mark.parametrize("announced", [True, False])
def test_who_is_too_much_is_refused_and_counts_no_more(announced: bool) -> None:
    body = b"a" * 50_000
    if announced:
        data = b"POST / HTTP/1.1\r\nContent-Length: 50000\r\n\r\n" + body
    else:
        data = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (
            50_000,
            body,
        )
    written, connections = asyncio.run(answers([data], bodies_max_bytes=20_000))
    assert written.startswith(b"HTTP/1.1 503 ") and b'"overloaded"' in written
    assert connections.held == 0
