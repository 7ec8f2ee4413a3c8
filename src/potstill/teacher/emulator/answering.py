"""What the emulated model says and what that is billed at. Equal settings and requests give equal answers."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from math import exp
from statistics import NormalDist
from typing import Any

from potstill.pricing.tokens import estimate_tokens
from potstill.records import Usage, canonical_json
from potstill.teacher.emulator.checks import MAX_OUTPUT_TOKENS
from potstill.teacher.emulator.faq import load_faq
from potstill.teacher.emulator.faults import FINISH
from potstill.teacher.emulator.phrases import Phrases, claim, phrases_for, questions_to
from potstill.teacher.emulator.replies import Asked, response, text_candidate, usage_of
from potstill.teacher.emulator.settings import EmulatorSettings

THOUGHT = "Looking at what is asked and what is known about it."
QUESTIONS, LISTED, NUMBER = "questions", re.compile(r"^- (.+)$", re.MULTILINE), re.compile(r"\d+")
LOOPED_TOKENS = 2_000
"""Where a repetition without a limit of its own ends."""
TYPES = ("type_unspecified", "string", "number", "integer", "boolean", "array", "object")
LEVELS = {"minimal": 0.0, "low": 0.5, "medium": 1.0, "high": 2.0}
"""Thinking at a `thinkingLevel`, as a share of the median."""


@dataclass(frozen=True)
class Answered:
    """A body with status 200, what it bills, and its finish reason."""

    body: dict[str, Any]
    usage: Usage
    finish_reason: str


class Answerer:
    """Answers from a FAQ where it knows the question, else derived from the question."""

    def __init__(self, settings: EmulatorSettings) -> None:
        self._settings = settings
        self._faq = load_faq(settings.faq) if settings.faq else None

    def answer(self, asked: Asked, fault: str | None = None) -> Answered:
        """Answer a request, or go wrong in the way that `fault` says."""
        limit = int(asked.config.get("maxOutputTokens", MAX_OUTPUT_TOKENS))
        thinking = self._thinking(asked)
        if fault == "blocked":
            usage = usage_of(asked, "", 0)
            feedback = {"blockReason": "PROHIBITED_CONTENT", "safetyRatings": []}
            return Answered(response(asked, usage, None, promptFeedback=feedback), usage, "BLOCKED")
        if fault == "thinking-limit" or thinking >= limit:
            usage = usage_of(asked, "", limit if "maxOutputTokens" in asked.config else LOOPED_TOKENS)
            return Answered(response(asked, usage, text_candidate("", "MAX_TOKENS")), usage, "MAX_TOKENS")
        if fault in FINISH:
            return _without_text(asked, fault, thinking)
        if fault == "repetition":
            limit = min(limit, LOOPED_TOKENS)
        text = self._repeated(asked, limit) if fault == "repetition" else self.text(asked)
        text, reason = stopped(text, asked.config.get("stopSequences") or (), limit - thinking)
        usage = usage_of(asked, text, thinking)
        shown = THOUGHT if thinking and (asked.config.get("thinkingConfig") or {}).get("includeThoughts") else ""
        return Answered(response(asked, usage, text_candidate(text, reason, shown)), usage, reason)

    def text(self, asked: Asked) -> str:
        """What the model says: from the FAQ, or derived from the question; JSON where a schema asks for it."""
        item = self._faq.nearest(asked.question) if self._faq else None
        text = self._faq.answer(item, asked.system) if self._faq and item else self._derived(asked)
        schema = asked.config.get("responseJsonSchema") or asked.config.get("responseSchema")
        if schema is None:
            return text
        if (questions := self._questions(asked, schema)) is not None:
            return canonical_json({QUESTIONS: questions}).decode()
        known = tuple(item.answers.values()) if item else (claim(asked.question),)
        return canonical_json(instance(schema, text, known, asked.whole)).decode()

    def _questions(self, asked: Asked, schema: dict[str, Any]) -> tuple[str, ...] | None:
        """Questions, where a prompt asks for some: on the topics of those that it shows, else to its last paragraph."""
        if QUESTIONS not in schema.get("properties", {}):
            return None
        number = NUMBER.search(asked.question)
        count = int(number.group()) if number else 1
        shown = LISTED.findall(asked.question) or asked.question.splitlines()
        is_passage = len(shown) > 1 and not LISTED.search(asked.question)
        known = self._faq.others(shown, count, asked.digest) if self._faq and not is_passage else ()
        return known or questions_to(asked.question.rpartition("\n\n")[2], count)

    def _derived(self, asked: Asked) -> str:
        question, config = asked.question, asked.config
        flavour = f"{config.get('temperature')}:{config.get('seed')}" if config.get("temperature") else ""
        digest = hashlib.sha256(f"{self._settings.seed}:{flavour}:{question}".encode()).digest()
        phrases = phrases_for(question)
        text = phrases.openings[digest[0] % len(phrases.openings)] + claim(question)
        if self._settings.answer_tokens is None:
            return text
        wanted = _lognormal(digest[2:10], self._settings.answer_tokens, self._settings.answer_spread)
        return _grown(text, wanted, digest[10], phrases)

    def _repeated(self, asked: Asked, limit: int) -> str:
        """A sentence over and over, until the limit cuts it."""
        line = f"{claim(asked.question)} "
        return line * (2 * limit // estimate_tokens(line) + 2)  # a line's count was rounded up

    def _thinking(self, asked: Asked) -> int:
        median = self._settings.thinking_tokens
        if not median:
            return 0
        config = asked.config.get("thinkingConfig") or {}
        median = round(median * LEVELS.get(str(config.get("thinkingLevel", "medium")).lower(), 1.0))
        thought = _lognormal(bytes.fromhex(asked.digest[:16]), median, self._settings.thinking_spread)
        budget = config.get("thinkingBudget")
        return thought if budget is None or int(budget) < 0 else min(thought, int(budget))


def stopped(text: str, sequences: tuple[str, ...] | list[str], max_tokens: int) -> tuple[str, str]:
    """The text up to the first stop sequence, cut where it passes the limit, and its finish reason."""
    for sequence in sequences:
        text = text.split(sequence, 1)[0] if sequence else text
    if estimate_tokens(text) <= max_tokens:
        return text, "STOP"
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if estimate_tokens(text[:middle]) <= max_tokens else (low, middle - 1)
    return text[:low], "MAX_TOKENS"


def instance(schema: dict[str, Any], text: str, known: tuple[str, ...], prompt: str) -> Any:
    """A value of a JSON Schema.

    Strings say the answer, a boolean whether the prompt holds one of the known answers, an integer which numbered line
    of the prompt does.
    """
    kind = _kind(schema.get("type", "object"))
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


def _kind(given: Any) -> str:
    """A schema's type: by name, by number as the protocol has it, or the first of several that is not null."""
    if isinstance(given, list):
        given = next((name for name in given if name != "null"), "string")
    return TYPES[given] if isinstance(given, int) and 0 < given < len(TYPES) else str(given).lower()


