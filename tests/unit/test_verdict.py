"""What the end of a sale tells: counts, the spike, when it was sold out, the generator, and its gates."""

from __future__ import annotations

import logging
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.answers import Answers, percentile
from bench.locust_log import OncePerUser
from bench.oversell import Told, Trail
from bench.sizes import Sizes
from bench.verdict import Ended, missed, rows, sell_out_s, text, units_left_csv

HOT = "sale-1-hot"


def movement(ms: int, on_hand: int, held: int, kind: str = "reserve") -> dict[str, Any]:
    return {
        "seq": ms,
        "type": kind,
        "sku": HOT,
        "location": "MAIN",
        "on_hand_delta": on_hand,
        "held_delta": held,
        "quarantined_delta": 0,
        "reservation_id": None,
        "occurred_at": f"2026-11-27T10:00:{ms / 1000:06.3f}Z",
    }


def trail(*movements: dict[str, Any]) -> Trail:
    made = Trail(HOT)
    made.add(movements)
    return made


SOLD_OUT = trail(
    movement(500, 3, 0, "receive"),
    movement(1000, 0, 1),
    movement(1250, 0, 1),
    movement(1260, -1, -1, "confirm"),
    movement(3050, 0, 1),
    movement(9000, 0, -1, "expire"),
)


def answers(*requests: tuple[str, float, object]) -> Answers:
    """Of a spike with these requests."""
    made = Answers()
    made.begin_spike()
    for request in requests:
        made.request(*request, time.time())
    made.end_spike()
    return made


def ended(told: Answers, at: Trail = SOLD_OUT, came: int = 0, **sizes: Any) -> Ended:
    return Ended("sale-1", Sizes(**sizes), HOT, came, told, Told(), at, [], 0.5)


def shown(sale: Ended) -> dict[str, str]:
    return dict(rows(sale))


def test_requests_are_counted_as_what_they_were_answered() -> None:
    made = answers(
        ("reserve", 3.0, None),
        ("reserve (replayed)", 3.0, None),
        ("reserve (sold out)", 2.0, None),
        ("reserve (sold out)", 2.0, None),
        ("confirm (too late)", 2.0, None),
        ("stock of one (unknown sku)", 2.0, None),
        ("reserve (503 store_full)", 1.0, None),
        ("reserve (503 partition_closed)", 1.0, None),
        ("confirm", 9.0, "500 internal"),
    )
    made.failed("confirm: 500 internal", "first")
    made.failed("confirm: 500 internal", "second")
    for code in ("reserved", "insufficient_stock", "backlog_full", "already_confirmed", "extended"):
        made.operation(code)
    told = shown(ended(made))
    assert told["as meant"] == "2 requests"
    assert told["refused"] == ("5 (1 insufficient_stock, 2 sold out, 1 too late, 1 unknown sku)")
    assert told["503s"] == "3 (1 backlog_full, 1 partition_closed, 1 store_full)"
    assert told["errors"] == "1" and told[""] == "confirm: 500 internal: first"
    assert told["spike"].startswith("9 requests") and told["spike: reserve"].startswith(
        "6 requests"
    )


def test_percentiles_of_the_spike() -> None:
    times = Counter({float(ms): 1 for ms in range(1, 101)})
    assert [percentile(times, p) for p in (50, 95, 99, 100)] == [50, 95, 99, 100]
    assert percentile(Counter({7.0: 1}), 50) == 7 and percentile(Counter(), 99) == 0
    made = answers(*[("reserve", float(ms), None) for ms in range(1, 201)])
    assert shown(ended(made))["spike"] == "200 requests, p50 100 ms, p95 190 ms, p99 198 ms"


def test_a_request_of_the_spike_is_one_that_began_in_it() -> None:
    """Its answer may come long after: of the slowest it does."""
    made, before = Answers(), time.time()
    made.request("reserve", 5.0, None, time.time())
    assert shown(ended(made))["spike"] == "no request"
    made.begin_spike()
    within = time.time()
    made.request("reserve", 6.0, None, before)
    made.end_spike()
    made.request("reserve", 900.0, None, within)
    made.request("reserve", 7.0, None, time.time() + 1)
    assert shown(ended(made))["spike"].startswith("1 requests, p50 900 ms")


