"""Commands that ask the ledger alone need its address alone: a backup is checked where no Redis is."""

from __future__ import annotations

import pytest
from ledger_kit import receipt, write
from running import environment, holdfast


@pytest.mark.parametrize(
    ("command", "code", "told"),
    [
        (("audit",), 0, "audited 1 events: 0 findings"),
        (("quarantine", "list"), 0, "0 open"),
        (("quarantine", "retry", "1"), 2, "there is no quarantine 1"),
        (("quarantine", "discard", "1", "--by", "kim", "--reason", "junk"), 2, "there is no quarantine 1"),
    ],
)  # fmt: skip
def test_given_no_redis_then_it_asks_the_ledger(
    postgres_url: str, command: tuple[str, ...], code: int, told: str
) -> None:
    write(postgres_url, receipt(1))
    done = holdfast(*command, environ=environment(HOLDFAST_POSTGRES_URL=postgres_url))
    assert done.returncode == code, done.stderr
    assert told in done.stdout + done.stderr
