"""One open partition on a real server, asked through the real scripts, for tests of what they decide.

``Partition.send`` makes one script call of commands of one type. Time is moved, not waited for: the
scripts' clock never runs back behind ``last_ms`` of head, so ``set_clock`` takes them to any later time.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import msgspec
from redis import Redis
from redis.exceptions import OutOfMemoryError, ResponseError

from engine import keys
from engine.engine import _operations
from engine.events import Event, read_entry
from engine.model import (
    Confirm,
    Extend,
    Line,
    Movement,
    Outcome,
    Release,
    Reserve,
)
from engine.partitions import Opening, open_partition, read_head, read_server
from engine.reservations import Record, read_record
from engine.scripts import Scripts
from engine.settings import Settings
from engine.statuses import Status

HELD, CONFIRMED, RELEASED, EXPIRED = 0, 1, 2, 3
#: How long an engine waits for Redis in tests that are not about a Redis that does not answer: on a busy
#: machine an answer may take longer than the 0.8 s after which ours gives up.
PATIENT_MS = 60_000
WRITES = [keys.head(0), keys.deadlines(0), keys.outbox(0)]
#: Five bytes of msgpack each, as a number from 65,536 to 4,294,967,295 has: see ``Partition.forge``.
WRONG_NUMBERS = {
    "zero": b"\xce\0\0\0\0",
    "negative": b"\xd2\xff\xff\xff\xff",
    "fraction": b"\xca\x3f\xc0\0\0",
    "text": b"\xa4" + b"1234",
}
TOO_LARGE = b"\xce\xff\xff\xff\xff"
FIELDS = ("on_hand", "held", "quarantined", "safety_stock")


def open_now(redis: Redis, partition: int = 0) -> None:
    """Open a partition as the persister does, without a ledger to judge by."""
    judged = read_head(redis, partition)
    opening = open_partition(
        redis,
        Scripts.for_server(redis.info("server")),
        partition,
        judged=judged,
        server=read_server(redis),
        epoch=judged.position[0] + 1,
        trimmer="persister",
    )
    assert opening is Opening.OPENED


class Partition:
    """Partition 0 of ``redis``, opened (``of``: as it is). ``damaged`` and ``now_ms`` are of the last
    call."""

    def __init__(
        self, redis: Redis, settings: Settings | None = None, *, opened: bool = True
    ) -> None:
        self.redis = redis
        self.settings = settings or Settings()
        self.scripts = Scripts.for_server(redis.info("server"))
        self.damaged: list[str] = []
        self.now_ms = 0
        if opened:
            self.open()

    @classmethod
    def of(cls, redis: Redis) -> Partition:
        return cls(redis, opened=False)

    def open(self) -> None:
        open_now(self.redis)

    # Asking.

    def script(self, name: str, names: list[str], *arguments: Any) -> Any:
        return self.scripts.call_sync(self.redis, name, names, arguments)

    def send(self, *commands: Any) -> list[Outcome]:
        """One script call; commands of one type. Undecided ones answer ``more_due``."""
        operation = _operations(0, self.settings)[type(commands[0])]
        packed = operation.pack([operation.encode(command) for command in commands])
        try:
            reply = self.script(
                operation.script, list(operation.keys), *packed, *operation.arguments
            )
        except ResponseError as error:
            # redis-py has a class for the error itself, but not for one inside a script (6.2).
            if not isinstance(error, OutOfMemoryError) and "OOM" not in str(error):
                raise
            return [Outcome(status=Status.STORE_FULL)] * len(commands)
        if reply == b"partition_closed":
            return [Outcome(status=Status(reply.decode()))] * len(commands)
        self.now_ms, answers, damaged = reply
        self.damaged = [key.decode() for key in damaged]
        assert len(answers) == len(commands)
        return [
            Outcome(status=Status.MORE_DUE)
            if answer == b"more_due"
            else operation.decode(command, answer, self.now_ms)
            for command, answer in zip(commands, answers, strict=True)
        ]

    def one(self, command: Any) -> Outcome:
        return self.send(command)[0]

    def forge(self, *commands: Any, instead: int, wrong: bytes) -> Any:
        """Like ``send`` with a value that Python would not let through: ``wrong`` in the place of
        the number ``instead`` (a uint32 of msgpack, so five bytes)."""
        operation = _operations(0, self.settings)[type(commands[0])]
        wire, *rest = operation.pack([operation.encode(command) for command in commands])
        number = msgspec.msgpack.encode(instead)
        assert len(number) == len(wrong) == 5 and number in wire
        forged = wire.replace(number, wrong)
        return self.script(
            operation.script, list(operation.keys), forged, *rest, *operation.arguments
        )

    def expire(self, entries_max: int = 500) -> tuple[int, int, int]:
        """One call of the sweeper's script: looked at, expired, more."""
        self.now_ms, counts, damaged = self.script(
            "expire", WRITES, entries_max, self.settings.retention_ms
        )
        self.damaged = [key.decode() for key in damaged]
        return tuple(counts)

    def receive(self, sku: str, quantity: int, at: str = "X") -> None:
        movement_id = f"in-{sku}-{at}-{self.head()['seq']}"
        status = self.one(move("receive", sku, quantity, at, movement_id=movement_id)).status
        assert status == "applied"

    def hold(
        self, reservation_id: str, *lines: Any, ttl_ms: int = 900_000, **fields: Any
    ) -> Outcome:
        outcome = self.one(reserve(reservation_id, *lines, ttl_ms=ttl_ms, **fields))
        assert outcome.status == "reserved", outcome
        return outcome

    def set_clock(self, ms: int) -> None:
        self.redis.hset(keys.head(0), "last_ms", ms)

    def make_due(self, reservation_id: str) -> int:
        """Take the clock to the deadline of a reservation."""
        record = self.record(reservation_id)
        assert record is not None
        self.set_clock(record.deadline_ms)
        return record.deadline_ms

    def make_all_due(self) -> None:
        """Take the clock to the last deadline there is."""
        self.set_clock(int(self.redis.zrange(keys.deadlines(0), -1, -1)[0]))

    def fill(self) -> None:
        """Make the server refuse writes that need memory."""
        self.redis.config_set("maxmemory", 1)

    # Looking.

    def head(self) -> dict[str, str]:
        return {k.decode(): v.decode() for k, v in self.redis.hgetall(keys.head(0)).items()}

    def seq(self) -> int:
        return int(self.head()["seq"])

    def stock(self, sku: str, at: str = "X") -> dict[str, int]:
        fields = self.redis.hgetall(keys.stock(0, sku, at))
        return {name.decode(): int(value) for name, value in fields.items()}

    def numbers(self, sku: str, at: str = "X") -> tuple[int, ...]:
        """on_hand, held, quarantined, safety_stock, seq."""
        record = self.stock(sku, at)
        return tuple(record[name] for name in (*FIELDS, "seq"))

    def record(self, reservation_id: str) -> Record | None:
        value = self.redis.get(keys.reservation(0, reservation_id))
        return None if value is None else read_record(value)

    def events(self) -> list[Event]:
        found: list[Event] = []
        for entry_id, fields in self.redis.xrange(keys.outbox(0)):
            found += read_entry(0, entry_id.decode(), fields[b"events"])
        return found

    def dump(self) -> dict[str, Any]:
        """Every key with its bytes and whether it will expire; without the clock and the beat of the
        ledger's writer."""
        names = sorted(self.redis.scan_iter(count=1000))
        pipe = self.redis.pipeline(transaction=False)
        for name in names:
            pipe.dump(name)
            pipe.pttl(name)
        replies = pipe.execute()
        found: dict[str, Any] = {
            name.decode(): (value, pttl > 0)
            for name, value, pttl in zip(names, replies[::2], replies[1::2], strict=True)
        }
        if self.redis.type(keys.head(0)) == b"hash":
            found[keys.head(0)] = self.head() | dict.fromkeys(("last_ms", "beat", "beat_ms"), "")
        return found

    def check(self) -> None:
        """Events, stock records, reservations and deadline lists tell the same story."""
        events = self.events()
        assert [event.seq for event in events] == list(range(1, self.seq() + 1))
        sums: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for event in events:
            for line in event.lines:
                sums[line.sku, line.location].update(
                    on_hand=line.on_hand_delta,
                    held=line.held_delta,
                    quarantined=line.quarantined_delta,
                )
                sums[line.sku, line.location]["seq"] = event.seq
        stocks = {
            keys.stock_name(key.decode()): {
                field: int(value)
                for field, value in zip(
                    ("on_hand", "held", "quarantined", "seq"),
                    self.redis.hmget(key, "on_hand", "held", "quarantined", "seq"),
                    strict=True,
                )
            }
            for key in self.redis.scan_iter(keys.stock_pattern(0), count=1000)
        }
        assert stocks == {at: dict(counter) for at, counter in sums.items()}
        for sku, location in stocks:
            assert self.redis.sismember(keys.locations(0, sku), location)
        self.check_held()

    def check_held(self) -> None:
        """What stock records have as held is what the live reservations hold."""
        held = {
            keys.stock_name(key.decode()): int(self.redis.hget(key, "held"))
            for key in self.redis.scan_iter(keys.stock_pattern(0), count=1000)
        }
        assert self._held() == Counter({at: units for at, units in held.items() if units})

    def _held(self) -> Counter[tuple[str, str]]:
        """What is left of the lines of all held reservations; each is on the list of its deadline."""
        held: Counter[tuple[str, str]] = Counter()
        prefix = keys.reservation(0, "")
        names = [name.decode() for name in self.redis.scan_iter(prefix + "*", count=1000)]
        pipe = self.redis.pipeline(transaction=False)
        for name in names:
            pipe.get(name)
            pipe.pttl(name)
        replies = pipe.execute()
        deadlines = {int(ms): ms_ for ms, ms_ in self.redis.zrange(*_ALL_DEADLINES)}
        due = {ms: set(self.redis.lrange(keys.due(0, ms), 0, -1)) for ms in deadlines}
        for name, value, pttl in zip(names, replies[::2], replies[1::2], strict=True):
            record = read_record(value)
            if record.state != HELD:
                assert 0 < pttl <= self.settings.retention_ms, name
                continue
            assert pttl == -1, name
            assert record.deadline_ms % 100 == 0
            assert deadlines[record.deadline_ms] == record.deadline_ms
            assert name.removeprefix(prefix).encode() in due[record.deadline_ms]
            for i, (sku, location, quantity) in enumerate(record.body.triples()):
                left = quantity - sum((record.parts or [])[2 * i : 2 * i + 2])
                held[sku, location] += left
        return +held


