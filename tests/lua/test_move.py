"""lua/move.lua: what each type of movement changes, when it is refused, and the keys afterwards."""

import msgspec
import pytest
from kit import TOO_LARGE, WRONG_NUMBERS, Partition, move, reserve, statuses
from redis.exceptions import ResponseError

from engine import keys
from engine.settings import Settings


@pytest.fixture
def p(redis):
    """10 of A at X, 2 of them held, and 3 more quarantined: on_hand 13."""
    p = Partition(redis)
    p.receive("A", 10)
    p.one(move("return", "A", 3, movement_id="back"))
    p.hold("r1", ("A", 2))
    assert p.numbers("A") == (13, 2, 3, 0, 3)
    return p


#: type, quantity, fields → on_hand, quarantined afterwards, deltas of the event
CHANGES = [
    ("receive", 5, {}, 18, 3, (5, 0, 0)),
    ("return", 5, {}, 18, 8, (5, 0, 5)),
    ("return", 5, {"restock": True}, 18, 3, (5, 0, 0)),
    ("damage", 5, {}, 8, 3, (-5, 0, 0)),
    ("damage", 8, {}, 5, 3, (-8, 0, 0)),
    ("count", 20, {}, 20, 3, (7, 0, 0)),
    ("count", 5, {}, 5, 3, (-8, 0, 0)),
    ("count", 13, {}, 13, 3, (0, 0, 0)),
    ("count", 7, {"expected_on_hand": 13}, 7, 3, (-6, 0, 0)),
    ("inspect_pass", 3, {}, 13, 0, (0, 0, -3)),
    ("inspect_fail", 2, {}, 11, 1, (-2, 0, -2)),
]


@pytest.mark.parametrize(
    ("kind", "quantity", "fields", "on_hand", "quarantined", "deltas"), CHANGES
)
def test_given_a_record_when_moved_then_it_and_one_event_tell_it(
    p, kind, quantity, fields, on_hand, quarantined, deltas
):
    command = move(
        kind, "A", quantity, movement_id="m1", reference="ref", reason="why not", **fields
    )
    outcome = p.one(command)
    assert (outcome.status, outcome.replayed) == ("applied", False)
    applied, stock = outcome.applied, outcome.applied.stock
    assert (applied.at_ms, applied.epoch, applied.seq) == (p.now_ms, 1, 4)
    assert (stock.location, stock.on_hand, stock.held, stock.quarantined, stock.safety_stock) == (
        ("X", on_hand, 2, quarantined, 0)
    )
    assert p.numbers("A") == (on_hand, 2, quarantined, 0, 4)
    event = p.events()[-1]
    assert (event.type, event.seq, event.at_ms, event.movement_id) == (kind, 4, p.now_ms, "m1")
    assert (event.reference, event.reason, event.reservation_id) == ("ref", "why not", None)
    assert event.fingerprint
    assert [msgspec.structs.astuple(line) for line in event.lines] == [
        ("A", "X", quantity, *deltas)
    ]
    assert 0 < p.redis.pttl(keys.movement_request(0, "m1")) <= 24 * 3_600_000
    p.check()

    before = p.dump()
    again = p.one(command)
    assert (again.status, again.replayed, again.applied) == ("already_applied", True, applied)
    assert p.dump() == before


@pytest.mark.parametrize("known_there", [False, True])
def test_given_a_transfer_then_both_locations_and_one_event_tell_it(p, known_there):
    if known_there:
        p.receive("A", 4, "Y")
    seq = p.seq()
    outcome = p.one(move("transfer", "A", 6, "X", to_location="Y", movement_id="m1"))
    assert outcome.status == "applied"
    assert outcome.applied.stock.on_hand == 7
    assert p.numbers("A", "X") == (7, 2, 3, 0, seq + 1)
    assert p.numbers("A", "Y") == (6 + 4 * known_there, 0, 0, 0, seq + 1)
    assert p.redis.smembers(keys.locations(0, "A")) == {b"X", b"Y"}
    assert [msgspec.structs.astuple(line) for line in p.events()[-1].lines] == [
        ("A", "X", 6, -6, 0, 0),
        ("A", "Y", 6, 6, 0, 0),
    ]
    p.check()


