"""The bodies that the emulator sends: answers, quotas, errors. Pure.

Source: the Gemini API's `GenerateContentResponse`, `google.rpc.Status` and its details.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from potstill.pricing.tokens import estimate_tokens
from potstill.records import Usage, canonical_json
from potstill.teacher.emulator.faq import Faq

OPENINGS = ("In short:", "It depends, but mostly:", "A plain answer:", "What matters first:")
TYPE = "type.googleapis.com/google.rpc."


@dataclass(frozen=True)
class Asked:
    """A request body, taken apart."""

    model: str
    body: dict[str, Any]

    @property
    def system(self) -> str:
        """The system instruction's text."""
        return _text(self.body.get("systemInstruction") or {})

    @property
    def question(self) -> str:
        """The last user turn; of one that names a `Question:` the line after it."""
        turns = [turn for turn in self.body["contents"] if turn.get("role", "user") == "user"]
        text = _text(turns[-1]) if turns else ""
        for label in ("Question:\n", "問題：\n"):  # noqa: RUF001  (as the Chinese templates have it)
            if label in text:
                return text.split(label, 1)[1].split("\n", 1)[0]
        return text

    @property
    def whole(self) -> str:
        """All text of the request."""
        return "\n".join([self.system, *(_text(turn) for turn in self.body["contents"])])

    @property
    def config(self) -> dict[str, Any]:
        """The generationConfig."""
        return dict(self.body.get("generationConfig") or {})


def answer_text(asked: Asked, faq: Faq | None, seed: int) -> str:
    """What the emulated model says: from the FAQ, or derived from the question; JSON where a schema asks for it."""
    item = faq.nearest(asked.question) if faq else None
    text = faq.answer(item, asked.system) if faq and item else _derived(asked.question, seed)
    schema = asked.config.get("responseJsonSchema") or asked.config.get("responseSchema")
    if schema is None:
        return text
    known = tuple(item.answers.values()) if item else (text,)
    return canonical_json(instance(schema, text, known, asked.whole)).decode()


def instance(schema: dict[str, Any], text: str, known: tuple[str, ...], prompt: str) -> Any:
    """A value of a JSON Schema.

    Strings say the answer, a boolean whether the prompt holds one of the known answers, an integer which numbered line
    of the prompt does.
    """
    kind = str(schema.get("type", "object")).lower()
    if "enum" in schema:
        return schema["enum"][0]
    if kind == "object":
        return {name: instance(inner, text, known, prompt) for name, inner in schema.get("properties", {}).items()}
    if kind == "array":
        return [instance(schema.get("items", {"type": "string"}), text, known, prompt)]
    if kind == "boolean":
        return any(answer in prompt for answer in known)
    if kind in ("integer", "number"):
        return _numbered(known, prompt, int(schema.get("minimum", 0)))
    return text


def usage_of(asked: Asked, text: str, thinking: int) -> Usage:
    """Tokens that an answer is billed for."""
    return Usage(
        input_tokens=estimate_tokens(asked.whole), output_tokens=estimate_tokens(text), thinking_tokens=thinking
    )


def response(asked: Asked, usage: Usage, candidate: dict[str, Any] | None, **extra: Any) -> dict[str, Any]:
    """A GenerateContentResponse. Counts of zero are left out, as the service does."""
    counts = {
        "promptTokenCount": usage.input_tokens,
        "candidatesTokenCount": usage.output_tokens,
        "thoughtsTokenCount": usage.thinking_tokens,
        "totalTokenCount": usage.input_tokens + usage.output_tokens + usage.thinking_tokens,
    }
    identity = hashlib.sha256(canonical_json(asked.body)).hexdigest()[:16]
    body: dict[str, Any] = {
        "usageMetadata": {name: count for name, count in counts.items() if count},
        "modelVersion": asked.model,
        "responseId": identity,
    }
    return {**({"candidates": [{**candidate, "index": 0}]} if candidate else {}), **extra, **body}


def text_candidate(text: str, finish_reason: str) -> dict[str, Any]:
    """A candidate; without text it has no parts."""
    content = {"role": "model", **({"parts": [{"text": text}]} if text else {})}
    return {"content": content, "finishReason": finish_reason}


def error_body(code: int, status: str, message: str, *details: dict[str, Any]) -> dict[str, Any]:
    """A google.rpc.Status as the API sends it."""
    return {
        "error": {"code": code, "message": message, "status": status, **({"details": list(details)} if details else {})}
    }


def quota_body(model: str, quota_id: str, value: int, retry_s: float) -> dict[str, Any]:
    """A 429 with QuotaFailure, Help and RetryInfo. A daily quota carries a short RetryInfo too, as the real one does."""
    metric = "generativelanguage.googleapis.com/generate_content_free_tier_requests"
    message = (
        "You exceeded your current quota, please check your plan and billing details.\n"
        f"* Quota exceeded for metric: {metric}, limit: {value}, model: {model}\nPlease retry in {retry_s:.9f}s."
    )
    violation = {
        "quotaMetric": metric,
        "quotaId": quota_id,
        "quotaDimensions": {"location": "global", "model": model},
        "quotaValue": str(value),
    }
    failure = {"@type": f"{TYPE}QuotaFailure", "violations": [violation]}
    link = {
        "description": "Learn more about Gemini API quotas",
        "url": "https://ai.google.dev/gemini-api/docs/rate-limits",
    }
    return error_body(
        429,
        "RESOURCE_EXHAUSTED",
        message,
        failure,
        {"@type": f"{TYPE}Help", "links": [link]},
        {"@type": f"{TYPE}RetryInfo", "retryDelay": f"{retry_s:.2f}s"},
    )


def invalid_key_body() -> dict[str, Any]:
    """The 400 for a key that is not known."""
    info = {"@type": f"{TYPE}ErrorInfo", "reason": "API_KEY_INVALID", "domain": "googleapis.com"}
    return error_body(400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.", info)


def _derived(question: str, seed: int) -> str:
    digest = hashlib.sha256(f"{seed}:{question}".encode()).digest()
    opening = OPENINGS[digest[0] % len(OPENINGS)]
    words = question.split()[: 6 + digest[1] % 10] or ["nothing", "was", "asked"]
    return f"{opening} {' '.join(words).rstrip('?')} comes down to measuring it on your own data first."


def _numbered(known: tuple[str, ...], prompt: str, otherwise: int) -> int:
    for line in prompt.splitlines():
        number, dot, rest = line.strip().partition(".")
        if dot and number.isdigit() and any(answer in rest for answer in known):
            return int(number)
    return otherwise


def _text(content: dict[str, Any]) -> str:
    return "".join(part.get("text", "") for part in content.get("parts", []) if isinstance(part, dict))
