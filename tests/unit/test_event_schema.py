"""docs/event.v2.schema.json is the contract of an event: the code's fields and types, open for others.

What is told fits that of version 1, too, but for the number: who reads that one needs to change nothing else.
"""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import msgspec
import pytest
from event_kit import BASE, DISCARD, REPOSITORY, SCHEMA, SCHEMAS, TYPES, VALIDATORS, errors

from engine.events import TYPES as KNOWN_TYPES
from engine.events import VERSION, Event, EventLine, from_json
from engine.model import MOVEMENT_TYPES
from engine.scripts import NAMES, assemble
from engine.statuses import State

LINE = {"sku": "tea", "location": "X", "quantity": 2}
RESERVATION = {"reservation_id": "r1", "order_id": "o1"}
MOVEMENT = {"movement_id": "m1", "fingerprint": "0" * 24}


def line(on_hand: int, held: int, quarantined: int) -> dict[str, Any]:
    deltas = {"on_hand_delta": on_hand, "held_delta": held, "quarantined_delta": quarantined}
    return LINE | deltas


#: The smallest event of each type.
SMALLEST: dict[str, dict[str, Any]] = {
    "reserve": RESERVATION
    | {"deadline_ms": 1_800_000_000_100, "fingerprint": "0" * 24, "lines": [line(0, 2, 0)]},
    "extend": RESERVATION | {"deadline_ms": 1_800_000_000_100},
    "confirm": RESERVATION | {"status": "confirmed", "lines": [line(-2, -2, 0)]},
    "release": RESERVATION | {"status": "released", "lines": [line(0, -2, 0)]},
    "expire": RESERVATION | {"status": "expired", "lines": [line(0, -2, 0)]},
    "receive": MOVEMENT | {"lines": [line(2, 0, 0)]},
    "return": MOVEMENT | {"lines": [line(2, 0, 2)]},
    "damage": MOVEMENT | {"lines": [line(-2, 0, 0)]},
    "transfer": MOVEMENT | {"lines": [line(-2, 0, 0), line(2, 0, 0) | {"location": "Y"}]},
    "count": MOVEMENT | {"lines": [line(-5, 0, 0)]},
    "inspect_pass": MOVEMENT | {"lines": [line(0, 0, -2)]},
    "inspect_fail": MOVEMENT | {"lines": [line(-2, 0, -2)]},
    "repair": {"reason": "counter_drift found by reconciliation 1", "lines": [line(0, 0, 0)]},
    "discard": {"reason": DISCARD["reason"]},
    "adopt": {
        "reference": "adoption-1",
        "reason": "adopted by kim: the disk died",
        "hole": {"from": 5, "to": 6},
    },
}


def smallest(kind: str) -> dict[str, Any]:
    return copy.deepcopy(BASE | {"type": kind} | SMALLEST[kind])


def test_the_schema_is_one_and_says_what_each_field_is() -> None:
    VALIDATORS[VERSION].check_schema(SCHEMA)
    assert SCHEMA["$id"] == f"urn:holdfast:schema:event:v{VERSION}"
    assert SCHEMA["properties"]["version"]["const"] == VERSION
    for fields in (SCHEMA["properties"], SCHEMA["$defs"]["line"]["properties"]):
        for name, field in fields.items():
            assert field["description"].endswith("."), name
            assert not name.endswith("_ms") or "ms since 1970" in field["description"], name
            in_units = name == "quantity" or name.endswith("_delta")
            assert not in_units or "in units" in field["description"], name


def test_its_properties_are_the_fields_of_an_event_in_their_order() -> None:
    for schema, struct in ((SCHEMA, Event), (SCHEMA["$defs"]["line"], EventLine)):
        fields = msgspec.structs.fields(struct)
        assert list(schema["properties"]) == [field.name for field in fields]
        assert schema["required"] == [field.name for field in fields if field.required]
        assert schema.get("additionalProperties", True) is True
    assert SCHEMA["properties"]["status"]["enum"] == [str(state) for state in State]


