"""The ASGI application: routes and middleware."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import crem_jax
from crem_jax.serve.errors import ApiError, answer_for
from crem_jax.serve.http.access import Access, AccessControl
from crem_jax.serve.http.request_limits import RequestLimits
from crem_jax.serve.http.routes import make_routes
from crem_jax.serve.service import Service


def make_app(service: Service, access: Access | None = None, page: bool = False) -> ASGIApp:
    """Makes the server's application, which closes the service on shutdown.

    Args:
      page: mount the web page under `/`; needs the extra `ui`.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(service.close)

    # FastAPI's own pages of documentation load scripts from the network.
    app = FastAPI(
        title="crem_jax",
        version=crem_jax.__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.add_exception_handler(HTTPException, _http_error)
    app.add_middleware(_Failures, deadline=service.limits.deadline)
    app.include_router(make_routes(service))
    if page:
        from crem_jax.serve.page.page import mount_page

        mount_page(app, service)
    return AccessControl(RequestLimits(app, service), access or Access())


class _Failures:
    """ASGI middleware that turns a route's exception into a response, unless one has started."""

    def __init__(self, app: ASGIApp, deadline: float):
        self._app, self._deadline = app, deadline

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def noting(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except Exception as error:
            if begun or scope["type"] != "http":
                raise
            await _response(answer_for(error, self._deadline))(scope, receive, send)


def _response(error: ApiError) -> JSONResponse:
    return JSONResponse(error.to_json(), error.status, error.headers)


async def _http_error(_: Request, error: HTTPException) -> JSONResponse:
    return _response(ApiError(error.status_code, str(error.detail), headers=error.headers))
