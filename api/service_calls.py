"""Short questions to a running service of ours."""

import http.client
import json
from urllib.parse import urlsplit

_TIMEOUT_S = 3.0
_READY_TIMEOUT_S = 1.0  # asked again and again, while somebody also has to watch the children


def call(
    base_url: str, method: str, path: str, body: object = None, *, timeout_s: float = _TIMEOUT_S
) -> tuple[int, str]:
    """HTTP status and body of one call; OSError or HTTPException where no answer came."""
    address = urlsplit(base_url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=timeout_s)
    try:
        content = None if body is None else json.dumps(body).encode()
        headers = {} if content is None else {"Content-Type": "application/json"}
        connection.request(method, path, body=content, headers=headers)
        response = connection.getresponse()
        return response.status, response.read().decode(errors="replace")
    finally:
        connection.close()


def readiness(base_url: str) -> str | None:
    """None when the service says it is ready, else in a few words why it isn't."""
    try:
        status, body = call(base_url, "GET", "/health/ready", timeout_s=_READY_TIMEOUT_S)
    except (OSError, http.client.HTTPException) as error:
        return f"/health/ready gives no answer ({error})"
    return None if status == 200 else f"/health/ready says {status} {' '.join(body.split())[:300]}"


def stopped(base_url: str) -> list[str]:
    """Why partitions don't go on, as the ledger tells it; empty where it doesn't, or can't be asked."""
    try:
        status, body = call(base_url, "GET", "/v1/status", timeout_s=_READY_TIMEOUT_S)
        partitions = json.loads(body)["partitions"] if status == 200 else []
    except (OSError, http.client.HTTPException, ValueError, KeyError):
        return []
    ledgers = [partition["ledger"] for partition in partitions if partition["ledger"]]
    return [ledger["stopped"] for ledger in ledgers if ledger["stopped"]]
