"""A path is read as it was sent: an escape is part of a value, and leads to no other route."""

from __future__ import annotations

import pytest
from wire_kit import Shop, Talk, request

from api.app import HOT

CONFIRMS = ["/v1/reservations%2Fr1%2Fconfirm", "/v1/reservations/r1%2Fconfirm",
            "/v1%2Freservations/r1/confirm",
            "/v1/reservations/r1%2fconfirm", "/v1/reservations/x%2F..%2Fr1/confirm",
            "/%2Fv1/reservations/r1/confirm",
            "/v1/reservations/%2e/r1/confirm", "/v1/stock/..%2Freservations%2Fr1%2Fconfirm",
            "/v1/stock/../reservations/r1/confirm", "/v1//reservations/r1/confirm",
            "//v1/reservations/r1/confirm", "/v1/reservations/r1/confirm/", "/v1/reservations/r1//confirm",
            "/v1/reservations/r1/confirm;a=b", "/v1/reservations/r1;a/confirm",
            "/v1/reservations/r1/./confirm",
            "/v1/reservations/r1/confirm%00", "/v1/reservations/r1%20/confirm", "/V1/reservations/r1/confirm",
            "/v1/reservations/r1/confirm%3Fa", "/v1/reservations/r1%2F/confirm",
            "/v1/reservations/r1%252Fconfirm", "/v1/reservations//confirm", "*"]  # fmt: skip


@pytest.mark.parametrize("path", CONFIRMS)
def test_no_other_spelling_confirms(shop: Shop, path: str) -> None:
    name = shop.hold(10)
    with Talk(shop.service) as talk:
        answer = talk.send(request(path.replace("r1", name))).answer()
    assert answer.status in (400, 404, 405)
    assert answer.code in ("invalid_request", "not_found", "method_not_allowed")
    assert shop.left(name) == (10, 10)


@pytest.mark.parametrize(
    ("path", "code"),
    [("/v1/stock/a%2Fb", "invalid_request"), ("/v1/stock/a%2fb", "invalid_request"),
     ("/v1/stock/%2E%2E", "invalid_request"), ("/v1/stock/..", "invalid_request"),
     ("/v1/stock/tea%2F", "invalid_request"), ("/v1/stock/%2F", "invalid_request"),
     ("/v1/stock/tea;a=b", "invalid_request"), ("/v1/stock/%252e", "invalid_request"),
     ("/v1/stock/%74ea", ""), ("/v1/%73tock/tea", ""), ("/%76%31/stock/tea", ""),
     ("/v1/stock%2Ftea", "not_found"), ("/v1/stock/", "not_found"), ("/v1/stock//tea", "not_found"),
     ("/v1/stock/tea/", "not_found"), ("/v1%2Fstock/tea", "not_found")],
)  # fmt: skip
def test_an_escaped_slash_is_part_of_a_value(shop: Shop, path: str, code: str) -> None:
    tea = {"movement_id": "tea", "type": "receive", "sku": "tea", "location": "M", "quantity": 3}
    assert shop.client.post("/v1/movements", json=tea).status_code in (200, 201)
    with Talk(shop.service) as talk:
        answer = talk.send(request(path, method="GET")).answer()
    if code:
        assert (answer.code, answer.status) == (code, 404 if code == "not_found" else 400)
    else:
        assert answer.json()["on_hand"] == 3


@pytest.mark.parametrize("path", HOT)
def test_the_shortcut_past_the_router_leads_where_the_router_leads(shop: Shop, path: str) -> None:
    """Each spelling of a hot path that the router knows is answered the same, the others are 404."""
    last = path.rsplit("/", 1)[1]
    same = [
        f"/v1/%{ord(last[0]):x}{last[1:]}",
        f"/%76%31/{last}",
        f"{path}?a=b",
        f"http://localhost{path}",
    ]
    other = [f"{path}/", f"/{path}", path.replace("/v1/", "/v1//"), path.replace("/v1/", "/v1%2F"),
             f"{path};a",
             path.upper(), f"/v1/./{last}", f"{path}%20", f"/v1/x/../{last}"]  # fmt: skip
    with Talk(shop.service) as talk:
        usual = talk.send(request(path, b"[]")).answer()
        assert usual.code == "invalid_request"
        for spelling in same:
            assert talk.send(request(spelling, b"[]")).answer().body == usual.body, spelling
        for spelling in other:
            assert talk.send(request(spelling, b"[]")).answer().code == "not_found", spelling