@pytest.mark.parametrize(
    ("kind", "fields", "quarantined"),
    [
        ("receive", {}, 0),
        ("return", {}, 4),
        ("return", {"restock": True}, 0),
        ("count", {}, 0),
        ("count", {"expected_on_hand": 0}, 0),
    ],
)
@pytest.mark.parametrize("sku", ["new", "A"])
def test_given_no_record_then_receive_return_and_count_create_it(p, kind, fields, quarantined, sku):
    assert p.one(move(kind, sku, 4, "Y", **fields)).status == "applied"
    assert p.numbers(sku, "Y") == (4, 0, quarantined, 0, 4)
    assert p.stock(sku, "Y")["reorder_point"] == 0
    assert p.redis.sismember(keys.locations(0, sku), "Y")
    p.check()


def test_given_a_count_of_zero_then_a_record_without_units_makes_the_sku_known(p):
    assert p.one(move("count", "new", 0)).status == "applied"
    assert p.numbers("new") == (0, 0, 0, 0, 4)
    assert p.one(reserve("r2", "new")).status == "insufficient_stock"
    p.check()


@pytest.mark.parametrize("kind", ["damage", "transfer", "inspect_pass", "inspect_fail"])
def test_given_no_record_then_the_other_types_need_one(p, kind):
    before = p.dump()
    fields = {"to_location": "Y"} if kind == "transfer" else {}
    assert p.one(move(kind, "new", 1, **fields)).status == "unknown_sku"
    assert p.one(move(kind, "A", 1, "elsewhere", **fields)).status == "would_break_holds"
    assert p.dump() == before


@pytest.mark.parametrize(
    ("kind", "quantity", "fields"),
    [
        ("damage", 9, {}),
        ("transfer", 9, {"to_location": "Y"}),
        ("count", 4, {}),
        ("count", 0, {}),
        ("inspect_pass", 4, {}),
        ("inspect_fail", 4, {}),
        ("damage", 1_000_000_000, {}),
    ],
)
def test_given_fewer_than_held_and_quarantined_would_be_left_then_refused(
    p, kind, quantity, fields
):
    before = p.dump()
    outcome = p.one(move(kind, "A", quantity, **fields))
    assert outcome.status == "would_break_holds"
    assert "13" in outcome.detail
    assert p.dump() == before


def test_given_fewer_units_than_are_bound_then_a_count_that_adds_too_few_is_refused(p):
    """A record may be there already: found broken by a person, or taken off by a repair."""
    p.redis.hset(keys.stock(0, "A", "X"), "on_hand", 3)
    before = p.dump()
    for quantity in (3, 4):
        outcome = p.one(move("count", "A", quantity, movement_id="m1"))
        assert outcome.status == "would_break_holds"
    assert p.dump() == before
    assert p.one(move("receive", "A", 1)).status == "applied", "what arrives is always taken"
    assert p.one(move("count", "A", 5, movement_id="m1")).status == "applied"
    assert p.numbers("A")[:3] == (5, 2, 3)


def test_given_safety_stock_then_it_binds_sales_and_not_what_is_broken(p):
    p.redis.hset(keys.stock(0, "A", "X"), "safety_stock", 5)
    outcome = p.one(move("damage", "A", 8))
    assert (outcome.status, outcome.applied.stock.safety_stock) == ("applied", 5)
    assert p.stock("A")["safety_stock"] == 5


def test_given_another_on_hand_than_expected_then_stale_before_would_break_holds(p):
    before = p.dump()
    for quantity in (20, 0):
        outcome = p.one(move("count", "A", quantity, expected_on_hand=12))
        assert outcome.status == "stale_expectation"
        assert "13" in outcome.detail
    assert p.one(move("count", "A", 20, expected_on_hand=0)).status == "stale_expectation"
    assert p.one(move("count", "new", 1, expected_on_hand=1)).status == "stale_expectation"
    assert p.dump() == before


