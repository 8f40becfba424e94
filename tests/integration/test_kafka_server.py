"""A real broker as a child process: killed and started again, nothing acknowledged lost."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from api.address import listen
from api.kafka_server import KafkaServer, find_kafka
from api.ports import port_is_free
from api.processes import identify
from api.servers import ServerError
from api.supervisor import Supervisor

KILLS = 3
ACKNOWLEDGED_BEFORE_KILL = 5_000
UNDER_WAY_MAX = 20_000


def make_broker(directory: Path) -> KafkaServer:
    try:
        return KafkaServer(directory / "with space, comma and ü")
    except ServerError as error:
        pytest.skip(f"NOT TESTED: the Kafka in use isn't ours ({error})")


@pytest.fixture
def broker(tmp_path: Path, kafka_bootstrap: str) -> Iterator[KafkaServer]:
    """A broker of the test's own, not started."""
    server = make_broker(tmp_path)
    yield server
    server.kill()


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory, kafka_bootstrap: str
) -> Iterator[KafkaServer]:
    """A broker that runs, for tests that leave it running."""
    server = make_broker(tmp_path_factory.mktemp("running"))
    server.start()
    yield server
    server.kill()


def wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def create_topic(bootstrap: str) -> str:
    topic = f"test-{uuid4()}"
    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(timeout=60)
    return topic


