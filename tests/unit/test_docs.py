"""What README and docs tell to type can be typed: each of our commands there exists, with its options."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from api.cli import cli

HOUSE = Path(__file__).resolve().parent.parent.parent
PAGES = [HOUSE / "README.md", *sorted((HOUSE / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"(?:^|[\s/(=])holdfast ([a-z-][^|)&>]*)")


def commands() -> list[str]:
    found = []
    for page in PAGES:
        for block in _BLOCK.findall(page.read_text()):
            for line in block.splitlines():
                is_typed = line.startswith(("$ ", "holdfast ", ".venv/")) or "bin/holdfast" in line
                match = _COMMAND.search(line) if is_typed else None
                if match:
                    found.append(f"{page.name}: {match[1].strip()}")
    return found


COMMANDS = commands()


def test_there_are_commands_in_the_docs() -> None:
    assert len(COMMANDS) > 20, COMMANDS


@pytest.mark.parametrize("told", COMMANDS)
def test_each_command_in_the_docs_exists_with_its_options(told: str) -> None:
    words = shlex.split(told.partition(": ")[2], comments=True)
    command: click.Command = cli
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(click.Context(command), words[0])
        assert found is not None, told
        command, words = found, words[1:]
    if words == ["--help"]:
        return
    command.make_context("holdfast", words)
