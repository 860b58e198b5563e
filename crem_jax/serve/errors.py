"""Errors in the format of OpenAI's API: {"error": {"message", "type", "param", "code"}}."""

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
    """An error response.

    Attributes:
      status: the HTTP status. param: the offending part of the request, or None.
      code: a machine-readable name of the error, or None. headers: of the response.
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
        # Text from a request may contain lone surrogates, which cannot be encoded.
        message = str(self).encode("utf-8", "replace").decode()
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}

    def body(self) -> bytes:
        return json.dumps(self.to_json(), ensure_ascii=False).encode()


class Overloaded(ApiError):
    """429: too many requests; `Retry-After` gives the seconds to wait."""

    def __init__(self, seconds: int, message: str = "the server is busy; try again later"):
        super().__init__(429, message, code="busy", headers={"Retry-After": str(seconds)})


class DeadlineExceeded(ApiError):
    """504: the request's deadline has passed."""

    def __init__(self, seconds: float):
        super().__init__(504, f"no answer within {seconds:g} seconds", code="deadline")


def answer_for(error: Exception, deadline: float | None = None) -> ApiError:
    """The error response for any exception.

    A CremError is the caller's fault: its message is returned with a 4xx. Everything else is not:
    an OSError or Unavailable, which may pass, gives 503, any other exception 500, each with a
    number under which the log has the traceback.

    Args:
      deadline: the deadline in seconds that a TimeoutError refers to; None if there is none.
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