def test_the_moment_of_the_sell_out_is_that_of_the_ledger() -> None:
    assert sell_out_s(SOLD_OUT) == 2.05
    assert shown(ended(answers()))["sold out"].startswith("2.050 s after")
    left = trail(movement(500, 3, 0, "receive"), movement(1000, 0, 1))
    assert sell_out_s(left) is None and sell_out_s(trail()) is None
    assert shown(ended(answers(), left))["sold out"] == "never: 2 units of the hot sku were left"
    assert shown(ended(answers(), trail(), units=7))["sold out"].startswith("never: 7 units")


def test_units_left_over_time() -> None:
    """From the first reservation on, a line for each tenth of a second that changed something."""
    assert units_left_csv(SOLD_OUT).splitlines() == [
        "seconds,available,held,on_hand",
        "0.000,2,1,3",
        "0.260,1,1,2",
        "2.050,0,2,2",
        "8.000,1,1,2",
    ]
    assert units_left_csv(trail()) == "seconds,available,held,on_hand\n"


@pytest.mark.parametrize(
    ("cores", "machine", "told"),
    [
        ([0.5], [0.6], "50 % of a core in the spike: it was not the limit"),
        ([0.95], [0.6], "it was the limit, not the service; use --processes or --batch"),
        (
            [0.2, 0.95],
            [0.6],
            "95 % of a core in the spike (the busiest of 2 processes): it was the",
        ),
        ([0.5], [0.97], "all cores here 97 % busy: the machine was the limit"),
    ],
)
def test_whether_the_generator_was_the_limit(
    cores: list[float], machine: list[float], told: str
) -> None:
    made = Answers()
    made.cores, made.machine = cores, machine
    assert told in shown(ended(made))["generator"]
    assert "generator" not in shown(ended(Answers()))


def test_a_generator_that_works_is_seen_to() -> None:
    made = Answers()
    made.begin_spike()
    sum(range(3_000_000))
    made.end_spike()
    assert len(made.cores) == len(made.machine) == 1 and made.cores[0] > 0
    made.end_spike()
    assert len(made.cores) == 1


def test_gates() -> None:
    slow = answers(*[("reserve", 50.0, None)] * 99, ("reserve (503 store_full)", 900.0, None))
    assert missed(ended(slow)) == []
    assert missed(ended(slow, p99_ms=50, max_503=1)) == []
    assert missed(ended(slow, p99_ms=49, max_503=0)) == [
        "HOLDFAST_LOCUST_P99_MS=49: p99 of the spike was 50 ms",
        "HOLDFAST_LOCUST_MAX_503=0: 1 were answered 503",
    ]
    assert "GATE MISSED: HOLDFAST_LOCUST_P99_MS=49" in text(ended(slow, p99_ms=49))
    assert "no request in the spike" in missed(ended(Answers(), p99_ms=49))[0]


def test_what_several_processes_were_answered_is_added_up() -> None:
    parts = [answers(("reserve", 5.0, None), ("reserve (sold out)", 7.0, None)) for _ in range(3)]
    parts[0].failed("reserve: 500", "first")
    whole = Answers()
    for part in parts:
        whole.merge(msgspec.msgpack.decode(msgspec.msgpack.encode(part.message())))
    assert whole.outcomes == {"as meant": 3, "sold out": 3}
    assert whole.spike_of_all() == {5.0: 3, 7.0: 3}
    assert whole.errors == {"reserve: 500": "first"} and len(whole.cores) == 3


def test_buyers_are_told() -> None:
    told = shown(ended(answers(), came=20_000, buyers=20_000, units=500))
    assert told["buyers"] == "20,000 of 20,000 came for 500 units"
    assert "buyers" not in shown(ended(answers()))


@pytest.mark.parametrize(
    ("name", "value"),
    [("BUYERS", "0"), ("P99_MS", "0"), ("MAX_503", "-1"), ("UNITS", "5.5"), ("BUYER", "5")],
)
def test_settings_that_do_not_fit_are_named(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"HOLDFAST_LOCUST_{name}"):
        Sizes.from_environment({f"HOLDFAST_LOCUST_{name}": value})
    assert Sizes.from_environment({"HOLDFAST_LOCUST_MAX_503": "0"}).max_503 == 0


def test_lines_that_locust_has_for_each_user_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """Those that the source of this Locust has."""
    spec = find_spec("locust")
    assert spec is not None and spec.origin is not None
    source = (Path(spec.origin).parent / "runners.py").read_text()
    log = logging.getLogger("locust.runners")
    only = OncePerUser()
    log.addFilter(only)
    try:
        for message in OncePerUser.starts:
            assert f'"{message}' in source
            log.error(f"{message} %s", "x")
        log.error("another line")
    finally:
        log.removeFilter(only)
    assert caplog.messages == ["another line"]
