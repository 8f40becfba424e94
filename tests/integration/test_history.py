"""Random histories of commands, played to the real scripts and to a small model of the design.

Fifteen on each kind of Redis here; ``make lab`` plays 500 (HOLDFAST_LAB_HISTORIES).
"""

from __future__ import annotations

import os
from collections import Counter

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from kit import FIELDS, Partition, confirm, extend, line, move, release, reserve
from model import Model

from engine import keys
from engine.model import GetReservation, GetStock, Reserve
from engine.settings import Settings
from persister.rebuild import Rebuild

HISTORIES = int(os.environ.get("HOLDFAST_LAB_HISTORIES", "15"))
LIFETIME_MS = 2_000_000
RETENTION_MS = 30 * 86_400_000  # more than a history lasts
YEAR_2100_MS = 4_102_444_800_000  # only the tests move this clock, so a history can be repeated
SKUS, LOCATIONS = ["A", "B", "C"], ["X", "Y", "Z"]
skus = st.sampled_from(SKUS)
locations = st.sampled_from(LOCATIONS)
request_ids = st.sampled_from(["q1", "q2", "q3"])
ttls_ms = st.sampled_from([900_000, 1, 60_000, 2_100_000])
twice = st.sampled_from([1, 1, 2])
anywhere = st.one_of(st.none(), locations)
asked = st.lists(
    st.builds(
        lambda sku, n, at, candidates: line(sku, n, at, *([] if at else candidates)),
        skus,
        st.integers(1, 6),
        anywhere,
        st.lists(locations, max_size=3),
    ),
    min_size=1,
    max_size=4,
)
parts = st.lists(st.builds(line, skus, st.integers(1, 3), anywhere), min_size=1, max_size=3)
settles = st.sampled_from([confirm, release])
there_is_one = precondition(lambda self: self.model.reservations)
there_is_a_live_one = precondition(lambda self: self.live())


