"""The command line of the benchmark: what to measure, for how long, and where to write it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import msgspec
from rich.console import Console

from api.servers import ServerError
from bench import engine_figures, http_figures, memory, peers, pipeline
from bench.figures import Figure, say
from bench.machine import Watch, machine, versions
from bench.peers.buyers import PeerError
from bench.place import BenchError
from bench.report import draw, write_report
from bench.table import print_table

#: Each part's figures of (seconds, repeats).
PARTS: dict[str, Callable[[float, int], list[Figure]]] = {
    "engine": engine_figures.figures,
    "http": http_figures.figures,
    "pipeline": pipeline.figures,
    "peers": peers.figures,
    "memory": lambda seconds, repeats: memory.figures(max(1_000, int(seconds * 100_000))),
}


class Result(msgspec.Struct, frozen=True):
    """What ``--json`` writes. ``busy``: why the figures are lower than this machine can do, '' where
    nothing else was at work."""

    machine: dict[str, str]
    versions: dict[str, str]
    settings: dict[str, str]
    figures: list[Figure]
    busy: str


@click.command()
@click.argument("part", type=click.Choice([*PARTS, "all"]))
@click.option("--seconds", default=2.0, show_default=True, type=click.FloatRange(0.05, 60))
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1, 20))
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Write the figures here."
)
@click.option("--plots", type=click.Path(path_type=Path), help="Draw them into this directory.")
@click.option("--report", type=click.Path(path_type=Path), help="Write the page of figures here.")
def main(
    part: str,
    seconds: float,
    repeats: int,
    json_file: Path | None,
    plots: Path | None,
    report: Path | None,
) -> None:
    """Measure Holdfast on this machine, each figure in turn with its baseline, and audit every run.

    Exit code 0 measured (whether or not targets are met), 1 an audit found something wrong, 2 could not
    measure.
    """
    began_s, watch = time.monotonic(), Watch()
    if watch.busy_before:
        say(watch.busy_before)
    figures: list[Figure] = []
    try:
        for name in PARTS if part == "all" else [part]:
            figures += PARTS[name](seconds, repeats)
    except (BenchError, PeerError, ServerError) as error:
        click.echo(f"bench: {error}", err=True)
        sys.exit(2)
    settings = {"seconds": f"{seconds:g}", "repeats": str(repeats), "part": part}
    load = watch.ends()
    result = Result(machine() | load.told, versions(), settings, figures, load.busy)
    if json_file is not None:
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
    if plots is not None:
        draw(figures, plots)
    if report is not None:
        write_report(report, result.machine, result.versions, settings, figures, load.busy)
    print_table(figures, Console())
    if load.busy:
        say(load.busy)
    say(f"measured in {time.monotonic() - began_s:.0f} s")
    sys.exit(1 if any(each.audit is False for each in figures) else 0)
