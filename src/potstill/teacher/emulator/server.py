"""The emulator's routes: models, answers, token counts, embeddings; files and batches have modules of their own."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

from aiohttp import web

from potstill.records import Usage
from potstill.teacher.emulator import models
from potstill.teacher.emulator.answering import Answered, Answerer
from potstill.teacher.emulator.batches import Batches
from potstill.teacher.emulator.billing import Billing
from potstill.teacher.emulator.chat import Shape, chat_asked, chat_completion, plain
from potstill.teacher.emulator.checks import camel, camel_keys, refused_body, refused_deadline
from potstill.teacher.emulator.faults import HTTP, QUOTA, Faults
from potstill.teacher.emulator.files import Files
from potstill.teacher.emulator.jobs import Worker
from potstill.teacher.emulator.journal import Journal
from potstill.teacher.emulator.quotas import ADVICE_PER_DAY_S, Quotas, exceeded
from potstill.teacher.emulator.refusals import (
    Refusal,
    RefusedError,
    bad_request,
    check,
    invalid_key,
    no_key,
    of_fault,
    over_quota,
    unknown_model,
)
from potstill.teacher.emulator.replies import Asked, usage_of
from potstill.teacher.emulator.sending import (
    abort,
    cut_off,
    hang_up,
    pieces,
    refuse,
    stream,
    text_of,
    trickle,
)
from potstill.teacher.emulator.settings import EmulatorSettings

BREAKS = frozenset({"mid-stream", "reset", "disconnect", "truncated"})
"""Faults that end a stream halfway."""
MAX_BODY = 20 * 2**20
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Emulator:
    """The state of one emulator."""

    def __init__(self, settings: EmulatorSettings) -> None:
        self.settings = settings
        self.journal = Journal(settings.log)
        self._quotas = Quotas(settings)
        self._faults = Faults(settings)
        self._answerer = Answerer(settings)
        self._billing = Billing(settings, self.journal, self._quotas)
        self._files = Files()
        worker = Worker(settings, self._answerer, self._billing, self._files, self._faults)
        self._batches = Batches(settings, worker, self._files, self._faults)

    def app(self) -> web.Application:
        """The routes of v1 and v1beta."""
        app = web.Application(client_max_size=MAX_BODY, middlewares=[self._guard])
        for version in ("v1", "v1beta"):
            app.router.add_post(f"/{version}/models/{{model}}:{{method}}", self._call)
            app.router.add_get(f"/{version}/models", self._models)
            app.router.add_get(f"/{version}/models/{{model}}", self._model)
        app.router.add_post("/v1beta/openai/chat/completions", self._chat)
        self._files.route(app)
        self._batches.route(app)
        app.cleanup_ctx.append(self._open)
        return app

    async def _open(self, _: web.Application) -> AsyncIterator[None]:
        with self.journal.opened():
            yield
            await self._batches.close()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Check the key and the deadline before anything is read."""
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
        key = request.headers.get("x-goog-api-key") or request.query.get("key") or bearer
        if not self._files.knows_upload(request):
            if not key:
                return refuse(no_key())
            if self.settings.keys and key not in self.settings.keys:
                return refuse(invalid_key())
        if (refusal := refused_deadline(request.headers.get("X-Server-Timeout"))) is not None:
            return refuse(refusal)
        try:
            return await handler(request)
        except RefusedError as error:
            return refuse(error.refusal)

    async def _models(self, request: web.Request) -> web.Response:
        try:
            names, following = models.page([*models.CHAT, *models.EMBEDDING], dict(request.query), 50)
        except ValueError:
            return refuse(bad_request("Invalid page size or page token."))
        listed = {"models": [models.facts(name) for name in names]}
        return web.json_response({**listed, **({"nextPageToken": following} if following else {})})

    async def _model(self, request: web.Request) -> web.Response:
        name = request.match_info["model"]
        if models.methods(name):
            return web.json_response(models.facts(name))
        return refuse(unknown_model(name, _version(request), "generateContent"))

    async def _call(self, request: web.Request) -> web.StreamResponse:
        model, method = request.match_info["model"], request.match_info["method"]
        if method not in models.methods(model):
            raise RefusedError(unknown_model(model, _version(request), method))
        body = await _body(request)
        match method:
            case "countTokens":
                return _counted(model, camel_keys(body))
            case "embedContent" | "batchEmbedContents":
                return self._embed(model, method, body)
            case "batchGenerateContent":
                return await self._batches.create(request, model, body)
        body = camel(body)
        check(refused_body(model, body))
        return await self._generate(request, Asked(model, body), method)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        """The OpenAI-compatible endpoint; its errors come in a list."""
        try:
            asked = chat_asked(await _body(request))
            known = asked.model in models.CHAT
            check(refused_body(asked.model, asked.body) if known else unknown_model(asked.model, "v1main", "chat"))
            return await self._generate(request, asked, "chat.completions", chat_completion)
        except RefusedError as error:
            return web.json_response([error.refusal.body], status=error.refusal.status)

    async def _generate(
        self, request: web.Request, asked: Asked, method: str, shape: Shape = plain
    ) -> web.StreamResponse:
        quota = self._quotas.admit(asked.model, time.time(), asked.input_tokens)
        if quota is not None:
            self._refuse(asked, method, over_quota(asked.model, quota), "quota")
        fault = self._faults.of_request(asked.service)
        if fault in QUOTA:
            self._refuse(asked, method, self._quota_fault(asked, fault), fault)
        if fault == "unbilled":
            self.journal.write(asked, method, 0, fault=fault)
            return abort(request)
        wait_s = self.settings.stall_s if fault == "stall" else self.settings.latency_s * self._faults.latency_factor()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        if fault in HTTP:
            self._refuse(asked, method, of_fault(fault), fault)
        if method == "streamGenerateContent":
            return await self._stream(request, asked, fault)
        return await self._send(request, asked, fault, method, shape)

    async def _send(
        self, request: web.Request, asked: Asked, fault: str | None, method: str, shape: Shape
    ) -> web.StreamResponse:
        """Bill an answer and send it, whole or broken: what breaks here was billed before."""
        answered = self._answerer.answer(asked, fault)
        self._billing.bill(asked, method, answered, fault=fault)
        body = shape(answered)
        match fault:
            case "reset":
                return abort(request)
            case "disconnect":
                return hang_up(request)
            case "truncated":
                return await cut_off(request, json.dumps(body))
            case "slow":
                return await trickle(request, json.dumps(body), self.settings.stall_s)
        return web.json_response(body, headers={"x-gemini-service-tier": asked.service})

    async def _stream(self, request: web.Request, asked: Asked, fault: str | None) -> web.StreamResponse:
        """Bill an answer and stream it; a stream that breaks is billed for what was sent."""
        answered = self._answerer.answer(asked, fault)
        error = None
        events = list(pieces(asked, answered))
        if fault in BREAKS:
            events = events[: len(events) // 2]
            usage = usage_of(asked, text_of(events), answered.usage.thinking_tokens)
            answered, error = Answered(answered.body, usage, "ERROR"), of_fault("http-503")
        self._billing.bill(asked, "streamGenerateContent", answered, fault=fault)
        if fault in ("reset", "disconnect", "truncated"):
            return await stream(request, events, broken=True)
        return await stream(request, events, error)

    def _refuse(self, asked: Asked, method: str, refusal: Refusal, fault: str) -> NoReturn:
        self.journal.write(asked, method, refusal.status, fault=fault)
        raise RefusedError(refusal)

    def _quota_fault(self, asked: Asked, fault: str) -> Refusal:
        """A refusal by a quota that is not really used up."""
        settings = self.settings
        match fault:
            case "daily-429":
                quota = exceeded("day", settings.tier, settings.rpd or 20, ADVICE_PER_DAY_S)
            case "zero-429":
                quota = exceeded("minute", settings.tier, 0, settings.minute_s)
            case "spend-429":
                quota = self._quotas.spend_exceeded(time.time())
            case _:
                left_s = settings.minute_s - time.time() % settings.minute_s
                quota = exceeded("minute", settings.tier, settings.rpm or 5, left_s)
        return over_quota(asked.model, quota)

    def _embed(self, model: str, method: str, body: dict[str, Any]) -> web.Response:
        """Vectors of one text, or of many; input tokens are billed."""
        requests = [body] if method == "embedContent" else body.get("requests")
        if not isinstance(requests, list) or not requests or not all(isinstance(item, dict) for item in requests):
            return refuse(bad_request("* BatchEmbedContentsRequest.requests: requests is not specified\n"))
        found = [models.embedded(camel_keys(item)) for item in requests]
        vectors = [item for item in found if not isinstance(item, Refusal)]
        check(next((item for item in found if isinstance(item, Refusal)), None))
        tokens = sum(count for _, count in vectors)
        self.journal.write(Asked(model, {"contents": [], **body}), method, 200, billed=Usage(input_tokens=tokens))
        shown = [{"values": values} for values, _ in vectors]
        return web.json_response({"embedding": shown[0]} if method == "embedContent" else {"embeddings": shown})


async def _body(request: web.Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.text())
    except ValueError:
        body = None
    except web.HTTPRequestEntityTooLarge:
        raise RefusedError(bad_request(f"Request payload size exceeds the limit: {MAX_BODY} bytes.")) from None
    if not isinstance(body, dict):
        raise RefusedError(bad_request("Invalid JSON payload received."))
    return body


def _counted(model: str, body: dict[str, Any]) -> web.Response:
    """Answer countTokens: of `contents`, or of a whole `generateContentRequest`."""
    inner = body.get("generateContentRequest")
    inner = camel(inner) if isinstance(inner, dict) else {"contents": body.get("contents")}
    check(refused_body(model, inner))
    tokens = Asked(model, inner).input_tokens
    details = [{"modality": "TEXT", "tokenCount": tokens}]
    return web.json_response({"totalTokens": tokens, "promptTokensDetails": details})


def _version(request: web.Request) -> str:
    return request.path.split("/", 2)[1]
