"""Errors as OpenAI's interface has them: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import json
from collections.abc import Mapping

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
