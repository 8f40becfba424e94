"""What happens again and again is said at once, then once a minute with its count; a line stays one line."""

from __future__ import annotations

import logging

import pytest
from redis.exceptions import ReadOnlyError, ResponseError

from api.logs import OneLine
from engine.repeats import KEYS_MAX, Repeats

pytestmark = pytest.mark.anyio
log = logging.getLogger("holdfast.test")


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return found


async def test_a_kind_is_said_at_once_then_counted_and_forgotten_once_it_is_quiet(
    caplog: pytest.LogCaptureFixture,
) -> None:
    repeats = Repeats(log)
    for status in ("store_full", "partition_closed"):
        for _ in range(3):
            repeats.refused(status, 5)
    assert lines(caplog) == [
        "calls are refused with store_full (5 times)",
        "calls are refused with partition_closed (5 times)",
    ]
    repeats.minute_over()
    assert lines(caplog) == [
        "calls are refused with store_full (10 times in 60 s at most)",
        "calls are refused with partition_closed (10 times in 60 s at most)",
    ]
    repeats.refused("store_full", 1)
    assert lines(caplog) == []
    repeats.minute_over()
    assert lines(caplog) == ["calls are refused with store_full (1 times in 60 s at most)"]
    repeats.minute_over()
    repeats.minute_over()
    assert lines(caplog) == []
    repeats.refused("store_full", 1)
    assert lines(caplog) == ["calls are refused with store_full"]
    repeats.close()


async def test_the_minute_runs_by_itself_and_only_while_something_happens() -> None:
    repeats = Repeats(log)
    assert repeats._timer is None
    repeats.no_reply(TimeoutError())
    timer = repeats._timer
    assert timer is not None and not timer.cancelled()
    repeats.no_reply(TimeoutError())
    assert repeats._timer is timer
    repeats.minute_over()
    assert repeats._timer is not None
    repeats.minute_over()
    assert repeats._timer is None


async def test_errors_of_one_kind_are_one_whatever_the_script(
    caplog: pytest.LogCaptureFixture,
) -> None:
    repeats = Repeats(log)
    for script in ("reserve", "confirm"):
        repeats.failed(script, ResponseError("MISCONF Redis is configured to save RDB snapshots"))
        repeats.failed(script, ReadOnlyError("You can't write against a read only replica."))
    assert lines(caplog) == [
        "script reserve failed: MISCONF Redis is configured to save RDB snapshots",
        "script reserve failed: You can't write against a read only replica.",
    ]
    repeats.close()


async def test_damaged_keys_are_named_without_control_characters_and_not_all_of_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    repeats = Repeats(log)
    repeats.damaged([b"hf:{0}:stock:\x1b[31mtea\n:X", "é".encode()])
    (line,) = lines(caplog)
    assert line.endswith(": \\xc3\\xa9, hf:{0}:stock:\\x1b[31mtea\\n:X") and line.isprintable()
    repeats.close()
    repeats = Repeats(log)
    repeats.damaged([b"key-%03d" % number for number in range(500)])
    (line,) = lines(caplog)
    assert line.count("key-") == KEYS_MAX and line.endswith(" and 490 more")
    repeats.close()


async def test_a_message_is_one_line_in_utc_whatever_is_in_it() -> None:
    record = logging.makeLogRecord(
        {
            "name": "holdfast",
            "msg": "key %s",
            "args": ("a\n\x1b[2Jb\x9b",),
            "created": 0.0,
            "msecs": 7,
            "levelname": "INFO",
        }
    )
    formatter = OneLine("%(asctime)s %(name)s %(levelname)s %(message)s")
    assert formatter.format(record) == (
        "1970-01-01 00:00:00,007 holdfast INFO key a\\n\\x1b[2Jb\\x9b"
    )
