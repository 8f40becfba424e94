"""The engine where things go wrong: Redis away, stopped or full, lost replies, expiry in a race."""

import asyncio
import os
import signal
import time
from collections import Counter
from contextlib import contextmanager

import pytest
from kit import (
    CONFIRMED,
    EXPIRED,
    HELD,
    PATIENT_MS,
    Partition,
    confirm,
    extend,
    move,
    release,
    reserve,
)
from kit import statuses as of

from api.servers import RedisServer
from engine import keys
from engine.engine import Engine
from engine.model import GetReservation, GetStock
from engine.settings import Settings
from engine.statuses import Status
from persister.persister import connect_redis

pytestmark = pytest.mark.anyio


@pytest.fixture
def own_server(redis_server, tmp_path):
    """A server of this test alone, which it may stop or kill, of the kind the session runs on."""
    server = RedisServer(redis_server.binary, tmp_path, maxmemory_bytes=2**28)
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def own_engine(own_server):
    engine = await Engine.start(Settings(redis_url=own_server.url))
    yield engine
    await engine.close()


@pytest.fixture
async def patient_engine(own_server):
    """For tests in which the server answers, however slowly."""
    engine = await Engine.start(Settings(redis_url=own_server.url, unavailable_after_ms=PATIENT_MS))
    yield engine
    await engine.close()


@pytest.fixture
def p(own_server):
    with connect_redis(own_server.url) as redis:
        p = Partition(redis)
        p.receive("A", 100)
        yield p


@contextmanager
def stopped(server):
    """The server accepts what is sent to it and answers nothing: every reply is lost."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


ALL = [
    reserve("r9", "A"),
    confirm("r1"),
    release("r1"),
    extend("r1", 1_000_000),
    move("receive", "A", 1, movement_id="m9"),
    GetReservation("r1"),
    GetStock("A"),
]


async def test_given_redis_killed_then_unavailable_within_a_second_and_back_afterwards(
    p, own_server, own_engine
):
    assert (await own_engine.call(reserve("r1", ("A", 5)))).status == "reserved"
    own_server.kill()
    start = time.monotonic()
    outcomes = await asyncio.gather(*[own_engine.call(command) for command in ALL])
    assert time.monotonic() - start < 2.4  # one after the other would take 3.2 s at least
    assert of(outcomes) == ["unavailable"] * len(ALL)

    own_server.start()
    outcomes = await asyncio.gather(*[own_engine.call(command) for command in ALL])
    assert of(outcomes) == ["partition_closed"] * len(ALL), "a restarted server must be opened"
    assert await own_engine.sweep(0) is None
    p.check()
    p.open()
    outcomes = await asyncio.gather(own_engine.call(reserve("r9", "A")), own_engine.call(ALL[1]))
    assert of(outcomes) == ["reserved", "confirmed"]
    assert p.numbers("A")[:2] == (95, 1)
    p.check()


async def test_given_redis_away_then_whoever_waits_behind_others_is_told_as_soon(
    p, own_server, own_engine
):
    """More than two steps' worth of callers: nobody waits for the time of those before him too."""
    own_server.kill()
    start = time.monotonic()
    outcomes = await own_engine.call_all([reserve(f"r{i}", "A") for i in range(4_000)])
    assert time.monotonic() - start < 2.4  # one after the other would take 3.2 s at least
    assert set(of(outcomes)) == {"unavailable"}
    own_server.start()
    p.open()
    assert p.numbers("A")[:2] == (100, 0), "nothing was granted from memory"


async def test_given_the_process_stood_still_then_what_redis_answered_meanwhile_counts(
    p, own_server, own_engine
):
    """A busy machine, a long turn of the event loop: the reply is there before anybody looks at the clock."""
    calls = [asyncio.ensure_future(own_engine.call(reserve(f"r{i}", "A"))) for i in range(1_000)]
    for _ in range(4):  # the calls are handed in, and the first ones are sent
        await asyncio.sleep(0)
    time.sleep(1)  # noqa: ASYNC251 - longer than a call may take
    assert Counter(of(await asyncio.gather(*calls))) == {"reserved": 100, "insufficient_stock": 900}


@pytest.mark.parametrize("settle", [confirm, release])
async def test_given_an_unanswered_part_then_sent_again_it_takes_nothing_twice(
    p, own_server, own_engine, patient_engine, settle, caplog
):
    p.hold("r1", ("A", 10))
    part = settle("r1", ("A", 4), request_id="q1")
    with stopped(own_server):
        assert (await own_engine.call(part)).status == "unavailable"
    assert "Redis did not answer: no reply in time" in caplog.text
    again = await patient_engine.call(part)
    assert again.status in ("confirmed", "released")
    lines = again.reservation.lines[0]
    assert lines.confirmed + lines.released == 4
    assert again.replayed, "what was sent took effect though its reply was lost"
    assert p.numbers("A")[:2] == (96 if settle is confirm else 100, 6)
    p.check()


