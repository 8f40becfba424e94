"""The peers of the benchmark run, their books are right, and wrong books are found. No test here looks at
a time."""

from __future__ import annotations

import os
import signal

import pytest
from redis import Redis

import bench.peers
from api.servers import RedisServer
from bench import memory
from bench.figures import Run, figure
from bench.peers import at_best, comparison, tigerbeetle, weaknesses
from bench.peers.at_best import Side, Way
from bench.peers.buyers import UNITS, Books, Buyer, PeerError, Shop, audit, measure, sell
from bench.peers.holdfast import Holdfast
from bench.peers.postgres import connect as connect_postgres
from bench.peers.redis_decr import DecrBuyer, RedisDecr
from bench.peers.redis_lock import RedisLock
from bench.peers.redis_shop import connect, hold_key
from engine import keys

SHOPS = sorted(comparison.SHOPS)


class Unchecked(RedisDecr):
    """Sells whatever the counter says."""

    def buyer(self) -> Buyer:
        return _UncheckedBuyer(self.url)


class _UncheckedBuyer(DecrBuyer):
    def hold(self, order_id: str) -> bool:
        self.take(1)
        self.write(order_id)
        return True


class Mortal(RedisDecr):
    """Its buyers' processes are killed when they connect."""

    def buyer(self) -> Buyer:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("still alive")


@pytest.fixture
def shop(request: pytest.FixtureRequest, one_redis: RedisServer) -> Shop:
    """The shop that is named, on an empty server."""
    name: str = request.param
    if name.startswith("postgres"):
        return comparison.SHOPS[name](request.getfixturevalue("postgres_url"))
    return comparison.SHOPS[name](one_redis.url)


every_shop = pytest.mark.parametrize("shop", SHOPS, indirect=True)


@every_shop
def test_a_run_sells_and_its_books_are_right(shop: Shop) -> None:
    run = measure(shop, connections=3, seconds=0.5)
    assert run.findings == []
    assert run.value > 0
    assert 0 < UNITS - shop.books().left == shop.books().holds


@every_shop
def test_more_buyers_than_units_get_exactly_the_units(shop: Shop) -> None:
    shop.reset(30)
    sold = sell(shop, connections=8, seconds=60)
    assert (sold.units, sold.refused) == (30, 8)
    assert shop.books() == Books(0, 30)
    assert audit(30, sold.units, shop.books()) == []


def test_holdfast_in_batches_sells_exactly_the_units(one_redis: RedisServer) -> None:
    shop = Holdfast(one_redis.url, batch=40)
    shop.reset(100)
    sold = sell(shop, connections=1, seconds=60)
    assert (sold.units, sold.refused) == (100, 20)
    assert audit(100, sold.units, shop.books()) == []


def test_a_shop_that_oversells_is_found_and_has_no_figure(one_redis: RedisServer) -> None:
    run = measure(Unchecked(one_redis.url), connections=2, seconds=0.3, units=5)
    assert run.findings is not None and len(run.findings) == 2
    assert "below 0" in run.findings[0] and "too many" in run.findings[1]
    made = figure("unchecked", "reservations/s", [run])
    assert (made.audit, made.value) == (False, None)


def test_a_unit_without_a_hold_and_a_hold_without_a_unit_are_found(
    one_redis: RedisServer, postgres_url: str
) -> None:
    decr = RedisDecr(one_redis.url)
    decr.reset(5)
    with connect(one_redis.url) as redis:
        redis.set(hold_key("nobody"), "")
    assert audit(5, 0, decr.books()) == ["1 holds are written, but 0 units were sold"]
    for_update = comparison.SHOPS["postgres_for_update"](postgres_url)
    for_update.reset(5)
    with connect_postgres(postgres_url) as connection:
        connection.execute("UPDATE stock SET units = units - 1")
    assert audit(5, 0, for_update.books()) == ["the stock went down by 1, but 0 units were sold"]


def test_holdfasts_books_are_what_redis_has(one_redis: RedisServer) -> None:
    shop = Holdfast(one_redis.url)
    shop.reset(5)
    assert shop.books() == Books(5, 0)
    sell(shop, connections=1, seconds=60)
    with connect(one_redis.url) as redis:
        redis.delete(next(redis.scan_iter(keys.reservation(0, "*"))))
    assert audit(5, 5, shop.books()) == ["4 holds are written, but 5 units were sold"]