def _without_text(asked: Asked, fault: str, thinking: int) -> Answered:
    """A candidate that ended for the fault's reason and says nothing."""
    reason, usage = FINISH[fault], usage_of(asked, "", thinking)
    candidate: dict[str, Any] = {"finishReason": reason} if fault == "no-content" else text_candidate("", reason)
    if fault == "recitation":
        source = {"startIndex": 0, "endIndex": 120, "uri": "https://example.org/somebody-elses-text"}
        candidate["citationMetadata"] = {"citationSources": [source]}
    if fault == "safety":
        candidate["safetyRatings"] = [
            {"category": "HARM_CATEGORY_DANGEROUS_CONTENT", "probability": "HIGH", "blocked": True}
        ]
    return Answered(response(asked, usage, candidate), usage, reason)


def _lognormal(noise: bytes, median: int, spread: float) -> int:
    """A draw around a median that the noise alone decides."""
    if not spread:
        return median
    share = (int.from_bytes(noise, "big") + 0.5) / 256 ** len(noise)
    return max(1, round(median * exp(spread * NormalDist().inv_cdf(share))))


def _grown(text: str, tokens: int, start: int, phrases: Phrases) -> str:
    """The text with sentences added until it has so many tokens, or cut where it has more."""
    parts, have = [text], estimate_tokens(text)
    while have < tokens + len(parts):  # each part's count was rounded up
        filler = phrases.fillers[(start + len(parts)) % len(phrases.fillers)]
        parts.append(filler)
        have += estimate_tokens(filler)
    return stopped(" ".join(parts), (), tokens)[0]


def _numbered(known: tuple[str, ...], prompt: str, otherwise: int) -> int:
    for line in prompt.splitlines():
        number, dot, rest = line.strip().partition(".")
        if dot and number.isdigit() and any(answer in rest for answer in known):
            return int(number)
    return otherwise