async def test_given_every_reply_lost_then_each_operation_sent_again_has_happened_once(
    p, own_server, own_engine, patient_engine
):
    for i in range(4):
        p.hold(f"r{i}", ("A", 5))
    commands = [
        reserve("new", ("A", 7)),
        confirm("r0"),
        release("r1"),
        extend("r2", 1_200_000),
        move("receive", "A", 50, movement_id="m1"),
        confirm("r3", ("A", 2), request_id="q1"),
        release("r3", ("A", 1), request_id="q2"),
    ]
    with stopped(own_server):
        lost = await own_engine.call_all(commands)
    assert set(of(lost)) == {"unavailable"}
    again = await patient_engine.call_all(commands)
    for command, outcome in zip(commands, again, strict=True):
        assert outcome.status not in ("unavailable", "unknown_reservation"), command
        if outcome.reservation is not None:
            assert outcome.reservation.reservation_id == command.reservation_id, "replies mixed up"
    assert p.numbers("A")[:2] == (100 + 50 - 5 - 2, 7 + 5 + 2)
    p.check()


async def test_given_callers_that_gave_up_on_a_stopped_server_then_later_replies_are_not_theirs(
    p, own_server, own_engine
):
    with stopped(own_server):
        tasks = [asyncio.ensure_future(own_engine.call(reserve(f"r{i}", "A"))) for i in range(20)]
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for _ in range(5):
        outcomes = await asyncio.gather(
            *[own_engine.call(GetReservation(f"r{i}")) for i in range(20)],
            own_engine.call(GetStock("A")),
        )
        for i, outcome in enumerate(outcomes[:-1]):
            if outcome.reservation is not None:
                assert outcome.reservation.reservation_id == f"r{i}"
                assert outcome.reservation.order_id == f"order-r{i}"
    p.check()


async def test_given_a_full_server_then_the_engine_refuses_sales_and_takes_everything_back(
    p, patient_engine
):
    for i in range(3):
        p.hold(f"r{i}", ("A", 10))
    p.hold("due", ("A", 5), ttl_ms=1_000)
    p.make_due("due")
    p.fill()
    commands = [
        reserve("r9", "A"),
        extend("r0", 2_000_000),
        move("receive", "A", 1),
        confirm("r0"),
        release("r1"),
        confirm("r2", ("A", 1), request_id="q1"),
    ]
    expected = ["store_full"] * 3 + ["confirmed", "released", "confirmed"]
    outcomes = await asyncio.gather(*[patient_engine.call(command) for command in commands])
    assert of(outcomes) == expected
    swept = await patient_engine.sweep(0)
    assert (swept.looked_at, swept.expired, swept.more) == (1, 1, False)
    assert p.numbers("A")[:2] == (89, 9)
    p.check()


async def test_given_a_full_server_and_thousands_waiting_then_refused_sales_stop_no_confirm(
    p, patient_engine
):
    """What waits behind a refused step must not be told `unavailable` with it."""
    p.receive("B", 5_000)
    await patient_engine.call_all([reserve(f"r{i}", "B") for i in range(2_000)])
    p.fill()
    commands = []
    for i in range(2_000):
        commands += [reserve(f"n{i}", "A"), confirm(f"r{i}")]
    outcomes = await patient_engine.call_all(commands)
    assert Counter(of(outcomes)) == Counter(store_full=2_000, confirmed=2_000)
    assert p.numbers("B")[:2] == (3_000, 0)
    p.check()


async def test_given_confirms_racing_expiry_then_exactly_one_wins_with_one_event(p, patient_engine):
    """Confirms and sweeps are sent from just before the deadline until all is decided."""
    p.receive("B", 400)
    ids = [f"r{i}" for i in range(400)]
    made = await patient_engine.call_all([reserve(each, "B", ttl_ms=60) for each in ids])
    last = max(outcome.reservation.expires_ms for outcome in made)
    answers = {}

    async def confirming(share):
        for each in share:
            answers[each] = (await patient_engine.call(confirm(each))).status

    async def sweeping():
        while len(answers) < len(ids) or (await now(p)) < last:
            await patient_engine.sweep(0)

    while await now(p) < last - 15:
        pass
    shares = [confirming(ids[i::8]) for i in range(8)]
    await asyncio.gather(*shares, sweeping(), sweeping())
    await patient_engine.sweep(0)

    won = Counter(answers.values())
    print(won)
    assert set(won) <= {Status.CONFIRMED, Status.RESERVATION_EXPIRED}
    ends = Counter(
        (e.reservation_id, e.type) for e in p.events() if e.type in ("confirm", "expire")
    )
    assert set(ends.values()) == {1}
    assert len(ends) == len(ids), "one event ends each"
    for each, answer in answers.items():
        ended = "confirm" if answer == "confirmed" else "expire"
        assert (each, ended) in ends
        assert p.record(each).state == (CONFIRMED if ended == "confirm" else EXPIRED)
    assert p.numbers("B")[:2] == (400 - won[Status.CONFIRMED], 0)
    p.check()


