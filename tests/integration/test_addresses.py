"""No part of a password is ever shown, wherever in an address it stands and however the rest is broken."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Iterator
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import psycopg
import pytest
from redis import Redis
from running import NO_POSTGRES, environment, holdfast

from api import replay
from api.orders import CHARGE_CODES, read_plan
from api.processes import identify
from api.servers import RedisServer
from api.state_file import State, write_state
from engine.addresses import (
    kafka_fault,
    place_of,
    postgres_fault,
    printable,
    redis_fault,
    service_fault,
    service_of,
    why,
    without_kafka_password,
    without_password,
)
from engine.errors import LedgerError, SettingError
from engine.settings import settings_from
from persister import database

pytestmark = pytest.mark.anyio
NOWHERE = "redis://127.0.0.1:1/0"

#: Pieces of passwords; what is shown may hold none of them.
PIECES = ("hush", "quiet")
USABLE_REDIS = [
    "redis://:hush@127.0.0.1:6379/0",
    "redis://shop:hush@127.0.0.1/1",
    "redis://shop:hu%73h%40%2Fquiet@[::1]:6379",
    "redis://shop:hush:quiet@db:6379/0",
    "redis://shop:hush@quiet@db:6379/0",
    "redis://db:6379/0?username=shop&password=hush&db=2",
    "rediss://shop:hush@db:6379/0?ssl_cert_reqs=none",
    "rediss://db/0?ssl_password=hush",
    "unix:///run/redis.sock?password=hush",
    "unix://shop:hush@/run/redis.sock",
]
BROKEN_REDIS = [
    "redis://shop:hush/quiet@db:6379/0",
    "redis://shop:12/quiet@db:6379/0",
    "redis://shop:hush?quiet@db:6379/0",
    "redis://shop:12?quiet@db:6379/0",
    "redis://shop:hush#quiet@db:6379/0",
    "redis://shop:12#quiet@db",
    "redis://:hush@db:99999",
    "redis://:hush@db:quiet",
    "redis://shop:hush",
    "redis://:hush@[db:6379",
    "redis://:hu\u2100quiet@db",
    "redis://db:6379/hush",
    "redis://db/0?passwrd=hush",
    "redis://shop:hush@db/0#",
    "//shop:hush@db:6379",
    "unix://shop:hush@qui et/run/redis.sock",
    "shop:hush@db:6379",
    "http://shop:hush@db",
    "hush",
]
USABLE_POSTGRES = [
    "postgresql://shop:hush@db/shop",
    "postgres://shop:hush%40quiet@db:5432/shop?sslmode=require",
    "postgresql://shop:hush#quiet@db/shop",
    "postgresql://shop:hush?quiet@db/shop",
    "postgresql://shop:hush?user=quiet@db/shop",
    "postgresql://shop:12?dbname=quiet@db/shop",
    "postgresql://shop%40example:hush@db/shop",
    "postgresql://shop:hush@one:1,two:2/shop",
    "postgresql://db/shop?user=shop&password=hush",
    "postgresql://db/shop?sslkey=/k&sslpassword=hush&passfile=/run/quiet",
    "host=db user=shop password=hush dbname=shop",
    "host=db password='hush quiet@/'",
    "host = db password = hush\\ quiet",
]
BROKEN_POSTGRES = [
    "postgresql://shop:hush@quiet@db/shop",
    "postgresql://shop:hush/quiet@db/shop",
    "postgresql://shop:12/quiet@db/shop",
    "postgresql://shop:12/quiet@db/shop?sslmode=require",
    "postgresql://shop:12/quiet%40@db/shop",
    "postgresql://shop:12/hush?user=quiet@db/shop",
    "postgresql://shop:12/quiet@",
    "postgresql://shop:hush@db/quiet@db",
    "postgresql://shop:hush@db/shop?user=quiet@db",
    "postgresql://shop:hu%zzquiet@db/shop",
    "postgresql://shop:hush",
    "host=db password=hush quiet",
    "host=db password='hush quiet",
    "host=db passwrd=hush",
    "shop:hush@db/shop",
    "hush",
]
USABLE_SERVICES = [
    ("http://shop:hush@127.0.0.1:8080", "http://127.0.0.1:8080"),
    ("http://hush:@[::1]:8080/", "http://[::1]:8080"),
    ("https://shop:hu%40quiet@db/behind/quiet?key=hush", "https://db"),
    ("http://db:1", "http://db:1"),
]
BROKEN_SERVICES = [
    "http://shop:hush/quiet@db:8080",
    "http://shop:12/quiet@db:8080",
    "http://shop:12?quiet@db",
    "http://shop:hush#quiet@db",
    "http://shop:hush",
    "http://db:hush",
    "http://db:99999/hush",
    "http://[hush",
    "http://shop:hush@",
    "http://",
    "ftp://shop:hush@db",
    "shop:hush@db:8080",
    "hush",
]
KAFKA = [
    "shop:hush@db:9092",
    "SASL_SSL://shop:hush@db:9092",
    "db:9092,shop:hush@db:9093",
    "db:hush",
]


def check_hidden(text: str) -> None:
    assert not [piece for piece in PIECES if piece in text], text


@pytest.mark.parametrize("url", USABLE_REDIS)
def test_a_redis_url_is_usable_and_shown_without_its_password(url: str) -> None:
    assert redis_fault(url) is None
    check_hidden(without_password(url) + place_of(url))
    assert "***" in without_password(url)
    assert settings_from({"HOLDFAST_REDIS_URL": url}).redis_url == url


@pytest.mark.parametrize("address", USABLE_POSTGRES)
def test_a_postgresql_address_is_usable_and_shown_without_its_password(address: str) -> None:
    assert postgres_fault(address) is None
    check_hidden(without_password(address) + place_of(address))
    assert "***" in without_password(address)
    assert settings_from({"HOLDFAST_POSTGRES_URL": address}).postgres_url == address


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("HOLDFAST_REDIS_URL", url) for url in BROKEN_REDIS],
        *[("HOLDFAST_POSTGRES_URL", address) for address in BROKEN_POSTGRES],
        *[("HOLDFAST_KAFKA_BOOTSTRAP", brokers) for brokers in KAFKA],
    ],
)
def test_one_that_can_not_be_read_is_refused_at_the_door_by_its_name(name: str, value: str) -> None:
    with pytest.raises(SettingError, match=f"^{name} is ") as refusal:
        settings_from({name: value})
    check_hidden(str(refusal.value))
    check_hidden(without_password(value) + place_of(value))


@pytest.mark.parametrize("address", BROKEN_POSTGRES)
def test_nor_does_a_connection_repeat_what_libpq_says_of_it(address: str) -> None:
    with pytest.raises(LedgerError) as refusal:
        database.connect(address)
    check_hidden(str(refusal.value))


def test_libpq_would_have_repeated_it() -> None:
    with pytest.raises(psycopg.Error, match="quiet"):
        psycopg.connect("postgresql://shop:hush@quiet@db.invalid/shop", connect_timeout=2)


@pytest.mark.parametrize(("url", "shown"), USABLE_SERVICES)
def test_a_service_is_shown_by_its_host_alone(url: str, shown: str) -> None:
    """A user, a path or a query may be a key."""
    assert (service_fault(url), service_of(url)) == (None, shown)


@pytest.mark.parametrize("url", BROKEN_SERVICES)
def test_a_service_that_can_not_be_read_is_not_shown(url: str) -> None:
    fault = service_fault(url)
    assert fault is not None
    check_hidden(fault + service_of(url))


#: What a password may have between its pieces: also what ends a part of a URL, percent-encoded or not.
BETWEEN = ("", *"@:/?#%=&; []\\", "%40", "%2F")


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "redis", "unix", "http"])
@pytest.mark.parametrize(
    "place", ["db:1/0", "db/shop?db=1", "db/shop?user=x", "/run/sock", "db", ""]
)
def test_whatever_stands_in_a_password_no_piece_of_it_is_shown(scheme: str, place: str) -> None:
    for begin, one, two in itertools.product(("hush", "12"), BETWEEN, BETWEEN):
        for user in ("shop", ""):
            url = f"{scheme}://{user}:{begin}{one}quiet{two}@{place}"
            check_hidden(
                service_of(url) if scheme == "http" else without_password(url) + place_of(url)
            )


@pytest.mark.parametrize(
    ("address", "shown", "place"),
    [
        ("redis://a:hush@db:1/2?db=&timeout=3", "redis://a:***@db:1/2?db=&timeout=3", "db:1"),
        ("redis://:hush@db", "redis://:***@db", "db"),
        ("unix:///run/redis.sock?password=hush", "unix:///run/redis.sock?password=***", "/run/redis.sock"),
        ("postgresql://shop:hush@db:1/a%2Fb", "postgresql://shop:***@db:1/a%2Fb", "db:1"),
        ("postgresql://:hush@db/shop", "postgresql://:***@db/shop", "db"),
        ("postgresql://shop:hush@db", "postgresql://shop:***@db", "db"),
        ("user=a@b password=hush host=db port=1", "user=a@b password=*** host=db port=1", "db:1"),
        ("dbname=a@b hostaddr=10.0.0.1", "dbname=a@b hostaddr=10.0.0.1", "10.0.0.1"),
        ("dbname=shop", "dbname=shop", "its address"),
        ("postgresql:///shop", "postgresql:///shop", "its address"),
        ("shop:hush@db", "***", "its address"),
        ("redis://shop:hush/@db", "redis://***", "its address"),
    ],
)  # fmt: skip
def test_all_but_the_password_is_shown(address: str, shown: str, place: str) -> None:
    assert (without_password(address), place_of(address)) == (shown, place)


def test_a_fault_says_what_is_wrong() -> None:
    assert "must begin with redis://" in str(redis_fault("http://db"))
    assert "its host, port or database" in str(redis_fault("redis://db:x"))
    assert "one of its parameters" in str(redis_fault("redis://db/0?no=1"))
    assert without_kafka_password("one:1,two:2") == "one:1,two:2"
    assert without_kafka_password("shop:hush@one:1") == "***"


def test_addresses_without_a_password_are_shown_as_they_are() -> None:
    for address in (
        "redis://127.0.0.1:6379/0",
        "rediss://shop@[::1]:1/0",
        "unix:///run/redis.sock?db=2",
        "postgresql://postgres@127.0.0.1:5432/postgres",
        "postgresql://shop@db/shop?sslmode=require",
    ):
        assert without_password(address) == address
    assert place_of("host=db port=1 password=hush") == "db:1"
    assert kafka_fault("one:9092, [::1]:9093,two") is None


def test_given_a_server_that_repeats_what_it_does_not_know_then_that_is_left_out(
    redis: Redis, redis_server: RedisServer
) -> None:
    with pytest.raises(Exception, match="hush") as refusal:
        redis.execute_command("AUHT", "shop", "hush")
    check_hidden(why(refusal.value))
    assert "unknown command" in why(refusal.value)


def test_control_characters_are_escaped_and_letters_are_not() -> None:
    assert printable("tea\x1b[31m\n\x7f\u202e café 🍵") == "tea\\x1b[31m\\n\\x7f\\u202e café 🍵"
    assert why(ValueError("two\n lines\x07")) == "two lines\\x07"
    assert why(ValueError()) == "ValueError"


@pytest.mark.parametrize(
    "command", [["check"], ["replay", "tests/data/orders-2000-invoices.csv.gz"]], ids=lambda c: c[0]
)
@pytest.mark.parametrize("url", ["http://shop:12/quiet@db:8080", "http://db:hush", "http://[hush"])
def test_every_command_that_takes_a_service_refuses_such_a_url_in_one_line(
    command: list[str], url: str, tmp_path: Path
) -> None:
    environ = environment(HOLDFAST_REDIS_URL=NOWHERE, HOLDFAST_POSTGRES_URL=NO_POSTGRES)
    done = holdfast(*command, "--url", url, environ=environ)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "must be one such as http://127.0.0.1:8080" in done.stderr
    check_hidden(done.stderr)


@pytest.fixture
def refusing() -> Iterator[int]:
    """The port of a server that refuses every POST with 501, as Python's does."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


