"""How a command ends: its exit code says the same to a script, however it came to its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from running import REPOSITORY

COMMAND = [sys.executable, "-m", "api.cli"]


def test_given_nobody_who_reads_its_output_then_it_could_not_be_done() -> None:
    """Not 1: to `holdfast check` that means that nothing can be sold."""
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run(
        [*COMMAND, "--help"], cwd=REPOSITORY, stdout=theirs, stderr=subprocess.PIPE, check=False
    )
    os.close(theirs)
    assert done.returncode == 2
    assert done.stderr == b"holdfast: nobody reads what it prints\n"


def heed_ctrl_c() -> None:
    """Whoever runs the tests in the background may have it ignored, and all that is started with it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_given_ctrl_c_then_it_says_so_and_ends_as_a_shell_expects(tmp_path: Path) -> None:
    orders = tmp_path / "orders.csv"
    os.mkfifo(orders)
    with (
        subprocess.Popen(
            [*COMMAND, "replay", str(orders)],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=heed_ctrl_c,
        ) as process,
        orders.open("wb"),
    ):  # once somebody reads it, who gets nothing
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.strip()) == (130, b"", b"holdfast: interrupted")


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["--version"], 0, "holdfast, version"),
        (["check", "--help"], 0, "Say in one line whether it sells"),
        (["nothing"], 2, "No such command 'nothing'"),
        (["check", "--nothing"], 2, "No such option '--nothing'"),
        (["restore"], 2, "Missing option '--into'"),
        ([], 2, "Commands:"),
    ],
)
def test_usage(arguments: list[str], code: int, word: str) -> None:
    done = subprocess.run(
        [*COMMAND, *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    assert word in done.stdout + done.stderr and "Traceback" not in done.stderr
