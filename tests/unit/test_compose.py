"""What can be checked of docker-compose.yml without an engine."""

from __future__ import annotations

import re
import subprocess
from xml.etree import ElementTree

import click
import msgspec
import pytest
from composed import COMPOSE, OURS, SERVICES, words_of
from running import REPOSITORY, environment

from api.cli import cli
from engine.settings import Settings

SETTINGS = {f"HOLDFAST_{field.name.upper()}" for field in msgspec.structs.fields(Settings)}
PROCESSES = [name for name in OURS if name != "db-init"]


def test_every_part_has_a_service() -> None:
    servers = {"redis", "kafka", "postgres"}
    ours = {"db-init", "api", "sweeper", "relay", "persister", "reconcile"}
    assert set(SERVICES) == servers | ours == servers | set(OURS)


@pytest.mark.parametrize("name", PROCESSES)
def test_our_commands_exist_with_these_options(name: str) -> None:
    words = words_of(name)
    assert words[0] == "holdfast"
    command = cli.get_command(click.Context(cli), words[1])
    assert command is not None
    context = command.make_context(words[1], words[2:])
    assert context.params.get("port", 8080) == 8080


@pytest.mark.parametrize("name", PROCESSES)
def test_our_environment_variables_are_settings(name: str) -> None:
    assert set(OURS[name]["environment"]) <= SETTINGS


def test_db_init_ends_for_good_before_whoever_needs_its_logins() -> None:
    assert OURS["db-init"]["restart"] == "no"
    given = set(OURS["db-init"]["environment"])
    assert given - SETTINGS == set(re.findall(r"\$(\w+)", words_of("db-init")[-1]))
    for name in ("api", "persister"):
        wanted = OURS[name]["depends_on"]["db-init"]
        assert wanted == {"condition": "service_completed_successfully"}


def test_no_process_has_the_superusers_password() -> None:
    superuser = SERVICES["postgres"]["environment"]["POSTGRES_USER"]
    users = {
        name: OURS[name]["environment"]
        .get("HOLDFAST_POSTGRES_URL", "//-:")
        .split("/")[2]
        .split(":")[0]
        for name in PROCESSES
    }
    assert superuser not in users.values()
    assert users == {
        "api": "holdfast_api",
        "persister": "holdfast_persister",
        "reconcile": "holdfast_persister",
        "relay": "-",
        "sweeper": "-",
    }


def test_redis_answers_after_the_fsync_and_never_evicts() -> None:
    command = " ".join(SERVICES["redis"]["command"].split())
    for option in ("--appendonly yes", "--appendfsync always", "--maxmemory-policy noeviction"):
        assert option in command


def test_foreign_images_are_pinned_by_version() -> None:
    for name in set(SERVICES) - set(OURS):
        assert re.search(r":\d+\.\d+[\w.-]*$", SERVICES[name]["image"]), name


def test_kafka_is_of_the_release_that_the_tests_run_on() -> None:
    pom = ElementTree.parse(REPOSITORY / "api" / "kafka.pom.xml")
    version = pom.findtext(".//dependency[artifactId='kafka_2.13']/version") or ""
    image = SERVICES["kafka"]["image"].split(":")[1]
    assert image.split(".")[:2] == version.split(".")[:2]


def test_data_lives_in_volumes() -> None:
    for name in ("redis", "kafka", "postgres"):
        assert SERVICES[name]["volumes"][0].split(":")[0] in COMPOSE["volumes"]
    logs = SERVICES["kafka"]["environment"]["KAFKA_LOG_DIRS"]
    assert SERVICES["kafka"]["volumes"][0].split(":")[1] == logs


def test_whoever_is_waited_for_says_when_it_is_healthy() -> None:
    for name, service in OURS.items():
        for other, wanted in service["depends_on"].items():
            if other == "db-init":
                continue
            assert wanted == {"condition": "service_healthy"}, name
            assert "healthcheck" in SERVICES[other], other


def test_servers_are_stopped_after_whoever_uses_them() -> None:
    """Compose ends a service before those it depends on."""
    for name, service in OURS.items():
        for variable, value in service["environment"].items():
            for server in ("redis", "kafka", "postgres"):
                if f"{server}:" in value.partition("://")[2] or value.startswith(f"{server}:"):
                    assert server in _needed_by(name), f"{name}: {variable}"


def test_compose_itself_can_read_it() -> None:
    """Needs the client's compose plugin, no engine."""
    try:
        subprocess.run(["docker", "compose", "version"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("docker compose is missing")
    done = subprocess.run(
        ["docker", "compose", "-f", str(REPOSITORY / "docker-compose.yml"), "config", "--quiet"],
        env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not done.stderr


def _needed_by(name: str) -> set[str]:
    """All that must run before a service does."""
    direct = set(SERVICES[name].get("depends_on", {}))
    return direct.union(*[_needed_by(other) for other in direct])
