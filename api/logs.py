"""Lines of the log: one a message, in UTC, on stderr."""

from __future__ import annotations

import logging
import time

from engine.addresses import printable


def log_to_stderr() -> None:
    """From INFO on, for as long as this process runs."""
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine("%(asctime)s %(name)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


class OneLine(logging.Formatter):
    """A line a message, in UTC; what a foreign key or a server's text may hold steers no terminal."""

    converter = staticmethod(time.gmtime)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        record.message = printable(record.message)
        return super().formatMessage(record)
