"""The hash chain over the events of a partition: change one, and every hash after it is wrong."""

from __future__ import annotations

import hashlib

#: The hash before the first event.
CHAIN_START = bytes(32)


def chain(before: bytes, body: bytes) -> bytes:
    """The hash of an event: SHA-256 of the hash before it and of its body as it is stored."""
    return hashlib.sha256(before + body).digest()
