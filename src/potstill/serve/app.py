"""The OpenAI-compatible API: one model a role, `all` for every role, `hybrid` for the router."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp

from potstill.config import ServeConfig
from potstill.errors import PotstillError
from potstill.pricing.tokens import estimate_tokens
from potstill.serve.access import Keys, need_admin
from potstill.serve.answering import Answering
from potstill.serve.edge import Edge, Notes, Rules
from potstill.serve.errors import ApiError, bad_value, engine_failed, error_response, translated
from potstill.serve.hybrid import Hybrid, OpenRouter, Routers
from potstill.serve.intake import read, unless_gone
from potstill.serve.jobs import SharedStudent
from potstill.serve.metrics import Metrics
from potstill.serve.openapi import describe
from potstill.serve.outage import EngineFailedError, UnavailableError
from potstill.serve.page import page
from potstill.serve.replies import embeddings
from potstill.serve.wire import ALL, HYBRID, ChatRequest, CompletionRequest, EmbeddingRequest, RolesRequest, Sampled
from potstill.serve.worker import Worker
from potstill.student.answers import Continuous

log = logging.getLogger(__name__)
Endpoint = Callable[[Request], Awaitable[Response]]
Encode = Callable[[list[str]], list[tuple[float, ...]]]
"""Texts to vectors. Blocking; raises InputError for a text that it cannot read."""
ReadStudent = Callable[[str], Callable[[Any], None]]
"""Reads a student by name (blocking) and gives the change that serves it; raises InputError."""


@dataclass(frozen=True)
class Parts:
    """What the server is made of beside the student; what is not given is not offered."""

    keys: Keys = field(default_factory=Keys)
    router: Callable[[SharedStudent], OpenRouter] | None = None
    encoder: tuple[str, Encode] | None = None
    read_student: ReadStudent | None = None


def create_app(student: Continuous, serve: ServeConfig, *, log_file: Path, parts: Parts | None = None) -> ASGIApp:
    """The application. The student's worker runs from the application's start-up to its shutdown, which drains it."""
    from fastapi import FastAPI

    parts = parts or Parts()
    api = _Api(student, serve, parts)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=api.lifespan)
    endpoints: dict[str, dict[str, Endpoint]] = {
        "/": {"GET": api.page},
        "/health": {"GET": api.health},
        "/ready": {"GET": api.ready},
        "/metrics": {"GET": api.metrics_text},
        "/openapi.json": {"GET": api.openapi},
        "/v1/models": {"GET": api.models},
        "/v1/models/{model:path}": {"GET": api.model},
        "/v1/chat/completions": {"POST": api.chat},
        "/v1/completions": {"POST": api.complete},
        "/v1/embeddings": {"POST": api.embed},
        "/v1/roles": {"GET": api.roles, "POST": api.load_roles},
        "/v1/roles/{role}": {"DELETE": api.drop_role},
    }
    for path, methods in endpoints.items():
        app.router.add_route(path, _named(path, methods), methods=list(methods))
    app.add_exception_handler(HTTPException, _unknown_route)
    app.add_exception_handler(ApiError, _refused)
    app.add_exception_handler(Exception, _bug)
    limits = serve.limits
    rules = Rules(serve.host, parts.keys, limits.max_body_bytes, limits.requests_per_minute, serve.log_text)
    return Edge(app, rules, api.metrics, log_file)


class _Api:
    """The endpoints over one student and one router."""

    def __init__(self, student: Continuous, serve: ServeConfig, parts: Parts) -> None:
        self._limits = serve.limits
        self._parts = parts
        self._worker = Worker(
            student,
            max_batch=self._limits.max_batch,
            max_queue=self._limits.max_queue,
            observe=lambda queries: self.metrics.step(queries),  # noqa: PLW0108  (made below)
        )
        self.metrics = Metrics(
            lambda: self._worker.running, lambda: self._worker.waiting, lambda: self._worker.student.prefix_hits
        )
        self._answering = Answering(self._worker, self._limits, self.metrics)
        self._routers = None if parts.router is None else Routers(parts.router(SharedStudent(self._worker)))
        self._hybrid = None if self._routers is None else Hybrid(self._routers, self._limits, self.metrics)
        self._changing = asyncio.Lock()

    @asynccontextmanager
    async def lifespan(self, _app: Any) -> AsyncIterator[None]:
        """Run the student's worker and the router."""
        self._worker.start()
        if self._routers is not None:
            await self._routers.renew()
        yield
        if self._routers is not None:
            await self._routers.close()
        await self._worker.close()

    async def page(self, _request: Request) -> Response:
        """The status page."""
        refusal = self._worker.refusal
        about = {
            "student": self._worker.student.name,
            "state": "ready" if refusal is None else f"not ready: {refusal.message}",
            "models": [name for name in self._models if name != ALL],  # which counts as its roles
            "running": self._worker.running,
            "waiting": self._worker.waiting,
            "max_batch": self._limits.max_batch,
            "max_queue": self._limits.max_queue,
        }
        policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
        headers = {"content-security-policy": policy, "cache-control": "no-store"}
        return HTMLResponse(page(self.metrics, about, time.time()), headers=headers)

    async def health(self, _request: Request) -> Response:
        """Liveness: the process answers."""
        return JSONResponse({"status": "ok"})

    async def ready(self, _request: Request) -> Response:
        """Readiness: requests are taken."""
        refusal = self._worker.refusal
        if refusal is None:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "not ready", "reason": refusal.message}, status_code=503)

    async def metrics_text(self, _request: Request) -> Response:
        """What Prometheus reads."""
        body, kind = self.metrics.render()
        return Response(body, headers={"content-type": kind})

    async def openapi(self, _request: Request) -> Response:
        """The API's own description."""
        encoder = self._parts.encoder
        embedding = () if encoder is None else (encoder[0],)
        return JSONResponse(describe([name for name in self._models if name not in embedding], embedding))

    async def models(self, _request: Request) -> Response:
        """All models."""
        return JSONResponse({"object": "list", "data": [_model(name) for name in self._models]})

    async def model(self, request: Request) -> Response:
        """One model."""
        self._check_model(request.path_params["model"])
        return JSONResponse(_model(request.path_params["model"]))

    async def chat(self, request: Request) -> Response:
        """A chat completion."""
        asked = await read(request, ChatRequest, self._limits)
        if asked.model == HYBRID and self._hybrid is not None:
            return await self._answered(request, asked, self._hybrid.answer(request, asked))
        self._check_role(asked)
        return await self._answered(request, asked, self._answering.answer(request, asked))

    async def complete(self, request: Request) -> Response:
        """A completion of a bare text."""
        asked = await read(request, CompletionRequest, self._limits)
        self._check_role(asked)
        return await self._answered(request, asked, self._answering.answer(request, asked))

    async def embed(self, request: Request) -> Response:
        """Vectors of the cache's encoder."""
        asked = await read(request, EmbeddingRequest, self._limits)
        if self._parts.encoder is None or asked.model != self._parts.encoder[0]:
            offered = "none" if self._parts.encoder is None else self._parts.encoder[0]
            message = f"there is no embedding model {asked.model[:80]!r}; there is {offered}"
            raise ApiError(404, message, code="model_not_found", param="model")
        _noted(request).model = asked.model
        try:
            vectors = await unless_gone(request, asyncio.to_thread(self._parts.encoder[1], asked.texts))
        except PotstillError as error:
            raise translated(error) from error
        if asked.dimensions not in {None, len(vectors[0])}:
            raise bad_value(param="dimensions", problem=f"this encoder gives {len(vectors[0])}")
        tokens = sum(estimate_tokens(text) for text in asked.texts)
        _noted(request).prompt_tokens = tokens
        self.metrics.answered(asked.model, tokens, 0)
        return JSONResponse(embeddings(asked.model, vectors, tokens, packed=asked.encoding_format == "base64"))

    async def roles(self, _request: Request) -> Response:
        """The roles that are served."""
        student = self._worker.student
        data = [{"role": role, "student": student.name} for role in student.roles]
        return JSONResponse({"object": "list", "data": data, "fingerprint": student.fingerprint})

    async def load_roles(self, request: Request) -> Response:
        """Serve another student's roles, of the same base, without dropping a request. Admin."""
        need_admin(_noted(request).caller)
        asked = await read(request, RolesRequest, self._limits)
        if self._parts.read_student is None:
            raise ApiError(400, "this server's engine cannot change its roles", code="unsupported")
        try:
            async with self._changing:
                change = await asyncio.to_thread(self._parts.read_student, asked.student)
                await self._change(change)
        except PotstillError as error:  # its text names files, which are this machine's own affair
            log.warning("the student %r cannot be served: %s", asked.student, error)
            problem = f"{asked.student!r} cannot be served here; the server's log says why"
            raise bad_value(param="student", problem=problem) from error
        return await self.roles(request)

    async def drop_role(self, request: Request) -> Response:
        """Serve a role no longer. Admin."""
        need_admin(_noted(request).caller)
        role = request.path_params["role"]
        student = self._worker.student
        if self._parts.read_student is None:
            raise ApiError(400, "this server's engine cannot change its roles", code="unsupported")
        async with self._changing:  # of two roles that go at once, one is the last
            if role not in student.roles:
                raise ApiError(404, f"there is no role {role[:80]!r}", code="role_not_found", param="role")
            if student.roles == (role,):
                raise ApiError(409, "the last role cannot be dropped", code="last_role", param="role")
            await self._change(lambda served: served.drop(role))
        return await self.roles(request)

    async def _change(self, change: Callable[[Any], None]) -> None:
        """Change the roles between two steps; the router's cache key carries them, so a fresh one takes over."""
        await self._worker.change(change)
        if self._routers is not None:
            await self._routers.renew()

    @property
    def _models(self) -> tuple[str, ...]:
        hybrid = (HYBRID,) if self._hybrid is not None else ()
        encoder = (self._parts.encoder[0],) if self._parts.encoder is not None else ()
        return (*self._worker.student.roles, ALL, *hybrid, *encoder)

    def _check_model(self, name: str) -> None:
        if name not in self._models:
            message = f"there is no model {name[:80]!r}; there are {', '.join(self._models)}"
            raise ApiError(404, message, code="model_not_found", param="model")

    def _check_role(self, asked: Sampled) -> None:
        self._check_model(asked.model)
        if asked.model not in {ALL, *self._worker.student.roles}:
            raise bad_value(param="model", problem=f"{asked.model!r} does not answer here")

    async def _answered(self, request: Request, asked: Sampled, work: Awaitable[Response]) -> Response:
        """Wait for an answer; what goes wrong becomes an ApiError."""
        _noted(request).model = asked.model
        try:
            return await work
        except UnavailableError as error:
            raise ApiError(503, error.message, code=error.code, retry_s=error.retry_s) from error
        except EngineFailedError as error:
            raise engine_failed() from error
        except TimeoutError as error:
            raise ApiError(504, f"no answer within {self._limits.timeout_s:g} s", code="timeout") from error
        except PotstillError as error:
            raise translated(error) from error


def _noted(request: Request) -> Notes:
    notes: Notes = request.state.notes
    return notes


def _named(path: str, methods: Mapping[str, Endpoint]) -> Endpoint:
    """A path's endpoint, its route written down for the metrics, so that no client can make up names there."""

    async def named(request: Request) -> Response:
        _noted(request).path = path
        return await methods["GET" if request.method == "HEAD" else request.method](request)

    return named


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "potstill"}


async def _unknown_route(_request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = error.headers if isinstance(error, HTTPException) else None
    return error_response(ApiError(status, "no such endpoint or method", code="unknown_url", headers=headers))


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error)


async def _bug(_request: Request, _error: Exception) -> Response:
    """The edge logs the error; the client learns nothing of it."""
    return error_response(ApiError(500, "internal error", code="internal_error"))
