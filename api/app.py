"""The HTTP application: routes and lifespan."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import unquote

from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from api import handlers
from api.asgi import Endpoint, Nowhere, Patience
from api.audit_trail import get_movements
from api.handlers import keyless
from api.hosts import Hosts
from api.ledger_reader import LedgerReader
from api.metrics import metrics
from api.reconciliations import Reconciler, latest_reconciliation, post_reconciliation
from api.reservation_list import get_reservations
from api.selling import Watch
from api.status import status
from engine.engine import Engine
from engine.errors import StoreError
from engine.settings import Settings

log = logging.getLogger("holdfast.api")

RECONNECT_S = 0.5

#: Paths without parameters where the most calls go: straight to their endpoint, past the router.
HOT = {
    "/v1/reservations": Endpoint(POST=handlers.reserve, GET=keyless(get_reservations)),
    "/v1/batch": Endpoint(POST=handlers.batch),
}
ROUTES = [
    *[Route(path, endpoint) for path, endpoint in HOT.items()],
    Route("/v1/stock/{sku}", Endpoint(GET=keyless(handlers.get_stock))),
    Route("/v1/stock", Endpoint(GET=keyless(handlers.get_stocks))),
    Route("/v1/reservations/{reservation_id}", Endpoint(GET=keyless(handlers.get_reservation))),
    Route("/v1/reservations/{reservation_id}/confirm", Endpoint(POST=handlers.confirm)),
    Route("/v1/reservations/{reservation_id}/release", Endpoint(POST=handlers.release)),
    Route("/v1/reservations/{reservation_id}/extend", Endpoint(POST=keyless(handlers.extend))),
    Route("/v1/movements", Endpoint(GET=keyless(get_movements), POST=handlers.move)),
    Route("/v1/reconciliations", Endpoint(POST=keyless(post_reconciliation))),
    Route("/v1/reconciliations/latest", Endpoint(GET=keyless(latest_reconciliation))),
    Route("/v1/status", Endpoint(GET=keyless(status))),
    Route("/metrics", Endpoint(GET=metrics)),
    Route("/health/live", Endpoint(GET=handlers.live)),
    Route("/health/ready", Endpoint(GET=handlers.ready)),
]


class Application(Starlette):
    """Starlette, but for the hottest paths."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["path"] = path_of(scope)
        endpoint = HOT.get(scope.get("path", ""))
        if endpoint is None or scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        scope["app"] = self
        await endpoint(scope, receive, send)


def path_of(scope: Scope) -> str:
    """The path with its escapes resolved, but for the slash: that one is part of a value, and separates
    nothing."""
    raw: bytes = scope.get("raw_path") or b""
    if b"%" not in raw:
        return str(scope["path"])
    return "/".join(
        [unquote(part).replace("/", "%2F") for part in raw.decode("latin-1").split("/")]
    )


def make_app(settings: Settings, hosts: Hosts | None = None) -> Application:
    """The application. ``hosts``: by which names it may be called, by default those of loopback.

    It starts without Redis and without PostgreSQL, and answers 503 until they are there.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        app.state.ledger = LedgerReader(settings.postgres_url)
        await app.state.ledger.open()
        tried = asyncio.Event()
        connecting = asyncio.create_task(_connect(app, settings, tried))
        watching = asyncio.create_task(app.state.patience.watch())
        # The usual case: Redis is there, and the first request finds the engine ready.
        await tried.wait()
        selling = asyncio.create_task(app.state.selling.run())
        try:
            yield
        finally:
            for task in (connecting, watching, selling):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            await app.state.reconciler.close()
            if app.state.engine is not None:
                await app.state.engine.close()
            await app.state.ledger.close()

    app = Application(routes=ROUTES, lifespan=lifespan)
    app.router.default = Nowhere()
    app.router.redirect_slashes = False
    app.state.settings = settings
    app.state.engine = None
    app.state.hosts = hosts or Hosts()
    app.state.patience = Patience()
    app.state.selling = Watch(lambda: app.state.engine, settings.partitions)
    app.state.reconciler = Reconciler(settings)
    return app


async def _connect(app: Starlette, settings: Settings, tried: asyncio.Event) -> None:
    """Until Redis was reached; ``tried`` is set after the first try, which has its time."""
    said = ""
    while app.state.engine is None:
        try:
            app.state.engine = await Engine.start(settings)
        except StoreError as error:
            if str(error) != said:
                said = str(error)
                log.error("%s", said)
        finally:
            tried.set()
        if app.state.engine is None:
            await asyncio.sleep(RECONNECT_S)
