"""Ports of this machine that a server can listen on."""

import random
import socket
from pathlib import Path

from api.binaries import ServerError

_HOST = "127.0.0.1"


def free_port() -> int:
    """A port on 127.0.0.1 that nobody listens on now.

    It lies below the range the kernel takes client ports from: a client that keeps knocking at a
    server that is down could otherwise be given that very port and keep the server from it.
    """
    for _ in range(200):
        port = random.randint(10_240, _client_ports_begin() - 1)
        if port_is_free(port):
            return port
    raise ServerError(f"no free port on {_HOST}; end some of the programs that listen there")


def port_is_free(port: int) -> bool:
    """Whether a server could listen on 127.0.0.1:port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
            probe.listen()
        except OSError:
            return False
    return True


def _client_ports_begin() -> int:
    try:
        begin = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        begin = 32_768
    return max(begin, 12_000)
