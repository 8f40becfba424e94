"""The two places that build names of keys agree: engine/keys.py and lua/lib/keys.lua."""

import re

import pytest
from redis import Redis

from engine import keys
from engine.scripts import LUA

KEYS_LUA = (LUA / "lib" / "keys.lua").read_text(encoding="utf-8")
MAX_ID = "Z" + "a.~_-9" * 10 + "end"

NAMES = [
    ("stock_key", ("a-sku", "a.shop"), keys.stock),
    ("stock_key", (MAX_ID, MAX_ID), keys.stock),
    ("locations_key", ("a-sku",), keys.locations),
    ("available_key", ("a-sku",), keys.available),
    ("reservation_key", ("r_1~x",), keys.reservation),
    ("due_key", (1_700_000_000_100,), keys.due),
    ("due_key", (9_007_199_254_740_900,), keys.due),
    ("movement_request_key", ("m1",), keys.movement_request),
    ("part_request_key", ("r1", "q1"), keys.part_request),
]


@pytest.mark.parametrize("partition", [0, 7, 1023])
@pytest.mark.parametrize(("function", "values", "in_python"), NAMES)
def test_given_the_same_parts_then_lua_and_python_build_the_same_name(
    redis: Redis, partition, function, values, in_python
):
    arguments = ", ".join(str(v) if isinstance(v, int) else f"'{v}'" for v in values)
    body = f"{KEYS_LUA}\nreturn {function}({arguments})"
    name = redis.eval(body, 1, keys.head(partition)).decode()
    assert name == in_python(partition, *values)
    assert f"{{{partition}}}" in name, "all keys of a partition share one hash tag"


def test_every_function_of_keys_lua_that_names_a_key_is_compared():
    named = set(re.findall(r"local function (\w+_key)\(", KEYS_LUA))
    assert named == {function for function, _, _ in NAMES}


def test_given_names_of_different_records_then_no_two_meet():
    names = [
        keys.head(0),
        keys.deadlines(0),
        keys.outbox(0),
        keys.stock(0, "a", "b"),
        keys.locations(0, "a"),
        keys.available(0, "a"),
        keys.reservation(0, "a"),
        keys.due(0, 1),
        keys.movement_request(0, "a"),
        keys.part_request(0, "a", "b"),
        keys.stock(0, "a.b", "c"),
        keys.stock(0, "a", "b.c"),
        keys.part_request(0, "movement", "a"),
    ]
    assert len(set(names)) == len(names)


def test_the_names_are_those_of_the_design():
    assert keys.head(3) == "hf:{3}:head"
    assert keys.deadlines(3) == "hf:{3}:deadlines"
    assert keys.outbox(3) == "hf:{3}:outbox"
    assert keys.stock(3, "s", "l") == "hf:{3}:stock:s:l"
    assert keys.locations(3, "s") == "hf:{3}:locations:s"
    assert keys.reservation(3, "r") == "hf:{3}:reservation:r"
    assert keys.due(3, 1500) == "hf:{3}:due:1500"
    assert keys.movement_request(3, "m").startswith("hf:{3}:request:")
    assert keys.part_request(3, "r", "q").startswith("hf:{3}:request:")
    assert keys.stock_name(keys.stock(3, "s", "l")) == ("s", "l")
