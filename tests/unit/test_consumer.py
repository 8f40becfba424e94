"""Events that come later, and a consumer written before them."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from consumer import Consumer
from event_kit import BASE

from engine.events import OpenEvent, from_json
from persister.messages import UnreadableMessage, read_message

LINE = {"sku": "tea", "location": "X", "quantity": 5}


def event(seq: int, kind: str, *lines: dict[str, Any], **more: Any) -> bytes:
    return json.dumps(BASE | {"seq": seq, "type": kind, "lines": list(lines)} | more).encode()


def test_types_members_and_counters_that_it_does_not_know_leave_it_right() -> None:
    consumer = Consumer()
    for message in (
        event(1, "receive", LINE | {"on_hand_delta": 5}),
        event(2, "reserve", LINE | {"held_delta": 5}, actor={"name": "kim"}),
        event(3, "commit", LINE | {"held_delta": -5, "committed_delta": 5}),
        event(3, "commit", LINE | {"held_delta": -5, "committed_delta": 5}),
        event(4, "dispatch", LINE | {"on_hand_delta": -5, "committed_delta": -5, "box": "b7"}),
        event(5, "adopt", LINE | {"on_hand_delta": 2}, hole={"from": 1, "to": 2}),
    ):
        consumer.take(message)
    assert consumer.place == (1, 5)
    assert consumer.stock["tea", "X"] == {"on_hand": 2, "held": 0, "committed": 0}


@pytest.mark.parametrize(
    ("message", "word"),
    [
        (event(1, "commit", LINE | {"held_delta": -5}), "does not know type 'commit'"),
        (event(1, "receive", LINE | {"lent_delta": 1}), "does not know: lent_delta"),
        (event(1, "receive", LINE, version=3), "version 3"),
        (event(1, "receive", LINE, version=1, actor="kim"), "unknown field `actor`"),
        (event(1, "receive", LINE, actor="k\x00"), "can't be stored"),
        (event(1, "receive", LINE, actor="\ud800"), "truncated"),
    ],
    ids=["a type", "a counter", "a version", "a member of version 1", "U+0000", "a surrogate"],
)
def test_the_ledger_alone_stops_at_what_it_does_not_know(message: bytes, word: str) -> None:
    with pytest.raises((UnreadableMessage, msgspec.MsgspecError), match=word):
        read_message(0, message)


def test_a_member_that_the_ledger_does_not_know_is_kept_as_it_came() -> None:
    message = event(
        1, "receive", LINE | {"on_hand_delta": 5, "box": 1.50}, actor={"name": "caf\u00e9"}
    )
    (found,) = read_message(0, message)
    assert isinstance(found, OpenEvent)
    assert found.lines[0].on_hand_delta == 5
    assert b"\n" not in found.to_json() and json.loads(found.to_json()) == json.loads(message)
    assert from_json(found.to_json()).is_same_as(found)
    known = from_json(event(1, "receive", LINE | {"on_hand_delta": 5}))
    other = from_json(message.replace(b"1.5", b"1.6"))
    assert other != known and isinstance(other, OpenEvent)
    for each in (known, other):
        assert not each.is_same_as(found) and not found.is_same_as(each)


def test_the_same_in_version_1_and_2_is_the_same() -> None:
    first = from_json(event(1, "receive", LINE | {"on_hand_delta": 5}))
    other = from_json(event(1, "receive", LINE | {"on_hand_delta": 6}, version=1))
    old = from_json(event(1, "receive", LINE | {"on_hand_delta": 5}, version=1))
    assert first.is_same_as(old) and old.is_same_as(first)
    assert not first.is_same_as(other)
