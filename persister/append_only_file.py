"""An append-only file that was cut within a transaction is not what was loaded from it: make it so.

Redis and Valkey load such a file without the transaction, but may leave its first commands in it (Valkey
mended that in 2026, valkey-io/valkey 4342). What is written next then stands behind an open MULTI, and the
restart after the next carries out half of what was never acknowledged: a hold without its units, or old
numbers of stock. So a server that was restarted writes its file anew before it is opened.
"""

from __future__ import annotations

import logging

from redis import Redis
from redis.exceptions import NoPermissionError, ResponseError

log = logging.getLogger("holdfast.persister")


class AppendOnlyFile:
    """That of one process of Redis."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._is_begun = False

    def is_sound(self) -> bool:
        """Was it written anew? Begins that, and is asked again until it is done. Where it can't be done, or
        there is no such file, it is left as it is, and the former is said."""
        state = self._redis.info("persistence")
        if not int(state.get("aof_enabled", 0)):
            return True
        if int(state["aof_rewrite_in_progress"]) or int(state["aof_rewrite_scheduled"]):
            return False
        if self._is_begun:
            if state["aof_last_bgrewrite_status"] != "ok":
                self._say("it failed, see the log of Redis")
            return True
        self._is_begun = True
        try:
            self._redis.bgrewriteaof()
        except (NoPermissionError, ResponseError) as error:
            self._say(str(error))
            return True
        return False

    @staticmethod
    def _say(why: str) -> None:
        log.error(
            "the append-only file of Redis could not be written anew (%s): if it was cut within a"
            " transaction, the restart after the next may carry out half of that; run BGREWRITEAOF, then"
            " 'holdfast reconcile'",
            why,
        )
