"""The model `hybrid`: the router (cache, then student, then teacher) behind the same API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from potstill.config import ServeLimits
from potstill.pricing.tokens import estimate_tokens
from potstill.records import Message, Trace
from potstill.serve.edge import Notes
from potstill.serve.errors import ApiError, bad_value
from potstill.serve.intake import unless_gone
from potstill.serve.metrics import Metrics
from potstill.serve.outage import QueueFullError
from potstill.serve.replies import DONE, ChatReply, Choice, event
from potstill.serve.streaming import Streamed, chained
from potstill.serve.wire import HYBRID, ChatRequest

OWN_SAMPLING = (
    "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop", "frequency_penalty",
    "presence_penalty", "logit_bias", "logprobs", "top_logprobs", "response_format",
)  # fmt: skip
"""What the hybrid router sets by itself, so that a request may not."""


class RoutedAnswer(Protocol):
    """What the router gives back."""

    @property
    def text(self) -> str:
        """The answer."""

    @property
    def trace(self) -> Trace:
        """The path it took."""


class HybridRouter(Protocol):
    """The router behind the model `hybrid`."""

    async def answer(
        self,
        question: str,
        *,
        namespace: str | None = None,
        history: Sequence[Message] = (),
        read_cache: bool = True,
        store: bool = True,
        tell: Callable[[str], None] | None = None,
    ) -> RoutedAnswer:
        """Answer one question in its conversation; `tell` takes what Gemini writes while it arrives."""


class OpenRouter(Protocol):
    """Opens a router over what is served now."""

    def __call__(self) -> AbstractAsyncContextManager[HybridRouter]:
        """A fresh router."""


class Routers:
    """The router in use. After a change of roles a fresh one takes over; the old one ends with its last request."""

    def __init__(self, open_router: OpenRouter) -> None:
        self._open_router = open_router
        self._current: tuple[HybridRouter, list[int], asyncio.Event] | None = None
        self._holders: set[asyncio.Task[None]] = set()

    async def renew(self) -> None:
        """Open a router, and let the one before it end; raises what opening raises."""
        opened: asyncio.Future[HybridRouter] = asyncio.get_running_loop().create_future()
        users, done = [0], asyncio.Event()
        task = asyncio.create_task(self._hold(opened, done))
        self._holders.add(task)
        task.add_done_callback(self._holders.discard)
        router = await opened
        before, self._current = self._current, (router, users, done)
        if before is not None and not before[1][0]:
            before[2].set()

    async def close(self) -> None:
        """End all routers."""
        if self._current is not None:
            self._current[2].set()
        await asyncio.gather(*self._holders)

    @asynccontextmanager
    async def use(self) -> AsyncIterator[HybridRouter]:
        """The router in use, kept open until it has answered."""
        assert self._current is not None
        mine = self._current
        mine[1][0] += 1
        try:
            yield mine[0]
        finally:
            mine[1][0] -= 1
            if mine is not self._current and not mine[1][0]:
                mine[2].set()

    async def _hold(self, opened: asyncio.Future[HybridRouter], done: asyncio.Event) -> None:
        """Open and close a router in one task, as its context asks for."""
        try:
            async with self._open_router() as router:
                opened.set_result(router)
                await done.wait()
        except Exception as error:
            if opened.done():
                raise
            opened.set_exception(error)


class Hybrid:
    """Answers by the router."""

    def __init__(self, routers: Routers, limits: ServeLimits, metrics: Metrics) -> None:
        self._routers = routers
        self._limits = limits
        self._metrics = metrics
        self._routing = 0

    async def answer(self, request: Request, asked: ChatRequest) -> Response:
        """Answer a request; raises ApiError, UnavailableError, TimeoutError or what the router raises."""
        check_hybrid(asked)
        tokens = sum(estimate_tokens(turn.message.content) for turn in asked.messages)
        if tokens > self._limits.max_prompt_tokens:
            message = f"the prompt is about {tokens} tokens, at most {self._limits.max_prompt_tokens} are allowed"
            raise ApiError(400, message, code="context_length_exceeded", param="messages")
        notes: Notes = request.state.notes
        notes.text = {"asked": asked.model_dump(mode="json", by_alias=True, exclude_unset=True)}
        wishes = cache_wishes(request.headers.get("x-potstill-cache", ""))
        if self._routing >= self._limits.max_queue:
            raise QueueFullError
        if not asked.stream:
            routed = await unless_gone(request, self._started(notes, asked, wishes, None))
            usage, extra = self._account(notes, routed, tokens)
            self._metrics.first_token(HYBRID, notes.seconds)
            reply = ChatReply(notes.id, asked.model, f"fp_{routed.trace.id[:16]}", usage=False, logprobs=False)
            return JSONResponse(reply.whole([Choice(routed.text, "stop")], usage, extra))
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        task = self._started(notes, asked, wishes, pieces.put_nowait)
        task.add_done_callback(lambda _: pieces.put_nowait(None))
        arriving = _until_none(pieces)
        try:
            first = await unless_gone(request, anext(arriving, None))
            if first is None:  # known as a whole, or failed: that still has headers and a status
                notes.headers |= route_headers((await task).trace)
        except BaseException:
            task.cancel()
            raise
        return Streamed(self._events(notes, asked, task, chained(first, arriving), tokens), task.cancel)

    def _started(
        self, notes: Notes, asked: ChatRequest, wishes: dict[str, bool], tell: Callable[[str], None] | None
    ) -> asyncio.Task[RoutedAnswer]:
        """The router at work; it has its place in the queue from now on, until it ends."""
        self._routing += 1
        task = asyncio.create_task(self._routed(notes, asked, wishes, tell))
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[RoutedAnswer]) -> None:
        self._routing -= 1
        if not task.cancelled():
            task.exception()  # looked at, so that asyncio does not complain of one whose client has gone away

    async def _routed(
        self, notes: Notes, asked: ChatRequest, wishes: dict[str, bool], tell: Callable[[str], None] | None
    ) -> RoutedAnswer:
        async with asyncio.timeout(self._limits.timeout_s), self._routers.use() as router:
            tenant = notes.caller.tenant
            return await router.answer(asked.question, namespace=tenant, history=asked.history, tell=tell, **wishes)

    async def _events(
        self,
        notes: Notes,
        asked: ChatRequest,
        task: asyncio.Task[RoutedAnswer],
        pieces: AsyncIterator[str],
        prompt_tokens: int,
    ) -> AsyncGenerator[str]:
        """The events of a stream, as Gemini writes."""
        reply = ChatReply(notes.id, asked.model, f"fp_{notes.id[:16]}", usage=asked.wants_usage, logprobs=False)
        said = ""
        yield reply.opening(0, {})
        async for piece in pieces:
            if not said:
                self._metrics.first_token(HYBRID, notes.seconds)
            said += piece
            yield reply.chunk(0, piece, ())
        routed = await task
        usage, extra = self._account(notes, routed, prompt_tokens)
        if not said:
            self._metrics.first_token(HYBRID, notes.seconds)
        if not routed.text.startswith(said):
            yield event(ApiError(502, "the answer broke off", code="stream_broken").body)
            return
        for line in routed.text[len(said) :].splitlines(keepends=True):
            yield reply.chunk(0, line, ())
        yield reply.last(0, "stop", extra)
        if asked.wants_usage:
            yield reply.usage(usage)
        yield DONE

    def _account(self, notes: Notes, routed: RoutedAnswer, prompt_tokens: int) -> tuple[dict[str, int], dict[str, Any]]:
        """Write down and count an answer; its usage, and what the reply says of its route."""
        trace, written = routed.trace, estimate_tokens(routed.text)
        notes.prompt_tokens, notes.completion_tokens, notes.route = prompt_tokens, written, trace.route
        notes.text["answers"] = [routed.text]
        notes.headers |= route_headers(trace)
        self._metrics.answered(HYBRID, prompt_tokens, written)
        self._metrics.routed(trace.route, trace.cost_usd, trace.baseline_usd)
        usage = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": written,
            "total_tokens": prompt_tokens + written,
        }
        return usage, {"potstill": {**_route(trace), "usage_estimated": True}}


async def _until_none(pieces: asyncio.Queue[str | None]) -> AsyncIterator[str]:
    """The pieces up to the end, which None stands for."""
    while (piece := await pieces.get()) is not None:
        yield piece


def cache_wishes(header: str) -> dict[str, bool]:
    """`x-potstill-cache`: `no-cache` asks anew, `no-store` keeps nothing; raises ApiError for anything else."""
    wishes = {part.strip().lower() for part in header.split(",") if part.strip()}
    if unknown := wishes - {"no-cache", "no-store"}:
        message = f"x-potstill-cache: no-cache and no-store are known, not {min(unknown)[:40]!r}"
        raise ApiError(400, message, code="invalid_value", param="x-potstill-cache")
    return {name: False for name, wish in (("read_cache", "no-cache"), ("store", "no-store")) if wish in wishes}


def route_headers(trace: Trace) -> dict[str, str]:
    """Path, cost and trace id, for clients that read no body."""
    return {
        "x-potstill-route": trace.route,
        "x-potstill-cost-usd": format(trace.cost_usd, "f"),
        "x-potstill-trace": trace.id,
        **({"x-potstill-entry": trace.entry_id} if trace.entry_id else {}),
    }


def _route(trace: Trace) -> dict[str, Any]:
    return {
        "route": trace.route,
        "reason": trace.reason,
        "cost_usd": format(trace.cost_usd, "f"),
        "trace_id": trace.id,
        "entry_id": trace.entry_id,
    }


def check_hybrid(request: ChatRequest) -> None:
    """Refuse what the router decides by itself; raises ApiError (400)."""
    given = request.model_fields_set
    for name in OWN_SAMPLING:
        if name in given and getattr(request, name) is not False:
            message = f"{name}: the model {HYBRID!r} sets it by its config"
            raise ApiError(400, message, code="unsupported_parameter", param=name)
    if request.n is not None and request.n > 1:
        raise ApiError(400, f"n: the model {HYBRID!r} gives one answer", code="unsupported_parameter", param="n")
    if any(turn.message.role == "system" for turn in request.messages):
        message = f"messages: the model {HYBRID!r} has its roles' system prompts; a request brings none"
        raise ApiError(400, message, code="unsupported_value", param="messages")
    if request.messages[-1].role != "user" or not request.question.strip():
        raise bad_value(param="messages", problem="the last one must be the user's question")
