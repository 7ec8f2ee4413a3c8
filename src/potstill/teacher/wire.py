"""The Gemini API's replies, read once and in one place. Pure.

Source: the `GenerateContentResponse` and `usageMetadata` of the Gemini API. Finish reasons are open strings: an unknown
one passes through. `candidatesTokenCount` is absent instead of 0 and excludes thoughts; `promptTokenCount` includes
cached tokens.
"""

from __future__ import annotations

import json
from typing import Any

from potstill.files import parse_json
from potstill.records import Record, Usage
from potstill.teacher.chat import as_gemini, is_chat

REFUSED = frozenset(
    {"SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "PROMPT_BLOCKED", "IMAGE_SAFETY"}
)
"""Finish reasons after which the same request would be refused, and billed, again."""

TRUNCATED = "MAX_TOKENS"
FINAL = REFUSED | {TRUNCATED}
"""Finish reasons that the same request would meet again, text or no text."""


class Reply(Record):
    """A reply with status 200, parsed. `text` is empty where the teacher gave none."""

    text: str
    finish_reason: str
    usage: Usage
    model: str | None


def parse_reply(raw: str) -> Reply | None:
    """Read a reply's body; None where it is not a whole generateContent response or chat completion."""
    try:
        body = parse_json(raw)
    except json.JSONDecodeError:
        return None
    if isinstance(body, dict) and is_chat(body):
        body = as_gemini(body)
    if not isinstance(body, dict) or not ({"candidates", "promptFeedback"} & set(body)):
        return None
    candidate = _object(next(iter(_array(body.get("candidates"))), None))
    usage = parse_usage(_object(body.get("usageMetadata")))
    if usage is None:
        return None
    model = body.get("modelVersion")
    return Reply(
        text=_text(candidate),
        finish_reason=_finish_reason(body, candidate),
        usage=usage,
        model=model if isinstance(model, str) else None,
    )


def parse_usage(metadata: dict[str, Any]) -> Usage | None:
    """Tokens billed, from a `usageMetadata`; absent counts are zero, None where one is no count at all."""

    def count(name: str) -> int:
        value = metadata.get(name)
        return 0 if value is None else value if type(value) is int else -1

    counts = {
        "input_tokens": count("promptTokenCount"),
        "tool_tokens": count("toolUsePromptTokenCount"),
        "output_tokens": count("candidatesTokenCount"),
        "thinking_tokens": count("thoughtsTokenCount"),
        "cached_tokens": count("cachedContentTokenCount"),
    }
    if min(counts.values()) < 0:
        return None
    counts["input_tokens"] += counts.pop("tool_tokens")
    return Usage(**counts)


def raw_json(value: Any) -> str:
    """A reply that came parsed, as text that a file holds: escaped where half a surrogate pair stands in it."""
    text = json.dumps(value, ensure_ascii=False)
    return text if whole_characters(text) == text else json.dumps(value)


def whole_characters(text: str) -> str:
    """A text with its surrogate pairs joined. JSON can say half of one, which no file can hold: it becomes U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _text(candidate: dict[str, Any]) -> str:
    parts = [_object(part) for part in _array(_object(candidate.get("content")).get("parts"))]
    texts = [part.get("text") for part in parts if not part.get("thought")]
    return whole_characters("".join(text for text in texts if isinstance(text, str)))


def _finish_reason(body: dict[str, Any], candidate: dict[str, Any]) -> str:
    if _object(body.get("promptFeedback")).get("blockReason"):
        return "PROMPT_BLOCKED"
    return str(candidate.get("finishReason") or "MISSING")


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _array(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
