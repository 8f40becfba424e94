"""The page and the pictures of a benchmark."""

from __future__ import annotations

from pathlib import Path

from bench.figures import Figure
from bench.table import cells_of


def draw(figures: list[Figure], directory: Path) -> list[Path]:
    """PNG files: measured against target, and latencies by percentile."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    directory.mkdir(parents=True, exist_ok=True)
    written = []
    judged = [f for f in figures if f.met is not None and f.target and f.value is not None]
    if judged:
        shares = [_share(each) for each in judged]
        height = 0.4 * len(judged) + 1.2
        picture, axes = pyplot.subplots(figsize=(8, height), layout="constrained")
        colours = ["tab:green" if each.met else "tab:red" for each in judged]
        axes.barh([each.name for each in judged], shares, color=colours)
        axes.axvline(1.0, color="black", linewidth=1)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("measured by target (at the line it is met; log scale)")
        axes.invert_yaxis()
        written.append(directory / "targets.png")
        picture.savefig(written[-1], dpi=110)
        pyplot.close(picture)
    latencies = [f for f in figures if f.unit == "ms" and "p50" in f.notes]
    if latencies:
        picture, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
        percentiles = ["p50", "p90", "p99", "p99.9"]
        for each in latencies:
            axes.plot(
                percentiles, [each.notes[p] for p in percentiles], marker="o", label=each.name
            )
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_ylabel("ms, from the intended start")
        axes.grid(True, which="both", alpha=0.3)
        axes.legend()
        written.append(directory / "latencies.png")
        picture.savefig(written[-1], dpi=110)
        pyplot.close(picture)
    return written


def _share(each: Figure) -> float:
    """Measured by target, so that more is better."""
    judged = each.value if each.ratio is None else each.ratio
    assert judged is not None and each.target is not None
    return each.target / judged if each.at_most else judged / each.target


#: Whose processor time is told, by the figure and the note that has it.
_COSTS = (
    ("Redis, 512 a call", "engine_hot_durable", "redis_us"),
    ("engine and load process, 512 a call", "engine_hot_durable", "client_us"),
    ("Redis, batches of 200", "http_batch", "redis_us"),
    ("HTTP worker with its engine, batches of 200", "http_batch", "worker_us"),
    ("Redis, one a request", "http_reserve", "redis_us"),
    ("HTTP worker with its engine, one a request", "http_reserve", "worker_us"),
    ("relay", "pipeline_drain", "relay_us"),
    ("broker", "pipeline_drain", "broker_us"),
    ("persister", "pipeline_drain", "persister_us"),
)


def _costs(figures: list[Figure]) -> list[str]:
    notes = {figure.name: figure.notes for figure in figures}
    found = [(where, notes.get(name, {}).get(note)) for where, name, note in _COSTS]
    rows = [f"| {where} | {value:.1f} |" for where, value in found if value is not None]
    return ["| where | µs |", "|---|---|", *rows] if rows else ["Not measured in this run."]


def write_report(
    path: Path,
    machine: dict[str, str],
    versions: dict[str, str],
    settings: dict[str, str],
    figures: list[Figure],
    busy: str = "",
) -> None:
    """bench/REPORT.md: the latest figures and how to repeat them; ``busy`` says what disturbed them."""
    head = "| figure | measured | unit | min–max | baseline | ratio | target | verdict |"
    rows = [f"| `{f.name}` | {' | '.join(cells_of(f))} |" for f in figures]
    what = [
        f"* `{f.name}`: {f.what}.{' ' + f.why + '.' if f.why else ''}" for f in figures if f.what
    ]
    notes = [
        f"* `{f.name}`: " + ", ".join(f"{name} {value:,.1f}" for name, value in f.notes.items())
        for f in figures
        if f.notes
    ]
    told = [f"* {name}: {value}" for name, value in (machine | versions).items()]
    text = f"""# Report of the benchmark

Made by `python -m bench {settings["part"]} --seconds {settings["seconds"]} --repeats {settings["repeats"]}
--report bench/REPORT.md --plots bench/plots` (`make bench` runs all parts). Every figure is the median of its
runs, each in turn with its baseline, everything on the same machine; after each run it is audited: no unit
oversold, none lost, every acknowledged reservation in Redis and in the ledger. A run that fails its audit
has no figure. Runs in which Redis or its disk stood still (503) are left out, and told.
{f"{chr(10)}**{busy}**{chr(10)}" if busy else ""}
{head}
|---|---|---|---|---|---|---|---|
{chr(10).join(rows)}

## Cost of one reservation

Processor time from the runs above, in µs. The load process makes its commands, too; Redis' share grows
where few travel in a call, that of HTTP where each has a request of its own.

{chr(10).join(_costs(figures))}

![measured by target](plots/targets.png)

![latencies](plots/latencies.png)

## What is measured

{chr(10).join(what)}

## More of the runs

{chr(10).join(notes)}

## Where

{chr(10).join(told)}
"""
    path.write_text(text)
