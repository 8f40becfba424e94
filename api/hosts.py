"""By which names the service may be called, and from which web pages.

Without keys, whatever reaches the service may change stock. A web page that somebody on this machine looks
at reaches loopback, too: by its address (the browser then sends the page's Origin), or by a name of the
page's own that is made to mean 127.0.0.1 (the browser then sends that name as Host).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

from api.address import is_loopback
from api.problems import Problem

_REMEMBERED_MAX = 64
Headers = Sequence[tuple[bytes, bytes]]


class Hosts:
    """Refuses requests that came by another name, or from another place.

    ``names`` may be used beside those of loopback, which always may. ``any_host``: the names by which
    others reach the service aren't known, so each is good. A page's Origin must be the Host it asks, or
    one of those names.
    """

    def __init__(self, names: Iterable[str] = (), *, any_host: bool = False) -> None:
        self._names = {_bare(name) for name in names} | {"localhost"}
        self._any_host = any_host
        self._remembered: set[bytes] = set()

    @classmethod
    def of_address(cls, address: str, name: str, also: str) -> Hosts:
        """For a service that listens on an address, given as that name; ``also``: further names,
        separated by commas. Where others can reach it and none are given, any name is good."""
        given = [each.strip() for each in also.split(",") if each.strip()]
        return cls([address, name, *given], any_host=not given and not is_loopback(address))

    def check(self, headers: Headers, http_version: str) -> None:
        """Problem 403 for a foreign Host or Origin, 400 where there is not one Host."""
        host, origin, hosts = b"", None, 0
        for name, value in headers:
            if name == b"host":
                host = value
                hosts += 1
            elif name == b"origin":
                origin = value
        if hosts != 1 and (hosts or http_version == "1.1"):
            raise Problem("invalid_request", f"a request needs one Host header; it has {hosts}")
        if hosts and host not in self._remembered:
            self._look_at(host)
        if origin is not None and not self._is_ours(origin, host):
            raise Problem(
                "forbidden",
                f"Origin is {_shown(origin)}: web pages from elsewhere may not call this service",
            )

    def _look_at(self, host: bytes) -> None:
        if not self._any_host and not self._is_known(host):
            raise Problem(
                "forbidden",
                f"Host is {_shown(host)}, and this service is not called by that name;"
                " if it is, name it in HOLDFAST_HOSTS",
            )
        if len(self._remembered) < _REMEMBERED_MAX:
            self._remembered.add(host)

    def _is_ours(self, origin: bytes, host: bytes) -> bool:
        scheme, mark, place = origin.partition(b"://")
        if not mark or scheme not in (b"http", b"https"):
            return False
        return place == host or self._is_known(place)

    def _is_known(self, place: bytes) -> bool:
        """Is it one of the names, or an address of loopback, whatever the port?"""
        name = _bare(place.decode("latin-1"))
        if name in self._names:
            return True
        try:
            return ipaddress.ip_address(name).is_loopback
        except ValueError:
            return False


def _bare(place: str) -> str:
    """The name without port, brackets and the dot of a full name, in lower case."""
    place = place.strip().lower()
    if place.startswith("["):
        address, bracket, _ = place[1:].partition("]")
        return address if bracket else place
    if place.count(":") == 1:
        place = place.partition(":")[0]
    return place.removesuffix(".")


def _shown(value: bytes) -> str:
    return repr(value[:100].decode("latin-1"))
