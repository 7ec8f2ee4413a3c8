"""What a request may ask for: OpenAI's API (platform.openai.com/docs/api-reference), read strictly.

A parameter that is wrong, or that this server does not support, is refused with 400 and its name, never ignored.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from potstill.config import ServeLimits
from potstill.errors import InputError
from potstill.records import Message
from potstill.serve.errors import bad_value
from potstill.student.answers import StudentQuery

HYBRID = "hybrid"
"""The model name of the router: cache, then student, then teacher."""
ALL = "all"
"""The model name under which every role answers, in one batch."""


Stop = Annotated[str, Field(min_length=1, max_length=200)]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]


def _a_bool(value: object) -> object:
    """0 is equal to False, and so would pass for it."""
    if not isinstance(value, bool):
        message = "it must be false"
        raise ValueError(message)  # noqa: TRY004  (pydantic lets a TypeError through)
    return value


Off = Annotated[Literal[False], BeforeValidator(_a_bool)]


class Strict(BaseModel):
    """Nothing converted, nothing unknown."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())


class TextPart(Strict):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Turn(Strict):
    """A message. `developer` counts as `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    name: str | None = Field(None, max_length=64)
    refusal: None = None
    tool_calls: None = None

    @property
    def message(self) -> Message:
        """The message as the student reads it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message(role="system" if self.role == "developer" else self.role, content=text)


class StreamOptions(Strict):
    """How a stream ends."""

    include_usage: bool = False


class TextFormat(Strict):
    """Any text."""

    type: Literal["text"]


class JsonFormat(Strict):
    """Any JSON object."""

    type: Literal["json_object"]


class NamedSchema(Strict):
    """A JSON schema."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class SchemaFormat(Strict):
    """JSON of a form."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


Format = Annotated[TextFormat | JsonFormat | SchemaFormat, Field(discriminator="type")]


class Sampled(Strict):
    """What chat completions and completions have in common."""

    model: str
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    n: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: Annotated[dict[Annotated[str, Field(pattern=r"^\d{1,9}$")], Bias], Field(max_length=300)] | None = None
    user: str | None = Field(None, max_length=512)

    @field_validator("stream_options")
    @classmethod
    def _need_stream(cls, value: StreamOptions | None, others: ValidationInfo) -> StreamOptions | None:
        if value is not None and not others.data.get("stream"):
            message = "it needs stream"
            raise ValueError(message)
        return value

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def answer_tokens(self) -> int | None:
        """How long an answer may be, where the request says so."""
        return self.max_tokens

    def count(self, roles: int) -> int:
        """How many answers are asked for; known before any query is made, because a request may ask for billions."""
        return roles * (self.n or 1)

    def query(self, role: str, limits: ServeLimits, choice: int) -> StudentQuery:
        """Choice number `choice` as a query, with a seed of its own; without a temperature it is greedy."""
        asked = self.answer_tokens
        return StudentQuery(
            role=role,
            max_new_tokens=limits.max_new_tokens if asked is None else asked,
            temperature=0.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=None if self.seed is None else self.seed + choice,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            frequency_penalty=self.frequency_penalty or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            logit_bias={int(token): bias for token, bias in (self.logit_bias or {}).items()},
        )


class ChatRequest(Sampled):
    """A chat completion."""

    messages: list[Turn] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: Format | None = None
    metadata: dict[str, str] | None = None
    store: Off | None = None

    @field_validator("max_completion_tokens")
    @classmethod
    def _one_length(cls, value: int | None, others: ValidationInfo) -> int | None:
        if value is not None and others.data.get("max_tokens") is not None:
            message = "give this or max_tokens, not both"
            raise ValueError(message)
        return value

    @field_validator("top_logprobs")
    @classmethod
    def _need_logprobs(cls, value: int | None, others: ValidationInfo) -> int | None:
        if value is not None and not others.data.get("logprobs"):
            message = "it needs logprobs"
            raise ValueError(message)
        return value

    @property
    def answer_tokens(self) -> int | None:
        """How long an answer may be, where the request says so."""
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens

    @property
    def history(self) -> tuple[Message, ...]:
        """All turns but the last."""
        return tuple(turn.message for turn in self.messages[:-1])

    @property
    def question(self) -> str:
        """The last turn's text."""
        return self.messages[-1].message.content

    @property
    def schema_text(self) -> str | None:
        """The JSON schema that an answer must fit; None where any text will do."""
        if isinstance(self.response_format, SchemaFormat):
            return json.dumps(self.response_format.json_schema.schema_)
        return '{"type": "object"}' if isinstance(self.response_format, JsonFormat) else None

    def queries(self, roles: Sequence[str], limits: ServeLimits) -> tuple[StudentQuery, ...]:
        """One query for each role and choice."""
        changes = {
            "messages": tuple(turn.message for turn in self.messages),
            "top_logprobs": (self.top_logprobs or 0) if self.logprobs else None,
            "json_schema": self.schema_text,
        }
        made = (self.query(role, limits, choice) for role in roles for choice in range(self.n or 1))
        return tuple(query.model_copy(update=changes) for query in made)


class CompletionRequest(Sampled):
    """A bare text, or several, to be continued without a chat template."""

    DEFAULT_TOKENS: ClassVar[int] = 16

    prompt: str | Annotated[list[str], Field(min_length=1)]
    logprobs: int | None = Field(None, ge=0, le=5)
    best_of: int | None = Field(None, ge=1, le=1)
    echo: Off | None = None

    @property
    def answer_tokens(self) -> int | None:
        """OpenAI's own default is short."""
        return self.DEFAULT_TOKENS if self.max_tokens is None else self.max_tokens

    @property
    def texts(self) -> list[str]:
        """What is to be continued."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    def count(self, roles: int) -> int:
        """Each prompt counts."""
        return super().count(roles) * len(self.texts)

    def queries(self, roles: Sequence[str], limits: ServeLimits) -> tuple[StudentQuery, ...]:
        """One query for each prompt and choice."""
        return tuple(
            self.query(role, limits, choice).model_copy(update={"text": text, "top_logprobs": self.logprobs})
            for role in roles
            for text in self.texts
            for choice in range(self.n or 1)
        )


class EmbeddingRequest(Strict):
    """Texts to vectors, by the cache's encoder."""

    model: str
    input: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=256)]
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1)
    user: str | None = Field(None, max_length=512)

    @property
    def texts(self) -> list[str]:
        """What is to be encoded."""
        return [self.input] if isinstance(self.input, str) else list(self.input)


class RolesRequest(Strict):
    """A student whose roles are to be served: a name, never a path."""

    student: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")


def check_limits(request: Sampled, count: int, limits: ServeLimits) -> None:
    """Refuse what is more than the server's limits; raises ApiError (400)."""
    if count > limits.max_batch:
        raise bad_value(param="n", problem=f"{count} answers to one request; at most {limits.max_batch}")
    for name in ("max_tokens", "max_completion_tokens"):
        value = getattr(request, name, None)
        if value is not None and value > limits.max_new_tokens:
            raise bad_value(param=name, problem=f"at most {limits.max_new_tokens}")


def check_names(roles: Iterable[str], encoder: str) -> None:
    """Refuse roles that could not be asked, because another model has their name; raises InputError."""
    if taken := {ALL, HYBRID, encoder}.intersection(roles):
        message = f"the role {min(taken)!r} cannot be served: there is a model of that name beside the roles"
        raise InputError(message, hint="give the role another name, and distill it anew")
