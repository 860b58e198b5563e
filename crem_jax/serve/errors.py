"""Errors as OpenAI's interface has them: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Mapping

from crem_jax.errors import CremError, Unavailable

log = logging.getLogger("crem_jax.serve")

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "timeout_error",
}


class ApiError(Exception):
    """A request that cannot be answered.

    Attributes:
      status: of HTTP. param: the part of the request that is to blame. code: names the case.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.headers = dict(headers or {})

    def to_json(self) -> dict:
        """The body of the response."""
        # What a request said may hold halves of surrogate pairs, which no encoder takes.
        message = str(self).encode("utf-8", "replace").decode()
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}

    def body(self) -> bytes:
        return json.dumps(self.to_json(), ensure_ascii=False).encode()


class Overloaded(ApiError):
    """Too much is waiting; `Retry-After` says for how many seconds to stay away."""

    def __init__(self, seconds: int, message: str = "the server is busy; try again later"):
        super().__init__(429, message, code="busy", headers={"Retry-After": str(seconds)})


class DeadlineExceeded(ApiError):
    """The deadline has passed."""

    def __init__(self, seconds: float):
        super().__init__(504, f"no answer within {seconds:g} seconds", code="deadline")


def answer_for(error: Exception, deadline: float | None = None) -> ApiError:
    """What a caller is told of any exception.

    A CremError is his own fault, and he gets its words. All else is not: he gets 503 for an OSError
    or an Unavailable, which may pass, 500 for a bug, and the number under which the log has the
    traceback.

    Args:
      deadline: the seconds that a TimeoutError means; None if there is no deadline here.
    """
    if isinstance(error, ApiError):
        return error
    passing = isinstance(error, OSError | Unavailable)
    if isinstance(error, CremError) and not passing:
        return ApiError(400, str(error))
    if isinstance(error, TimeoutError) and error.errno is None and deadline is not None:
        return DeadlineExceeded(deadline)
    status, what = (503, "cannot be answered now") if passing else (500, "has failed")
    number = secrets.token_hex(8)
    log.error("request %s %s", number, what, exc_info=error)
    message = f"the request {what}; the server's log says why under {number}"
    return ApiError(status, message, headers={"X-Request-Id": number})
