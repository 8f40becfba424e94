"""Messages of the topic: an event each; or an outbox entry that the relay could not read, handed on.

A relay has no PostgreSQL to keep such an entry in, so it sends the bytes in a wrapper that is no event
(it has no ``version``, no ``type``): whoever reads events stops at it, and the persister puts it into
the quarantine like everything else it can't read. A program that can read the entry by then does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from engine.events import ADOPT, READABLE_VERSIONS, TYPES, Event, OpenEvent, from_json, read_entry
from engine.model import ID_PATTERN
from persister.outbox import UNREADABLE, Entry

#: What any topic takes, also one that somebody else has made: brokers' own limit is a million bytes.
WRAPPED_BYTES_MAX = 950_000
_WHOLE_MAX = 2**53
_TIME_MS_MAX = 253_402_300_800_000  # the year 10000
_QUANTITY_MAX = 1_000_000_000
_NOT_STORABLE = re.compile(r"[\x00-\x1f\ud800-\udfff]")
_NOT_STORABLE_ESCAPED = re.compile(rb"\\u(?:00[01]|[dD][89a-fA-F])")
_ID = re.compile(ID_PATTERN)


class Wrapped(msgspec.Struct, frozen=True, kw_only=True, tag_field="wrapped", tag="outbox_entry_1"):
    """An unreadable outbox entry: its partition, its id (epoch-seq of its last event), its bytes."""

    partition: int
    epoch: int
    seq: int
    why: str
    entry: bytes


class UnreadableMessage(ValueError):
    """No event of this version and partition. ``epoch`` and ``last_seq`` of the last event it stands
    for where that is known, else 0."""

    def __init__(self, why: str, epoch: int = 0, last_seq: int = 0) -> None:
        super().__init__(why)
        self.epoch = epoch
        self.last_seq = last_seq


_encode = msgspec.json.Encoder().encode
_decode_wrapped = msgspec.json.Decoder(Wrapped).decode


def wrap(partition: int, entry: Entry) -> bytes:
    """The message that hands on an outbox entry that can't be read."""
    return _encode(
        Wrapped(
            partition=partition,
            epoch=entry.epoch,
            seq=entry.seq,
            why=entry.error,
            entry=entry.raw,
        )
    )


def read_message(partition: int, body: bytes) -> list[Event]:
    """The event of a message, or the events of a handed-on entry. UnreadableMessage."""
    try:
        event = from_json(body)
    except UNREADABLE as error:
        return _read_wrapped(partition, body, str(error))
    if event.version not in READABLE_VERSIONS or event.partition != partition:
        raise UnreadableMessage(f"version {event.version}, partition {event.partition}")
    why = _why_not_storable(event, body)
    if why:
        raise UnreadableMessage(why)
    return [event]


def read_storable(partition: int, entry_id: str, data: bytes) -> list[Event]:
    """``read_entry`` of what the ledger can keep; ValueError, too, where it can't."""
    events = read_entry(partition, entry_id, data)
    check_storable(events)
    return events


def check_storable(events: Sequence[Event]) -> None:
    """ValueError where the ledger can't keep one of them: damaged bytes may still be a well-formed entry."""
    for event in events:
        why = _why_not_storable(event, event.to_json())
        if why:
            raise ValueError(f"event {event.epoch}-{event.seq}: {why}")


def _read_wrapped(partition: int, body: bytes, why: str) -> list[Event]:
    try:
        wrapped = _decode_wrapped(body)
    except UNREADABLE:
        raise UnreadableMessage(why) from None
    if wrapped.partition != partition or not (
        0 < wrapped.epoch < _WHOLE_MAX and 0 < wrapped.seq < _WHOLE_MAX
    ):
        raise UnreadableMessage(
            f"an outbox entry {wrapped.epoch}-{wrapped.seq} of partition {wrapped.partition}"
        )
    name = f"{wrapped.epoch}-{wrapped.seq}"
    try:
        return read_storable(partition, name, wrapped.entry)
    except UNREADABLE as error:
        raise UnreadableMessage(
            f"outbox entry {name}, handed on by the relay: {error}", wrapped.epoch, wrapped.seq
        ) from None


def _why_not_storable(event: Event, body: bytes) -> str:
    # Canonical JSON has a backslash only where a text has one, a quote or a control character.
    if b"\\" not in body:
        return _misfit(event)
    if isinstance(event, OpenEvent) and _NOT_STORABLE_ESCAPED.search(body):
        return "a member that this program does not know holds a character that can't be stored"
    return _misfit(event) or _misfit_texts(event)


def _misfit(event: Event) -> str:
    """What the ledger could not keep: a type whose meaning it doesn't know, numbers out of all range."""
    if event.type not in TYPES:
        return f"this program does not know type {event.type[:40]!r}"
    if not (0 < event.epoch < _WHOLE_MAX and 0 < event.seq < _WHOLE_MAX):
        return f"epoch {event.epoch}, seq {event.seq}"
    if not 0 <= event.at_ms < _TIME_MS_MAX:
        return f"at_ms {event.at_ms}"
    if event.deadline_ms is not None and not 0 <= event.deadline_ms < _WHOLE_MAX:
        return f"deadline_ms {event.deadline_ms}"
    if event.type == ADOPT and not _is_adopt(event):
        return f"parts {event.parts}, created_ms {event.created_ms}"
    for line in event.lines:
        if not (
            0 <= line.quantity <= _QUANTITY_MAX
            and -_WHOLE_MAX < line.on_hand_delta < _WHOLE_MAX
            and -_WHOLE_MAX < line.held_delta < _WHOLE_MAX
            and -_WHOLE_MAX < line.quarantined_delta < _WHOLE_MAX
        ):
            return f"a line of {line.sku} has numbers out of range: {line}"
    return ""


def _is_adopt(event: Event) -> bool:
    """Are its parts a pair a line, its times what a row can hold?"""
    parts = event.parts or ()
    return (
        len(parts) in (0, 2 * len(event.lines))
        and all(0 <= part <= _QUANTITY_MAX for part in parts)
        and 0 <= (event.created_ms or 0) < _WHOLE_MAX
    )


def _misfit_texts(event: Event) -> str:
    """Characters that PostgreSQL does not store, or that a row of COPY can't hold."""
    for name in event.__struct_fields__:
        value = getattr(event, name)
        if isinstance(value, str) and _NOT_STORABLE.search(value):
            return f"{name} {value!r} holds a control character"
    for line in event.lines:
        if not (_ID.match(line.sku) and _ID.match(line.location)):
            return f"sku {line.sku!r} at {line.location!r}"
    return ""
