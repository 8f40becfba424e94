"""Clients that people use, as they come: each part of a call arrives, offer to upgrade or not.

One that isn't installed is skipped with a loud line on a laptop, an error where CI=true.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from wire_kit import Shop, part

CLIENTS = Path(__file__).resolve().parent.parent / "clients"
WAYS = ("plain", "upgrade", "chunked")


def _java(url: str, how: str, calls: list[str]) -> list[str]:
    return ["java", str(CLIENTS / "Client.java"), url, how, *calls]


def _go(url: str, how: str, calls: list[str]) -> list[str]:
    return ["go", "run", "-gcflags=all=-N -l", str(CLIENTS / "client.go"), url, how, *calls]


def _node(url: str, how: str, calls: list[str]) -> list[str]:
    return ["node", str(CLIENTS / "client.mjs"), url, how, *calls]


def _curl(url: str, how: str, calls: list[str]) -> list[str]:
    more = {"plain": ["--http1.1"], "upgrade": ["--http2"],
            "chunked": ["--http2", "-H", "Transfer-Encoding: chunked"]}[how]  # fmt: skip
    arguments: list[str] = []
    for path, body in zip(calls[::2], calls[1::2], strict=True):
        arguments += ["--next"] if arguments else []
        arguments += ["-sS", *more, "-H", "Content-Type: application/json", "-d", body,
                      "-w", "\n%{stderr}%{http_code} %{http_version}\n", url + path]  # fmt: skip
    return ["curl", *arguments]


def _python(library: str) -> Callable[[str, str, list[str]], list[str]]:
    def command(url: str, how: str, calls: list[str]) -> list[str]:
        return [sys.executable, str(CLIENTS / "client.py"), library, url, how, *calls]

    return command


#: Name → the program it needs, and how it is called.
CLIENT = {
    "JDK": ("javac", _java),
    "curl": ("curl", _curl),
    "Node": ("node", _node),
    "Go": ("go", _go),
    "httpx": (sys.executable, _python("httpx")),
    "requests": (sys.executable, _python("requests")),
}


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("client", CLIENT)
def test_what_a_client_sends_is_what_is_done(
    shop: Shop, needs: Callable[[str], None], client: str, how: str
) -> None:
    """Given 10 held, then one is confirmed, two released in a batch, and five more received: in all 14 on
    hand and 7 held; and a call for all takes the rest."""
    name = shop.hold(10)
    release = {"op": "release", "reservation_id": name, **part(name, 2), "request_id": "q"}
    move = {
        "movement_id": f"{name}-more",
        "type": "receive",
        "sku": name,
        "location": "M",
        "quantity": 5,
    }
    calls = [f"/v1/reservations/{name}/confirm", json.dumps(part(name, 1)), "/v1/batch",
             json.dumps({"operations": [release]}), "/v1/movements", json.dumps(move)]  # fmt: skip
    program, command = CLIENT[client]
    needs(program)
    cache = CLIENTS.parent.parent / ".venv" / "go-cache"  # it compiles its library once
    done = subprocess.run(
        command(shop.service.url, how, calls),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "GOCACHE": str(cache), "GO111MODULE": "off", "no_proxy": "*"},
    )
    assert done.returncode == 0, done.stderr
    told = done.stderr if client == "curl" else done.stdout
    assert [line.split()[0] for line in told.splitlines() if line] == ["200", "200", "201"], done
    assert shop.left(name) == (14, 7)
    assert shop.client.post(f"/v1/reservations/{name}/confirm").status_code == 200
    assert shop.left(name) == (7, 0)
