"""What an answer looks like on the wire: whole, or as the events of a stream."""

from __future__ import annotations

import base64
import json
import struct
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from potstill.student.answers import ChosenToken, StudentAnswer

DONE = "data: [DONE]\n\n"
"""The event that ends a stream."""


class Choice:
    """What is known of one choice when it is whole."""

    def __init__(self, text: str, reason: str, tokens: Sequence[ChosenToken] = (), extra: Any = None) -> None:
        self.text = text
        self.reason = reason
        self.tokens = list(tokens)
        self.extra: dict[str, Any] = extra or {}


class Reply(Protocol):
    """Builds the answer to one request."""

    def whole(self, choices: Sequence[Choice], usage: Mapping[str, int], extra: Mapping[str, Any]) -> dict[str, Any]:
        """The answer in one piece."""

    def opening(self, index: int, extra: Mapping[str, Any]) -> str:
        """What a stream says before a choice's first text; may be empty."""

    def chunk(self, index: int, text: str, tokens: Sequence[ChosenToken]) -> str:
        """One event with new text."""

    def last(self, index: int, reason: str, extra: Mapping[str, Any]) -> str:
        """The event that ends a choice."""

    def usage(self, usage: Mapping[str, int]) -> str:
        """The event that `include_usage` asks for: no choices."""


class _Base:
    """The head that all events of one answer share."""

    def __init__(self, identity: str, kind: str, model: str, fingerprint: str, *, usage: bool) -> None:
        self._kind = kind
        self._head = {"id": identity, "created": int(time.time()), "model": model, "system_fingerprint": fingerprint}
        self._usage: dict[str, Any] = {"usage": None} if usage else {}

    def _event(self, kind: str, choice: Mapping[str, Any], extra: Mapping[str, Any] | None = None) -> str:
        return event({**self._head, "object": kind, "choices": [choice], **self._usage, **(extra or {})})


class ChatReply(_Base):
    """chat.completion and chat.completion.chunk."""

    def __init__(self, identity: str, model: str, fingerprint: str, *, usage: bool, logprobs: bool) -> None:
        super().__init__(f"chatcmpl-{identity}", "chat.completion", model, fingerprint, usage=usage)
        self._logprobs = logprobs

    def whole(self, choices: Sequence[Choice], usage: Mapping[str, int], extra: Mapping[str, Any]) -> dict[str, Any]:
        """The answer in one piece."""
        made = [
            {
                "index": index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "finish_reason": choice.reason,
                "logprobs": self._tokens(choice.tokens) if self._logprobs else None,
                **choice.extra,
            }
            for index, choice in enumerate(choices)
        ]
        return {**self._head, "object": "chat.completion", "choices": made, "usage": dict(usage), **extra}

    def opening(self, index: int, extra: Mapping[str, Any]) -> str:
        """The role."""
        return self._chunk(index, {"role": "assistant", "content": ""}, None, extra)

    def chunk(self, index: int, text: str, tokens: Sequence[ChosenToken]) -> str:
        """New text."""
        logprobs = self._tokens(tokens) if self._logprobs else None
        choice = {"index": index, "delta": {"content": text}, "finish_reason": None, "logprobs": logprobs}
        return self._event("chat.completion.chunk", choice)

    def last(self, index: int, reason: str, extra: Mapping[str, Any]) -> str:
        """The finish reason."""
        return self._chunk(index, {}, reason, extra)

    def usage(self, usage: Mapping[str, int]) -> str:
        """Tokens."""
        return event({**self._head, "object": "chat.completion.chunk", "choices": [], "usage": dict(usage)})

    def _chunk(self, index: int, delta: Mapping[str, str], reason: str | None, extra: Mapping[str, Any]) -> str:
        choice = {"index": index, "delta": dict(delta), "finish_reason": reason, "logprobs": None, **extra}
        return self._event("chat.completion.chunk", choice)

    @staticmethod
    def _tokens(tokens: Sequence[ChosenToken]) -> dict[str, Any]:
        return {"content": [{**_token(one), "top_logprobs": [_token(rival) for rival in one.top]} for one in tokens],
                "refusal": None}  # fmt: skip


class TextReply(_Base):
    """text_completion, whole and in events alike."""

    def __init__(self, identity: str, model: str, fingerprint: str, *, usage: bool, logprobs: bool) -> None:
        super().__init__(f"cmpl-{identity}", "text_completion", model, fingerprint, usage=usage)
        self._logprobs = logprobs
        self._offsets: dict[int, int] = {}

    def whole(self, choices: Sequence[Choice], usage: Mapping[str, int], extra: Mapping[str, Any]) -> dict[str, Any]:
        """The answer in one piece."""
        made = [
            {**self._choice(index, choice.text, choice.reason, choice.tokens), **choice.extra}
            for index, choice in enumerate(choices)
        ]
        return {**self._head, "object": self._kind, "choices": made, "usage": dict(usage), **extra}

    def opening(self, _index: int, _extra: Mapping[str, Any]) -> str:
        """Nothing."""
        return ""

    def chunk(self, index: int, text: str, tokens: Sequence[ChosenToken]) -> str:
        """New text."""
        return self._event(self._kind, self._choice(index, text, None, tokens))

    def last(self, index: int, reason: str, extra: Mapping[str, Any]) -> str:
        """The finish reason."""
        return self._event(self._kind, {**self._choice(index, "", reason, ()), **extra})

    def usage(self, usage: Mapping[str, int]) -> str:
        """Tokens."""
        return event({**self._head, "object": self._kind, "choices": [], "usage": dict(usage)})

    def _choice(self, index: int, text: str, reason: str | None, tokens: Sequence[ChosenToken]) -> dict[str, Any]:
        logprobs = self._tokens(index, tokens) if self._logprobs and tokens else None
        return {"index": index, "text": text, "finish_reason": reason, "logprobs": logprobs}

    def _tokens(self, index: int, tokens: Sequence[ChosenToken]) -> dict[str, Any]:
        offsets = []
        for token in tokens:
            offsets.append(self._offsets.get(index, 0))
            self._offsets[index] = offsets[-1] + len(token.text)
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{rival.text: rival.logprob for rival in token.top} for token in tokens],
            "text_offset": offsets,
        }


def usage_of(answers: Sequence[StudentAnswer], prompts: int) -> dict[str, int]:
    """Tokens of one request: each of its prompts once (several choices share one), all its completions."""
    each = max(1, len(answers) // max(1, prompts))
    prompt = sum(answer.prompt_tokens for answer in answers[::each])
    completion = sum(answer.completion_tokens for answer in answers)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def embeddings(model: str, vectors: Sequence[Sequence[float]], tokens: int, *, packed: bool) -> dict[str, Any]:
    """A list of embeddings; packed as base64 of little-endian float32."""
    data = [
        {"object": "embedding", "index": index, "embedding": _packed(vector) if packed else list(vector)}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": model, "usage": usage}


def event(data: Mapping[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"


def _token(token: ChosenToken) -> dict[str, Any]:
    return {"token": token.text, "bytes": list(token.data), "logprob": token.logprob}


def _packed(vector: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
