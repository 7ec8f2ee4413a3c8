"""What happens to every request before and after its endpoint: id, Host, key, rate, body size, errors, the log."""

from __future__ import annotations

import ipaddress
import json
import logging
import re
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from potstill.serve.access import Caller, Gate, Keys, Rates
from potstill.serve.errors import ApiError, error_response, too_large
from potstill.serve.metrics import Metrics

log = logging.getLogger(__name__)
HOST = re.compile(r"(\[[0-9a-fA-F:.]*\]|[^:\[\]]*)(?::\d*)?")
OPEN_PATHS = ("/health", "/ready")
"""What answers without a key."""
PAGE = "/"
"""What a browser looks at; it may send the key as a password."""
UNCOUNTED = (*OPEN_PATHS, PAGE, "/metrics")
"""What no rate is kept of."""


@dataclass
class Notes:
    """What the request log and the endpoints know of one request. `text` is kept only where `serve.log_text` says so."""

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    began: float = field(default_factory=time.monotonic)
    caller: Caller = field(default_factory=lambda: Caller("local", None))
    path: str = "other"
    model: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    route: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    text: dict[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Time since the request came."""
        return time.monotonic() - self.began


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`. A name other than localhost counts as beyond."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True)
class Rules:
    """What the edge holds requests to."""

    host: str
    keys: Keys
    max_body_bytes: int
    requests_per_minute: int | None
    log_text: bool


class Edge:
    """The outermost layer. On loopback the Host header must name this machine, against DNS rebinding."""

    def __init__(self, app: ASGIApp, rules: Rules, metrics: Metrics, log_file: Path) -> None:
        self._app = app
        self._rules = rules
        loopback = is_loopback(rules.host)
        self._hosts = {"localhost", "127.0.0.1", "[::1]", rules.host} if loopback else None
        self._gate = Gate(rules.keys, loopback=loopback)
        self._rates = Rates(rules.requests_per_minute)
        self._metrics = metrics
        self._log_file = log_file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, or pass the lifespan through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        notes = Notes()
        scope.setdefault("state", {})["notes"] = notes
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = {"x-request-id": notes.id, "x-content-type-options": "nosniff", **notes.headers}
                extra = [(name.encode(), value.encode("latin-1", "replace")) for name, value in own.items()]
                message["headers"] = [*message["headers"], *extra]
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
            self._metrics.request(notes.path, status, notes.seconds)
            self._write(scope, notes, status)

    def _admit(self, scope: Scope, notes: Notes) -> None:
        headers = Headers(scope=scope)
        if self._hosts is not None and _host_of(headers.get("host", "")) not in self._hosts:
            raise ApiError(400, "the Host header does not name this server", code="invalid_host")
        if "transfer-encoding" in headers and "content-length" in headers:  # a proxy may take the other one's word
            message = "a body has a length or is chunked, not both"
            raise ApiError(400, message, code="invalid_length", headers={"connection": "close"})
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._rules.max_body_bytes:
            raise too_large(self._rules.max_body_bytes)
        path = scope["path"]
        if path in OPEN_PATHS:
            return
        notes.caller = self._gate.admit(headers.get("authorization", ""), basic=path == PAGE)
        if path not in UNCOUNTED:
            notes.headers.update(self._rates.take(notes.caller.tenant, time.monotonic()))

    def _write(self, scope: Scope, notes: Notes, status: int) -> None:
        """One line in one write; a disk that is full fails no request."""
        line: dict[str, Any] = {
            "at": datetime.now(UTC).isoformat(),
            "request_id": notes.id,
            "tenant": notes.caller.tenant,
            "method": scope["method"],
            "path": scope["path"],
            "model": notes.model,
            "status": status,
            "prompt_tokens": notes.prompt_tokens,
            "completion_tokens": notes.completion_tokens,
            "route": notes.route,
            "latency_s": round(notes.seconds, 4),
            **(notes.text if self._rules.log_text else {}),
        }
        try:
            with self._log_file.open("ab", buffering=0) as file:
                file.write(json.dumps(line).encode() + b"\n")
        except OSError as error:
            log.warning("the request log cannot be written: %s", error.strerror)


def _host_of(header: str) -> str:
    """The host part of a Host header: `[::1]:80` -> `[::1]`, `localhost:80` -> `localhost`; all of it where it is none."""
    found = HOST.fullmatch(header)
    return header if found is None else found[1].lower()