def test_its_types_are_the_operations_of_the_scripts_that_tell_events() -> None:
    scripts = {name for name in NAMES if "return finish(" in assemble(name)}
    # `move` is told by the movement's type; a discard is written where an event is set aside; `adopt`
    # decides nothing.
    assert set(TYPES) == scripts - {"move"} | set(MOVEMENT_TYPES) | {"discard", "adopt"}
    assert list(SMALLEST) == TYPES
    assert set(TYPES) == KNOWN_TYPES


@pytest.mark.parametrize("kind", TYPES)
def test_the_smallest_event_fits_and_nothing_less_or_more(kind: str) -> None:
    event = smallest(kind)
    assert errors(event) == []
    assert json.loads(from_json(json.dumps(event).encode()).to_json()) == event
    for name in event:
        less = {key: value for key, value in event.items() if key != name}
        assert errors(less), f"a {kind} without {name} fits"
    for line in event.get("lines", []):
        for name in line:
            wrong = copy.deepcopy(event)
            was = wrong["lines"][0].pop(name)
            may_be_0 = kind in ("count", "repair") or (kind, name) == (
                "return",
                "quarantined_delta",
            )
            fits = name.endswith("_delta") and (was == 0 or may_be_0)
            assert bool(errors(wrong)) is not fits, f"a line of a {kind} without {name}"


FIELDS_OF_SOME = {
    "reservation_id": "r1",
    "order_id": "o1",
    "customer_id": "c1",
    "created_ms": 100,
    "deadline_ms": 100,
    "status": "held",
    "fingerprint": "0" * 24,
    "request_id": "q1",
    "movement_id": "m1",
    "reference": "note 7",
    "reason": "why",
    "hole": {"from": 5, "to": 6},
    "parts": [0, 1],
    "lines": [line(0, 0, 0)],
}
MAY_HAVE = {
    **dict.fromkeys(("reserve", "extend", "expire"), ("customer_id",)),
    **dict.fromkeys(("confirm", "release"), ("customer_id", "request_id")),
    **dict.fromkeys(MOVEMENT_TYPES, ("reference", "reason")),
    "adopt": ("lines",),
}


@pytest.mark.parametrize("kind", TYPES)
def test_a_field_of_another_type_does_not_fit(kind: str) -> None:
    event = smallest(kind)
    for name, value in FIELDS_OF_SOME.items():
        if name not in event:
            assert bool(errors(event | {name: value})) != (name in MAY_HAVE.get(kind, ())), name


WRONG: list[tuple[str, str, dict[str, Any]]] = [
    ("a type in capitals", "reserve", {"type": "Reserve"}),
    ("another version", "reserve", {"version": 1}),
    ("a later version", "reserve", {"version": 3}),
    ("null for absent", "reserve", {"customer_id": None}),
    ("a negative partition", "extend", {"partition": -1}),
    ("seq 0", "extend", {"seq": 0}),
    ("seq as text", "extend", {"seq": "7"}),
    ("a time with a fraction", "extend", {"at_ms": 1.5}),
    ("a deadline within a tenth of a second", "extend", {"deadline_ms": 1_800_000_000_150}),
    ("an id with a colon", "extend", {"reservation_id": "a:b"}),
    ("an id of 65", "extend", {"reservation_id": "a" * 65}),
    ("an empty order", "extend", {"order_id": ""}),
    ("an order of 129", "extend", {"order_id": "o" * 129}),
    ("a control character", "extend", {"order_id": "a\u0000b"}),
    ("another fingerprint", "receive", {"fingerprint": "0" * 23}),
    ("no lines in lines", "reserve", {"lines": []}),
    ("a quantity with a fraction", "reserve", {"lines": [line(0, 2, 0) | {"quantity": 1.5}]}),
    ("a quantity of 0", "reserve", {"lines": [line(0, 2, 0) | {"quantity": 0}]}),
    ("a quantity above all", "count", {"lines": [line(0, 0, 0) | {"quantity": 10**9 + 1}]}),
    ("a counter with a fraction", "reserve", {"lines": [line(0, 2, 0) | {"lent_delta": 0.5}]}),
    ("a reserve that gives back", "reserve", {"lines": [line(0, -2, 0)]}),
    ("a reserve that takes", "reserve", {"lines": [line(-2, 2, 0)]}),
    ("a confirm that ends as released", "confirm", {"status": "released"}),
    ("a release that ends as expired", "release", {"status": "expired"}),
    ("a part without a request_id", "confirm", {"status": "held"}),
    ("a confirm that leaves the units", "confirm", {"lines": [line(0, -2, 0)]}),
    ("an expire that takes them", "expire", {"lines": [line(-2, -2, 0)]}),
    ("a movement that holds", "receive", {"lines": [line(2, 1, 0)]}),
    ("a receive of two lines", "receive", {"lines": [line(2, 0, 0)] * 2}),
    ("a transfer of one line", "transfer", {"lines": [line(-2, 0, 0)]}),
    ("a transfer the wrong way", "transfer", {"lines": [line(2, 0, 0), line(-2, 0, 0)]}),
    ("a return that takes", "return", {"lines": [line(-2, 0, 0)]}),
    ("damage that brings", "damage", {"lines": [line(2, 0, 0)]}),
    ("a count in quarantine", "count", {"lines": [line(0, 0, 1)]}),
    ("an inspection that brings", "inspect_pass", {"lines": [line(0, 0, 2)]}),
    ("a repair of an order without a reservation", "repair", {"order_id": "o1"}),
    ("a repair that ends as confirmed", "repair", RESERVATION | {"status": "confirmed"}),
    ("a discard of nobody", "discard", {"reason": ""}),
    ("a hole without an end", "adopt", {"hole": {"from": 5}}),
    ("a hole from 0", "adopt", {"hole": {"from": 0, "to": 6}}),
    ("an adopted reservation without its times", "adopt", RESERVATION | {"lines": [line(0, 1, 0)]}),
]


