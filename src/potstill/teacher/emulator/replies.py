"""Requests taken apart, and the bodies of answers. Pure.

Source: the Gemini API's `GenerateContentRequest` and `GenerateContentResponse`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from potstill.pricing.tokens import estimate_tokens
from potstill.records import Usage, canonical_json


@dataclass(frozen=True)
class Asked:
    """A request body, taken apart; each part is worked out once."""

    model: str
    body: dict[str, Any]

    @cached_property
    def system(self) -> str:
        """The system instruction's text."""
        return _text(self.body.get("systemInstruction") or {})

    @cached_property
    def question(self) -> str:
        """The last user turn; of one that names a `Question:` the line after it; of a question with material, itself."""
        turns = [turn for turn in self.body["contents"] if turn.get("role", "user") == "user"]
        text = _text(turns[-1]) if turns else ""
        for label in ("Question:\n", "問題：\n"):
            if label in text:
                return text.split(label, 1)[1].split("\n", 1)[0]
        first = text.split("\n", 1)[0]
        return first if first.endswith(("?", "？")) else text

    @cached_property
    def whole(self) -> str:
        """All text of the request."""
        return "\n".join([self.system, *(_text(turn) for turn in self.body["contents"])])

    @cached_property
    def input_tokens(self) -> int:
        """Tokens of all text."""
        return estimate_tokens(self.whole)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The generationConfig."""
        return dict(self.body.get("generationConfig") or {})

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what was asked, 64 hex digits; the model's name and the service level take no part in it."""
        content = {name: value for name, value in self.body.items() if name not in ("model", "serviceTier")}
        return hashlib.sha256(canonical_json(content)).hexdigest()

    @cached_property
    def service(self) -> str:
        """The service level asked for."""
        return str(self.body.get("serviceTier") or "standard").lower()


def usage_of(asked: Asked, text: str, thinking: int) -> Usage:
    """Tokens that an answer is billed for."""
    return Usage(input_tokens=asked.input_tokens, output_tokens=estimate_tokens(text), thinking_tokens=thinking)


def response(asked: Asked, usage: Usage, candidate: dict[str, Any] | None, **extra: Any) -> dict[str, Any]:
    """A GenerateContentResponse."""
    body: dict[str, Any] = {
        "usageMetadata": usage_metadata(usage),
        "modelVersion": asked.model,
        "responseId": asked.digest[:16],
    }
    return {**({"candidates": [{**candidate, "index": 0}]} if candidate else {}), **extra, **body}


def usage_metadata(usage: Usage) -> dict[str, Any]:
    """The counts; those of zero are left out, as the service does."""
    counts = {
        "promptTokenCount": usage.input_tokens,
        "candidatesTokenCount": usage.output_tokens,
        "thoughtsTokenCount": usage.thinking_tokens,
        "totalTokenCount": usage.input_tokens + usage.output_tokens + usage.thinking_tokens,
    }
    details = [{"modality": "TEXT", "tokenCount": usage.input_tokens}]
    return {**{name: count for name, count in counts.items() if count}, "promptTokensDetails": details}


def text_candidate(text: str, finish_reason: str, thought: str = "") -> dict[str, Any]:
    """A candidate; without text it has no parts. `thought` goes before the text as a part of its own."""
    parts = [{"text": thought, "thought": True}] if thought else []
    parts += [{"text": text}] if text else []
    return {"content": {"role": "model", **({"parts": parts} if parts else {})}, "finishReason": finish_reason}


def _text(content: dict[str, Any]) -> str:
    return "".join(str(part.get("text", "")) for part in content.get("parts", []) if isinstance(part, dict))
