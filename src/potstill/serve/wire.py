"""The wire: OpenAI's chat completions (platform.openai.com/docs/api-reference/chat), read strictly, written exactly."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from potstill.config import ServeLimits
from potstill.records import Message
from potstill.student.answers import StudentAnswer, StudentQuery

HYBRID = "hybrid"
"""The model name of the router: cache, then student, then teacher."""

OWN_SAMPLING = ("max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop")
"""What the hybrid router sets by itself, so that a request may not."""


class ApiError(Exception):
    """An answer other than 200, in OpenAI's shape."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_s = retry_s

    @property
    def body(self) -> dict[str, Any]:
        """The JSON body."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"  # noqa: PLR2004  (HTTP's own line)
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _TextPart(_Strict):
    type: Literal["text"]
    text: str


class _Turn(_Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[_TextPart], Field(min_length=1)]
    refusal: None = None
    tool_calls: None = None

    @property
    def message(self) -> Message:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message(role="system" if self.role == "developer" else self.role, content=text)


class _StreamOptions(_Strict):
    include_usage: bool = False


class _TextFormat(_Strict):
    type: Literal["text"]


Stop = Annotated[str, Field(min_length=1, max_length=200)]


class ChatRequest(_Strict):
    """What a chat completion may ask for. A parameter that is not here, or not of this kind, is refused."""

    model: str
    messages: list[_Turn] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    n: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    response_format: _TextFormat | None = None
    user: str | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    logprobs: Literal[False] | None = None

    @model_validator(mode="after")
    def _hangs_together(self) -> ChatRequest:
        if self.stream_options is not None and not self.stream:
            message = "stream_options needs stream"
            raise ValueError(message)
        if self.messages[-1].role != "user":
            message = "the last of messages must be the user's"
            raise ValueError(message)
        return self

    @property
    def history(self) -> tuple[Message, ...]:
        """All turns but the last."""
        return tuple(turn.message for turn in self.messages[:-1])

    @property
    def question(self) -> str:
        """The last turn's text."""
        return self.messages[-1].message.content

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return self.stream_options is not None and self.stream_options.include_usage


def read_request(body: bytes, limits: ServeLimits) -> ChatRequest:
    """Read a request body; raises ApiError (400) naming the parameter."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:
        message = "the body is not valid JSON"
        raise ApiError(400, message, code="invalid_json") from error
    try:
        request = ChatRequest.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        param = ".".join(str(part) for part in first["loc"]) or None
        unknown = first["type"] == "extra_forbidden"
        problem = "this server does not support it" if unknown else first["msg"]
        code = "unsupported_parameter" if unknown else "invalid_value"
        raise ApiError(400, f"{param or 'request'}: {problem}", code=code, param=param) from error
    _check_limits(request, limits)
    return request


def _check_limits(request: ChatRequest, limits: ServeLimits) -> None:
    if request.max_tokens is not None and request.max_completion_tokens is not None:
        raise ApiError(400, "give max_tokens or max_completion_tokens, not both", param="max_tokens")
    bounds = {
        "n": limits.max_batch,
        "max_tokens": limits.max_new_tokens,
        "max_completion_tokens": limits.max_new_tokens,
    }
    for name, bound in bounds.items():
        value = getattr(request, name)
        if value is not None and value > bound:
            raise ApiError(400, f"{name}: at most {bound}", code="invalid_value", param=name)


def check_hybrid(request: ChatRequest) -> None:
    """Refuse what the router decides by itself; raises ApiError (400)."""
    for name in OWN_SAMPLING:
        if getattr(request, name) is not None:
            message = f"{name}: the model {HYBRID!r} sets it by its config"
            raise ApiError(400, message, code="unsupported_parameter", param=name)
    if request.n is not None and request.n > 1:
        raise ApiError(400, f"n: the model {HYBRID!r} gives one answer", code="unsupported_parameter", param="n")
    if any(turn.message.role == "system" for turn in request.messages):
        message = f"messages: the model {HYBRID!r} has its roles' system prompts; a request brings none"
        raise ApiError(400, message, code="unsupported_value", param="messages")
    if not request.question.strip():
        raise ApiError(400, "messages: the question is empty", code="invalid_value", param="messages")


def queries(request: ChatRequest, limits: ServeLimits) -> tuple[StudentQuery, ...]:
    """`n` queries for the student, each with a seed of its own; without a temperature they are greedy."""
    stop = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    asked = request.max_tokens if request.max_tokens is not None else request.max_completion_tokens
    return tuple(
        StudentQuery(
            role=request.model,
            messages=tuple(turn.message for turn in request.messages),
            max_new_tokens=limits.max_new_tokens if asked is None else asked,
            temperature=0.0 if request.temperature is None else request.temperature,
            top_p=1.0 if request.top_p is None else request.top_p,
            seed=None if request.seed is None else request.seed + number,
            stop=stop,
        )
        for number in range(request.n or 1)
    )


def usage(answers: list[StudentAnswer]) -> dict[str, int]:
    """Tokens of one request: its prompt once, all its completions."""
    prompt = answers[0].prompt_tokens
    completion = sum(answer.completion_tokens for answer in answers)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


class Reply:
    """Builds the answer to one request: whole, or as chunks that share its id."""

    def __init__(self, request_id: str, model: str) -> None:
        self._head = {"id": f"chatcmpl-{request_id}", "created": int(time.time()), "model": model}

    def whole(
        self, choices: Sequence[tuple[str, str]], tokens: Mapping[str, int], extra: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """A chat.completion; `choices` are (text, finish reason)."""
        made = [
            {
                "index": index,
                "message": {"role": "assistant", "content": text},
                "finish_reason": reason,
                "logprobs": None,
            }
            for index, (text, reason) in enumerate(choices)
        ]
        return {**self._head, "object": "chat.completion", "choices": made, "usage": dict(tokens), **(extra or {})}

    def chunk(
        self, index: int, delta: Mapping[str, str], reason: str | None = None, extra: Mapping[str, Any] | None = None
    ) -> str:
        """One event of a stream."""
        choice = {"index": index, "delta": dict(delta), "finish_reason": reason, "logprobs": None}
        return event({**self._head, "object": "chat.completion.chunk", "choices": [choice], **(extra or {})})

    def usage_chunk(self, tokens: Mapping[str, int]) -> str:
        """The event that `include_usage` asks for: no choices."""
        return event({**self._head, "object": "chat.completion.chunk", "choices": [], "usage": dict(tokens)})


def event(data: Mapping[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


DONE = "data: [DONE]\n\n"
