"""Names of Redis keys: the only place in Python where one is built.

The data model of a partition ``p`` (all keys share the hash tag ``{p}``, so one Redis Cluster slot):

=============================== ======= =================================================================
``hf:{p}:head``                 hash    epoch, seq, run_id and replid of the server it was opened on,
                                        last_ms (the clock never runs back), trimmer (who trims the outbox),
                                        lease and lease_until_ms (the process that does), written_bytes
                                        (to the outbox), acknowledged_epoch, acknowledged_seq and
                                        acknowledged_bytes (what of that is safe elsewhere), trimmed_seq and
                                        trimmed_bytes (what is no longer in it), restoring (1 while a
                                        restore has not finished), ledger (whose Redis it is), beat and
                                        beat_ms (of that ledger's writer)
``hf:{p}:stock:<sku>:<loc>``    hash    on_hand, held, quarantined, safety_stock, reorder_point, seq of
                                        the last event that touched it
``hf:{p}:locations:<sku>``      set     where the sku is kept
``hf:{p}:available:<sku>``      zset    only of skus with more than 8 locations that were asked for
                                        without one: these, by minus what is available there, and the
                                        member ``:checked`` (when they were last counted, in ms).
                                        Derived: it can be deleted at any time
``hf:{p}:reservation:<id>``     string  lua/lib/reservation.lua tells its bytes; no expiry while held
``hf:{p}:deadlines``            zset    the deadlines (ms, whole tenths of a second) with reservations
``hf:{p}:due:<deadline_ms>``    list    ids of the reservations with that deadline
``hf:{p}:outbox``               stream  ids ``epoch-seq``: events not yet acknowledged, and for a while
                                        those that are
``hf:{p}:request:movement:<id>``            string with expiry: what a movement id did
``hf:{p}:request:part:<reservation>:<id>``  string with expiry: what a partial call did
=============================== ======= =================================================================

Names that only a script learns are built again in ``lua/lib/keys.lua``; a test compares the two.
Skus, locations and ids follow ``[A-Za-z0-9][A-Za-z0-9._~-]{0,63}``, so no name can hold a colon or
a brace and no two keys can meet.
"""

from __future__ import annotations


def head(partition: int) -> str:
    return f"hf:{{{partition}}}:head"


def deadlines(partition: int) -> str:
    return f"hf:{{{partition}}}:deadlines"


def outbox(partition: int) -> str:
    return f"hf:{{{partition}}}:outbox"


def stock(partition: int, sku: str, location: str) -> str:
    return f"hf:{{{partition}}}:stock:{sku}:{location}"


def locations(partition: int, sku: str) -> str:
    return f"hf:{{{partition}}}:locations:{sku}"


def available(partition: int, sku: str) -> str:
    return f"hf:{{{partition}}}:available:{sku}"


def reservation(partition: int, reservation_id: str) -> str:
    return f"hf:{{{partition}}}:reservation:{reservation_id}"


def due(partition: int, deadline_ms: int) -> str:
    return f"hf:{{{partition}}}:due:{deadline_ms}"


def movement_request(partition: int, movement_id: str) -> str:
    return f"hf:{{{partition}}}:request:movement:{movement_id}"


def part_request(partition: int, reservation_id: str, request_id: str) -> str:
    return f"hf:{{{partition}}}:request:part:{reservation_id}:{request_id}"


def stock_pattern(partition: int) -> str:
    """Matches every stock record of the partition, for SCAN."""
    return f"hf:{{{partition}}}:stock:*"


def stock_name(key: str) -> tuple[str, str]:
    """The (sku, location) of a stock record's key."""
    _, _, _, sku, location = key.split(":")
    return sku, location