async def test_nor_does_a_replay_that_can_not_go_on_show_the_login(
    refusing: int, tmp_path: Path
) -> None:
    file = tmp_path / "orders.csv"
    file.write_text("InvoiceNo,StockCode,Quantity,UnitPrice,CustomerID\n1,tea,2,2.5,17850\n")
    plan = read_plan(
        file,
        ratio=Fraction(1),
        location="X",
        namespace="",
        charge_codes=CHARGE_CODES,
        partial=False,
    )
    for port, word in ((refusing, "answered 501"), (1, "gave up")):
        with pytest.raises(replay.ReplayError, match=word) as refusal:
            await replay.run(
                plan,
                url=f"http://shop:hush@127.0.0.1:{port}/quiet",
                concurrency=1,
                on_progress=lambda units: None,
                patience_s=0,
            )
        check_hidden(str(refusal.value))
        assert f"http://127.0.0.1:{port}" in str(refusal.value)


@pytest.mark.parametrize(
    "command",
    [
        ["up"],
        ["serve"],
        ["persister"],
        ["check"],
        ["reconcile"],
        ["audit"],
        ["restore", "--into", "redis://shop:hush/quiet@db"],
    ],
    ids=lambda command: command[0],
)
def test_every_command_ends_with_one_line_that_tells_no_password(
    command: list[str], tmp_path: Path
) -> None:
    environ = environment(
        HOLDFAST_REDIS_URL="redis://127.0.0.1:1/0",
        HOLDFAST_POSTGRES_URL="postgresql://shop:hush@quiet@db.invalid/shop",
        HOLDFAST_DATA_DIR=str(tmp_path),
    )
    done = holdfast(*command, environ=environ)
    assert done.returncode == 2
    assert done.stderr.startswith("holdfast: ") and done.stderr.count("\n") == 1
    check_hidden(done.stdout + done.stderr)


@pytest.mark.parametrize(
    "password", ["a b", "it's", '"q"', "$HOME", "`id`", "\\", "a&b;c|d", "!x", "*"]
)
def test_env_is_quoted_for_the_shell(password: str, tmp_path: Path) -> None:
    state = State(
        supervisor=identify(os.getpid()),
        redis_url=f"redis://127.0.0.1:1/0?password={password}",
        postgres_url=f"host=127.0.0.1 dbname='{password}'",
        http_url="http://127.0.0.1:3",
    )
    write_state(tmp_path, state)
    done = holdfast("env", "--data-dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    script = done.stdout + 'printf "%s\\n" "$HOLDFAST_REDIS_URL" "$HOLDFAST_POSTGRES_URL"'
    shell = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert shell.stdout.splitlines() == [state.redis_url, state.postgres_url]
    assert "export HOLDFAST_URL='http://127.0.0.1:3'" in done.stdout
