"""What a first visitor meets: a small catalogue with stock, and three calls to try."""

import http.client
import json
from collections.abc import Callable

from api.service_calls import call

_DEMO_STOCK = {
    "tea": 250,
    "coffee": 400,
    "cocoa": 120,
    "honey": 80,
    "mug-blue": 60,
    "mug-red": 60,
    "teapot": 25,
    "gift-box": 10,
}


def fill_demo_stock(base_url: str, say: Callable[[str], None]) -> None:
    """Receive the catalogue; the movement ids are fixed, so that a second time changes nothing."""
    for sku, quantity in _DEMO_STOCK.items():
        movement = {
            "movement_id": f"demo-{sku}",
            "type": "receive",
            "sku": sku,
            "location": "MAIN",
            "quantity": quantity,
        }
        try:
            status, body = call(base_url, "POST", "/v1/movements", movement)
        except (OSError, http.client.HTTPException) as error:
            status, body = 0, str(error)
        if status not in (200, 201):
            say(f"demo stock of {sku} was not received: {status} {' '.join(body.split())[:300]}")
            return
    say(f"demo stock: {', '.join(_DEMO_STOCK)}")


def curl_lines(base_url: str) -> list[str]:
    """Receive, reserve and read, ready to paste; they work with and without the demo stock."""
    delivery = {
        "movement_id": "first-delivery",
        "type": "receive",
        "sku": "tea",
        "location": "MAIN",
        "quantity": 100,
    }
    order = {"order_id": "order-1", "lines": [{"sku": "tea", "quantity": 2}]}
    return [
        _curl_post(f"{base_url}/v1/movements", delivery),
        _curl_post(f"{base_url}/v1/reservations", order),
        f"curl -sS {base_url}/v1/stock/tea",
    ]


def _curl_post(url: str, body: object) -> str:
    content = json.dumps(body, separators=(",", ":"))
    return f"curl -sS {url} -H 'Content-Type: application/json' -d '{content}'"
