"""What happens to every request before and after its endpoint: id, Host, key, body size, errors, the request log."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import logging
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from potstill.errors import BudgetError, KeyRefusedError, PotstillError, QuotaError, UsageError
from potstill.serve.wire import ApiError

log = logging.getLogger(__name__)
OPEN_PATHS = ("/health", "/ready")
"""What answers without a key."""


@dataclass
class Notes:
    """What the request log and the endpoints know of one request; never its text."""

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    namespace: str | None = None
    model: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`. A name other than localhost counts as beyond."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


class Edge:
    """The outermost layer. On loopback the Host header must name this machine, against DNS rebinding."""

    def __init__(self, app: ASGIApp, *, host: str, keys: Sequence[str], max_body_bytes: int, log_file: Path) -> None:
        self._app = app
        self._hosts = {"localhost", "127.0.0.1", "[::1]", host} if is_loopback(host) else None
        self._keys = [key.encode() for key in keys]
        self._max_body_bytes = max_body_bytes
        self._log_file = log_file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, or pass the lifespan through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        notes = Notes()
        scope.setdefault("state", {})["notes"] = notes
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", notes.id.encode())]
            await send(message)

        try:
            self._admit(scope, notes)
            await self._app(scope, receive, answer)
        except ApiError as error:
            await error_response(error)(scope, receive, answer)
        except Exception:  # the one broad net of the server: a bug is one failed request
            log.exception("request %s failed", notes.id)
            if not status:
                await error_response(ApiError(500, "internal error", code="internal_error"))(scope, receive, answer)
        finally:
            self._write(scope, notes, status, time.monotonic() - began)

    def _admit(self, scope: Scope, notes: Notes) -> None:
        headers = Headers(scope=scope)
        if self._hosts is not None and _host_of(headers.get("host", "")) not in self._hosts:
            raise ApiError(400, "the Host header does not name this server", code="invalid_host")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._max_body_bytes:
            raise too_large(self._max_body_bytes)
        if not self._keys or scope["path"] in OPEN_PATHS:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        token = given.strip().encode("latin-1", "replace")
        matches = [hmac.compare_digest(token, key) for key in self._keys]
        if scheme.lower() != "bearer" or not any(matches):
            raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key")
        notes.namespace = f"key-{hashlib.sha256(token).hexdigest()[:32]}"

    def _write(self, scope: Scope, notes: Notes, status: int, latency_s: float) -> None:
        """One line in one write, without the request's text."""
        line: dict[str, Any] = {
            "at": datetime.now(UTC).isoformat(),
            "request_id": notes.id,
            "method": scope["method"],
            "path": scope["path"],
            "model": notes.model,
            "status": status,
            "prompt_tokens": notes.prompt_tokens,
            "completion_tokens": notes.completion_tokens,
            "latency_s": round(latency_s, 4),
        }
        with self._log_file.open("ab", buffering=0) as file:
            file.write(json.dumps(line).encode() + b"\n")


def _host_of(header: str) -> str:
    """The host part of a Host header: `[::1]:80` -> `[::1]`, `localhost:80` -> `localhost`."""
    if header.startswith("["):
        return header.partition("]")[0] + "]"
    return header.partition(":")[0].lower()


def too_large(limit: int) -> ApiError:
    """The body is larger than may be."""
    return ApiError(413, f"the body is larger than {limit} bytes", code="body_too_large")


def error_response(error: ApiError) -> JSONResponse:
    """The response to an error."""
    headers = {} if error.retry_s is None else {"retry-after": str(error.retry_s)}
    return JSONResponse(error.body, status_code=error.status, headers=headers)


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
    return ApiError(502, error.message, code="teacher_error")
