"""Addresses of servers as they are set: can they be read, and how are they shown without a password?

A password with an unescaped ``@``, ``/``, ``?`` or ``#`` in it makes the rest of a URL be taken for a host,
a port or a database, and drivers put those into their errors. So an address is judged here, at the door,
before a driver sees it, and one that can't be read for certain is not shown at all.
"""

from __future__ import annotations

import re
from urllib.parse import SplitResult, parse_qsl, quote, urlsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict
from redis import ConnectionPool

HIDDEN = "***"
_ESCAPE = "a password's @ : / ? # and % must be percent-encoded in a URL"
#: What a query parameter or a DSN's keyword may be shown with; all others may be secret.
_SHOWN = frozenset(
    {
        *("db", "protocol", "ssl_cert_reqs", "socket_timeout", "socket_connect_timeout", "timeout"),
        *("host", "hostaddr", "port", "dbname", "user", "sslmode", "connect_timeout"),
        *("application_name", "target_session_attrs", "client_encoding"),
    }
)
_HOST = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.%]+\]")
_BROKER = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?")
_ANY_PATH = r".*"
_POSTGRES = ("postgresql://", "postgres://")
#: Redis repeats a command that it doesn't know, AUTH and its arguments among them.
_ECHO = re.compile(r",? with args beginning with:.*", re.DOTALL)


def why(error: BaseException) -> str:
    """What a driver says, in one line without control characters and without what it may have repeated."""
    text = _ECHO.sub("", " ".join(str(error).split()))
    return printable(text) or type(error).__name__


def printable(text: str) -> str:
    """The text with its control characters escaped, so that it can't steer a terminal or break a line."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def without_password(address: str) -> str:
    """An address that can be shown and logged; of one that can't be read its scheme only."""
    if address.startswith(_POSTGRES) or ("://" not in address and "=" in address):
        return _shown_postgres(address)
    parts = _split(address)
    if parts is None:
        return printable(_scheme(address) + HIDDEN)
    query = parse_qsl(parts.query, keep_blank_values=True)
    shown = "&".join(f"{name}={value if name in _SHOWN else HIDDEN}" for name, value in query)
    netloc = parts.netloc.rpartition("@")[2]
    return printable(
        f"{parts.scheme}://{_shown_login(parts.username, parts.password)}{netloc}{parts.path}"
        f"{'?' if shown else ''}{shown}"
    )


def place_of(address: str) -> str:
    """Host and port (or the socket) of an address, to say where nobody answers."""
    if address.startswith(_POSTGRES) or "://" not in address:
        found = _read_postgres(address) or {}
        host = found.get("host") or found.get("hostaddr")
        return printable(f"{host}{_colon(found.get('port'))}") if host else "its address"
    parts = _split(address)
    if parts is None:
        return "its address"
    return printable(parts.netloc.rpartition("@")[2] or parts.path)


def redis_fault(url: str) -> str | None:
    """Why a Redis URL can't be used; None where it can."""
    if not url.startswith(("redis://", "rediss://", "unix://")):
        return "it must begin with redis://, rediss:// or unix://"
    if _split(url) is None:
        return f"its host, port or database can't be read; {_ESCAPE}"
    try:
        pool = ConnectionPool.from_url(url)
        pool.connection_class(**pool.connection_kwargs)
    except (ValueError, TypeError):
        return "one of its parameters is not known or has no such value"
    return None


def postgres_fault(address: str) -> str | None:
    """Why a PostgreSQL URL or DSN can't be used; None where it can."""
    if _read_postgres(address) is None:
        return f"it can't be read; {_ESCAPE}, values of key=value pairs be quoted"
    return None


def service_fault(url: str) -> str | None:
    """Why an HTTP service's URL can't be used; None where it can."""
    if not url.startswith(("http://", "https://")) or _split(url, _ANY_PATH) is None:
        return f"it must be one such as http://127.0.0.1:8080; {_ESCAPE}"
    return None


def service_of(url: str) -> str:
    """Scheme, host and port of an HTTP service; of one that can't be read its scheme only."""
    parts = _split(url, _ANY_PATH)
    if parts is None:
        return printable(_scheme(url) + HIDDEN)
    return printable(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}")


def kafka_fault(bootstrap: str) -> str | None:
    """Why a list of brokers can't be used; None where it can."""
    if all(_BROKER.fullmatch(broker.strip()) for broker in bootstrap.split(",")):
        return None
    return "it must be host:port, or several of them with commas between, without user and password"


def without_kafka_password(bootstrap: str) -> str:
    """The brokers, where they are no more than that."""
    return HIDDEN if kafka_fault(bootstrap) else bootstrap


def _scheme(address: str) -> str:
    found = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", address)
    return found[0] if found else ""


def _split(url: str, path: str = r"(/\d*)?") -> SplitResult | None:
    """A URL in parts; None where a part of a password could be in another one than that."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    host = parts.netloc.rpartition("@")[2]
    name = host.removesuffix(f":{port}") if port is not None else host
    is_socket = parts.scheme == "unix"
    if "@" in parts.path + parts.query or "#" in url or not _scheme(url):
        return None
    if not _HOST.fullmatch(name) and not (is_socket and not host):
        return None
    if not is_socket and not re.fullmatch(path, parts.path):
        return None
    return parts


def _shown_login(user: str | None, password: str | None) -> str:
    if user is None and password is None:
        return ""
    return f"{user or ''}{f':{HIDDEN}' if password is not None else ''}@"


def _colon(port: object) -> str:
    return f":{port}" if port else ""


def _read_postgres(address: str) -> dict[str, str] | None:
    """The parameters of a URL or DSN; None where a part of a password could be in another one."""
    try:
        found = {name: str(value) for name, value in conninfo_to_dict(address).items()}
    except psycopg.Error:
        return None
    misread = "@" in found.get("host", "") or not re.fullmatch(r"[\d,]*", found.get("port", ""))
    return None if misread or _has_stray_at(address) else found


def _has_stray_at(address: str) -> bool:
    """Has a PostgreSQL URL an @ that doesn't end its user and password? libpq ends them at the first one,
    unless a / before that ends the host."""
    if not address.startswith(_POSTGRES):
        return False
    login, at, rest = address.partition("://")[2].partition("@")
    return "@" in rest or bool(at and "/" in login)


def _shown_postgres(address: str) -> str:
    found = _read_postgres(address)
    if found is None:
        return printable(_scheme(address) + HIDDEN)
    if not address.startswith(_POSTGRES):
        pairs = [f"{name}={value if name in _SHOWN else HIDDEN}" for name, value in found.items()]
        return printable(" ".join(pairs))
    main = ("user", "password", "host", "port", "dbname")
    more = [f"{k}={v if k in _SHOWN else HIDDEN}" for k, v in found.items() if k not in main]
    login = _shown_login(found.get("user"), found.get("password"))
    database = f"/{quote(found['dbname'], safe='')}" if "dbname" in found else ""
    return printable(
        f"postgresql://{login}{found.get('host', '')}{_colon(found.get('port'))}{database}"
        f"{'?' if more else ''}{'&'.join(more)}"
    )
