"""The house is in order: folders point one way, files stay short, nothing of this machine is in them."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

HOUSE = Path(__file__).resolve().parent.parent.parent
OURS = {"engine", "persister", "api", "bench"}
MAY_IMPORT = {
    "engine": {"engine"},
    "persister": {"persister", "engine"},
    "api": {"api", "persister", "engine"},
    "bench": {"bench", "engine", "api"},
}
TOP_LEVEL = {
    *OURS,
    "lua",
    "tests",
    "docs",
    "requirements",
    ".ci",
    ".dockerignore",
    ".gitignore",
    "CHANGELOG.md",
    "Dockerfile",
    "LICENSE",
    "Makefile",
    "README.md",
    "docker-compose.yml",
    "pyproject.toml",
}
PYTHON_LINES_MAX = 400
SCRIPT_LINES_MAX = 62


def tracked() -> list[str]:
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=HOUSE,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    return [name for name in listing if (HOUSE / name).exists()]


def test_no_module_of_the_benchmark_hides_another() -> None:
    """Locust looks for modules in its file's directory first."""
    hidden = OURS | set(sys.stdlib_module_names)
    assert not {Path(name).stem for name in tracked() if name.startswith("bench/")} & hidden


def modules_of(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def imported_by(path: Path) -> set[str]:
    return modules_of(path) & OURS


def test_what_tests_import_is_asked_for_by_name() -> None:
    """Not only because something else needs it today."""
    asked = {
        re.split(r"\W", line.replace("-", "_"))[0]
        for path in (HOUSE / "requirements").glob("*.in")
        for line in path.read_text().splitlines()
        if not line.startswith("-")
    }
    packages = packages_distributions()
    for path in (HOUSE / "tests").rglob("*.py"):
        for name in modules_of(path) - OURS - {"lua", "tests"}:
            given_by = {package.lower().replace("-", "_") for package in packages.get(name, ())}
            assert not given_by or given_by & asked, f"{path.relative_to(HOUSE)} imports {name}"


def test_what_is_installed_names_no_place_to_fetch_it_from() -> None:
    """Neither a directory nor a registry: pip knows where to look, and the hashes say what it is."""
    for path in (HOUSE / "requirements").iterdir():
        lines = path.read_text().splitlines()
        places = [
            line for line in lines if "://" in line or re.match(r"--?(find|index|extra)", line)
        ]
        assert not places, f"{path.relative_to(HOUSE)}: {places}"


@pytest.mark.parametrize("folder", sorted(OURS))
def test_arrows_between_folders_run_one_way(folder: str) -> None:
    for path in (HOUSE / folder).rglob("*.py"):
        assert imported_by(path) <= MAY_IMPORT[folder], path.relative_to(HOUSE)


def test_nothing_else_stands_on_the_top_level() -> None:
    assert {name.split("/")[0] for name in tracked()} <= TOP_LEVEL


def test_files_are_one_noun_long() -> None:
    for name in tracked():
        if name.endswith(".py"):
            count = len((HOUSE / name).read_text().splitlines())
            assert count <= PYTHON_LINES_MAX, f"{name} has {count} lines"


def test_the_body_of_a_script_fits_a_screen() -> None:
    for path in (HOUSE / "lua").glob("*.lua"):
        lines = path.read_text().splitlines()
        body = [line for line in lines[1:] if line.strip() and not line.startswith("--")]
        assert len(body) <= SCRIPT_LINES_MAX, f"{path.name} has {len(body)} lines below its header"


def test_every_shared_lua_file_says_what_it_is_and_is_included() -> None:
    everything = "".join(path.read_text() for path in (HOUSE / "lua").rglob("*.lua"))
    for path in (HOUSE / "lua" / "lib").glob("*.lua"):
        assert path.read_text().startswith("-- "), path.name
        assert re.search(rf"@include (lib/)?{path.name}$", everything, re.MULTILINE), path.name


def test_every_module_has_a_docstring() -> None:
    for folder in sorted(OURS):
        for path in (HOUSE / folder).rglob("*.py"):
            assert ast.get_docstring(ast.parse(path.read_text())), path.relative_to(HOUSE)


def test_no_path_of_a_machine_and_no_download_address_is_in_a_file() -> None:
    for name in tracked():
        if name.startswith("tests/data/") or name == "LICENSE" or name.endswith(".png"):
            continue
        text = (HOUSE / name).read_text()
        assert not re.search(r"(?<![\w.])/(wor[k]|roo[t]|hom[e])/\w", text), name
        if name.startswith("requirements/"):
            assert "://" not in text, name
