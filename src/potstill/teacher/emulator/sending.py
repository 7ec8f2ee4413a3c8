"""How an answer leaves: whole, as a stream, or broken on the way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

from aiohttp import web

from potstill.teacher.emulator.answering import Answered
from potstill.teacher.emulator.refusals import Refusal
from potstill.teacher.emulator.replies import Asked, usage_metadata, usage_of

WORDS = 4
"""Words in one event of a stream."""
SLOW_PIECES = 20


def refuse(refusal: Refusal, headers: dict[str, str] | None = None) -> web.Response:
    """The response for a refusal."""
    return web.json_response(refusal.body, status=refusal.status, headers=headers)


def abort(request: web.Request) -> web.Response:
    """Break the connection with a reset; the response that is returned reaches nobody."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


def hang_up(request: web.Request) -> web.Response:
    """End the connection in good order, without a response."""
    if request.transport is not None:
        request.transport.close()
    return web.Response()


async def cut_off(request: web.Request, text: str) -> web.StreamResponse:
    """Send half of a body whose length was announced whole, then hang up."""
    data = text.encode()
    reply = web.StreamResponse(headers={"Content-Length": str(len(data)), "Content-Type": "application/json"})
    await reply.prepare(request)
    await reply.write(data[: len(data) // 2])
    abort(request)
    return reply


async def trickle(request: web.Request, text: str, seconds: float) -> web.StreamResponse:
    """Send a whole body a few bytes at a time, over so many seconds."""
    data = text.encode()
    reply = web.StreamResponse(headers={"Content-Length": str(len(data)), "Content-Type": "application/json"})
    await reply.prepare(request)
    step = -(-len(data) // SLOW_PIECES)
    for start in range(0, len(data), step):
        await asyncio.sleep(seconds / SLOW_PIECES)
        await reply.write(data[start : start + step])
    await reply.write_eof()
    return reply


async def stream(
    request: web.Request, events: list[dict[str, Any]], error: Refusal | None = None, *, broken: bool = False
) -> web.StreamResponse:
    """Server-sent events, or one JSON array without `alt=sse`.

    An `error` comes last, as plain JSON; a `broken` stream ends with a reset instead.
    """
    sse = request.query.get("alt") == "sse"
    reply = web.StreamResponse(headers={"Content-Type": "text/event-stream" if sse else "application/json"})
    await reply.prepare(request)
    for number, event in enumerate(events):
        text = json.dumps(event)
        await reply.write((f"data: {text}\r\n\r\n" if sse else f"{',' if number else '['}{text}\n").encode())
    if broken:
        abort(request)
        return reply
    if error is not None:
        text = json.dumps(error.body, indent=2)
        await reply.write((f"{text}\n" if sse else f"{',' if events else '['}{text}\n").encode())
    await reply.write_eof(b"" if sse else b"]")
    return reply


def text_of(events: list[dict[str, Any]]) -> str:
    """The text that a stream's events carry."""
    parts = [part for event in events for part in event["candidates"][0].get("content", {}).get("parts", [])]
    return "".join(part["text"] for part in parts)


def pieces(asked: Asked, answered: Answered) -> Iterator[dict[str, Any]]:
    """The events of a stream, a few words each; usage grows, and the last event has the finish reason."""
    body = answered.body
    candidate = (body.get("candidates") or [{}])[0]
    text = "".join(p["text"] for p in candidate.get("content", {}).get("parts", []) if not p.get("thought"))
    words = text.split(" ")
    if not text or len(words) <= WORDS:
        yield body
        return
    said = ""
    for start in range(0, len(words), WORDS):
        last = start + WORDS >= len(words)
        piece = " ".join(words[start : start + WORDS]) + ("" if last else " ")
        said += piece
        content = {"role": "model", "parts": [{"text": piece}]}
        if last:
            yield {**body, "candidates": [{**candidate, "content": content}]}
        else:
            usage = usage_of(asked, said, answered.usage.thinking_tokens)
            yield {
                "candidates": [{"content": content, "index": 0}],
                "usageMetadata": usage_metadata(usage),
                "modelVersion": body["modelVersion"],
                "responseId": body["responseId"],
            }
