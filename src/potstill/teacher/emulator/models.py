"""The models that the emulator plays, and their embeddings. Pure."""

from __future__ import annotations

import hashlib
from typing import Any

from potstill.pricing.tokens import estimate_tokens
from potstill.teacher.emulator.faq import features
from potstill.teacher.emulator.refusals import Refusal, bad_request

CHAT = (
    "gemini-4-argon",
    "gemini-3.8-flash",
    "gemini-3.7-flash",
    "gemini-3.6-flash",
    "gemini-3.5-flash",
    "gemini-3.5-flash-lite",
    "gemini-3.1-pro-preview",
    "gemini-3.1-flash-lite",
    "gemini-3-flash-preview",
    "gemini-2.5-pro",
    "gemini-2.5-flash",
    "gemini-2.5-flash-lite",
)
EMBEDDING = ("gemini-embedding-001", "gemini-embedding-2")
DIMENSIONS = 768
MAX_DIMENSIONS = 3072
CHAT_METHODS = ("generateContent", "streamGenerateContent", "countTokens", "batchGenerateContent")
EMBEDDING_METHODS = ("embedContent", "batchEmbedContents", "countTokens")


def methods(model: str) -> tuple[str, ...]:
    """What a model can be asked; nothing where the name is not known."""
    if model in CHAT:
        return CHAT_METHODS
    return EMBEDDING_METHODS if model in EMBEDDING else ()


def facts(model: str) -> dict[str, Any]:
    """A model as the list shows it."""
    common = {
        "name": f"models/{model}",
        "version": "001",
        "displayName": model.replace("-", " ").title(),
        "description": "Played by the potstill emulator.",
        "supportedGenerationMethods": [name for name in methods(model) if name != "streamGenerateContent"],
    }
    if model in EMBEDDING:
        return {**common, "inputTokenLimit": 2048, "outputTokenLimit": 1}
    chat = {"temperature": 1, "maxTemperature": 2, "topP": 0.95, "topK": 64, "thinking": True}
    return {**common, "inputTokenLimit": 1_048_576, "outputTokenLimit": 65_536, **chat}


def page(items: list[Any], query: dict[str, str], default: int) -> tuple[list[Any], str | None]:
    """One page of a list by `pageSize` and `pageToken`, and the token of the next."""
    size = min(1000, max(1, int(query.get("pageSize") or default)))
    start = int(query.get("pageToken") or 0)
    following = start + size
    return items[start:following], str(following) if following < len(items) else None


def embedding(text: str, dimensions: int) -> list[float]:
    """A unit vector of a text: hashed words with signs (Weinberger et al., arXiv 0902.2206), so that like texts are near."""
    vector = [0.0] * dimensions
    for word in features(text) or [text]:
        digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
        vector[int.from_bytes(digest[:6], "big") % dimensions] += 1.0 if digest[6] & 1 else -1.0
    norm = sum(value * value for value in vector) ** 0.5
    return [value / norm for value in vector] if norm else [1.0, *vector[1:]]


def embedded(request: dict[str, Any]) -> tuple[list[float], int] | Refusal:
    """The vector and the input tokens of one EmbedContentRequest."""
    content = request.get("content")
    if not isinstance(content, dict) or not content.get("parts"):
        return bad_request("* EmbedContentRequest.content: content is not specified\n")
    dimensions = request.get("outputDimensionality", DIMENSIONS)
    if not isinstance(dimensions, int) or not 1 <= dimensions <= MAX_DIMENSIONS:
        return bad_request(f"outputDimensionality must be between 1 and {MAX_DIMENSIONS}")
    text = "".join(str(part.get("text", "")) for part in content["parts"] if isinstance(part, dict))
    return embedding(text, dimensions), estimate_tokens(text)