def test_given_a_refused_movement_then_its_id_stays_free(p):
    assert p.one(move("damage", "A", 9, movement_id="m1")).status == "would_break_holds"
    assert p.one(move("damage", "A", 8, movement_id="m1")).status == "applied"
    p.check()


@pytest.mark.parametrize(
    "other",
    [
        move("receive", "A", 2, movement_id="m1"),
        move("return", "A", 1, movement_id="m1"),
        move("receive", "B", 1, movement_id="m1"),
        move("receive", "A", 1, "Y", movement_id="m1"),
        move("receive", "A", 1, movement_id="m1", reference="r"),
        move("receive", "A", 1, movement_id="m1", reason="r"),
        move("receive", "A", 1, movement_id="m1", expected_on_hand=13),
        move("damage", "never-named", 1, movement_id="m1"),
    ],
)
def test_given_a_movement_id_with_other_content_then_request_mismatch(p, other):
    assert p.one(move("receive", "A", 1, movement_id="m1")).status == "applied"
    before = p.dump()
    assert p.one(other).status == "request_mismatch"
    assert p.dump() == before


def test_given_many_movements_in_one_call_then_each_sees_those_before_it(p):
    outcomes = p.send(
        move("receive", "B", 5, movement_id="m1"),
        move("receive", "B", 5, movement_id="m1"),
        move("damage", "B", 6, movement_id="m2"),
        move("transfer", "B", 4, to_location="Y", movement_id="m3"),
        move("damage", "B", 4, "Y", movement_id="m4"),
        move("count", "B", 9, movement_id="m5", expected_on_hand=1),
    )
    assert statuses(outcomes) == [
        "applied",
        "already_applied",
        "would_break_holds",
        "applied",
        "applied",
        "applied",
    ]
    assert (p.numbers("B", "X"), p.numbers("B", "Y")) == ((9, 0, 0, 0, 7), (0, 0, 0, 0, 6))
    entries = [entry_id.decode() for entry_id, _ in p.redis.xrange(keys.outbox(0))]
    assert entries[-1] == "1-7"
    p.check()


def test_given_the_largest_on_hand_then_more_is_refused_and_nothing_is_written(p):
    p.redis.hset(keys.stock(0, "A", "X"), "on_hand", 10**15 - 10**9 + 1)
    p.receive("A", 5, "Y")
    before = p.dump()
    refused = p.one(move("receive", "A", 10**9))
    assert refused.status == "invalid_request"
    assert p.dump() == before
    assert p.one(move("receive", "A", 10**9 - 1)).status == "applied"
    assert p.redis.hget(keys.stock(0, "A", "X"), "on_hand") == b"1000000000000000"
    full = p.dump()
    assert p.one(move("transfer", "A", 1, "Y", to_location="X")).status == "invalid_request"
    assert p.dump() == full


@pytest.mark.parametrize("wrong", [*list(WRONG_NUMBERS.values())[1:], TOO_LARGE])
@pytest.mark.parametrize("kind", ["receive", "count", "damage"])
def test_given_a_wrong_quantity_past_python_then_an_error_and_neighbours_wrote_nothing(
    p, kind, wrong
):
    before = p.dump()
    good, bad = move("receive", "A", 1), move(kind, "A", 900_000_000, movement_id="m1")
    with pytest.raises(ResponseError):
        p.forge(good, bad, instead=900_000_000, wrong=wrong)
    assert p.dump() == before


def test_given_zero_past_python_then_only_a_count_takes_it(p):
    zero = WRONG_NUMBERS["zero"]
    before = p.dump()
    with pytest.raises(ResponseError):
        p.forge(move("damage", "A", 900_000_000), instead=900_000_000, wrong=zero)
    assert p.dump() == before


def test_given_another_retention_then_a_movement_id_is_kept_that_long(redis):
    p = Partition(redis, Settings(retention_ms=60_000))
    p.one(move("receive", "A", 1, movement_id="m1"))
    assert 50_000 < redis.pttl(keys.movement_request(0, "m1")) <= 60_000