_ALL_DEADLINES = (keys.deadlines(0), 0, -1, False, True)


def line(sku: str, quantity: int = 1, at: str | None = "X", *candidates: str) -> Line:
    return Line(sku, quantity, at, candidates)


def reserve(reservation_id: str, *lines: Any, ttl_ms: int = 900_000, **fields: Any) -> Reserve:
    """Lines are a sku, (sku, quantity[, location]) or a Line."""
    return Reserve(
        reservation_id=reservation_id,
        order_id=fields.pop("order_id", "order-" + reservation_id),
        lines=_lines(lines),
        ttl_ms=ttl_ms,
        **fields,
    )


def confirm(reservation_id: str, *lines: Any, request_id: str | None = None) -> Confirm:
    return Confirm(reservation_id=reservation_id, lines=_lines(lines), request_id=request_id)


def release(reservation_id: str, *lines: Any, request_id: str | None = None) -> Release:
    return Release(reservation_id=reservation_id, lines=_lines(lines), request_id=request_id)


def extend(reservation_id: str, ttl_ms: int) -> Extend:
    return Extend(reservation_id=reservation_id, ttl_ms=ttl_ms)


def move(kind: str, sku: str, quantity: int, at: str = "X", **fields: Any) -> Movement:
    return Movement(
        movement_id=fields.pop("movement_id", f"{kind}-{sku}-{at}"),
        type=kind,
        sku=sku,
        location=at,
        quantity=quantity,
        **fields,
    )


def _lines(lines: tuple[Any, ...]) -> tuple[Line, ...]:
    made = []
    for each in lines:
        if isinstance(each, str):
            made.append(line(each))
        else:
            made.append(each if isinstance(each, Line) else line(*each))
    return tuple(made)


def statuses(outcomes: list[Outcome]) -> list[str]:
    return [str(outcome.status) for outcome in outcomes]


Data = dict[bytes, tuple[bytes, int]]


def snapshot(redis: Redis) -> Data:
    """All keys with what is left of their time, to be put back later."""
    names = list(redis.scan_iter(count=1000))
    return {name: (redis.dump(name), max(0, redis.pttl(name))) for name in names}


def put_back(redis: Redis, data: Data) -> None:
    """Redis is as it was then, on a server that was restarted since."""
    redis.flushall()
    for name, (value, ttl_ms) in data.items():
        redis.restore(name, ttl_ms, value)
    redis.hset(keys.head(0), "run_id", "0" * 40)
