"""Printing for a person: names that somebody else chose steer no terminal, begin no line, are no markup."""

from __future__ import annotations

import click
from rich.text import Text

from engine.addresses import printable


def tell(*lines: object, err: bool = False) -> None:
    """Print lines, each whole, with control characters and line breaks in it escaped."""
    for line in lines:
        click.echo(printable(str(line)), err=err)


def cell(value: object, style: str = "") -> Text:
    """The same for a cell of a table or a line of a console."""
    return Text(printable(str(value)), style=style)
