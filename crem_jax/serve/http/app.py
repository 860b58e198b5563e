"""The application: routes, and the layers around them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp

import crem_jax
from crem_jax.serve.errors import ApiError, DeadlineExceeded
from crem_jax.serve.http.access import Access, AccessControl
from crem_jax.serve.http.request_limits import RequestLimits
from crem_jax.serve.http.routes import make_routes
from crem_jax.serve.service import Service


def make_app(service: Service, access: Access | None = None, page: bool = False) -> ASGIApp:
    """The server's application; when it ends it closes the service.

    Args:
      page: with the page under `/`; needs the extra `ui`.
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
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(ValueError, _value_error)
    app.add_exception_handler(TimeoutError, _timeout(service.limits.deadline))
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _failure)
    app.include_router(make_routes(service))
    if page:
        from crem_jax.serve.page.page import mount_page

        mount_page(app, service)
    return AccessControl(RequestLimits(app, service), access or Access())


async def _api_error(_: Request, error: ApiError) -> JSONResponse:
    return JSONResponse(error.to_json(), error.status, error.headers)


async def _value_error(request: Request, error: ValueError) -> JSONResponse:
    """What the model or the library says of what it was given."""
    return await _api_error(request, ApiError(400, str(error)))


async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
    wrapped = ApiError(error.status_code, str(error.detail), headers=error.headers)
    return await _api_error(request, wrapped)


async def _failure(request: Request, _: Exception) -> JSONResponse:
    return await _api_error(request, ApiError(500, "the server's log says what has failed"))


def _timeout(seconds: float):
    async def answer(request: Request, _: TimeoutError) -> JSONResponse:
        return await _api_error(request, DeadlineExceeded(seconds))

    return answer
