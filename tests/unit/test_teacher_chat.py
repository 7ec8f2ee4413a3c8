"""Chat completions read and written: usage, finish reasons, errors, parameters."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.errors import UsageError
from potstill.records import Usage
from potstill.teacher.calls import TeacherRequest
from potstill.teacher.retrying import Failure, Retry, Stop, after_failure
from potstill.teacher.transport_openai import as_status, chat_parameters
from potstill.teacher.wire import parse_reply

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def chat(message: Any = None, finish: str | None = "stop", **usage: Any) -> str:
    """A chat completion as a server sends it."""
    counts = {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150, **usage}
    choice = {"index": 0, "message": {"role": "assistant", **(message or {"content": "Yes."})}, "finish_reason": finish}
    return json.dumps({"object": "chat.completion", "model": "m-1", "choices": [choice], "usage": counts})


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({}, Usage(input_tokens=100, output_tokens=50)),
        (
            {"completion_tokens_details": {"reasoning_tokens": 30}, "prompt_tokens_details": {"cached_tokens": 64}},
            Usage(input_tokens=100, output_tokens=20, thinking_tokens=30, cached_tokens=64),
        ),
        ({"total_tokens": 450}, Usage(input_tokens=100, output_tokens=50, thinking_tokens=300)),
        (
            {"total_tokens": 450, "completion_tokens_details": {"reasoning_tokens": 300}},
            Usage(input_tokens=100, output_tokens=50, thinking_tokens=300),
        ),
        ({"completion_tokens_details": None, "prompt_tokens_details": None}, Usage(input_tokens=100, output_tokens=50)),
    ],
)
def test_reasoning_is_counted_once(usage: dict[str, Any], expected: Usage) -> None:
    """Reasoning inside completion_tokens is taken out of the output; reasoning apart shows in the total."""
    reply = parse_reply(chat(**usage))
    assert reply is not None
    assert reply.usage == expected


@pytest.mark.parametrize("usage", [{"prompt_tokens": None}, {"completion_tokens": "9"}, {"prompt_tokens": -1}])
def test_a_reply_without_its_usage_is_unreadable(usage: dict[str, Any]) -> None:
    """What was billed is then not known, and never taken for nothing."""
    assert parse_reply(chat(**usage)) is None


@pytest.mark.parametrize(
    ("finish", "reason"),
    [
        ("stop", "STOP"),
        ("length", "MAX_TOKENS"),
        ("content_filter", "SAFETY"),
        ("tool_calls", "TOOL_CALLS"),
        ("RECITATION", "RECITATION"),
        (None, "MISSING"),
    ],
)
def test_finish_reasons(finish: str | None, reason: str) -> None:
    """Known ones are mapped, others pass, and none is not STOP."""
    reply = parse_reply(chat(finish=finish))
    assert reply is not None
    assert (reply.finish_reason, reply.text, reply.model) == (reason, "Yes.", "m-1")


def test_refusals_and_parts() -> None:
    """A refusal is a safety stop without text; content in parts is joined."""
    refused = parse_reply(chat({"content": None, "refusal": "I cannot help with that."}))
    assert refused is not None
    assert (refused.text, refused.finish_reason) == ("", "SAFETY")
    parts = parse_reply(chat({"content": [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}]}))
    assert parts is not None
    assert parts.text == "AB"


@given(JSON, JSON, JSON)
def test_no_reply_of_any_shape_raises(choices: Any, usage: Any, model: Any) -> None:
    """Whatever JSON a server sends is read, or is unreadable."""
    parse_reply(json.dumps({"choices": choices, "usage": usage, "model": model}))
    parse_reply(json.dumps({"choices": [{"message": choices, "finish_reason": usage}], "usage": usage}))


@pytest.mark.parametrize(
    ("text", "headers", "seconds"),
    [
        ('{"error": {"message": "slow down"}}', {"Retry-After": "7"}, 7),
        ('{"error": {"message": "slow down"}}', {"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
        ('{"error": {"message": "Rate limit reached. Please try again in 20s."}}', {}, 20),
        ('{"error": {"message": "Please try again in 1m3.5s. Visit ..."}}', {}, 63.5),
        ('{"error": {"message": "Please try again in 120ms."}}', {}, 0.12),
    ],
)
def test_advice_to_wait_is_found_in_headers_and_words(text: str, headers: dict[str, str], seconds: float) -> None:
    """A 429 waits as told, and all requests with it."""
    decided = after_failure(Failure("http", 429, as_status(429, text, headers)), 1, 5, datetime.now(UTC), 0.0)
    assert isinstance(decided, Retry)
    assert decided.pause_all
    assert decided.after_s == pytest.approx(seconds + 0.05, abs=0.01)


@pytest.mark.parametrize("text", ['{"error": "busy"}', "<html>", "[]", "", '{"object": "error", "message": "busy"}'])
def test_other_429s_are_a_lack_of_capacity(text: str) -> None:
    """Without advice fewer requests should be in flight."""
    decided = after_failure(Failure("http", 429, as_status(429, text, {})), 1, 5, datetime.now(UTC), 0.5)
    assert isinstance(decided, Retry)
    assert decided.overload


def test_a_spent_balance_ends_the_run() -> None:
    """`insufficient_quota` does not come back by waiting."""
    text = '{"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}'
    decided = after_failure(
        Failure("http", 429, as_status(429, text, {"retry-after": "1"})), 1, 5, datetime.now(UTC), 0.5
    )
    assert isinstance(decided, Stop)
    assert isinstance(decided.error, UsageError)


def test_parameters_of_a_chat_completion() -> None:
    """A canonical body becomes messages, limits and a schema; what has no counterpart is refused."""
    body: dict[str, Any] = {
        "contents": [
            {"role": "user", "parts": [{"text": "Q"}]},
            {"role": "model", "parts": [{"text": "A"}]},
            {"role": "user", "parts": [{"text": "Q2"}]},
        ],
        "systemInstruction": {"parts": [{"text": "S"}]},
        "generationConfig": {
            "temperature": 0.3,
            "maxOutputTokens": 99,
            "thinkingConfig": {"thinkingBudget": 0},
            "stopSequences": ["END"],
            "responseMimeType": "application/json",
            "responseJsonSchema": {"type": "object"},
        },
    }
    request = TeacherRequest(model="m", body=body)
    assert chat_parameters(request, "max_tokens") == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "S"},
            {"role": "user", "content": "Q"},
            {"role": "assistant", "content": "A"},
            {"role": "user", "content": "Q2"},
        ],
        "max_tokens": 99,
        "temperature": 0.3,
        "stop": ["END"],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": {"type": "object"}},
        },
    }
    body["generationConfig"]["topK"] = 3
    with pytest.raises(ValueError, match="topK"):
        chat_parameters(request, "max_tokens")
    body["contents"][0]["parts"].append({"inlineData": {}})
    del body["generationConfig"]["topK"]
    with pytest.raises(ValueError, match="text only"):
        chat_parameters(request, "max_tokens")
