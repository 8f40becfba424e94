"""How a script is put together, and that the fast parser of replies is the one in use."""

from __future__ import annotations

from redis._parsers import _HiredisParser
from redis.connection import DefaultParser

from engine.scripts import NAMES, Scripts, assemble


def test_every_file_is_included_once_and_before_it_is_used() -> None:
    for name in NAMES:
        text = assemble(name)
        assert "@include" not in text
        assert text.count("local function integer(n)") == 1, name


def test_the_first_line_is_left_out_where_the_server_knows_none() -> None:
    assert Scripts.for_server({"redis_version": "6.2.14"}).sha1 == Scripts(shebang=False).sha1
    assert Scripts.for_server({"redis_version": "7.0.15"}).sha1 == Scripts(shebang=True).sha1
    assert Scripts(shebang=True).sha1["reserve"] != Scripts(shebang=False).sha1["reserve"]


def test_replies_are_parsed_by_hiredis() -> None:
    assert DefaultParser is _HiredisParser
