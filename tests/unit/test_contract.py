"""One word, one meaning: script headers, scripts, engine/statuses.py and the HTTP table agree."""

from __future__ import annotations

import re

import pytest

from api.problems import HTTP_STATUS, PROBLEMS
from engine.engine import _operations
from engine.scripts import LUA, NAMES, assemble
from engine.settings import Settings
from engine.statuses import Status

HOUSE = LUA.parent
WORDS = {status.value for status in Status}
INTERNAL = {Status.MORE_DUE}
#: Never answered by these scripts: the engine says so where no reply came or Redis refused.
BY_THE_ENGINE = {Status.STORE_FULL, Status.UNAVAILABLE}
SCRIPT_OF_HTTP = {
    "reserve": "reserve",
    "confirm": "confirm",
    "confirm part": "confirm",
    "release": "release",
    "release part": "release",
    "extend": "extend",
    "movement": "move",
}


def header_of(name: str) -> str:
    lines = (LUA / f"{name}.lua").read_text().splitlines()[1:]
    end = next(i for i, line in enumerate(lines) if not line.startswith("--") or "@include" in line)
    return "\n".join(lines[:end])


def statuses_in(text: str) -> set[str]:
    return set(re.findall(r"[a-z_]+", text)) & WORDS


def promised_by(name: str) -> set[str]:
    """Statuses that the RETURNS paragraph of a script names."""
    return statuses_in(header_of(name).split("RETURNS", 1)[1])


def returned_by(name: str) -> set[str]:
    """Status words that the assembled script has as string literals."""
    code = re.sub(r"--.*", "", assemble(name))
    return {word for word in re.findall(r"'([a-z_]+)'", code) if word in WORDS}


@pytest.mark.parametrize("name", NAMES)
def test_a_header_names_just_what_its_script_returns(name: str) -> None:
    by_absence = (
        {"unknown_sku", "unknown_reservation"} if name in ("stock", "reservations") else set()
    )
    assert promised_by(name) - by_absence == returned_by(name)


@pytest.mark.parametrize("operation", SCRIPT_OF_HTTP)
def test_the_http_table_pairs_just_what_the_script_returns(operation: str) -> None:
    table = {status.value for status in HTTP_STATUS[operation]}
    optional = {*BY_THE_ENGINE, Status.INVALID_REQUEST}
    promised = promised_by(SCRIPT_OF_HTTP[operation]) - INTERNAL - optional
    if operation in ("confirm", "release"):  # without lines there is no part to refuse
        promised -= {"exceeds_reservation"}
    assert table - optional == promised


def test_every_refusal_has_problem_details_with_the_same_http_status() -> None:
    for operation, table in HTTP_STATUS.items():
        for status, http in table.items():
            if http >= 400:
                assert PROBLEMS[status][0] == http, (operation, status)


def test_every_status_of_the_enum_is_used() -> None:
    used = {status for table in HTTP_STATUS.values() for status in table} | INTERNAL
    assert set(Status) == used


@pytest.mark.parametrize("name", NAMES)
def test_a_header_describes_keys_and_argv_that_the_script_uses(name: str) -> None:
    header, code = header_of(name), re.sub(r"--.*", "", assemble(name))
    for kind in ("KEYS", "ARGV"):
        paragraph = re.search(rf"^-- {kind}\s+1 (.*?)^-- [A-Z]", header, re.MULTILINE | re.DOTALL)
        assert paragraph, f"{name}.lua has no {kind} paragraph"
        described = 1 + len(re.findall(r"^--\s+\d+ ", paragraph[1], re.MULTILINE))
        used = {int(number) for number in re.findall(rf"{kind}\[(\d+)\]", code)}
        assert used <= set(range(1, described + 1)), (name, kind)
        if kind == "ARGV":
            assert used == set(range(1, described + 1)), name


def test_the_engine_calls_scripts_with_the_keys_and_arguments_their_headers_name() -> None:
    for operation in _operations(0, Settings()).values():
        header = header_of(operation.script)
        keys, argv = re.split(r"^-- ARGV", header, flags=re.MULTILINE)
        argv = argv.split("RETURNS")[0]
        assert len(operation.keys) == len(
            re.findall(r"^--\s+(?:KEYS\s+)?\d+ \w", keys, re.MULTILINE)
        )
        described = len(re.findall(r"^(?:--)?\s+\d+ ", argv, re.MULTILINE))
        assert len(operation.pack([])) + len(operation.arguments) == described, operation.script


KNOWN = ("known_extends", "known_movements", "known_reserves")


@pytest.mark.parametrize("name", KNOWN)
def test_what_is_known_is_told_by_words_of_the_script_that_a_full_server_refuses(name: str) -> None:
    told_by = {
        operation.known: operation.script for operation in _operations(0, Settings()).values()
    }
    assert promised_by(name) - {Status.STORE_FULL} < promised_by(told_by[name])


RUN_WHEN_FULL = (
    "adopt",
    "beat",
    "close",
    "confirm",
    "release",
    "expire",
    "open",
    "trim",
    "repair",
    "replay",
)
READ = ("stock", "reservations", *KNOWN)


@pytest.mark.parametrize("name", NAMES)
def test_the_first_line_says_what_a_full_server_may_do_with_the_script(name: str) -> None:
    first = (LUA / f"{name}.lua").read_text().splitlines()[0]
    flags = {
        **dict.fromkeys(RUN_WHEN_FULL, " flags=allow-oom"),
        **dict.fromkeys(READ, " flags=no-writes"),
    }
    assert first == "#!lua" + flags.get(name, "")


def test_the_docs_have_every_code_of_a_batch_with_its_http_status() -> None:
    """The table of docs/api.md against the one in api/problems.py, both ways."""
    page = (HOUSE / "docs" / "api.md").read_text()
    table = page.split("| op | code |")[1].split("\n\n")[0]
    told: dict[str, dict[str, set[int]]] = {}
    ops: list[str] = []
    for row in table.splitlines()[2:]:
        op, codes, means = [cell.strip() for cell in row.strip("|").split("|")]
        ops = op.split(", ") if op else ops
        names = ["reserve", "confirm", "release", "extend", "movement"] if ops == ["any"] else ops
        numbers = {int(number) for number in re.findall(r"\b[2-5]\d\d\b", means)}
        for name in names:
            for code in re.findall(r"`(\w+)`", codes):
                told.setdefault(name, {}).setdefault(code, set()).update(numbers)
    expected: dict[str, dict[str, set[int]]] = {}
    for operation, statuses in HTTP_STATUS.items():
        name = operation.removesuffix(" part")
        if name not in ("reservation", "stock"):
            for status, http in statuses.items():
                expected.setdefault(name, {}).setdefault(status.value, set()).add(http)
    assert told == expected
