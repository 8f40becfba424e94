"""The schema of an event, for tests that compare it with what is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

REPOSITORY = Path(__file__).resolve().parent.parent
SCHEMAS: dict[int, dict[str, Any]] = {
    version: json.loads((REPOSITORY / "docs" / f"event.v{version}.schema.json").read_text())
    for version in (1, 2)
}
SCHEMA = SCHEMAS[2]
VALIDATORS = {version: Draft202012Validator(schema) for version, schema in SCHEMAS.items()}
TYPES: list[str] = SCHEMA["properties"]["type"]["examples"]
BASE: dict[str, Any] = {
    "version": 2,
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


def errors(event: dict[str, Any], version: int = 2) -> list[str]:
    """What is wrong with an event by the schema of that version; empty where it fits."""
    found = VALIDATORS[version].iter_errors(event)
    return [f"{error.json_path}: {error.message}" for error in found]
