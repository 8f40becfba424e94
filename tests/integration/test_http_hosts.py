"""No web page may write to a machine that trusts whoever reaches it: foreign Hosts and Origins are 403."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from running import NO_POSTGRES, check_problem, on_one_redis, serving
from wire_kit import Shop, Talk, part, request

from api.hosts import Hosts
from api.problems import Problem
from engine.settings import Settings

OURS = [
    "127.0.0.1",
    "127.0.0.1:8080",
    "127.8.9.1",
    "localhost",
    "LocalHost:1",
    "localhost.",
    "[::1]",
    "[::1]:8080",
]
FOREIGN = ["shop.example", "shop.example:8080", "10.0.0.1", "localhost.shop.example",
           "127.0.0.1.shop.example",
           "", "[::2]", "[::1", "127.0.0.1@shop.example", "0x7f000001", "::1:80", "a:1:b"]  # fmt: skip
FOREIGN_ORIGINS = ["http://shop.example", "https://127.0.0.1.shop.example", "null", "", "127.0.0.1",
                   "file://", "http://10.0.0.1:8080", "ftp://localhost", "http://"]  # fmt: skip


def code(hosts: Hosts, host: str | None, origin: str | None = None) -> str:
    """What a request with these headers is refused with; "" for nothing."""
    headers = [(b"host", host.encode())] if host is not None else []
    if origin is not None:
        headers.append((b"origin", origin.encode()))
    try:
        hosts.check(headers, "1.1")
    except Problem as problem:
        return problem.code
    return ""


@pytest.mark.parametrize("host", OURS)
def test_names_of_this_machine_are_good_on_loopback(host: str) -> None:
    for hosts in (Hosts(), Hosts.of_address("127.0.0.1", "127.0.0.1", "")):
        assert code(hosts, host) == ""
        assert code(hosts, host, f"http://{host}") == ""
        assert code(hosts, host, "http://localhost:3000") == ""  # a page of this machine


@pytest.mark.parametrize("host", FOREIGN)
def test_other_names_are_not(host: str) -> None:
    """Not even as the Origin of a page that calls by its own name, made to mean this machine."""
    for hosts in (Hosts(), Hosts.of_address("127.0.0.1", "localhost", "")):
        for _ in range(2):
            assert code(hosts, host) == "forbidden"
            assert code(hosts, host, f"http://{host}") == "forbidden"


@pytest.mark.parametrize("origin", FOREIGN_ORIGINS)
def test_pages_from_elsewhere_are_refused_wherever_it_listens(origin: str) -> None:
    assert code(Hosts(), "127.0.0.1:8080", origin) == "forbidden"
    everywhere = Hosts.of_address("0.0.0.0", "0.0.0.0", "")
    assert code(everywhere, "stock.example", origin) == "forbidden"
    assert code(everywhere, "stock.example", "https://stock.example") == ""


def test_it_may_be_called_by_the_name_it_listens_on_and_by_names_that_are_set() -> None:
    hosts = Hosts.of_address("127.0.1.1", "Devbox", "stock.example, proxy.example:443")
    for name in ("devbox:8080", "127.0.1.1", "stock.example", "proxy.example"):
        assert code(hosts, name) == ""
    assert code(hosts, "10.0.0.1", None) == "forbidden"
    assert code(hosts, "devbox", "https://stock.example") == ""


def test_where_others_can_reach_it_every_name_is_good_until_some_are_set() -> None:
    assert code(Hosts.of_address("0.0.0.0", "0.0.0.0", ""), "anything.example") == ""
    some = Hosts.of_address("10.0.0.5", "10.0.0.5", "stock.example")
    assert [code(some, name) for name in ("stock.example", "10.0.0.5:80", "localhost")] == [""] * 3
    assert code(some, "anything.example") == "forbidden"


def test_a_request_has_one_host() -> None:
    assert code(Hosts(), None) == "invalid_request"
    with pytest.raises(Problem, match="has 2"):
        Hosts().check([(b"host", b"localhost")] * 2, "1.1")
    Hosts().check([], "1.0")


@on_one_redis
@pytest.mark.anyio
@pytest.mark.parametrize(
    "path",
    ["/v1/reservations", "/v1/batch", "/v1/stock/tea", "/metrics", "/health/live", "/nowhere"],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS"])
async def test_a_foreign_host_or_origin_is_403_everywhere(
    client: httpx.AsyncClient, method: str, path: str
) -> None:
    for headers in (
        {"host": "shop.example"},
        {"origin": "http://shop.example"},
        {"origin": "null"},
    ):
        check_problem(await client.request(method, path, headers=headers), 403, "forbidden")


def test_a_running_service_takes_nothing_from_a_page(shop: Shop) -> None:
    """A confirm without a body needs no leave of the page's server: only the Origin tells."""
    name = shop.hold(10)
    path = f"/v1/reservations/{name}/confirm"
    host = b"Host: 127.0.0.1"
    port = str(shop.service.port).encode()
    asked = request(path)
    for data in (
        request(path, None, "Origin: http://shop.example"),
        request(path, None, "Origin: null", "Upgrade: h2c", "Connection: Upgrade"),
        asked.replace(host, b"Host: shop.example:" + port),
        asked.replace(b"POST /", b"POST http://shop.example/"),
        request(path, part(name), "Origin: http://shop.example", kind="text/plain"),
    ):
        with Talk(shop.service) as talk:
            assert talk.send(data).answer().code == "forbidden"
    assert shop.left(name) == (10, 10)
    with Talk(shop.service) as talk:
        data = asked.replace(b"POST /", b"POST http://localhost:" + port + b"/").replace(
            host, b"Host: x"
        )
        assert talk.send(data).answer().status == 200


def test_names_can_be_set(wire_settings: Settings, tmp_path: Path) -> None:
    settings = Settings(redis_url=wire_settings.redis_url, postgres_url=NO_POSTGRES)
    with serving(settings, tmp_path / "serve.log", HOLDFAST_HOSTS="shop.example") as service:
        live = f"{service.url}/health/live"
        for host, status in (("shop.example", 200), ("other.example", 403)):
            assert httpx.get(live, headers={"host": host}, trust_env=False).status_code == status
