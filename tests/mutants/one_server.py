"""A plugin of pytest: of tests that run once on each kind of Redis only those on the newest. The kinds
differ in what they refuse; a fault shows on any."""

from __future__ import annotations

import pytest

from api.servers import find_redis_binaries

NEWEST = max(((b.version, b.name) for b in find_redis_binaries()), default=((), ""))[1]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    def is_on(item: pytest.Item) -> bool:
        callspec = getattr(item, "callspec", None)
        return callspec is None or callspec.params.get("redis_server", NEWEST) == NEWEST

    left_out = [item for item in items if not is_on(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if is_on(item)]