class Sender:
    """Sends 0, 1, 2, … and keeps which of them were acknowledged."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self._topic = topic
        self._numbers = itertools.count()
        self.acknowledged: list[int] = []
        self.producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "acks": "all",
                "enable.idempotence": True,
                "message.timeout.ms": 0,
                "reconnect.backoff.max.ms": 200,
            }
        )

    def send(self, count: int) -> None:
        for number in itertools.islice(self._numbers, count):
            self.producer.produce(self._topic, str(number).encode(), on_delivery=self._delivered)
            self.producer.poll(0)
        while len(self.producer) > UNDER_WAY_MAX:
            self.producer.poll(0.1)

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        assert error is None, error
        self.acknowledged.append(int(message.value() or b""))


def read_all(bootstrap: str, topic: str) -> list[int]:
    """The numbers of the topic, from the first offset to the end as it is now."""
    partition = TopicPartition(topic, 0, 0)
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "unused"})
    try:
        consumer.assign([partition])
        _, end = consumer.get_watermark_offsets(partition, timeout=60)
        numbers: list[int] = []
        deadline = time.monotonic() + 60
        while len(numbers) < end:
            assert time.monotonic() < deadline, f"{len(numbers)} of {end} read"
            for message in consumer.consume(10_000, timeout=1):
                assert message.error() is None, message.error()
                numbers.append(int(message.value()))
        return numbers
    finally:
        consumer.close()


def test_what_is_sent_comes_back_in_order(kafka_bootstrap: str) -> None:
    topic = create_topic(kafka_bootstrap)
    sender = Sender(kafka_bootstrap, topic)
    sender.send(1_000)
    assert sender.producer.flush(60) == 0
    assert sender.acknowledged == list(range(1_000))
    assert read_all(kafka_bootstrap, topic) == list(range(1_000))


def test_what_was_acknowledged_survives_kill_9_in_mid_flow(broker: KafkaServer) -> None:
    broker.start()
    url, ports = broker.url, (broker.port, broker.controller_port)
    topic = create_topic(url)
    sender = Sender(url, topic)

    for kill in range(1, KILLS + 1):
        pid = broker.pid
        while len(sender.acknowledged) < kill * ACKNOWLEDGED_BEFORE_KILL:
            sender.send(1_000)
        sender.send(1_000)
        broker.kill()
        sender.producer.poll(0)
        before = list(sender.acknowledged)
        assert len(sender.producer) > 0, "nothing was under way"
        broker.start()
        assert broker.pid != pid
        assert (broker.url, (broker.port, broker.controller_port)) == (url, ports)
        assert set(before) <= set(read_all(url, topic))

    assert sender.producer.flush(60) == 0
    assert read_all(url, topic) == sender.acknowledged == list(range(len(sender.acknowledged)))


def test_a_topic_is_not_made_by_asking_for_it(running: KafkaServer) -> None:
    admin = AdminClient({"bootstrap.servers": running.url})
    asked = admin.list_topics(f"test-{uuid4()}", timeout=60).topics
    assert all(topic.error is not None for topic in asked.values())
    assert not admin.list_topics(timeout=60).topics


def test_a_supervised_broker_comes_back_and_ends_when_told(broker: KafkaServer) -> None:
    said: list[str] = []
    supervisor = Supervisor(said.append, lambda parts: None)
    supervisor.start(broker, stop_order=0)
    try:
        wait_until(broker.is_ready)
        first = broker.pid
        broker.kill()
        assert not broker.answers()
        supervisor.watch()
        supervisor.watch()
        wait_until(broker.is_ready)
        assert broker.pid != first
    finally:
        supervisor.stop()
    assert "kafka ended, restarting: killed by SIGKILL" in said[0]
    assert [line.partition(" ")[2] for line in said[1:]] == ["kafka: stopped"]
    assert not broker.running()
    assert port_is_free(broker.port) and port_is_free(broker.controller_port)


def test_a_second_broker_on_the_same_data_is_refused(running: KafkaServer) -> None:
    second = KafkaServer(running.directory)
    assert second.leftover() == identify(running.pid)
    with pytest.raises(ServerError, match=rf"a Kafka \(pid {running.pid}\) already runs on .*end"):
        second.start()
    assert not second.running()
    assert running.is_ready()


def test_a_broker_never_takes_a_stranger_on_its_port_for_itself(
    running: KafkaServer, tmp_path: Path
) -> None:
    second = KafkaServer(tmp_path / "second", port=running.port)
    with pytest.raises(ServerError, match=r"kafka did not start: exit code 1: .*BindException"):
        second.start()
    assert not second.running()
    assert running.is_ready()


def test_why_a_broker_could_not_start_is_told(broker: KafkaServer) -> None:
    """Its ports were given; one that it chose itself it chooses anew."""
    told = KafkaServer(broker.directory, controller_port=broker.controller_port)
    with listen("127.0.0.1", broker.controller_port):
        with pytest.raises(ServerError, match=r"not start: .*BindException: .*log: .*kafka\.log"):
            told.start()
        broker.start()
    assert broker.is_ready()


def test_a_first_start_that_was_cut_short_is_done_again(broker: KafkaServer) -> None:
    cut = broker.directory / "format"
    cut.mkdir(parents=True)
    (cut / "meta.properties").write_text("version=1\n")
    (broker.directory / "not-ours.txt").write_text("kept")
    broker.start()
    assert broker.is_ready()
    assert "cluster.id=" in (broker.data / "meta.properties").read_text()
    assert (broker.directory / "not-ours.txt").read_text() == "kept"


def test_no_java_is_told_with_the_remedy(tmp_path: Path) -> None:
    for path in ({"PATH": ""}, {"PATH": str(tmp_path)}, {}):
        with pytest.raises(
            ServerError, match=r"no Java found.*: install Java 17 .* or set HOLD"
        ) as told:
            find_kafka(path)
        assert "\n" not in str(told.value)


def test_a_java_too_old_is_told_with_the_remedy(tmp_path: Path) -> None:
    java = tmp_path / "java"
    for answer in ("echo 'openjdk 11.0.2 2019-01-15'", "exit 1"):
        java.write_text(f"#!/bin/sh\n{answer}\n")
        java.chmod(0o755)
        with pytest.raises(ServerError, match=r"is not Java 17 or newer: install Java 17"):
            find_kafka({"PATH": str(tmp_path)})


def test_no_jars_are_told_with_the_remedy(tmp_path: Path, broker: KafkaServer) -> None:
    with pytest.raises(ServerError, match=r"no Kafka in .*share.kafka: .* run 'make -B setup'"):
        find_kafka(os.environ, tmp_path)
    assert find_kafka().version == broker.version
