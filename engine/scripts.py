"""The Lua scripts: find, put together, load, call.

``--- @include file.lua`` is replaced by that file's text, once each, in order. The first line
(``#!lua flags=…``) is put on only where the server knows it (Redis 7.0, Valkey 7.2).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import NoScriptError

LUA = Path(__file__).resolve().parent.parent / "lua"
NAMES = tuple(sorted(path.stem for path in LUA.glob("*.lua")))
_INCLUDE = re.compile(r"^--- @include (\S+)$", re.MULTILINE)


@cache
def assemble(name: str) -> str:
    """The text of ``lua/<name>.lua`` with all it includes, each file once, first line kept. As it was when it
    was first asked for: an upgrade on the disk doesn't reach a running process."""
    seen: set[Path] = set()

    def text_of(path: Path) -> str:
        def included(match: re.Match[str]) -> str:
            target = (path.parent / match[1]).resolve()
            if target in seen:
                return ""
            seen.add(target)
            return text_of(target)

        return _INCLUDE.sub(included, path.read_text(encoding="utf-8"))

    return text_of(LUA / f"{name}.lua")


class Scripts:
    """All scripts, in the form one server understands."""

    def __init__(self, *, shebang: bool) -> None:
        self._texts: dict[str, str] = {}
        for name in NAMES:
            text = assemble(name)
            self._texts[name] = text if shebang else text.split("\n", 1)[1]
        self.sha1 = {
            name: hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
            for name, text in self._texts.items()
        }

    @classmethod
    def for_server(cls, info: dict[str, Any]) -> Scripts:
        """Scripts for the server whose ``INFO server`` this is."""
        return cls(shebang=int(str(info["redis_version"]).split(".")[0]) >= 7)

    async def load(self, redis: AsyncRedis) -> None:
        """Make every script known to the server."""
        for text in self._texts.values():
            await redis.script_load(text)

    def call_sync(
        self, redis: Redis, name: str, keys: Sequence[str], args: Sequence[str | bytes | int]
    ) -> Any:
        """Call one script, loading it where the server has forgotten it."""
        try:
            return redis.evalsha(self.sha1[name], len(keys), *keys, *args)
        except NoScriptError:
            return redis.eval(self._texts[name], len(keys), *keys, *args)
