"""httpx or requests, as they come, with an offer to upgrade, or with a body of unknown length."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any


def main(library: ModuleType, url: str, how: str, *calls: str) -> None:
    headers = {"Content-Type": "application/json"}
    if how != "plain":
        headers |= {"Connection": "Upgrade", "Upgrade": "h2c"}

    def parts(body: bytes) -> Iterator[bytes]:
        yield body[:5]
        yield body[5:]

    maker = library.Client if library.__name__ == "httpx" else library.Session
    with maker() as client:
        for path, text in zip(calls[::2], calls[1::2], strict=True):
            body: Any = parts(text.encode()) if how == "chunked" else text.encode()
            content = {"content": body} if library.__name__ == "httpx" else {"data": body}
            answer = client.post(url + path, headers=headers, **content)
            print(answer.status_code, library.__name__, answer.text)


if __name__ == "__main__":
    if sys.argv[1] == "httpx":
        import httpx as chosen
    else:
        import requests as chosen  # type: ignore[no-redef]
    main(chosen, *sys.argv[2:])
