"""Replies of the Gemini API, read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.records import Usage
from potstill.teacher.wire import parse_reply, parse_usage, raw_json


def body(**fields: Any) -> str:
    """A generateContent reply."""
    return json.dumps({"modelVersion": "gemini-x", **fields})


def test_thoughts_are_no_part_of_the_answer() -> None:
    """Text parts are joined, parts marked as thought are left out."""
    parts = [{"text": "hm", "thought": True}, {"text": "One "}, {"text": "two."}, {"inlineData": {}}]
    reply = parse_reply(body(candidates=[{"content": {"parts": parts}, "finishReason": "STOP"}]))
    assert reply is not None
    assert (reply.text, reply.finish_reason, reply.model) == ("One two.", "STOP", "gemini-x")


def test_surrogates_are_joined_and_half_a_pair_is_replaced() -> None:
    """A character that parts cut in two is whole again; what is left of one is no text that a file could hold."""
    parts = [{"text": "a\ud83d"}, {"text": "\ude00b\ud83d"}]
    reply = parse_reply(body(candidates=[{"content": {"parts": parts}, "finishReason": "MAX_TOKENS"}]))
    assert reply is not None
    assert reply.text == "a\U0001f600b\ufffd"


@pytest.mark.parametrize("text", ["甜\ud83d", "甜的"])
def test_a_reply_that_came_parsed_is_kept_as_it_was(text: str) -> None:
    """Its text can be written to a file, and says the same as before."""
    raw = raw_json({"text": text})
    raw.encode()
    assert json.loads(raw) == {"text": text}


def test_tokens_are_counted_as_they_are_billed() -> None:
    """Input includes cached and tool tokens, thoughts stand apart, absent counts are zero."""
    assert parse_usage(
        {
            "promptTokenCount": 120,
            "cachedContentTokenCount": 100,
            "toolUsePromptTokenCount": 5,
            "candidatesTokenCount": 80,
            "thoughtsTokenCount": 300,
        }
    ) == Usage(input_tokens=125, output_tokens=80, thinking_tokens=300, cached_tokens=100)
    assert parse_usage({"promptTokenCount": 120}) == Usage(input_tokens=120)


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        ({"content": {"role": "model"}, "finishReason": "MAX_TOKENS"}, "MAX_TOKENS"),
        ({"finishReason": "OTHER"}, "OTHER"),
        ({"content": None, "finishReason": "NEW_REASON"}, "NEW_REASON"),
        ({}, "MISSING"),
    ],
)
def test_odd_candidates_have_no_text_and_keep_their_reason(candidate: dict[str, Any], reason: str) -> None:
    """No parts, no content, no reason: empty text, and the finish reason as it came."""
    reply = parse_reply(body(candidates=[candidate]))
    assert reply is not None
    assert (reply.text, reply.finish_reason) == ("", reason)


def test_a_blocked_prompt_has_a_reason_of_its_own() -> None:
    """A promptFeedback without candidates is a refusal that was counted."""
    reply = parse_reply(
        body(promptFeedback={"blockReason": "PROHIBITED_CONTENT"}, usageMetadata={"promptTokenCount": 9})
    )
    assert reply is not None
    assert (reply.text, reply.finish_reason, reply.usage.input_tokens) == ("", "PROMPT_BLOCKED", 9)


KEYS = st.sampled_from(["candidates", "content", "parts", "text", "promptFeedback", "usageMetadata", "finishReason"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(0, 9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=15,
)


@given(st.one_of(st.text(), JSON.map(json.dumps)))
def test_what_is_no_whole_reply_is_none(raw: str) -> None:
    """A cut-off or foreign body is None or a reply, never an exception."""
    reply = parse_reply(raw)
    assert reply is None or isinstance(reply.text, str)


@pytest.mark.parametrize("raw", ['{"candidates": ' + "1" * 5000, '{"candidates":' * 100_000])
def test_a_body_without_end_is_no_reply(raw: str) -> None:
    """What Python's own reader raises other errors for is as unreadable as a body that was cut off."""
    assert parse_reply(raw) is None


def test_every_prefix_of_a_reply_is_unreadable() -> None:
    """A body that was cut anywhere is not taken for an answer."""
    whole = body(candidates=[{"content": {"parts": [{"text": "all of it"}]}, "finishReason": "STOP"}])
    assert parse_reply(whole) is not None
    assert all(parse_reply(whole[:length]) is None for length in range(len(whole)))
