"""Replies of OpenAI-compatible servers, put into the shape of Gemini's. Pure.

Source: OpenAI's `ChatCompletion`. `completion_tokens` includes `reasoning_tokens` there; servers that count reasoning
apart show it as a `total_tokens` above the sum of the other two (Gemini's own compatible endpoint does).
"""

from __future__ import annotations

from typing import Any

FINISH = {"stop": "STOP", "length": "MAX_TOKENS", "content_filter": "SAFETY"}
"""Finish reasons with a counterpart; any other passes through in capitals."""


def is_chat(body: dict[str, Any]) -> bool:
    """Whether a reply is a chat completion."""
    return isinstance(body.get("choices"), list)


def as_gemini(body: dict[str, Any]) -> dict[str, Any]:
    """A chat completion as a generateContent reply; without a usable usage it has one that no reader accepts."""
    choice = next((item for item in body["choices"] if isinstance(item, dict)), None)
    return {
        "candidates": [_candidate(choice)] if choice is not None else [],
        "usageMetadata": _usage(body.get("usage")),
        "modelVersion": body.get("model"),
    }


def _candidate(choice: dict[str, Any]) -> dict[str, Any]:
    message = choice.get("message")
    message = message if isinstance(message, dict) else {}
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    reason = choice.get("finish_reason")
    finish = FINISH.get(str(reason), str(reason).upper()) if reason else "MISSING"
    if message.get("refusal"):
        content, finish = None, "SAFETY"
    parts = [{"text": content}] if isinstance(content, str) and content else []
    return {"content": {"role": "model", "parts": parts}, "finishReason": finish}


def _usage(usage: Any) -> dict[str, Any]:
    """The counts; a missing or negative one is passed on as -1, because what was billed is then not known."""
    usage = usage if isinstance(usage, dict) else {}
    prompt, completion = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    if prompt < 0 or completion < 0:
        return {"promptTokenCount": -1}
    reasoning = max(0, _count(usage.get("completion_tokens_details"), "reasoning_tokens"))
    apart = _count(usage, "total_tokens") - prompt - completion
    output, thinking = (completion, apart) if apart > 0 else (completion - reasoning, reasoning)
    return {
        "promptTokenCount": prompt,
        "candidatesTokenCount": output,
        "thoughtsTokenCount": thinking,
        "cachedContentTokenCount": max(0, _count(usage.get("prompt_tokens_details"), "cached_tokens")),
    }


def _count(place: Any, name: str) -> int:
    value = place.get(name) if isinstance(place, dict) else None
    return value if type(value) is int else -1