async def now(p):
    seconds, micros = p.redis.time()
    await asyncio.sleep(0)
    return seconds * 1000 + micros // 1000


async def test_given_100_000_due_at_once_then_they_come_back_in_calls_of_500_at_most(redis, engine):
    p = Partition(redis)
    p.receive("A", 100_000)
    for first in range(0, 100_000, 5_000):
        ids = range(first, first + 5_000)
        outcomes = await engine.call_all([reserve(f"r{i}", "A", ttl_ms=600_000) for i in ids])
        assert {outcome.status for outcome in outcomes} == {"reserved"}
    assert p.numbers("A")[:2] == (100_000, 100_000)
    p.make_all_due()
    calls = []
    while not calls or calls[-1].more:
        calls.append(await engine.sweep(0))
        assert calls[-1].looked_at <= 500
        assert len(calls) <= 260
    assert sum(call.looked_at for call in calls) == 100_000
    assert sum(call.expired for call in calls) == 100_000
    assert p.numbers("A")[:2] == (100_000, 0)
    assert redis.zcard(keys.deadlines(0)) == 0
    assert list(redis.scan_iter(keys.due(0, "*"), count=10_000)) == []
    events = p.events()
    assert [event.seq for event in events] == list(range(1, 200_002))
    expired = [event.reservation_id for event in events if event.type == "expire"]
    assert len(set(expired)) == len(expired) == 100_000
    assert {p.record(f"r{i}").state for i in range(0, 100_000, 9_999)} == {EXPIRED}
    assert HELD not in {p.record(f"r{i}").state for i in range(100)}


async def test_given_answers_that_can_t_be_read_then_they_alone_are_unknown_and_logged_once(
    p, patient_engine, caplog
):
    """A script that isn't ours, under the name of ours: no caller may wait for ever, no log be flooded."""
    outcomes = patient_engine.call_all([reserve(f"r{i}", "A") for i in range(300)])
    strange = p.redis.script_load(
        "local a = {} for i = 1, 300 do a[i] = 1 end"
        " a[2], a[7], a[300] = 'odd', {'no status'}, {} return {1764000000000, a, {}}"
    )
    patient_engine._scripts.sha1["reserve"] = strange
    told = Counter(of(await outcomes))
    assert told == Counter(reserved=297, unavailable=3)
    logged = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert len(logged) == 2
    assert "r1" in logged[0] and "odd" in logged[0]
    assert logged[1] == "2 more answers of that call can't be read"


async def test_given_writes_refused_at_once_then_reads_that_wait_behind_them_are_answered(
    own_engine, own_server, p
):
    """Only behind a server that says nothing is everybody told so."""
    p.redis.config_set("min-replicas-to-write", 1)
    calls = []
    with stopped(own_server):
        for command in (reserve("r1", "A"), reserve("r2", "A"), GetStock("A"), GetStock("A")):
            calls.append(asyncio.ensure_future(own_engine.call(command)))
            await asyncio.sleep(0.01)
    assert of(await asyncio.gather(*calls)) == ["unavailable"] * 2 + ["found"] * 2


async def test_given_a_close_that_is_cancelled_then_who_waits_is_answered(own_server, p):
    engine = await Engine.start(Settings(redis_url=own_server.url))
    with stopped(own_server):
        asked = asyncio.ensure_future(engine.call(reserve("r1", "A")))
        await asyncio.sleep(0.05)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(engine.close(), 0.1)
    async with asyncio.timeout(5):
        assert (await asked).status in ("reserved", "already_reserved", "unavailable")
    await engine.close()


async def test_given_calls_in_the_turn_before_the_close_then_all_are_decided_first(own_server, p):
    engine = await Engine.start(Settings(redis_url=own_server.url, unavailable_after_ms=PATIENT_MS))
    p.receive("B", 1_300)
    asked = asyncio.ensure_future(engine.call_all([reserve(f"r{i}", "B") for i in range(1_300)]))
    await asyncio.sleep(0)
    async with asyncio.timeout(PATIENT_MS / 1000):
        await engine.close()
    assert asked.done() and set(of(await asked)) == {"reserved"}


async def test_given_refusals_that_were_counted_when_closed_then_they_are_said(
    own_server, p, caplog
):
    engine = await Engine.start(Settings(redis_url=own_server.url))
    p.redis.hset(keys.head(0), "run_id", "another")
    for name in ("r1", "r2", "r3"):
        assert (await engine.call(reserve(name, "A"))).status == "partition_closed"
    said = [r.getMessage() for r in caplog.records]
    assert said == ["calls are refused with partition_closed"]
    await engine.close()
    said = [r.getMessage() for r in caplog.records]
    assert said[1:] == ["calls are refused with partition_closed (2 times in 60 s at most)"]