def test_buyers_that_can_not_go_on_are_told_of(one_redis: RedisServer) -> None:
    with pytest.raises(PeerError, match="ended before"):
        sell(Mortal(one_redis.url), connections=2, seconds=60)
    with pytest.raises(PeerError, match="RedisDecr: ConnectionError"):
        sell(RedisDecr("redis://127.0.0.1:1/0"), connections=2, seconds=60)


def test_decr_and_a_crash_lose_a_unit(one_redis: RedisServer) -> None:
    weakness = weaknesses.lost_by_crash(one_redis.url, units=3)
    assert (weakness.note, weakness.count) == ("units_lost_by_a_crash", 1)
    assert RedisDecr(one_redis.url).books() == Books(left=0, holds=2)


def test_decr_refuses_a_buyer_although_a_unit_comes_back(one_redis: RedisServer) -> None:
    weakness = weaknesses.refused_wrongly(one_redis.url)
    assert (weakness.note, weakness.count) == ("buyers_refused_wrongly", 1)
    assert RedisDecr(one_redis.url).books() == Books(left=1, holds=0)


def test_a_lock_that_runs_out_sells_a_unit_twice(one_redis: RedisServer) -> None:
    weakness = weaknesses.oversold_by_expired_lock(one_redis.url)
    assert (weakness.note, weakness.count) == ("units_oversold_by_an_expired_lock", 1)
    with connect(one_redis.url) as redis:
        assert redis.exists(hold_key("order-first"), hold_key("order-second")) == 2
    books = RedisLock(one_redis.url).books()
    assert audit(1, 2, books) == [
        "2 of 1 units were sold: 1 too many",
        "the stock went down by 1, but 2 units were sold",
    ]


def test_all_figures_of_the_peers() -> None:
    """Smoke: every shop, every weakness, a clean audit."""
    found = {made.name: made for made in bench.peers.figures(0.3, 1, connections=(2,))}
    names = {name for peer in comparison.PEERS for name in (peer, f"{peer}_best")}
    assert set(found) == names | {"tigerbeetle"}
    for name in names:
        made = found[name]
        assert made.audit is True and made.ratio and made.findings == [], made
    assert found["postgres_for_update"].target == found["postgres_optimistic"].target == 40
    assert found["redis_decr"].notes["units_lost_by_a_crash"] == 1
    assert found["redis_decr"].notes["buyers_refused_wrongly"] == 1
    assert found["redis_lock"].notes["units_oversold_by_an_expired_lock"] == 1
    assert found["redis_lock_best"].notes == {"peer_connections": 2}
    beetle = found["tigerbeetle"]
    assert (beetle.value is None) is bool(tigerbeetle.why_not())
    assert beetle.value or "measured elsewhere and not here" in beetle.why


def test_a_peer_is_compared_at_the_same_and_at_its_best_number_of_connections() -> None:
    runs = {
        (name, count): [Run(value, [], {"retries_per_unit": 0.0})]
        for name, count, value in (
            ("holdfast", 2, 100.0),
            ("holdfast", 8, 400.0),
            ("redis_lock", 2, 20.0),
            ("redis_lock", 8, 10.0),
        )
    }
    same, best = comparison.compare("redis_lock", runs, (2, 8), {})
    assert (same.value, same.baseline, same.ratio) == (400, 10, 40)
    assert (best.value, best.baseline, best.ratio) == (400, 20, 20)
    assert same.notes["ratio_at_2"] == 5


def test_a_finding_on_either_side_leaves_a_comparison_without_a_value() -> None:
    notes = {"retries_per_unit": 0.0}
    runs = {
        ("holdfast", 2): [Run(100.0, ["one is lost"], notes)],
        ("redis_lock", 2): [Run(20.0, ["one is missing"], notes)],
        ("holdfast", 1): [Run(60.0, [], notes)],
        ("redis_lock", 1): [Run(30.0, [], notes)],
    }
    found = ["holdfast: one is lost", "redis_lock: one is missing"]
    for made in comparison.compare("redis_lock", runs, (1, 2), {}):
        assert (made.value, made.audit) == (None, False)
        assert made.findings == (found if made.name == "redis_lock" else found[:1])
    same, best = comparison.compare("redis_lock", runs, (1,), {})
    assert same.audit is best.audit is True


