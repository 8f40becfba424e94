"""What can be checked of docker-compose.yml without an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from api.cli import cli
from engine.settings import Settings

COMPOSE: dict[str, Any] = yaml.safe_load(
    (Path(__file__).resolve().parent.parent.parent / "docker-compose.yml").read_text()
)
OURS = {name: s for name, s in COMPOSE["services"].items() if "build" in s}
SETTINGS = {f"HOLDFAST_{field.name.upper()}" for field in msgspec.structs.fields(Settings)}


def test_every_part_has_a_service() -> None:
    servers, ours = {"redis", "kafka", "postgres"}, {"api", "sweeper", "relay", "persister"}
    assert set(COMPOSE["services"]) == servers | ours == servers | set(OURS)


@pytest.mark.parametrize("name", OURS)
def test_our_commands_exist_with_these_options(name: str) -> None:
    words = OURS[name]["command"].split()
    command = cli.commands[words[0]]
    context = command.make_context(words[0], words[1:])
    assert context.params.get("port", 8080) == 8080


@pytest.mark.parametrize("name", OURS)
def test_our_environment_variables_are_settings(name: str) -> None:
    assert set(OURS[name]["environment"]) <= SETTINGS


def test_redis_answers_after_the_fsync_and_never_evicts() -> None:
    command = " ".join(COMPOSE["services"]["redis"]["command"].split())
    for option in ("--appendonly yes", "--appendfsync always", "--maxmemory-policy noeviction"):
        assert option in command


def test_foreign_images_are_pinned_by_version() -> None:
    for name, service in COMPOSE["services"].items():
        if name not in OURS:
            assert any(character.isdigit() for character in service["image"].split(":")[1]), name


def test_data_lives_in_volumes() -> None:
    for name in ("redis", "kafka", "postgres"):
        assert COMPOSE["services"][name]["volumes"][0].split(":")[0] in COMPOSE["volumes"]


def test_whoever_is_waited_for_says_when_it_is_healthy() -> None:
    for name, service in OURS.items():
        for other, wanted in service["depends_on"].items():
            assert wanted == {"condition": "service_healthy"}, name
            assert "healthcheck" in COMPOSE["services"][other], other
