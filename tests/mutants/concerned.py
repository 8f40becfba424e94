"""Which tests a file concerns: found by names, imports and includes, the nearest first.

A Lua file: the scripts that include it, and in tests/lua the files that name one of them; where none does,
the tests of the modules that call it. A module: the tests named after it, those that import it, those named
after the modules that import it, or one of these. The queries: tests named after the modules that use one.
What names the very file in its docstring comes first.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

FOLDERS = ("engine", "persister", "api")
QUERIES = "persister/sql/queries.sql"
#: What a command of the tests' kit is to its script, where the two have other names.
_WORDS = {"reservations": "GetReservation", "stock": "GetStock", "replay": "rebuild"}


class Tree:
    """The files of a checkout."""

    def __init__(self, root: Path) -> None:
        self._root = root
        found = sorted((root / "tests").glob("*/test_*.py"))
        self._tests = [test for test in found if test.parent.name != "reliability"]  # too long

    def tests_of(self, path: str) -> list[str]:
        """Test files for a file, the nearest first; none where nothing is found."""
        if path.endswith(".lua"):
            found = self._of_script(path)
        elif path.endswith(".sql"):
            users = [module for module in self._modules() if self._uses_queries(module)]
            found = [test for module in users for test in self._named_after(module)]
        else:
            importing = self._importing(path)
            found = self._of_module(path) + [t for m in importing for t in self._named_after(m)]
        nearest = [test for test in self._tests if path in _docstring(test)]
        return [str(t.relative_to(self._root)) for t in dict.fromkeys([*nearest, *found])]

    def _of_script(self, path: str) -> list[Path]:
        scripts = [s for s in (self._root / "lua").glob("*.lua") if path in self._included(s)]
        near, far = [], []
        for test in self._tests:
            if test.parent.name != "lua":
                continue
            text = test.read_text()
            if any(f"lua/{script.name}" in _docstring(test) for script in scripts):
                near.append(test)
            elif any(re.search(rf"\b{_WORDS.get(s.stem, s.stem)}\b", text) for s in scripts):
                far.append(test)
        return near + far or [t for script in scripts for t in self._of_callers(script.stem)]

    def _of_callers(self, script: str) -> list[Path]:
        """Of the modules that call it by its name."""
        callers = [m for m in self._modules() if f'"{script}"' in (self._root / m).read_text()]
        return [test for module in callers for test in self._of_module(module)]

    @cache  # noqa: B019
    def _included(self, script: Path) -> set[str]:
        """A script and all that it includes."""
        found: set[str] = set()
        waiting = [script]
        while waiting:
            file = waiting.pop()
            name = str(file.relative_to(self._root))
            if name not in found:
                found.add(name)
                targets = re.findall(r"^--- @include (\S+)$", file.read_text(), re.MULTILINE)
                waiting += [file.parent / target for target in targets]
        return found

    def _of_module(self, path: str) -> list[Path]:
        name = _dotted(path)
        importing = [
            test for test in self._tests if name in self._imports(str(test.relative_to(self._root)))
        ]
        return self._named_after(path) + importing

    def _importing(self, path: str) -> list[str]:
        """Modules that import it, then those that import one of these, and so on."""
        found = [path]
        for module in found:  # grows meanwhile
            name = _dotted(module)
            found += [m for m in self._modules() if name in self._imports(m) and m not in found]
        return found[1:]

    def _named_after(self, path: str) -> list[Path]:
        stem = Path(path).stem
        return [test for test in self._tests if re.match(rf"test_{stem}(_|\.)", test.name)]

    @cache  # noqa: B019
    def _modules(self) -> list[str]:
        paths = [path for folder in FOLDERS for path in sorted((self._root / folder).rglob("*.py"))]
        return [str(path.relative_to(self._root)) for path in paths]

    def _uses_queries(self, module: str) -> bool:
        return "QUERIES[" in (self._root / module).read_text() or "sides" in module

    @cache  # noqa: B019
    def _imports(self, path: str) -> frozenset[str]:
        names: set[str] = set()
        for node in ast.walk(ast.parse((self._root / path).read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        return frozenset(names)


@cache
def _docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text())) or ""


def _dotted(path: str) -> str:
    return path.removesuffix(".py").replace("/", ".")
