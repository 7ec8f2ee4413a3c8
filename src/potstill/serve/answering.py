"""Answers of the student's roles: chat completions and completions, whole or streamed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from potstill.config import ServeLimits
from potstill.serve.edge import Notes
from potstill.serve.errors import ApiError, bad_value
from potstill.serve.intake import unless_gone
from potstill.serve.jobs import AsyncJob
from potstill.serve.metrics import Metrics
from potstill.serve.replies import DONE, ChatReply, Choice, TextReply, usage_of
from potstill.serve.streaming import Streamed, chained
from potstill.serve.wire import ALL, ChatRequest, CompletionRequest, Sampled, check_limits
from potstill.serve.worker import Worker
from potstill.student.answers import Piece, Prepared, QueryError, StudentAnswer, StudentQuery


@dataclass(frozen=True)
class Work:
    """One request on its way: what was asked, for which roles, and how it is answered."""

    request: Request
    notes: Notes
    asked: Sampled
    roles: tuple[str, ...]
    queries: tuple[StudentQuery, ...]
    prepared: tuple[Prepared, ...]
    reply: ChatReply | TextReply

    @property
    def prompts(self) -> int:
        """How many different prompts there are."""
        return len(self.queries) // (self.asked.n or 1)

    def beside(self, index: int) -> dict[str, Any]:
        """What a choice carries beside OpenAI's fields: its role, where every role answers."""
        return {"potstill": {"role": self.queries[index].role}} if self.asked.model == ALL else {}


class Answering:
    """Answers by the student."""

    def __init__(self, worker: Worker, limits: ServeLimits, metrics: Metrics) -> None:
        self._worker = worker
        self._limits = limits
        self._metrics = metrics

    async def answer(self, request: Request, asked: ChatRequest | CompletionRequest) -> Response:
        """Answer a request; raises ApiError, UnavailableError, TimeoutError or what the student raises."""
        work = await asyncio.to_thread(self._prepare, request, asked)  # a long prompt takes a while to encode
        job = AsyncJob(self._worker, work.prepared)
        try:
            async with asyncio.timeout(self._limits.timeout_s) as limit:
                pieces = job.pieces()
                if not asked.stream:
                    response = await unless_gone(request, self._whole(work, pieces))
                    job.cancel()
                    return response
                first = await unless_gone(request, anext(pieces))
        except BaseException:
            job.cancel()
            raise
        return Streamed(self._events(work, chained(first, pieces), limit.when()), job.cancel)

    def _prepare(self, request: Request, asked: ChatRequest | CompletionRequest) -> Work:
        notes: Notes = request.state.notes
        roles = tuple(self._worker.student.roles) if asked.model == ALL else (asked.model,)
        check_limits(asked, asked.count(len(roles)), self._limits)
        queries = asked.queries(roles, self._limits)
        prompt = "messages" if isinstance(asked, ChatRequest) else "prompt"
        try:
            prepared = tuple(self._worker.prepare(query) for query in queries)
        except QueryError as error:
            if error.field == "messages":
                raise _too_long(error.message, prompt) from error
            param = "response_format" if error.field == "json_schema" else error.field
            raise bad_value(param, error.message) from error
        for one in prepared:
            if one.prompt_tokens > self._limits.max_prompt_tokens:
                message = f"{one.prompt_tokens} tokens of prompt, at most {self._limits.max_prompt_tokens} are allowed"
                raise _too_long(message, prompt)
        longest = asked.answer_tokens
        if longest is not None and longest > (room := min(one.room for one in prepared)):
            problem = f"{longest}, but the base has room for {room} after this prompt"
            raise bad_value(param="max_tokens", problem=problem)
        fingerprint = f"fp_{self._worker.student.fingerprint.rpartition(':')[2][:16]}"
        logprobs = queries[0].top_logprobs is not None
        kind = ChatReply if isinstance(asked, ChatRequest) else TextReply
        reply = kind(notes.id, asked.model, fingerprint, usage=asked.wants_usage, logprobs=logprobs)
        notes.text = {"asked": asked.model_dump(mode="json", by_alias=True, exclude_unset=True)}
        return Work(request, notes, asked, roles, queries, prepared, reply)

    async def _whole(self, work: Work, pieces: AsyncIterator[Piece]) -> Response:
        """The answer in one piece, made of the same pieces that a stream carries."""
        choices = [Choice("", "stop", extra=work.beside(index)) for index in range(len(work.queries))]
        answers: dict[int, StudentAnswer] = {}
        async for piece in pieces:
            self._first(work, piece, answers or any(choice.text for choice in choices))
            choice = choices[piece.index]
            choice.text += piece.text
            choice.tokens += piece.tokens
            if piece.answer is not None:
                answers[piece.index] = piece.answer
                choice.reason = piece.answer.finish_reason
        usage = self._done(work, answers)
        work.notes.text["answers"] = [choice.text for choice in choices]
        return JSONResponse(work.reply.whole(choices, usage, {}))

    async def _events(self, work: Work, pieces: AsyncIterator[Piece], deadline: float | None) -> AsyncGenerator[str]:
        """The events of a stream."""
        answers: dict[int, StudentAnswer] = {}
        spoken = False
        for index in range(len(work.queries)):
            yield work.reply.opening(index, work.beside(index))
        while (piece := await _next(pieces, deadline)) is not None:
            self._first(work, piece, spoken)
            spoken = spoken or bool(piece.text)
            if piece.text or piece.tokens:
                yield work.reply.chunk(piece.index, piece.text, piece.tokens)
            if piece.answer is not None:
                answers[piece.index] = piece.answer
                yield work.reply.last(piece.index, piece.answer.finish_reason, work.beside(piece.index))
        usage = self._done(work, answers)
        work.notes.text["answers"] = [answers[index].text for index in sorted(answers)]
        if work.asked.wants_usage:
            yield work.reply.usage(usage)
        yield DONE

    def _first(self, work: Work, piece: Piece, spoken: Any) -> None:
        if not spoken and piece.text:
            self._metrics.first_token(work.asked.model, work.notes.seconds)

    def _done(self, work: Work, answers: dict[int, StudentAnswer]) -> dict[str, int]:
        """Count a finished request; its usage."""
        ordered: Sequence[StudentAnswer] = [answers[index] for index in sorted(answers)]
        usage = usage_of(ordered, work.prompts)
        for role in work.roles:
            mine = usage_of([answer for answer in ordered if answer.role == role], work.prompts // len(work.roles))
            self._metrics.answered(role, mine["prompt_tokens"], mine["completion_tokens"])
        work.notes.prompt_tokens = usage["prompt_tokens"]
        work.notes.completion_tokens = usage["completion_tokens"]
        return usage


def _too_long(message: str, param: str) -> ApiError:
    return ApiError(400, message, code="context_length_exceeded", param=param)


async def _next(pieces: AsyncIterator[Piece], deadline: float | None) -> Piece | None:
    async with asyncio.timeout_at(deadline):
        return await anext(pieces, None)
