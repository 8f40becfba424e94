"""Where several workers run all tests: one Kafka for all of them. A broker takes 8 s of a core to start, and
7 % of it while it does nothing."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

import pytest

from api.kafka_server import KafkaServer
from api.servers import ServerError

_PLACE = "TESTS_BROKER_FILE"
_WAIT_S = 120.0


class SharedBroker:
    """Started beside the workers, which learn from a file where it is."""

    def __init__(self) -> None:
        self._directory = TemporaryDirectory(prefix="holdfast-kafka-")
        self._told = Path(self._directory.name, "told")
        self._server: KafkaServer | None = None
        self._thread = Thread(target=self._start, name="broker")
        os.environ[_PLACE] = str(self._told)
        self._thread.start()

    def _start(self) -> None:
        try:
            server = KafkaServer(Path(self._directory.name, "kafka"))
            self._server = server
            server.start()
            told = server.url
        except ServerError as error:
            told = f"Kafka ({error})"
        fresh = self._told.with_suffix(".new")
        fresh.write_text(told)
        fresh.rename(self._told)

    def pytest_unconfigure(self) -> None:
        self._thread.join()
        if self._server is not None:
            self._server.stop()
        self._directory.cleanup()


def share_broker(config: pytest.Config) -> None:
    """Start one where this process only watches over workers, and they run everything."""
    is_worker = hasattr(config, "workerinput")
    is_all = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    given = os.environ.get("HOLDFAST_KAFKA_BOOTSTRAP")
    if not is_worker and is_all and not given and config.getoption("numprocesses", None):
        config.pluginmanager.register(SharedBroker())


def shared_broker() -> str:
    """Its address, or why there is none; '' where nobody has started one."""
    place = os.environ.get(_PLACE)
    if not place:
        return ""
    give_up_at = time.monotonic() + _WAIT_S
    while time.monotonic() < give_up_at:
        with suppress(FileNotFoundError):
            return Path(place).read_text()
        time.sleep(0.1)
    return f"Kafka (the broker of all tests was not there within {_WAIT_S:.0f} s)"
