"""``holdfast check``: does it sell? One line and an exit code, for monitoring."""

from __future__ import annotations

import asyncio
import http.client
import logging
import os
import sys
from pathlib import Path
from typing import NoReturn

import click
import msgspec

from api import local
from api.cli_kit import data_dir_option, fail, read_settings
from api.service_calls import call
from api.state_file import read_state, state_file
from api.terminal import tell
from engine.addresses import service_fault, service_of
from engine.engine import Engine
from engine.errors import StoreError
from engine.selling import Refusal
from engine.settings import Settings
from engine.statuses import Status

TIMEOUT_S = 10.0


class _NotSelling(msgspec.Struct):
    code: str
    detail: str
    since: str


class _Partition(msgspec.Struct):
    partition: int
    not_selling: _NotSelling | None


class _Redis(msgspec.Struct):
    risks: list[str] = []  # a service of an older version tells none


class _Status(msgspec.Struct):
    """What is read of ``/v1/status``."""

    selling: bool
    partitions: list[_Partition]
    redis: _Redis | None = None


@click.command("check")
@click.option("--url", help="The service to ask (HOLDFAST_URL, else the stack that runs here).")
@data_dir_option
def check_command(url: str | None, data_dir: Path | None) -> None:
    """Say in one line whether it sells: exit code 0 if so, 1 if not, 2 if that can't be asked.

    Asks the service at --url, else at HOLDFAST_URL, else that of the stack on the data directory. Where
    there is none of these, the Redis of HOLDFAST_REDIS_URL, without the way there over HTTP.
    """
    settings = read_settings()
    url = url or os.environ.get("HOLDFAST_URL")
    if url is None and not os.environ.get("HOLDFAST_REDIS_URL"):
        url = _url_of_stack(local.data_dir_from(os.environ, data_dir))
    if url is not None:
        _ask_service(url)
    logging.getLogger("holdfast").addHandler(logging.NullHandler())  # its line tells all of it
    refusals, risks = asyncio.run(_ask_redis(settings))
    for partition, refusal in refusals.items():
        if refusal is not None:
            _not_selling(f"partition {partition}: {refusal.code}, {refusal.detail}")
    _selling("a reserve would be decided by Redis", risks)


def _selling(how: str, risks: list[str]) -> NoReturn:
    tell("; but ".join([f"selling: {how}", *risks]))
    sys.exit(0)


def _not_selling(why: str) -> NoReturn:
    tell(f"not selling: {why}")
    sys.exit(1)


def _url_of_stack(data_dir: Path) -> str:
    state = read_state(data_dir)
    if not state_file(data_dir).exists():
        fail(
            f"no stack was ever started on {data_dir}; name the service with --url, HOLDFAST_URL or"
            " --data-dir, or its Redis with HOLDFAST_REDIS_URL"
        )
    if state.supervisor is None or not state.supervisor.alive() or state.http_url is None:
        _not_selling(f"no stack runs on {data_dir}; start it with 'holdfast up'")
    return state.http_url


def _ask_service(url: str) -> None:
    place = service_of(url)
    if fault := service_fault(url):
        fail(f"the service's URL is {place}: {fault}")
    if not url.startswith("http://"):
        fail(
            f"the service's URL is {place}: check asks over HTTP without TLS, as in http://127.0.0.1:8080"
        )
    try:
        status, body = call(url, "GET", "/v1/status", timeout_s=TIMEOUT_S)
    except (OSError, http.client.HTTPException) as error:
        _not_selling(f"the service at {place} gives no answer ({error or type(error).__name__})")
    told = _read(status, body, place)
    for each in told.partitions:
        if each.not_selling is not None:
            found = each.not_selling
            _not_selling(
                f"partition {each.partition}: {found.code} since {found.since}, {found.detail}"
            )
    _selling(f"the service at {place} decides reserves", told.redis.risks if told.redis else [])


def _read(status: int, body: str, place: str) -> _Status:
    if status >= 500:
        _not_selling(f"the service at {place} answers {status}")
    try:
        return msgspec.json.decode(body if status == 200 else "", type=_Status)
    except msgspec.MsgspecError:
        fail(f"what answers at {place} ({status} to GET /v1/status) is not Holdfast")


async def _ask_redis(settings: Settings) -> tuple[dict[int, Refusal | None], list[str]]:
    """Why each partition doesn't sell, and what the settings of Redis risk."""
    partitions = range(settings.partitions)
    try:
        engine = await Engine.start(settings)
    except StoreError as error:
        return dict.fromkeys(partitions, Refusal(Status.UNAVAILABLE, str(error))), []
    try:
        return {each: await engine.why_not_selling(each) for each in partitions}, engine.risks
    finally:
        await engine.close()
