"""An answer other than 200, in OpenAI's shape, and what each expected failure becomes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from starlette.responses import JSONResponse

from potstill.errors import BudgetError, KeyRefusedError, MachineError, PotstillError, QuotaError, UsageError

log = logging.getLogger(__name__)
SERVER_ERROR = 500
KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A refusal or a failure that the client is told of."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_s: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = {**(headers or {}), **({} if retry_s is None else {"retry-after": str(retry_s)})}

    @property
    def body(self) -> dict[str, Any]:
        """The JSON body."""
        kind = "server_error" if self.status >= SERVER_ERROR else KINDS.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def bad_value(param: str, problem: str) -> ApiError:
    """A parameter that is refused."""
    return ApiError(400, f"{param}: {problem}", code="invalid_value", param=param)


def engine_failed() -> ApiError:
    """The engine broke, at this request or at one beside it."""
    return ApiError(500, "the engine failed at this request, or at one beside it", code="engine_failed")


def too_large(limit: int) -> ApiError:
    """The body is larger than may be."""
    return ApiError(413, f"the body is larger than {limit} bytes", code="body_too_large")


def error_response(error: ApiError) -> JSONResponse:
    """The response to an error."""
    return JSONResponse(error.body, status_code=error.status, headers=error.headers)


def translated(error: PotstillError) -> ApiError:
    """What a client is told of an expected failure of the student, the router or the teacher."""
    if isinstance(error, QuotaError):
        wait = 60 if error.retry_at is None else (error.retry_at - datetime.now(UTC)).total_seconds()
        return ApiError(429, error.message, code="quota_exhausted", retry_s=max(1, int(wait)))
    if isinstance(error, BudgetError):
        return ApiError(429, error.message, code="budget_exceeded")
    if isinstance(error, KeyRefusedError):
        return ApiError(502, "the teacher refused this server's key", code="teacher_key")
    if isinstance(error, UsageError):
        return ApiError(400, error.message, code="invalid_value")
    if isinstance(error, MachineError):
        log.warning("%s", error)
        return ApiError(503, "the machine behind this server cannot do it; its log says why", code="machine_error")
    return ApiError(502, error.message, code="teacher_error")
