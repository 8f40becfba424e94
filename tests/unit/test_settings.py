"""Settings come from the environment, once; a bad one is told by its name and value."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from engine.errors import SettingError
from engine.settings import Settings, settings_from


def test_given_nothing_then_the_defaults() -> None:
    assert settings_from({}) == Settings()
    assert settings_from({"HOLDFAST_RETENTION_MS": ""}) == Settings()


def test_given_variables_then_their_values() -> None:
    settings = settings_from({"HOLDFAST_REDIS_URL": "redis://a", "HOLDFAST_RETENTION_MS": "5"})
    assert (settings.redis_url, settings.retention_ms) == ("redis://a", 5)


@pytest.mark.parametrize("text", ["x", "-1", "0", "1.5", "١"])
def test_given_a_number_that_is_none_then_name_and_value_are_told(text: str) -> None:
    with pytest.raises(SettingError, match=rf"HOLDFAST_RETENTION_MS is {re.escape(repr(text))}"):
        settings_from({"HOLDFAST_RETENTION_MS": text})


def test_how_much_of_what_was_shipped_is_kept_may_be_0() -> None:
    settings = settings_from({"HOLDFAST_OUTBOX_KEEP_MS": "0", "HOLDFAST_OUTBOX_KEEP_BYTES": "0"})
    assert (settings.outbox_keep_ms, settings.outbox_keep_bytes) == (0, 0)
    with pytest.raises(SettingError, match=r"HOLDFAST_OUTBOX_KEEP_MS is '-1'.*from 0 to 999,"):
        settings_from({"HOLDFAST_OUTBOX_KEEP_MS": "-1"})


@pytest.mark.parametrize("digits", [16, 400, 5_000])
def test_a_number_that_no_part_could_work_with_is_refused_at_the_door(digits: int) -> None:
    """A float overflows, Lua rounds, and of more than 4,300 digits Python makes no number at all."""
    for name in ("HOLDFAST_OUTBOX_KEEP_MS", "HOLDFAST_RETENTION_MS"):
        with pytest.raises(SettingError, match=f"{name} is '9+'; it must be a whole number from"):
            settings_from({name: "9" * digits})
    assert settings_from({"HOLDFAST_RETENTION_MS": "9" * 15}).retention_ms == 10**15 - 1


def test_given_two_partitions_then_it_is_refused() -> None:
    with pytest.raises(SettingError, match="HOLDFAST_PARTITIONS is 2"):
        settings_from({"HOLDFAST_PARTITIONS": "2"})


def test_every_setting_stands_in_the_documentation_with_its_default(repository: Path) -> None:
    documented = (repository / "docs" / "operations.md").read_text()
    for field in msgspec.structs.fields(Settings):
        if field.name != "partitions":
            name = "HOLDFAST_" + field.name.upper()
            row = re.search(rf"^\|.*`{name}`.*\|$", documented, re.MULTILINE)
            assert row, name
            if field.type is int:
                assert f"| {field.default}" in row[0], name


@pytest.mark.parametrize("url", ["nonsense", "redis://shop:secret@127.0.0.1:99999"])
def test_given_a_redis_url_that_is_none_then_it_is_told_without_its_password(url: str) -> None:
    with pytest.raises(SettingError, match="HOLDFAST_REDIS_URL is") as refusal:
        settings_from({"HOLDFAST_REDIS_URL": url})
    assert "secret" not in str(refusal.value)
