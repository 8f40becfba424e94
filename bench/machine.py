"""On which machine, with which programs a benchmark ran."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import psutil  # type: ignore[import-untyped]

from api.servers import choose_redis

#: Shares of the cores that others, or the host, may use beside a benchmark: the kernel's own work for us,
#: which counts as others', stays below.
OTHERS_MAX = 0.25
STEAL_MAX = 0.03
_PACKAGES = ("redis", "hiredis", "uvicorn", "uvloop", "starlette", "msgspec", "psycopg")


def machine() -> dict[str, str]:
    """Processor, cores, memory, system."""
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count() or 0),
        "memory_gib": f"{psutil.virtual_memory().total / 2**30:.0f}",
        "system": f"{platform.system()} {platform.release()}",
    }


class Load(NamedTuple):
    """What else was at work: ``told`` for the report, ``busy`` a sentence, '' where next to nothing was."""

    told: dict[str, str]
    busy: str


class Watch:
    """Watches what others do on this machine while a benchmark runs.

    Before it: the load average, and how much of the cores is used within half a second. During it: the
    processor time that isn't ours, and what the hypervisor took away (steal).
    """

    def __init__(self) -> None:
        self._cores = os.cpu_count() or 1
        self._loads = os.getloadavg()
        self._before = psutil.cpu_percent(interval=0.5) / 100
        self._began, self._ours_s = psutil.cpu_times(), _ours_s()

    @property
    def busy_before(self) -> str:
        """A sentence where others are at work before we begin; else ''."""
        if self._before <= OTHERS_MAX:
            return ""
        loads = " ".join(f"{load:.1f}" for load in self._loads)
        return (
            f"The machine was busy before the run began: {100 * self._before:.0f} % of {self._cores}"
            f" cores, load average {loads}; figures are too low, and only ratios within one run count."
        )

    def ends(self) -> Load:
        """What was seen until now."""
        ended, began = psutil.cpu_times(), self._began
        spent_s = {name: getattr(ended, name) - getattr(began, name) for name in ended._fields}
        # The time of guests is in user and nice, too.
        total_s = sum(s for name, s in spent_s.items() if not name.startswith("guest"))
        steal_s = spent_s.get("steal", 0.0)
        idle_s = spent_s["idle"] + spent_s.get("iowait", 0.0)
        others_s = max(0.0, total_s - idle_s - steal_s - (_ours_s() - self._ours_s))
        others, steal = others_s / max(0.01, total_s), steal_s / max(0.01, total_s)
        told = {
            "load average before": " ".join(f"{load:.2f}" for load in self._loads),
            "cores in use before": f"{100 * self._before:.0f} %",
            "others' share of the cores during the run": f"{100 * others:.0f} %",
            "steal": f"{100 * steal:.1f} %",
        }
        if others > OTHERS_MAX or steal > STEAL_MAX:
            busy = (
                f"The machine was busy with other work: {100 * others:.0f} % of its cores, and"
                f" {100 * steal:.1f} % taken by its host; figures are too low, and only ratios within"
                " one run count."
            )
        else:
            busy = self.busy_before
        return Load(told, busy)


def _ours_s() -> float:
    """Processor time of this process and of all that it has started and that have ended."""
    both = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    used = [resource.getrusage(who) for who in both]
    return sum([each.ru_utime + each.ru_stime for each in used])


def versions() -> dict[str, str]:
    """Of what was measured."""
    redis = choose_redis()
    return {
        "holdfast": version("holdfast"),
        "commit": _commit(),
        "python": platform.python_version(),
        "redis server": f"{redis.name} {redis.version_text}",
        **{f"{name} (Python)": version(name) for name in _PACKAGES},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit() -> str:
    told = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return told.stdout.strip() or "unknown"