@pytest.mark.parametrize(("kind", "change"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_a_wrong_event_does_not_fit(kind: str, change: dict[str, Any]) -> None:
    assert errors(smallest(kind) | change)


@pytest.mark.parametrize("kind", SCHEMAS[1]["properties"]["type"]["enum"])
def test_the_smallest_event_fits_version_1_too_but_for_the_number(kind: str) -> None:
    assert errors(smallest(kind) | {"version": 1}, version=1) == []
    assert errors(smallest(kind) | {"version": 1, "colour": "red"}, version=1)


def test_version_1_is_closed_and_knows_no_type_that_came_later() -> None:
    assert SCHEMAS[1]["properties"]["type"]["enum"] == [kind for kind in TYPES if kind != "adopt"]


def test_types_and_members_that_come_later_fit() -> None:
    later = BASE | {"type": "commit", "actor": {"name": "kim"}, "movement_id": "m1"}
    lines = [LINE | {"held_delta": -2, "committed_delta": 2, "batch": "b7"}]
    assert errors(later) == errors(later | {"lines": lines}) == []
    assert errors(smallest("reserve") | {"actor": "kim"}) == []


def test_what_belongs_to_a_part_or_to_a_repair_of_a_reservation_fits() -> None:
    part = {"status": "held", "request_id": "q1", "fingerprint": "0" * 24}
    for kind in ("confirm", "release"):
        assert errors(smallest(kind) | part) == []
    mended = RESERVATION | {"customer_id": "c1", "status": "held", "reason": "why"}
    assert errors(BASE | {"type": "repair"} | mended) == []
    adopted = {"created_ms": 1, "deadline_ms": 100, "fingerprint": "0" * 24, "parts": [1, 0]}
    told = RESERVATION | adopted | {"status": "held", "reference": "a-1", "lines": [line(0, 1, 0)]}
    assert errors(BASE | {"type": "adopt"} | told) == []
    assert errors(smallest("count") | {"lines": [line(-5, 0, 0) | {"quantity": 0}]}) == []


def test_the_examples_of_the_documentation_fit_and_there_is_one_of_each_type() -> None:
    text = (REPOSITORY / "docs" / "events.md").read_text()
    examples = [json.loads(found) for found in re.findall(r"^\{.*\}$", text, re.MULTILINE)]
    assert [example["type"] for example in examples] == TYPES
    for example in examples:
        assert errors(example) == []
        canonical = from_json(json.dumps(example).encode()).to_json().decode()
        assert canonical in text, "the example is not as it stands on Kafka"
