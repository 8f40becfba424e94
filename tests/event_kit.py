"""The schema of an event, for tests that compare it with what is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

REPOSITORY = Path(__file__).resolve().parent.parent
SCHEMA: dict[str, Any] = json.loads((REPOSITORY / "docs" / "event.v1.schema.json").read_text())
VALIDATOR = Draft202012Validator(SCHEMA)
TYPES: list[str] = SCHEMA["properties"]["type"]["enum"]
BASE: dict[str, Any] = {
    "version": 1,
    "partition": 0,
    "epoch": 1,
    "seq": 7,
    "at_ms": 1_800_000_000_000,
}
#: What stands in the place of an event that somebody took out.
DISCARD: dict[str, Any] = BASE | {
    "type": "discard",
    "reason": "quarantine 3 discarded by kim: the entry's bytes were cut",
}


def errors(event: dict[str, Any]) -> list[str]:
    """What is wrong with an event; empty where it fits."""
    return [f"{error.json_path}: {error.message}" for error in VALIDATOR.iter_errors(event)]
