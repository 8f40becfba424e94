"""Outbox entries: events and id must fit together, or a gap would be read as none."""

from __future__ import annotations

import msgspec
import pytest

from engine.events import Moved, read_entry


def entry(*seqs: int) -> bytes:
    moved = [
        Moved("receive", seq, 1, f"m{seq}", "f", "", "", ["A", "X", 1, 1, 0, 0]) for seq in seqs
    ]
    return msgspec.msgpack.encode(moved)


@pytest.mark.parametrize("seqs", [(7,), (6, 7), (5, 6, 7)])
def test_given_consecutive_events_that_end_in_the_id_then_they_are_read(
    seqs: tuple[int, ...],
) -> None:
    events = read_entry(0, "3-7", entry(*seqs))
    assert [(event.epoch, event.seq) for event in events] == [(3, seq) for seq in seqs]


@pytest.mark.parametrize(
    "seqs", [(), (6,), (8,), (5, 7), (7, 7), (7, 6), (4, 6, 7), (5, 5, 7), (6, 5, 7), (7, 8)]
)
def test_given_events_that_do_not_fit_the_id_then_it_says_which(seqs: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="end in 7") as refused:
        read_entry(0, "3-7", entry(*seqs))
    assert str(list(seqs)) in str(refused.value)