def test_both_are_compared_at_their_best() -> None:
    """Here Holdfast against itself: what suits a side is what did most, of the ways it was tried with."""
    tried: list[tuple[str, Way]] = []

    def side(name: str, *ways: Way) -> Side:
        def measured(way: Way, seconds: float) -> Run:
            tried.append((name, way))
            return comparison.measure_batches(way, seconds)

        return Side(name, measured, ways)

    ours, theirs = side("ours", Way(1, 2), Way(256, 4)), side("theirs", Way(2, 2))
    made = at_best.compare(
        "peer", ours, theirs, what="w", seconds=0.3, repeats=2, same=[Way(10, 2)]
    )
    assert (made.audit, made.findings) == (True, []) and made.ratio
    assert (made.notes["holdfast_a_call"], made.notes["holdfast_calls"]) == (256, 4)
    assert (made.notes["peer_a_call"], made.notes["peer_calls"]) == (2, 2)
    assert made.notes["holdfast_batches_of_10"] and made.notes["peer_batches_of_10"]
    tries = [("ours", Way(1, 2)), ("ours", Way(256, 4)), ("theirs", Way(2, 2))]
    in_turn = [("ours", Way(256, 4)), ("theirs", Way(2, 2)), ("ours", Way(10, 2))]
    assert tried == [*tries, *2 * [*in_turn, ("theirs", Way(10, 2))]]


def test_a_way_whose_books_are_wrong_is_none_of_the_best() -> None:
    values = {
        Way(1, 2): Run(1.0, []),
        Way(2, 2): Run(9.0, ["one is lost"]),
        Way(3, 2): Run(2.0, []),
    }
    assert at_best.best(Side("x", lambda way, _: values[way], list(values)), 1.0) == Way(3, 2)
    with pytest.raises(PeerError, match="no way of measuring"):
        at_best.best(Side("x", lambda way, _: values[way], [Way(2, 2)]), 1.0)


def test_calls_of_two_processes_sell_exactly_the_units(one_redis: RedisServer) -> None:
    shop = Holdfast(one_redis.url, batch=10)
    shop.processes = 2
    shop.reset(100)
    sold = sell(shop, connections=4, seconds=60)
    assert sold.units == 100 and audit(100, sold.units, shop.books()) == []


def test_an_address_of_tigerbeetle_that_is_none_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIGERBEETLE_ADDRESS", "nowhere:port")
    with pytest.raises(PeerError, match=r"TIGERBEETLE_ADDRESS is 'nowhere:port'"):
        tigerbeetle.address().__enter__()


def test_the_memory_of_live_reservations() -> None:
    # So many that a buffer of the server's, 16 kB, is small beside what the deadlines differ by.
    (made,) = memory.figures(20_000)
    assert (made.name, made.audit, made.at_most) == ("memory_per_reservation", True, True)
    assert made.notes["reservations"] == 20_000
    notes = made.notes
    assert made.value is not None
    assert 100 < notes["bytes_with_1000_a_deadline"] < made.value
    assert made.value < notes["bytes_with_10_a_deadline"] < 1_000
    assert made.value < notes["bytes_with_a_sku_of_24"] < 1_000


def test_a_wrong_count_of_live_reservations_is_found(one_redis: RedisServer) -> None:
    with connect(one_redis.url) as redis:
        memory.measure_on(redis, one_redis.url, 50, 10, "sku-1")
        assert memory.audit(redis, "sku-1", 50) == []
        _break_everything(redis)
        assert memory.audit(redis, "sku-1", 50) == [
            "50 reservations were acknowledged, but 49 reservations are kept",
            "50 reservations were acknowledged, but 51 units are held of the stock",
            "50 reservations were acknowledged, but 49 ids are on the lists of their deadlines",
            "the outbox is not empty: its events are in the figure",
        ]


def _break_everything(redis: Redis) -> None:
    redis.delete(keys.reservation(0, "reserv00000000000007"))
    redis.hincrby(keys.stock(0, "sku-1", "MAIN"), "held", 1)
    redis.rpop(keys.due(0, int(redis.zrange(keys.deadlines(0), 0, 0)[0])))
    redis.xadd(keys.outbox(0), {"events": b""})