class History(RuleBasedStateMachine):
    """Each rule sends one call of one command or several and compares its answers."""

    redis = None

    def __init__(self):
        super().__init__()
        self.redis.flushall()
        self.p = Partition(
            self.redis, Settings(lifetime_max_ms=LIFETIME_MS, retention_ms=RETENTION_MS)
        )
        self.p.set_clock(YEAR_2100_MS)
        self.model = Model(LIFETIME_MS)
        self.moves = 0
        for sku, at in (("A", "X"), ("A", "Y"), ("A", "Z"), ("B", "X"), ("B", "Y"), ("C", "X")):
            self.send(move("receive", sku, 20, at, movement_id=f"in-{sku}-{at}"))

    def live(self):
        now = int(self.p.head()["last_ms"])
        return [id for id, r in self.model.reservations.items() if r.status(now) == "held"]

    def any_id(self, data):
        return data.draw(st.sampled_from([*self.model.reservations, "nope"]))

    def live_id(self, data):
        return data.draw(st.sampled_from(self.live()))

    def send(self, *commands):
        outcomes = self.p.send(*commands)
        now = self.p.now_ms
        decide = {
            "Reserve": lambda c: self.model.reserve(c, now),
            "Confirm": lambda c: self.model.settle(c, now),
            "Release": lambda c: self.model.settle(c, now),
            "Extend": lambda c: self.model.extend(c, now),
            "Movement": self.model.move,
        }
        expected = [decide[type(command).__name__](command) for command in commands]
        assert [str(outcome.status) for outcome in outcomes] == expected
        assert self.p.damaged == []
        for command, outcome in zip(commands, outcomes, strict=True):
            if outcome.status == "reserved":
                kept = self.model.reservations[command.reservation_id]
                told = {(x.sku, x.location): x.quantity for x in outcome.reservation.lines}
                assert told == kept.lines, "units were taken from other places"
                assert outcome.reservation.expires_ms == kept.deadline
        return outcomes

    @rule(lines=asked, ttl_ms=ttls_ms, times=twice)
    def reserve(self, lines, ttl_ms, times):
        each = f"r{len(self.model.reservations)}"
        self.send(*[reserve(each, *lines, ttl_ms=ttl_ms)] * times)

    @rule(count=st.integers(2, 6), lines=asked, ttl_ms=ttls_ms)
    def reserve_many_in_one_call(self, count, lines, ttl_ms):
        first = len(self.model.reservations)
        self.send(*[reserve(f"r{first + i}", *lines, ttl_ms=ttl_ms) for i in range(count)])

    @there_is_one
    @rule(data=st.data(), lines=asked)
    def reserve_other_lines_under_a_known_id(self, data, lines):
        self.send(reserve(self.any_id(data), *lines))

    @there_is_one
    @rule(data=st.data())
    def reserve_again(self, data):
        """The very same lines, in another order and with another ttl."""
        each = data.draw(st.sampled_from(list(self.model.reservations)))
        kept = self.model.reservations[each]
        order_id, customer_id, wanted = kept.asked
        lines = tuple(line(sku, n, at) for (sku, at), n in reversed(wanted.items()))
        command = Reserve(
            reservation_id=each,
            order_id=order_id,
            customer_id=customer_id,
            lines=lines,
            ttl_ms=777_000,
        )
        outcome = self.send(command)[0]
        assert outcome.status in ("already_reserved", "already_released", "reservation_expired")
        assert outcome.reservation.status == kept.status(self.p.now_ms)

    @there_is_one
    @rule(settle=settles, data=st.data(), times=twice)
    def settle_all(self, settle, data, times):
        self.send(*[settle(self.any_id(data))] * times)

    @there_is_a_live_one
    @rule(settle=settles, data=st.data(), times=twice)
    def settle_all_of_a_live_one(self, settle, data, times):
        self.send(*[settle(self.live_id(data))] * times)

    @there_is_one
    @rule(settle=settles, data=st.data(), lines=parts, request_id=request_ids, times=twice)
    def settle_part(self, settle, data, lines, request_id, times):
        self.send(*[settle(self.any_id(data), *lines, request_id=request_id)] * times)

    @there_is_a_live_one
    @rule(settle=settles, data=st.data(), request_id=request_ids, times=twice)
    def settle_a_part_that_fits(self, settle, data, request_id, times):
        each = self.live_id(data)
        left = [(at, n) for at, n in self.model.reservations[each].left.items() if n]
        (sku, location), n = data.draw(st.sampled_from(left))
        part = line(sku, data.draw(st.integers(1, n)), location)
        self.send(*[settle(each, part, request_id=request_id)] * times)

    @there_is_a_live_one
    @rule(data=st.data(), ttl_ms=ttls_ms)
    def extend(self, data, ttl_ms):
        self.send(extend(self.live_id(data), ttl_ms))

    @there_is_one
    @rule(data=st.data(), ttl_ms=ttls_ms)
    def extend_any(self, data, ttl_ms):
        self.send(extend(self.any_id(data), ttl_ms))

    @rule(
        kind=st.sampled_from(
            ["receive", "return", "damage", "count", "transfer", "inspect_pass", "inspect_fail"]
        ),
        sku=skus,
        at=locations,
        quantity=st.integers(1, 30),
        other=st.integers(1, 2),
        restock=st.booleans(),
        expected=st.sampled_from([None, None, None, 5, "true"]),
        again=st.sampled_from([False, False, False, True]),
        times=twice,
    )
    def move(self, kind, sku, at, quantity, other, restock, expected, again, times):
        self.moves += not again
        fields = {"movement_id": f"m{self.moves}"}
        if kind == "transfer":
            fields["to_location"] = LOCATIONS[(LOCATIONS.index(at) + other) % 3]
        elif kind == "return":
            fields["restock"] = restock
        elif kind == "count" and expected is not None:
            stock = self.model.stocks.get((sku, at))
            on_hand = stock.on_hand if stock else 0
            fields["expected_on_hand"] = on_hand if expected == "true" else expected
        self.send(*[move(kind, sku, quantity, at, **fields)] * times)

    @rule()
    def sweep(self):
        _, expired, more = self.p.expire()
        assert (expired, more) == (self.model.expire(self.p.now_ms), 0)

    @rule(ms=st.sampled_from([1, 100, 60_000]))
    def time_passes(self, ms):
        self.p.set_clock(int(self.p.head()["last_ms"]) + ms)

    @there_is_a_live_one
    @rule(data=st.data())
    def time_passes_to_a_deadline(self, data):
        self.p.set_clock(self.model.reservations[self.live_id(data)].deadline)

    @invariant()
    def stock_is_the_models(self):
        for (sku, at), stock in self.model.stocks.items():
            found = self.p.stock(sku, at)
            expected = (stock.on_hand, stock.held, stock.quarantined, stock.safety_stock, stock.seq)
            assert tuple(found[name] for name in (*FIELDS, "seq")) == expected, (sku, at)
            assert stock.available >= 0 or stock.quarantined >= 0

    @invariant()
    def reads_tell_the_same(self):
        for sku in SKUS:
            known = {at: s for (name, at), s in self.model.stocks.items() if name == sku}
            outcome = self.p.one(GetStock(sku))
            assert {s.location: s.available for s in outcome.stock} == {
                at: stock.available for at, stock in known.items()
            }
        for each, kept in self.model.reservations.items():
            read = self.p.one(GetReservation(each)).reservation
            assert read.status == kept.status(self.p.now_ms)
            left = {(x.sku, x.location): x.quantity - x.confirmed - x.released for x in read.lines}
            if read.status == "held":
                assert left == kept.left

    @invariant()
    def no_unit_is_lost_or_made(self):
        """on_hand + confirmed = what movements brought; every held unit is in a reservation."""
        on_hand = sum(stock.on_hand for stock in self.model.stocks.values())
        assert on_hand + self.model.sums["confirmed"] == self.model.sums["moved"]
        held: Counter[tuple[str, str]] = Counter()
        for kept in self.model.reservations.values():
            if kept.state == "held":
                held.update(kept.left)
        assert +held == Counter({at: s.held for at, s in self.model.stocks.items() if s.held})
        for stock in self.model.stocks.values():
            assert stock.held + stock.quarantined <= stock.on_hand

    @invariant()
    def events_are_without_gaps_and_add_up(self):
        assert self.p.seq() == self.model.seq
        self.p.check()

    def teardown(self):
        """The events, played once more into an empty Redis, give the very same bytes."""
        events, kept, clock = self.p.events(), self.p.dump(), self.p.head()["last_ms"]
        self.redis.flushall()
        head = {"epoch": 1, "seq": 0, "run_id": "", "last_ms": clock}
        self.redis.hset(keys.head(0), mapping=head)
        replay = Rebuild(self.redis, self.p.scripts, 0, self.p.settings, with_due=True)
        assert replay.replay(events, lambda count: None) == self.p.seq()
        assert replay.damaged == set()
        again = self.p.dump()
        assert self.told(again) == self.told(kept)
        self.p.check_held()

    @staticmethod
    def told(dump):
        """All but what is not to be the same: head, outbox, and ids left behind on deadline lists."""
        others = (keys.head(0), keys.outbox(0), keys.deadlines(0), keys.due(0, 0)[:-1])
        return {name: value for name, value in dump.items() if not name.startswith(others)}


def test_given_random_histories_then_redis_and_the_model_agree(redis):
    machine = type("History", (History,), {"redis": redis})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=HISTORIES,
            stateful_step_count=50,
            deadline=None,
            print_blob=True,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
        ),
    )
