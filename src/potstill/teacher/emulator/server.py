"""The emulator's HTTP server: routes of v1 and v1beta, faults, the request log."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiohttp import web

from potstill.errors import MachineError
from potstill.pricing.tokens import estimate_tokens
from potstill.records import Record, Usage, canonical_json
from potstill.teacher.emulator.faq import load_faq
from potstill.teacher.emulator.quotas import Quotas
from potstill.teacher.emulator.replies import (
    Asked,
    answer_text,
    error_body,
    invalid_key_body,
    quota_body,
    response,
    text_candidate,
    usage_of,
)
from potstill.teacher.emulator.settings import EmulatorSettings

MODELS = ("gemini-3.5-flash-lite", "gemini-3.5-flash", "gemini-3.8-flash", "gemini-2.5-flash")
FIELDS = {
    "contents",
    "systemInstruction",
    "generationConfig",
    "safetySettings",
    "tools",
    "toolConfig",
    "cachedContent",
    "serviceTier",
    "labels",
    "store",
    "model",
}
MIN_DEADLINE_S = 10
BODY_FAULTS = {"safety": "SAFETY", "recitation": "RECITATION", "no-content": "OTHER", "empty": "STOP"}
HTTP_FAULTS = {
    "http-500": (500, "INTERNAL", "An internal error has occurred. Please retry or report."),
    "http-503": (503, "UNAVAILABLE", "The model is overloaded. Please try again later."),
    "bare-429": (429, "RESOURCE_EXHAUSTED", "Resource has been exhausted (e.g. check quota)."),
}


class Logged(Record):
    """One request: what it was, how it ended, and the tokens that it was billed for."""

    at: datetime
    model: str
    method: str
    digest: str
    status: int
    fault: str | None
    finish_reason: str | None
    service: str
    billed: Usage


@dataclass
class Emulator:
    """The state of one emulator."""

    settings: EmulatorSettings
    logged: list[Logged] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._faq = load_faq(self.settings.faq) if self.settings.faq else None
        self._quotas = Quotas(self.settings)
        self._random = random.Random(self.settings.seed)  # noqa: S311  (a simulation)

    def app(self) -> web.Application:
        """The routes. `reset` and `truncated` bill, because the work was done before the line broke."""
        app = web.Application(client_max_size=64 * 2**20)
        for version in ("v1", "v1beta"):
            app.router.add_get(f"/{version}/models", self._models)
            app.router.add_get(f"/{version}/models/{{model}}", self._model)
            app.router.add_post(f"/{version}/models/{{model}}:{{method}}", self._call)
        return app

    async def _models(self, request: web.Request) -> web.Response:
        if (refused := self._refused_key(request)) is not None:
            return refused
        return web.json_response({"models": [_model_facts(name) for name in MODELS]})

    async def _model(self, request: web.Request) -> web.Response:
        if (refused := self._refused_key(request)) is not None:
            return refused
        name = request.match_info["model"]
        return web.json_response(_model_facts(name)) if name in MODELS else _unknown_model(name)

    async def _call(self, request: web.Request) -> web.StreamResponse:
        model, method = request.match_info["model"], request.match_info["method"]
        if (refused := self._refused_key(request)) is not None:
            return refused
        if model not in MODELS or method not in ("generateContent", "streamGenerateContent", "countTokens"):
            return _unknown_model(model)
        try:
            body = json.loads(await request.text())
        except json.JSONDecodeError:
            return _bad("Invalid JSON payload received.")
        if method == "countTokens":
            return _count(model, body)
        if (wrong := _wrong(request, body)) is not None:
            return wrong
        return await self._generate(request, Asked(model, body), method)

    async def _generate(self, request: web.Request, asked: Asked, method: str) -> web.StreamResponse:
        tokens = estimate_tokens(asked.whole)
        exceeded = self._quotas.admit(time.monotonic(), tokens)
        if exceeded is not None:
            self._log(asked, method, 429, fault="quota")
            body = quota_body(asked.model, exceeded.quota_id, exceeded.value, exceeded.retry_s)
            return web.json_response(body, status=429)
        fault = self._fault()
        spread = self._random.lognormvariate(0, self.settings.latency_spread)
        await asyncio.sleep(self.settings.stall_s if fault == "stall" else self.settings.latency_s * spread)
        if fault in HTTP_FAULTS:
            code, status, message = HTTP_FAULTS[fault]
            self._log(asked, method, code, fault=fault)
            return web.json_response(error_body(code, status, message), status=code)
        body, usage, finish_reason = self._answer(asked, fault)
        self._log(asked, method, 200, fault=fault, finish_reason=finish_reason, billed=usage)
        if fault == "reset":
            _drop(request)
            return web.Response()
        if fault == "truncated":
            return await _cut_off(request, json.dumps(body))
        if method == "streamGenerateContent":
            return await _stream(request, asked, body)
        return web.json_response(body, headers={"x-gemini-service-tier": _service(asked)})

    def _answer(self, asked: Asked, fault: str | None) -> tuple[dict[str, Any], Usage, str]:
        """A body with status 200, what it bills, and its finish reason."""
        thinking = self._thinking(asked)
        if fault == "blocked":
            usage = usage_of(asked, "", 0)
            return response(asked, usage, None, promptFeedback={"blockReason": "PROHIBITED_CONTENT"}), usage, "BLOCKED"
        if fault == "thinking-limit":
            usage = usage_of(asked, "", int(asked.config.get("maxOutputTokens", 2000)))
            return response(asked, usage, text_candidate("", "MAX_TOKENS")), usage, "MAX_TOKENS"
        if fault in BODY_FAULTS:
            usage, reason = usage_of(asked, "", thinking), BODY_FAULTS[fault]
            candidate = {"finishReason": reason} if fault == "no-content" else text_candidate("", reason)
            return response(asked, usage, candidate), usage, reason
        text = answer_text(asked, self._faq, self.settings.seed)
        text, reason = _limited(text, int(asked.config.get("maxOutputTokens", 65_536)))
        usage = usage_of(asked, text, thinking)
        return response(asked, usage, text_candidate(text, reason)), usage, reason

    def _thinking(self, asked: Asked) -> int:
        budget = asked.config.get("thinkingConfig", {}).get("thinkingBudget", self.settings.thinking_tokens)
        return min(self.settings.thinking_tokens, int(budget))

    def _fault(self) -> str | None:
        drawn = self._random.random()
        for name, rate in self.settings.faults.items():
            if drawn < rate:
                return name
            drawn -= rate
        return None

    def _log(self, asked: Asked, method: str, status: int, **more: Any) -> None:
        entry = Logged(
            at=datetime.now(UTC),
            model=asked.model,
            method=method,
            digest=hashlib.sha256(canonical_json(asked.body)).hexdigest(),
            status=status,
            fault=more.get("fault"),
            finish_reason=more.get("finish_reason"),
            service=_service(asked),
            billed=more.get("billed", Usage()),
        )
        self.logged.append(entry)
        if self.settings.log is not None:
            with Path(self.settings.log).open("a", encoding="utf-8") as file:
                file.write(entry.to_line())

    def _refused_key(self, request: web.Request) -> web.Response | None:
        key = request.headers.get("x-goog-api-key") or request.query.get("key")
        if not key:
            message = "Method doesn't allow unregistered callers."
            return web.json_response(error_body(403, "PERMISSION_DENIED", message), status=403)
        if self.settings.keys and key not in self.settings.keys:
            return web.json_response(invalid_key_body(), status=400)
        return None


@asynccontextmanager
async def listening(settings: EmulatorSettings) -> AsyncIterator[tuple[Emulator, str]]:
    """Run an emulator in this event loop; gives it and its address. Raises MachineError for a port that is taken."""
    emulator = Emulator(settings)
    runner = web.AppRunner(emulator.app(), access_log=None, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, settings.host, settings.port)
    try:
        await site.start()
        host, port = runner.addresses[0][:2]
        yield emulator, f"http://{host}:{port}"
    except OSError as error:
        message = f"cannot listen on {settings.host}:{settings.port}: {error.strerror}"
        raise MachineError(message, hint="choose another --port; 0 takes any free one") from error
    finally:
        await runner.cleanup()


@dataclass(frozen=True)
class Running:
    """An emulator in a thread of its own."""

    url: str
    emulator: Emulator

    def log(self) -> list[Logged]:
        """All requests so far."""
        return list(self.emulator.logged)


@contextmanager
def running(settings: EmulatorSettings) -> Iterator[Running]:
    """Run an emulator in a thread, for tests."""
    ready = threading.Event()
    found: list[Running] = []
    failed: list[BaseException] = []
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        try:
            async with listening(settings) as (emulator, url):
                found.append(Running(url, emulator))
                ready.set()
                await stop.wait()
        except Exception as error:  # noqa: BLE001  (handed to the thread that waits)
            failed.append(error)
            ready.set()

    def run() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(serve())
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()

    thread = threading.Thread(target=run, name="emulator", daemon=True)
    thread.start()
    ready.wait()
    if failed:
        thread.join()
        raise failed[0]
    try:
        yield found[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


def _limited(text: str, max_tokens: int) -> tuple[str, str]:
    """The text, cut where it passes the limit, and its finish reason."""
    if estimate_tokens(text) <= max_tokens:
        return text, "STOP"
    while text and estimate_tokens(text) > max_tokens:
        text = text[:-1]
    return text, "MAX_TOKENS"


def _wrong(request: web.Request, body: Any) -> web.Response | None:
    """The 400 for a body that the service would refuse."""
    if not isinstance(body, dict) or not body.get("contents"):
        return _bad("* GenerateContentRequest.contents: contents is not specified")
    if unknown := set(body) - FIELDS:
        name = min(unknown)
        violation = {"description": f'Invalid JSON payload received. Unknown name "{name}": Cannot find field.'}
        detail = {"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": [violation]}
        return web.json_response(error_body(400, "INVALID_ARGUMENT", violation["description"], detail), status=400)
    if any(turn.get("role", "user") not in ("user", "model") for turn in body["contents"]):
        return _bad("Please use a valid role: user, model.")
    deadline = request.headers.get("X-Server-Timeout")
    if deadline is not None and float(deadline) < MIN_DEADLINE_S:
        return _bad(f"Manually set deadline {deadline}s is too short. Minimum allowed deadline is {MIN_DEADLINE_S}s.")
    return None


def _bad(message: str) -> web.Response:
    return web.json_response(error_body(400, "INVALID_ARGUMENT", message), status=400)


def _unknown_model(name: str) -> web.Response:
    message = (
        f"models/{name} is not found for API version v1beta, or is not supported for generateContent."
        " Call ListModels to see the list of available models and their supported methods."
    )
    return web.json_response(error_body(404, "NOT_FOUND", message), status=404)


def _count(model: str, body: Any) -> web.Response:
    inner = body.get("generateContentRequest", body) if isinstance(body, dict) else {}
    if not inner.get("contents"):
        return _bad("* CountTokensRequest.contents: contents is not specified")
    tokens = estimate_tokens(Asked(model, inner).whole)
    details = [{"modality": "TEXT", "tokenCount": tokens}]
    return web.json_response({"totalTokens": tokens, "promptTokensDetails": details})


def _model_facts(name: str) -> dict[str, Any]:
    return {
        "name": f"models/{name}",
        "displayName": name,
        "inputTokenLimit": 1_048_576,
        "outputTokenLimit": 65_536,
        "supportedGenerationMethods": ["generateContent", "countTokens"],
    }


def _service(asked: Asked) -> str:
    return str(asked.body.get("serviceTier") or "standard").lower()


def _drop(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


async def _cut_off(request: web.Request, text: str) -> web.StreamResponse:
    """Send half of a body whose length was announced whole, then hang up."""
    reply = web.StreamResponse(headers={"Content-Length": str(len(text)), "Content-Type": "application/json"})
    await reply.prepare(request)
    await reply.write(text[: len(text) // 2].encode())
    _drop(request)
    return reply


async def _stream(request: web.Request, asked: Asked, body: dict[str, Any]) -> web.StreamResponse:
    """Server-sent events, a few words each; the last has the finish reason. Without `alt=sse` one JSON array."""
    text = "".join(part["text"] for part in body["candidates"][0].get("content", {}).get("parts", []))
    words = text.split(" ")
    pieces = [" ".join(words[start : start + 4]) for start in range(0, len(words), 4)]
    pieces = [piece if index == len(pieces) - 1 else f"{piece} " for index, piece in enumerate(pieces)]
    early = [
        {
            "candidates": [{"content": {"role": "model", "parts": [{"text": piece}]}, "index": 0}],
            "modelVersion": asked.model,
        }
        for piece in pieces[:-1]
    ]
    last = {**body, "candidates": [{**body["candidates"][0], **_content(pieces[-1])}]}
    if request.query.get("alt") != "sse":
        return web.json_response([*early, last])
    reply = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await reply.prepare(request)
    for event in (*early, last):
        await reply.write(f"data: {json.dumps(event)}\r\n\r\n".encode())
    await reply.write_eof()
    return reply


def _content(text: str) -> dict[str, Any]:
    return {"content": {"role": "model", **({"parts": [{"text": text}]} if text else {})}}
