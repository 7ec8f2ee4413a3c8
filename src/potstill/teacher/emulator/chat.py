"""The OpenAI-compatible endpoint of the Gemini API: a chat completion in and out. Pure.

Source: OpenAI's `ChatCompletion`. Finish reasons that OpenAI does not have pass raw, as in Gemini's own endpoint; thinking
is in `total_tokens` alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from potstill.teacher.emulator.answering import Answered
from potstill.teacher.emulator.refusals import RefusedError, bad_request
from potstill.teacher.emulator.replies import Asked

PARAMETERS = {
    "frequency_penalty": "frequencyPenalty",
    "max_completion_tokens": "maxOutputTokens",
    "max_tokens": "maxOutputTokens",
    "presence_penalty": "presencePenalty",
    "seed": "seed",
    "stop": "stopSequences",
    "temperature": "temperature",
    "top_p": "topP",
}
FINISH = {"STOP": "stop", "MAX_TOKENS": "length"}
Shape = Callable[[Answered], dict[str, Any]]


def plain(answered: Answered) -> dict[str, Any]:
    """An answer in Gemini's own shape."""
    return answered.body


def chat_asked(chat: dict[str, Any]) -> Asked:
    """A chat completion's request as a generateContent one; raises RefusedError for what it cannot be."""
    messages = chat.get("messages")
    if not isinstance(messages, list) or not all(isinstance(turn, dict) for turn in messages):
        raise RefusedError(bad_request("Invalid value at 'messages'."))
    if chat.get("stream"):
        raise RefusedError(bad_request("The emulator's OpenAI-compatible endpoint does not stream."))
    generation = {PARAMETERS[name]: value for name, value in chat.items() if name in PARAMETERS}
    shape = chat.get("response_format") or {}
    if isinstance(schema := shape.get("json_schema"), dict):
        generation["responseJsonSchema"] = schema.get("schema")
    roles = {"user": "user", "assistant": "model"}
    body: dict[str, Any] = {
        "contents": [
            {"role": roles[turn["role"]], "parts": [{"text": str(turn.get("content", ""))}]}
            for turn in messages
            if turn.get("role") in roles
        ],
        "generationConfig": generation,
    }
    system = [str(turn.get("content", "")) for turn in messages if turn.get("role") in ("system", "developer")]
    if system:
        body["systemInstruction"] = {"parts": [{"text": "\n\n".join(system)}]}
    return Asked(str(chat.get("model", "")).removeprefix("models/"), body)


def chat_completion(answered: Answered) -> dict[str, Any]:
    """An answer as a chat completion; a blocked prompt has no choices."""
    usage, body = answered.usage, answered.body
    choices = []
    for candidate in body.get("candidates", []):
        parts = candidate.get("content", {}).get("parts", [])
        text = "".join(part["text"] for part in parts if not part.get("thought"))
        message = {"role": "assistant", **({"content": text} if text else {})}
        reason = FINISH.get(answered.finish_reason, answered.finish_reason)
        choices.append({"index": 0, "message": message, "finish_reason": reason})
    return {
        "id": body["responseId"],
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body["modelVersion"],
        "choices": choices,
        "usage": {
            "prompt_tokens": usage.input_tokens,
            "completion_tokens": usage.output_tokens,
            "total_tokens": usage.input_tokens + usage.output_tokens + usage.thinking_tokens,
        },
    }
