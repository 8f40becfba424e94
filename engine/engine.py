"""The engine: one object a process that decides commands, many at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError, NoScriptError, RedisError, ResponseError

from engine import keys, reservations, stock
from engine.addresses import why
from engine.batching import Batcher
from engine.errors import StoreError
from engine.model import (
    Command,
    Confirm,
    Extend,
    GetReservation,
    GetStock,
    Movement,
    Outcome,
    Release,
    Reserve,
)
from engine.overdue import OverdueSweep
from engine.parts import Operation
from engine.repeats import Repeats
from engine.risks import risks_of
from engine.scripts import Scripts
from engine.selling import Refusal, refusal_of
from engine.settings import Settings
from engine.states import PartitionState, Place, RedisState, read_partitions, read_state

log = logging.getLogger("holdfast.engine")

EXPIRE_ENTRIES_MAX = 500


class Swept(msgspec.Struct, frozen=True):
    """One call of the expire script: entries looked at, reservations expired, is more due?"""

    looked_at: int
    expired: int
    more: bool


def connect(url: str, timeout_ms: int) -> Redis:
    """A client that never repeats a command by itself: a repeated INCR counts twice, and whether
    to repeat is decided by id in engine/batching.py."""
    return Redis.from_url(
        url,
        protocol=2,
        retry=Retry(NoBackoff(), 0),
        socket_connect_timeout=timeout_ms / 1000,
        socket_timeout=timeout_ms / 1000,
    )


class Engine:
    """Decides commands on Redis. Make it with ``await Engine.start(settings)``, end with ``close``."""

    def __init__(self, redis: Redis, scripts: Scripts, settings: Settings) -> None:
        self._redis = redis
        self._scripts = scripts
        self._settings = settings
        self._batchers = [
            Batcher(
                redis,
                scripts,
                _operations(partition, settings),
                unavailable_after_ms=settings.unavailable_after_ms,
            )
            for partition in range(settings.partitions)
        ]
        self._repeats = Repeats(log)
        self._overdue = OverdueSweep(redis, self.sweep, settings.partitions)
        #: What Redis' settings risked at the start (engine/risks.py).
        self.risks: list[str] = []

    @classmethod
    async def start(cls, settings: Settings) -> Engine:
        """Connect and load the scripts. StoreError: Redis is away, or its user may not do what the
        scripts need."""
        redis = connect(settings.redis_url, settings.unavailable_after_ms)
        try:
            scripts = Scripts.for_server(await redis.info("server"))
            info = {**await redis.info("memory"), **await redis.info("replication")}
            await scripts.load(redis)
            engine = cls(redis, scripts, settings)
            for batcher in engine._batchers:
                await batcher.open()
        except NoPermissionError as error:
            await redis.aclose()
            raise StoreError(
                f"the Redis user lacks a right: {why(error)}; the scripts need +info, +eval, +evalsha "
                f"and +script|load (docs/operations.md lists them all)"
            ) from None
        except (RedisError, OSError) as error:
            await redis.aclose()
            raise StoreError(f"Redis can't be used: {why(error)}") from None
        engine.risks = risks_of(info)
        for risk in engine.risks:
            log.error("%s", risk)
        return engine

    async def close(self) -> None:
        """Let what was handed in be decided, then disconnect."""
        await self._overdue.close()
        self._repeats.close()
        for batcher in self._batchers:
            await batcher.close()
        await self._redis.aclose()

    async def call(self, command: Command) -> Outcome:
        """Decide one command. It shares its script call with all others of this loop turn.

        Never raises for what Redis does: ``unavailable`` says that the outcome is unknown and the
        same id, sent again, will tell it. ValueError: values that no command may have.
        """
        if type(command) is GetStock and self._overdue.is_due():
            await self._overdue.look()
        return (await self._batchers[0].submit((command,)))[0]

    async def call_all(
        self, commands: Sequence[Command], *, lines_max: int | None = None
    ) -> list[Outcome]:
        """Decide many commands, each by itself; outcomes in the order given. Those past ``lines_max`` lines
        (or stock records) in all are ``truncated``.

        Commands on one reservation or movement id take effect in the order given, and so do those of one
        type (the reserves among themselves); those of different types on different ids may not. A call
        that gets no answer, or a reserve that waits for overdue units, lets later ones pass.
        """
        if commands and type(commands[0]) is GetStock and self._overdue.is_due():
            await self._overdue.look()
        return await self._batchers[0].submit(commands, lines_max)

    async def sweep(self, partition: int) -> Swept | None:
        """Take back what is due, at most 500 entries; None while the partition is closed."""
        reply = await self._run(
            "expire",
            [keys.head(partition), keys.deadlines(partition), keys.outbox(partition)],
            [EXPIRE_ENTRIES_MAX, self._settings.retention_ms],
        )
        if reply == b"partition_closed":
            return None
        if reply[2]:
            self._repeats.damaged(reply[2])
        looked_at, expired, more = reply[1]
        return Swept(looked_at, expired, bool(more))

    async def why_not_selling(self, partition: int) -> Refusal | None:
        """What a reserve would be refused with now; None where it would be decided.

        Asks the script of reserve itself, with nothing to reserve: that changes nothing, and what refuses
        it refuses every reserve. Never raises for what Redis does, nor waits longer than a call may.
        """
        timeout_ms = self._settings.unavailable_after_ms
        operation = _operations(partition, self._settings)[Reserve]
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                reply = await self._run(
                    operation.script,
                    operation.keys,
                    [*operation.pack([]), *operation.arguments],
                )
        except (RedisError, OSError, TimeoutError) as error:
            return refusal_of(error, timeout_ms)
        return refusal_of(reply, timeout_ms)

    async def states(self) -> list[PartitionState]:
        """How each partition stands. RedisError where Redis is away."""
        return await read_partitions(self._redis, self._settings.partitions)

    async def redis_state(self, after: Mapping[int, Place]) -> RedisState:
        """How Redis and the partitions stand; ``after`` tells how far the ledger had come before
        (engine/states.py). RedisError where Redis is away."""
        durability = await self.durability()
        return await read_state(self._redis, self._settings.partitions, durability, after)

    async def durability(self) -> str:
        """What an answer is worth: ``always``, ``everysec`` or ``no`` (appendfsync), or ``none``
        without an append-only file. ``unknown`` where the server does not tell us."""
        try:
            config = await self._redis.config_get("append*")
        except ResponseError:
            return "unknown"
        if config.get("appendonly") == "no":
            return "none"
        return str(config.get("appendfsync", "unknown"))

    async def _run(self, script: str, names: Sequence[str], arguments: Sequence[Any]) -> Any:
        sha1 = self._scripts.sha1[script]
        try:
            return await self._redis.evalsha(sha1, len(names), *names, *arguments)
        except NoScriptError:
            await self._scripts.load(self._redis)
            return await self._redis.evalsha(sha1, len(names), *names, *arguments)


def _operations(partition: int, settings: Settings) -> dict[type, Operation]:
    """In the order their scripts run within a step: stock that arrives can be held at once."""
    head = (keys.head(partition),)
    writes = (*head, keys.deadlines(partition), keys.outbox(partition))
    kept, lifetime = settings.retention_ms, settings.lifetime_max_ms
    limits = (settings.outbox_max_events, settings.outbox_max_bytes)

    by_reservation, by_movement = "", "movement:"

    def lines(command: Any) -> int:
        return len(command.lines) or 1

    def one(command: object) -> int:
        return 1

    res, mov = reservations, stock
    return {
        Movement: Operation(
            "move",
            writes,
            (kept, *limits),
            mov.encode_movement,
            mov.decode_movement,
            by_movement,
            one,
            known="known_movements",
        ),
        Reserve: Operation(
            "reserve",
            writes,
            (kept, *limits),
            res.encode_reserve,
            res.decode_reserve,
            by_reservation,
            lines,
            res.pack_reserves,
            known="known_reserves",
        ),
        Extend: Operation(
            "extend",
            writes,
            (lifetime,),
            res.encode_extend,
            res.decode_change,
            by_reservation,
            one,
            known="known_extends",
        ),
        Confirm: Operation(
            "confirm",
            writes,
            (kept, lifetime),
            res.encode_part,
            res.decode_change,
            by_reservation,
            lines,
        ),
        Release: Operation(
            "release",
            writes,
            (kept, lifetime),
            res.encode_part,
            res.decode_change,
            by_reservation,
            lines,
        ),
        GetReservation: Operation(
            "reservations", head, (), res.encode_read, res.decode_read, None, one
        ),
        GetStock: Operation("stock", head, (), mov.encode_read, mov.decode_read, None, one),
    }
