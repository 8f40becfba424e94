"""The address the service listens on."""

import errno
import ipaddress
import socket
import time

from api.servers import ServerError

_BACKLOG = 2048
_POLL_S = 0.1


def listen(host: str, port: int, *, patience_s: float = 0.0) -> socket.socket:
    """A listening socket; port 0 takes any that is free.

    ServerError where it can't be had; one in use is tried again for `patience_s` first.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return _listen_now(host, port)
        except OSError as error:
            if error.errno == errno.EADDRINUSE and time.monotonic() < deadline:
                time.sleep(_POLL_S)
                continue
            if error.errno == errno.EADDRINUSE:
                reason = "it is in use by another program; end that, or choose another with --port"
            elif error.errno in (errno.EACCES, errno.EPERM):
                reason = "not allowed; choose a port from 1024 on with --port"
            else:
                reason = f"{error.strerror or error}; choose another with --host and --port"
            raise ServerError(f"can't listen on port {port} of {host}: {reason}") from error


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it; a name must mean loopback addresses only."""
    try:
        found = socket.getaddrinfo(host or "0.0.0.0", None, type=socket.SOCK_STREAM)
        return all(ipaddress.ip_address(entry[4][0]).is_loopback for entry in found)
    except (OSError, ValueError):
        return False


def check_exposure(host: str, allow_unauthenticated: bool) -> None:
    """ServerError where other machines could reach the service without any key."""
    if not allow_unauthenticated and not is_loopback(host):
        raise ServerError(
            f"--host {host} can be reached by other machines and no keys are configured: "
            "listen on 127.0.0.1, or add --allow-unauthenticated if that is what you want"
        )


def url_of(host: str, port: int) -> str:
    """The URL to reach the service by from this machine, also where it listens everywhere."""
    host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _listen_now(host: str, port: int) -> socket.socket:
    if not 0 <= port <= 65_535:
        raise OSError(errno.EINVAL, "a port is a number from 0 to 65535")
    family, kind, protocol, _, address = socket.getaddrinfo(
        host or "0.0.0.0", port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener
