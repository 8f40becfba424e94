"""Who may do what in the quarantine: the writer's login discards, the reader's looks, nobody changes."""

from __future__ import annotations

import msgspec
import psycopg
import pytest
from kit import Partition
from psycopg.errors import InsufficientPrivilege, IntegrityConstraintViolation
from redis import Redis
from role_kit import LOGINS, init, url_as
from running import on_one_redis, persisting, wait_for_ledger

from engine.settings import Settings
from tests.quarantine_kit import cli, damage, discard, discards, listed, wait_until_stopped

CHANGES = (
    "UPDATE quarantine SET why = ''",
    "UPDATE quarantine_discards SET reason = 'another'",
    "DELETE FROM quarantine_discards",
    "TRUNCATE quarantine_discards",
    "DELETE FROM quarantine",
    "TRUNCATE quarantine, quarantine_discards",
)


@on_one_redis
def test_the_writer_discards_the_reader_only_looks_and_nobody_changes(
    settings: Settings, redis: Redis
) -> None:
    init(settings.postgres_url, *LOGINS)

    def as_login(name: str) -> Settings:
        return msgspec.structs.replace(settings, postgres_url=url_as(settings.postgres_url, name))

    writing, reading = as_login("test_writer"), as_login("test_reader")
    p = Partition(redis)
    p.receive("tea", 100)
    p.hold("R", ("tea", 1, "X"))
    damage(redis, {1})
    with persisting(writing):
        wait_until_stopped(reading, 1)
        assert [each["state"] for each in listed(reading)] == ["open"]
        assert cli(reading, "retry", "1").returncode == 1
        refused = cli(reading, "discard", "1", "--by", "eve", "--reason", "why")
        assert (refused.returncode, refused.stdout) == (2, "")
        assert "permission denied" in refused.stderr
        discard(writing, 1)
        wait_for_ledger(reading)
    assert discards(reading) == [(1, 1, "quarantine 1 discarded by ann: junk")]
    for name, refusal in (
        ("test_reader", InsufficientPrivilege),
        ("test_writer", InsufficientPrivilege),
        ("postgres", IntegrityConstraintViolation),
    ):
        url = url_as(settings.postgres_url, name)
        with psycopg.connect(url, autocommit=True) as connection:
            for statement in CHANGES:
                with pytest.raises(refusal):
                    connection.execute(statement)
