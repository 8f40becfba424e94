"""A body that takes too long to arrive is given up; others are left alone."""

import asyncio

import pytest

from api.asgi import Patience
from api.problems import Problem


async def _slowly(messages: list[bytes], pause_s: float, limit_s: float) -> bytes:
    """The body of a client that sends a message every ``pause_s``."""
    left = list(messages)

    async def receive() -> dict[str, object]:
        await asyncio.sleep(pause_s)
        part = left.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(left)}

    patience = Patience(limit_s)
    watching = asyncio.create_task(patience.watch())
    try:
        return await patience.body(receive, 1_000)
    finally:
        watching.cancel()


def test_a_body_in_time_is_read_whole() -> None:
    assert asyncio.run(_slowly([b"a", b"b"], 0.01, 30.0)) == b"ab"


def test_a_body_that_takes_too_long_is_given_up() -> None:
    with pytest.raises(Problem) as caught:
        asyncio.run(_slowly([b"a"] * 100, 0.1, 0.5))
    assert caught.value.code == "request_timeout"


def test_who_is_cancelled_by_somebody_else_is_not_told_of_a_timeout() -> None:
    async def run() -> None:
        task = asyncio.create_task(_slowly([b"a"] * 100, 0.1, 30.0))
        await asyncio.sleep(0.2)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(run())
