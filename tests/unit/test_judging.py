"""What is judged by what was read: is a partition open, can a reservation be compared?"""

from __future__ import annotations

import msgspec
import pytest

from engine.partitions import Head, Server
from engine.reservations import check_of, seal_of
from persister.live import Live, LiveLine
from persister.reconcile_reservations import _stands

SERVER = Server("run", "line", is_own_line=False)
OPEN = {"epoch": "3", "seq": "7", "run_id": "run", "trimmer": "persister", "replid": "line"}


@pytest.mark.parametrize(
    ("changes", "is_open"),
    [
        ({}, True),
        ({"replid": ""}, True),  # opened by a program that knew of none
        ({"trimmer": ""}, True),
        ({"run_id": "other"}, False),
        ({"run_id": ""}, False),
        ({"replid": "other"}, False),
        ({"epoch": ""}, False),
        ({"seq": ""}, False),
        ({"epoch": "x"}, False),
        ({"seq": "1.5"}, False),
        ({"seq": "-1"}, False),
    ],
)
def test_a_partition_is_open_on_the_very_server_and_line_of_replication(
    changes: dict[str, str], is_open: bool
) -> None:
    assert Head(**(OPEN | changes)).is_open_on(SERVER) is is_open
    own = Server(
        "run", "line", is_own_line=True
    )  # its id changes with its replicas, its data don't
    assert Head(**(OPEN | changes)).is_open_on(own) is (is_open or "replid" in changes)


def record(seq: int) -> bytes:
    numbers = (0, 100, 900, seq)
    body = msgspec.msgpack.encode(("order", "", "", ["A", "X", 2]))
    kept = (*numbers, None, check_of(*numbers, None), seal_of(body))
    return b"".join(msgspec.msgpack.encode(value) for value in kept) + body


def live(seq: int) -> Live:
    lines = [LiveLine("A", "X", 2)]
    return Live(
        reservation_id="r", order_id="order", customer_id=None, fingerprint="f", created_ms=100,
        deadline_ms=900, seq=seq, lines=lines,
    )  # fmt: skip


TYPE_ERROR = ValueError("of another type")


@pytest.mark.parametrize(
    ("value", "again", "held", "reached", "stands"),
    [
        (record(5), record(5), None, 5, True),
        (record(5), record(5), live(9), 9, True),
        (record(5), record(5), None, 4, False),  # the ledger has not come so far
        (record(5), record(6), None, 9, False),  # it changed between the two looks
        (record(5), None, None, 9, False),
        (None, None, live(10), 20, True),
        (None, None, live(4), 20, True),
        (None, None, live(4), 19, False),  # the ledger has not come as far as Redis was
        (None, None, live(11), 20, False),  # it may have begun and ended, and been forgotten, since
        (None, record(5), live(4), 20, False),
        (b"junk", b"junk", None, 20, True),
        (b"junk", b"rubbish", None, 20, False),
        (b"junk", b"junk", live(11), 20, False),
        (TYPE_ERROR, ValueError("again"), live(4), 20, True),
        (TYPE_ERROR, None, live(4), 20, False),
    ],
)
def test_a_reservation_is_judged_only_by_what_can_not_be_on_its_way(
    value: object, again: object, held: Live | None, reached: int, stands: bool
) -> None:
    """Head stood at seq 10 before Redis was read the first time, and at 20 after that."""
    assert _stands(value, again, held, 10, 20, reached) is stands  # type: ignore[arg-type]
