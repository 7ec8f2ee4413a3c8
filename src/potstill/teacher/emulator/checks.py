"""What the service refuses in a request's body, before any work is done. Pure.

Source: the `GenerateContentRequest` of the Gemini API. Names may be written as in JSON (`systemInstruction`) or as in the
protocol (`system_instruction`).
"""

from __future__ import annotations

import re
from typing import Any

from potstill.teacher.emulator.refusals import Refusal, bad_fields, bad_request

MIN_DEADLINE_S = 10
MAX_TEMPERATURE = 2.0
MAX_OUTPUT_TOKENS = 65_536

REQUEST = frozenset(
    {
        "cachedContent",
        "contents",
        "continuationToken",
        "generationConfig",
        "labels",
        "model",
        "safetySettings",
        "serviceTier",
        "store",
        "systemInstruction",
        "toolConfig",
        "tools",
    }
)
GENERATION = frozenset(
    {
        "audioTranscriptionConfig",
        "candidateCount",
        "enableEnhancedCivicAnswers",
        "frequencyPenalty",
        "imageConfig",
        "logprobs",
        "maxOutputTokens",
        "mediaResolution",
        "presencePenalty",
        "responseJsonSchema",
        "responseLogprobs",
        "responseMimeType",
        "responseModalities",
        "responseSchema",
        "seed",
        "speechConfig",
        "stopSequences",
        "temperature",
        "thinkingConfig",
        "topK",
        "topP",
    }
)
THINKING = frozenset({"includeThoughts", "thinkingBudget", "thinkingLevel"})
CONTENT = frozenset({"parts", "role"})
NUMBERS = {"temperature": "TYPE_FLOAT", "maxOutputTokens": "TYPE_INT32", "candidateCount": "TYPE_INT32"}
TIERS = frozenset({"", "flex", "priority", "standard", "unspecified"})


def camel(body: dict[str, Any]) -> dict[str, Any]:
    """The body with the protocol's names turned into JSON's; schemas and contents keep their own keys."""
    plain = camel_keys(body)
    if isinstance(generation := plain.get("generationConfig"), dict):
        generation = camel_keys(generation)
        if isinstance(thinking := generation.get("thinkingConfig"), dict):
            generation["thinkingConfig"] = camel_keys(thinking)
        plain["generationConfig"] = generation
    return plain


def camel_keys(given: dict[str, Any]) -> dict[str, Any]:
    """A mapping with the protocol's names turned into JSON's, at its top level."""
    if not any("_" in name for name in given):
        return dict(given)
    return {re.sub(r"_([a-z])", lambda found: found[1].upper(), name): value for name, value in given.items()}


def refused_body(model: str, body: dict[str, Any]) -> Refusal | None:
    """The 400 for a generateContent body in JSON's names; None where the service would take it."""
    generation = body.get("generationConfig") or {}
    if not isinstance(generation, dict):
        return bad_fields({"generation_config": "Invalid value at 'generation_config': not an object."})
    unknown = {**_unknown(body, REQUEST, ""), **_unknown(generation, GENERATION, "generation_config")}
    thinking = generation.get("thinkingConfig") or {}
    unknown |= _unknown(thinking, THINKING, "generation_config.thinking_config")
    return bad_fields(unknown) if unknown else _contents(body) or _values(model, body, generation)


def refused_deadline(deadline: str | None) -> Refusal | None:
    """The 400 for an `X-Server-Timeout` below the least that the service takes."""
    try:
        seconds = float(deadline) if deadline is not None else MIN_DEADLINE_S
    except ValueError:
        return bad_request(f"Invalid X-Server-Timeout: {deadline!r}.")
    if seconds >= MIN_DEADLINE_S:
        return None
    return bad_request(
        f"Manually set deadline {seconds:g}s is too short. Minimum allowed deadline is {MIN_DEADLINE_S}s."
    )


def _contents(body: dict[str, Any]) -> Refusal | None:
    contents = body.get("contents")
    if not contents or not isinstance(contents, list):
        return bad_request("* GenerateContentRequest.contents: contents is not specified\n")
    system = body.get("systemInstruction")
    for place, turn in [*enumerate(contents), *([("system", system)] if system is not None else [])]:
        where = "system_instruction" if place == "system" else f"contents[{place}]"
        if not isinstance(turn, dict) or not isinstance(turn.get("parts", []), list):
            return bad_fields({where: f"Invalid value at '{where}': not a Content."})
        if extra := turn.keys() - CONTENT:
            return bad_fields(_unknown(dict.fromkeys(extra), CONTENT, where))
        if place != "system" and turn.get("role", "user") not in ("user", "model"):
            return bad_request("Please use a valid role: user, model.")
        if not turn.get("parts"):
            return bad_request(f"* GenerateContentRequest.{where}.parts: contents.parts must not be empty.\n")
    return None


def _values(model: str, body: dict[str, Any], generation: dict[str, Any]) -> Refusal | None:
    for name, kind in NUMBERS.items():
        value = generation.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            where = f"generation_config.{_snake(name)}"
            return bad_fields({where: f"Invalid value at '{where}' ({kind}), {value!r}"})
    if str(body.get("serviceTier") or "").lower() not in TIERS:
        return bad_fields({"service_tier": f"Invalid value at 'service_tier', \"{body['serviceTier']}\""})
    problem = _problem(model, generation)
    return bad_request(problem) if problem else None


def _problem(model: str, generation: dict[str, Any]) -> str | None:
    """What is wrong with a value that has the right type."""
    if not 0 <= generation.get("temperature", 1) <= MAX_TEMPERATURE:
        name = "GenerateContentRequest.generation_config.temperature"
        return f"* {name}: temperature must be in the range [0.0, {MAX_TEMPERATURE}].\n"
    if not 0 < generation.get("maxOutputTokens", 1) <= MAX_OUTPUT_TOKENS:
        return (
            f"Unable to submit request because it has a maxOutputTokens value of {generation['maxOutputTokens']} but the"
            f" supported range is from 1 (inclusive) to {MAX_OUTPUT_TOKENS + 1} (exclusive)."
            " Update the value and try again."
        )
    if generation.get("candidateCount", 1) != 1:
        return "Multiple candidates is not enabled for this model"
    return f"Logprobs is not enabled for models/{model}" if generation.get("responseLogprobs") else None


def _unknown(given: dict[str, Any], known: frozenset[str], where: str) -> dict[str, str]:
    """What is wrong with the first name that the API does not have, by the field that it stands in."""
    if given.keys() <= known:
        return {}
    name = min(given.keys() - known)
    at = f" at '{where}'" if where else ""
    return {where: f'Invalid JSON payload received. Unknown name "{name}"{at}: Cannot find field.'}


def _snake(name: str) -> str:
    return re.sub(r"([A-Z])", lambda found: f"_{found[1].lower()}", name)
