"""What the quick way into a batch accepts is what the strict types accept, and means the same."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api import plain, schema

_strict = msgspec.json.Decoder(schema.BatchIn).decode

ODD = [
    "",
    "a b",
    "a\nb",
    "\n",
    "-a",
    "x" * 65,
    "x" * 64,
    "a\u0000",
    "ä",
    "a\n",
    "\nb",
    "a\x7f",
    "o" * 129,
]
names = st.sampled_from(["r1", "A-b.c~d_e", *ODD])
lines = st.fixed_dictionaries(
    {"sku": names, "quantity": st.sampled_from([1, 0, 1_000_000, 1_000_001, 1.5, "1", 700_000])},
    optional={"location": st.one_of(st.none(), names), "note": st.just(1)},
)
operations = st.one_of(
    st.fixed_dictionaries(
        {"op": st.just("reserve"), "order_id": names, "lines": st.lists(lines, max_size=3)},
        optional={
            "reservation_id": st.one_of(st.none(), names),
            "customer_id": st.one_of(st.none(), names),
            "ttl_seconds": st.sampled_from([1, 0, 86_400, 86_401, None]),
        },
    ),
    st.fixed_dictionaries(
        {"op": st.sampled_from(["confirm", "release", "extend", "movement", "none"])},
        optional={
            "reservation_id": names,
            "lines": st.lists(lines, max_size=1),
            "request_id": names,
        },
    ),
)


@settings(max_examples=1_000, deadline=None)
@given(st.lists(operations, max_size=4))
def test_what_it_accepts_means_what_the_strict_types_say(batch: list[dict[str, Any]]) -> None:
    body = json.dumps({"operations": batch}).encode()
    commands = plain.read_commands(body)
    try:
        strict = [op.command() for op in _strict(body).operations]
    except ValueError:
        assert commands is None
        return
    named = all(op.get("reservation_id") for op in batch)  # else each way makes up an id of its own
    assert commands is None or len(commands) == len(strict)
    assert commands is None or not named or commands == strict


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("field", ["reservation_id", "order_id", "customer_id", "sku", "location"])
def test_a_misfit_among_good_ones_is_left_to_the_strict_types(odd: str, field: str) -> None:
    good = {"op": "reserve", "order_id": "o", "customer_id": "c", "reservation_id": "r"}
    line = {"sku": "A", "quantity": 1, "location": "X"}
    bad = good | ({field: odd} if field in good else {})
    bad_line = line | ({field: odd} if field in line else {})
    batch = [good | {"lines": [line]}, bad | {"lines": [bad_line]}, good | {"lines": [line]}]
    body = json.dumps({"operations": batch}).encode()
    try:
        strict = [op.command() for op in _strict(body).operations]
    except ValueError:
        assert plain.read_commands(body) is None
    else:
        assert plain.read_commands(body) == strict


def test_the_usual_batch_is_accepted() -> None:
    """Otherwise nothing here would be tested."""
    batch = [
        {
            "op": "reserve",
            "reservation_id": "r",
            "order_id": "ö 1",
            "lines": [{"sku": "A", "quantity": 1}],
        },
        {"op": "confirm", "reservation_id": "r"},
        {"op": "release", "reservation_id": "r"},
    ]
    commands = plain.read_commands(json.dumps({"operations": batch}).encode())
    assert commands is not None and len(commands) == 3
