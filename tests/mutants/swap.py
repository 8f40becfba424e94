"""Plant a fault of Python into modules that are imported already: the code of a function is replaced, so that
whoever holds the function has the fault. Which is how one process can try thousands of them.

What is run at import (a constant, a default, a decorator) can't be planted so.
"""

from __future__ import annotations

import gc
import inspect
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any


def is_within_functions(before: str, after: str) -> bool:
    """Do these two texts of a module differ in the code of named functions and methods only?"""
    olds, news = [list(_bodies(compile(text, "", "exec"))) for text in (before, after)]
    if [_own(code) for code in olds] != [_own(code) for code in news]:
        return False
    names = Counter(each.co_qualname for body in news for each in _functions(body))
    changed = [
        new.co_qualname
        for pair in zip(olds, news, strict=True)
        for old, new in zip(*map(_functions, pair), strict=True)
        if old != new
    ]
    return all(names[name] == 1 and "<" not in name for name in changed) and [
        each.co_freevars for body in olds for each in _functions(body)
    ] == [each.co_freevars for body in news for each in _functions(body)]


def swap_in(file: str) -> None:
    """Have the functions of a module that is imported do what stands in its file by now."""
    bodies = _bodies(compile(Path(file).read_text(), file, "exec"))
    codes = {
        code.co_qualname: code
        for body in bodies
        for each in _functions(body)
        for code in _all(each)
    }
    for each in gc.get_objects():
        if type(each) is FunctionType and each.__code__.co_filename == file:
            code = codes.get(each.__code__.co_qualname)
            if code is not None and code.co_freevars == each.__code__.co_freevars:
                each.__code__ = code


def _bodies(code: CodeType) -> Iterator[CodeType]:
    """Of the module and of its classes: what is run at import."""
    yield code
    for each in code.co_consts:
        if isinstance(each, CodeType) and not each.co_flags & inspect.CO_OPTIMIZED:
            yield from _bodies(each)


def _functions(body: CodeType) -> list[CodeType]:
    codes = [each for each in body.co_consts if isinstance(each, CodeType)]
    return [each for each in codes if each.co_flags & inspect.CO_OPTIMIZED]


def _all(function: CodeType) -> Iterator[CodeType]:
    """It and those that are made in it: some are held by others already."""
    yield function
    for each in function.co_consts:
        if isinstance(each, CodeType):
            yield from _all(each)


def _own(body: CodeType) -> Any:
    consts = [(type(each), each) for each in body.co_consts if not isinstance(each, CodeType)]
    return body.co_code, consts, body.co_names, body.co_qualname, len(_functions(body))
