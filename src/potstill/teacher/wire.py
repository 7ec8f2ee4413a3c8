"""The Gemini API's replies, read once and in one place. Pure.

Source: the `GenerateContentResponse` and `usageMetadata` of the Gemini API. Finish reasons are open strings: an unknown
one passes through. `candidatesTokenCount` is absent instead of 0 and excludes thoughts; `promptTokenCount` includes
cached tokens.
"""

from __future__ import annotations

import json
from typing import Any

from potstill.records import Record, Usage

REFUSED = frozenset(
    {"SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "PROMPT_BLOCKED", "IMAGE_SAFETY"}
)
"""Finish reasons after which the same request would be refused, and billed, again."""


class Reply(Record):
    """A reply with status 200, parsed. `text` is empty where the teacher gave none."""

    text: str
    finish_reason: str
    usage: Usage
    model: str | None


def parse_reply(raw: str) -> Reply | None:
    """Read a reply's body; None where it is not a whole generateContent response (cut off, foreign)."""
    try:
        body = json.loads(raw)
    except json.JSONDecodeError:
        return None
    if not isinstance(body, dict) or not ({"candidates", "promptFeedback"} & set(body)):
        return None
    candidate = (body.get("candidates") or [{}])[0]
    return Reply(
        text=_text(candidate),
        finish_reason=_finish_reason(body, candidate),
        usage=parse_usage(body.get("usageMetadata") or {}),
        model=body.get("modelVersion"),
    )


def parse_usage(metadata: dict[str, Any]) -> Usage:
    """Tokens billed, from a `usageMetadata`."""
    return Usage(
        input_tokens=metadata.get("promptTokenCount", 0) + metadata.get("toolUsePromptTokenCount", 0),
        output_tokens=metadata.get("candidatesTokenCount", 0),
        thinking_tokens=metadata.get("thoughtsTokenCount", 0),
        cached_tokens=metadata.get("cachedContentTokenCount", 0),
    )


def _text(candidate: dict[str, Any]) -> str:
    parts = (candidate.get("content") or {}).get("parts") or []
    return "".join(part.get("text", "") for part in parts if not part.get("thought"))


def _finish_reason(body: dict[str, Any], candidate: dict[str, Any]) -> str:
    if (body.get("promptFeedback") or {}).get("blockReason"):
        return "PROMPT_BLOCKED"
    return str(candidate.get("finishReason") or "MISSING")
