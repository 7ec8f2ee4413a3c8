"""The OpenAI-compatible API: one model a role, and `hybrid` for the router."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp

from potstill.config import ServeConfig
from potstill.errors import PotstillError
from potstill.pricing.tokens import estimate_tokens
from potstill.records import Message, Trace
from potstill.serve.batching import Batcher, Job, QueueFullError
from potstill.serve.edge import Edge, Notes, error_response, too_large, translated
from potstill.serve.wire import DONE, HYBRID, ApiError, ChatRequest, Reply, check_hybrid, event, queries, read_request
from potstill.serve.wire import usage as usage_of
from potstill.student.answers import Piece, Student, StudentAnswer

T = TypeVar("T")


class RoutedAnswer(Protocol):
    """What the router gives back."""

    @property
    def text(self) -> str:
        """The answer."""

    @property
    def trace(self) -> Trace:
        """The path it took."""


class HybridRouter(Protocol):
    """The router behind the model `hybrid`: cache, then student, then teacher."""

    async def answer(
        self, question: str, *, namespace: str | None = None, history: Sequence[Message] = ()
    ) -> RoutedAnswer:
        """Answer one question in its conversation."""


def create_app(
    student: Student,
    serve: ServeConfig,
    *,
    log_file: Path,
    keys: Sequence[str] = (),
    router: HybridRouter | None = None,
) -> ASGIApp:
    """The application. The student's worker runs from the application's start-up to its shutdown, which drains it."""
    from fastapi import FastAPI

    api = _Api(student, serve, router)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=api.lifespan)
    routes: list[tuple[str, str, Callable[[Request], Awaitable[Response]]]] = [
        ("GET", "/health", api.health),
        ("GET", "/ready", api.ready),
        ("GET", "/v1/models", api.models),
        ("GET", "/v1/models/{model}", api.model),
        ("POST", "/v1/chat/completions", api.chat),
    ]
    for method, path, endpoint in routes:
        app.router.add_route(path, endpoint, methods=[method])
    app.add_exception_handler(HTTPException, _unknown_route)
    app.add_exception_handler(ApiError, _refused)
    app.add_exception_handler(Exception, _bug)
    return Edge(app, host=serve.host, keys=keys, max_body_bytes=serve.limits.max_body_bytes, log_file=log_file)


class _Api:
    """The endpoints over one student and one router."""

    def __init__(self, student: Student, serve: ServeConfig, router: HybridRouter | None) -> None:
        self._limits = serve.limits
        self._router = router
        self._routing = 0
        self._batcher = Batcher(student, max_batch=self._limits.max_batch, max_queue=self._limits.max_queue)
        self._models = (*student.roles, *((HYBRID,) if router is not None else ()))

    @asynccontextmanager
    async def lifespan(self, _app: Any) -> AsyncIterator[None]:
        """Run the student's worker."""
        self._batcher.start()
        yield
        await self._batcher.close()

    async def health(self, _request: Request) -> Response:
        """Liveness: the process answers."""
        return JSONResponse({"status": "ok"})

    async def ready(self, _request: Request) -> Response:
        """Readiness: requests are taken."""
        ready = self._batcher.alive
        return JSONResponse({"status": "ready" if ready else "not ready"}, status_code=200 if ready else 503)

    async def models(self, _request: Request) -> Response:
        """All models."""
        return JSONResponse({"object": "list", "data": [_model(name) for name in self._models]})

    async def model(self, request: Request) -> Response:
        """One model."""
        self._check_model(request.path_params["model"])
        return JSONResponse(_model(request.path_params["model"]))

    async def chat(self, request: Request) -> Response:
        """A chat completion, whole or streamed."""
        chat = read_request(await _body(request, self._limits.max_body_bytes), self._limits)
        self._check_model(chat.model)
        estimate = sum(estimate_tokens(turn.message.content) for turn in chat.messages)
        if estimate > self._limits.max_prompt_tokens:
            message = f"the prompt is about {estimate} tokens, at most {self._limits.max_prompt_tokens} are allowed"
            raise ApiError(400, message, code="context_length_exceeded", param="messages")
        notes: Notes = request.state.notes
        notes.model = chat.model
        try:
            if self._router is not None and chat.model == HYBRID:
                return await self._hybrid(request, chat, self._router)
            return await self._student(request, chat)
        except QueueFullError as error:
            raise ApiError(503, "too many requests wait", code="queue_full", retry_s=1) from error
        except TimeoutError as error:
            raise ApiError(504, f"no answer within {self._limits.timeout_s:g} s", code="timeout") from error
        except PotstillError as error:
            raise translated(error) from error

    def _check_model(self, name: str) -> None:
        if name not in self._models:
            message = f"there is no model {name!r}; there are {', '.join(self._models)}"
            raise ApiError(404, message, code="model_not_found", param="model")

    async def _student(self, request: Request, chat: ChatRequest) -> Response:
        notes: Notes = request.state.notes
        reply = Reply(notes.id, chat.model)
        job = self._batcher.submit(queries(chat, self._limits))
        try:
            async with asyncio.timeout(self._limits.timeout_s) as limit:
                pieces = job.pieces()
                if not chat.stream:
                    answers = await _unless_gone(request, _collect(pieces))
                    _note(notes, usage_of(answers))
                    choices = [(answer.text, answer.finish_reason) for answer in answers]
                    return JSONResponse(reply.whole(choices, usage_of(answers)))
                first = await _unless_gone(request, anext(pieces))
        except BaseException:
            job.cancel()
            raise
        events = self._events(job, pieces, first, chat, reply, notes, limit.when())
        return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-cache"})

    async def _events(
        self,
        job: Job,
        pieces: AsyncIterator[Piece],
        first: Piece,
        chat: ChatRequest,
        reply: Reply,
        notes: Notes,
        deadline: float | None,
    ) -> AsyncIterator[str]:
        """The events of a stream; when the client leaves, the job is cancelled."""
        answers: dict[int, StudentAnswer] = {}
        try:
            for index in range(len(job.queries)):
                yield reply.chunk(index, {"role": "assistant", "content": ""})
            piece: Piece | None = first
            while piece is not None:
                if piece.text:
                    yield reply.chunk(piece.index, {"content": piece.text})
                if piece.answer is not None:
                    answers[piece.index] = piece.answer
                    yield reply.chunk(piece.index, {}, piece.answer.finish_reason)
                async with asyncio.timeout_at(deadline):
                    piece = await anext(pieces, None)
            tokens = usage_of(list(answers.values()))
            _note(notes, tokens)
            if chat.wants_usage:
                yield reply.usage_chunk(tokens)
            yield DONE
        except TimeoutError:
            yield event(ApiError(504, "the answer took too long", code="timeout").body)
        except PotstillError as error:
            yield event(translated(error).body)
        finally:
            job.cancel()

    async def _hybrid(self, request: Request, chat: ChatRequest, router: HybridRouter) -> Response:
        check_hybrid(chat)
        if self._routing >= self._limits.max_queue:
            raise QueueFullError
        notes: Notes = request.state.notes
        self._routing += 1
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                work = router.answer(chat.question, namespace=notes.namespace, history=chat.history)
                routed = await _unless_gone(request, work)
        finally:
            self._routing -= 1
        asked = sum(estimate_tokens(turn.message.content) for turn in chat.messages)
        written = estimate_tokens(routed.text)
        tokens = {"prompt_tokens": asked, "completion_tokens": written, "total_tokens": asked + written}
        _note(notes, tokens)
        extra = {"potstill": {**_route(routed.trace), "usage_estimated": True}}
        reply = Reply(notes.id, chat.model)
        if not chat.stream:
            return JSONResponse(reply.whole([(routed.text, "stop")], tokens, extra))
        events = [
            reply.chunk(0, {"role": "assistant", "content": ""}),
            reply.chunk(0, {"content": routed.text}),
            reply.chunk(0, {}, "stop", extra),
            *([reply.usage_chunk(tokens)] if chat.wants_usage else []),
            DONE,
        ]
        return Response("".join(events), media_type="text/event-stream")


