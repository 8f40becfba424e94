"""The settings of a sale, from environment variables; bench/locustfile.py describes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

PREFIX = "HOLDFAST_LOCUST_"
_RANGES = {
    "users": (1, 100_000),
    "seconds": (1, 86_400),
    "units": (1, 10**9),
    "buyers": (1, 10**8),
    "skus": (1, 1_000),
    "sku_units": (1, 10**9),
    "hot": (0, 100),
    "lost": (0, 100),
    "abandon_seconds": (1, 86_400),
    "any_host": (0, 1),
    "p99_ms": (1, 10**6),
}


class Sizes(msgspec.Struct, frozen=True):
    """``users`` 0: by kind of user; ``buyers`` 0: as many as come in the time; no gate where it is None."""

    users: int = 0
    seconds: int = 60
    units: int = 1_000
    buyers: int = 0
    skus: int = 50
    sku_units: int = 500
    hot: int = 70
    pay: int = 60
    abandon: int = 20
    fail: int = 10
    part: int = 5
    extend: int = 5
    lost: int = 5
    abandon_seconds: int = 10
    wait_ms: int = 500
    audit_seconds: int = 600
    any_host: int = 0
    p99_ms: int | None = None
    max_503: int | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Sizes:
        """ValueError with what is wrong: an unknown name, a value that is no fitting number."""
        known = {PREFIX + name.upper(): name for name in cls.__struct_fields__}
        values: dict[str, int] = {}
        for variable, text in environ.items():
            if not variable.startswith(PREFIX):
                continue
            if variable not in known:
                raise ValueError(f"{variable} is not a setting; there are: {', '.join(known)}")
            name = known[variable]
            least, most = _RANGES.get(name, (0, 10**9))
            if not (text.isascii() and text.isdecimal() and least <= int(text) <= most):
                raise ValueError(f"{variable}={text!r}: a whole number from {least} to {most}")
            values[name] = int(text)
        sizes = cls(**values)
        if not any((sizes.pay, sizes.abandon, sizes.fail, sizes.part, sizes.extend)):
            raise ValueError(f"{PREFIX}PAY, ABANDON, FAIL, PART, EXTEND: one must be above 0")
        return sizes

    def told(self) -> str:
        """All values, on one line."""
        values: dict[str, Any] = msgspec.structs.asdict(self)
        return " ".join(f"{name}={value}" for name, value in values.items() if value is not None)
