"""Locust's log without what a large sale has thousands of. Imports no Locust: that patches Python."""

from __future__ import annotations

import logging


class OncePerUser(logging.Filter):
    """Keeps out Locust's lines for each user that had ended by itself when it was to be stopped, thousands
    in a large sale, and for each rise of the load, which is what a flash sale is."""

    starts = (
        "While stopping users, we encountered a user that didn't have proper args",
        "Your selected spawn rate is very high (>100)",
    )

    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(self.starts)
