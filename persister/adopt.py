"""Make a Redis the one of this ledger, where its head names another: after the ledger was moved to another
PostgreSQL, or came back from a dump there."""

from __future__ import annotations

import msgspec

from engine.errors import LedgerError
from engine.partitions import read_head
from engine.scripts import Scripts
from engine.settings import Settings
from persister import database
from persister.database import QUERIES
from persister.heal import check_outbox
from persister.ledger import Ledger
from persister.ownership import Claim, Ownership, owner_of
from persister.persister import connect_redis


class Adopted(msgspec.Struct, frozen=True):
    """Whose the Redis was by its head ('' for nobody's), whose it is; ``changed`` is false where that is the
    same, or where it was only asked for."""

    former: str
    ledger: str
    changed: bool


def adopt(
    settings: Settings, *, by: str, reason: str, dry_run: bool = False, partition: int = 0
) -> Adopted:
    """Have head of this Redis name this ledger, and note who said so and why.

    LedgerError, and nothing changed, where a persister is at work on this ledger, where what is in the
    outbox is not this ledger's, or where Redis was never opened; OtherWriter where the persister of another
    ledger, or of a copy of this one, has written from this Redis within the last 10 s.
    """
    with (
        database.connect(settings.postgres_url) as connection,
        connect_redis(settings.redis_url) as redis,
    ):
        database.migrate(connection)
        connection.commit()
        ledger = Ledger(connection, partition)
        ledger.wait_for_lease("stop it, adopt, and start it again")
        scripts = Scripts.for_server(redis.info("server"))
        head = read_head(redis, partition)
        if not head.epoch:
            raise LedgerError(
                f"partition {partition} of this Redis was never opened; there is nothing to adopt. A ledger"
                " with events is put into an empty Redis by 'holdfast restore'"
            )
        ownership = Ownership(redis, scripts, connection, partition)
        former = owner_of(redis, partition)
        check_outbox(redis, scripts, ledger, ledger.position())
        changes = former != ownership.ledger
        if dry_run or not changes:
            return Adopted(former, ownership.ledger, False)
        ownership.keep(Claim.ANY)
        ownership.give_back()
        epoch, seq = head.position
        with connection.transaction():
            connection.execute(
                QUERIES["note_adoption"],
                {
                    "partition": partition,
                    "former": former,
                    "ledger": ownership.ledger,
                    "epoch": epoch,
                    "seq": seq,
                    "by": by,
                    "reason": reason,
                },
            )
    return Adopted(former, ownership.ledger, True)