def _route(trace: Trace) -> dict[str, Any]:
    return {
        "route": trace.route,
        "reason": trace.reason,
        "cost_usd": format(trace.cost_usd, "f"),
        "entry_id": trace.entry_id,
    }


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "potstill"}


def _note(notes: Notes, tokens: dict[str, int]) -> None:
    notes.prompt_tokens = tokens["prompt_tokens"]
    notes.completion_tokens = tokens["completion_tokens"]


async def _collect(pieces: AsyncIterator[Piece]) -> list[StudentAnswer]:
    """Whole answers, their text made of the same pieces that a stream carries."""
    texts: dict[int, str] = {}
    answers: dict[int, StudentAnswer] = {}
    async for piece in pieces:
        texts[piece.index] = texts.get(piece.index, "") + piece.text
        if piece.answer is not None:
            answers[piece.index] = piece.answer
    return [answers[index].model_copy(update={"text": texts[index]}) for index in sorted(answers)]


async def _body(request: Request, limit: int) -> bytes:
    """The body, read no further than the limit; a chunked one has no length to check before."""
    body = bytearray()
    async with aclosing(request.stream()) as stream:
        async for part in stream:
            body += part
            if len(body) > limit:
                raise too_large(limit)
    return bytes(body)


async def _unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Await `work`, cancelling it as soon as the client goes away."""
    task = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(499, "the client went away", code="client_closed")
        return await task
    finally:
        task.cancel()
        leaving.cancel()


async def _unknown_route(_request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return error_response(ApiError(status, "no such endpoint or method", code="unknown_url"))


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error)


async def _bug(_request: Request, _error: Exception) -> Response:
    """The edge logs the error; the client learns nothing of it."""
    return error_response(ApiError(500, "internal error", code="internal_error"))
