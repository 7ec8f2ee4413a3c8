"""What is asked of the teacher and what comes back, apart from any wire."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

from potstill.config import Config, TeacherConfig
from potstill.pricing.tokens import estimate_tokens
from potstill.records import Message, Record, Usage, Usd, bytes_id, canonical_json


class TeacherRequest(Record):
    """One piece of paid work: the model, the whole canonical generateContent body, and the sample number.

    `role` is a label for reports and takes no part in the identity; the role's system prompt does, in `body`.
    Nor does `service`, the level of service that this attempt is sent with; None: the configured one.
    """

    model: str
    body: dict[str, Any]
    sample: int = 0
    role: str | None = None
    service: str | None = None

    @cached_property
    def canonical_body(self) -> bytes:
        """The one byte form of the body."""
        return canonical_json(self.body)

    @cached_property
    def canonical(self) -> bytes:
        """The one byte form of the work: body, model and sample."""
        return b'{"body":%b,"model":%b,"sample":%d}' % (self.canonical_body, canonical_json(self.model), self.sample)

    @cached_property
    def key(self) -> str:
        """The name of this work in the ledger; equal requests are paid once."""
        return bytes_id(self.canonical)

    @property
    def input_tokens(self) -> int:
        """Estimated input tokens: those of its texts."""
        turns = [*self.body.get("contents", ()), self.body.get("systemInstruction") or {}]
        return sum(estimate_tokens(str(part.get("text", ""))) for turn in turns for part in turn.get("parts", ()))


class Answer(Record):
    """One answer of the teacher, parsed from the raw reply in the ledger.

    `reused`: it was paid for earlier; `cost_usd` is what it cost then, of which this call paid nothing.
    """

    key: str
    text: str
    finish_reason: str
    model: str
    usage: Usage
    cost_usd: Usd
    price_id: str
    latency_s: float
    answered_at: datetime
    reused: bool


class Asks(Protocol):
    """Something that answers requests: the paid teacher, or a scripted one."""

    async def ask(self, request: TeacherRequest) -> Answer:
        """Answer one request.

        Raises TeacherError when this request failed for good; BudgetError, QuotaError or KeyRefusedError when no
        further request can succeed.
        """


@runtime_checkable
class Streams(Asks, Protocol):
    """A teacher that can pass its answer on while it arrives."""

    async def stream(self, request: TeacherRequest, tell: Callable[[str], None]) -> Answer:
        """Like `ask`; what is told is the beginning of the answer, all of it unless the stream broke."""


def build_request(
    teacher: TeacherConfig,
    messages: Sequence[Message],
    *,
    temperature: float,
    max_output_tokens: int,
    sample: int = 0,
    role: str | None = None,
    schema: dict[str, Any] | None = None,
) -> TeacherRequest:
    """Make the generateContent body for a chat; `schema` asks for JSON of that JSON Schema.

    `maxOutputTokens` and the thinking budget are always sent, because the worst case has no bound without them.
    """
    system = [message.content for message in messages if message.role == "system"]
    turns = [message for message in messages if message.role != "system"]
    generation: dict[str, Any] = {"temperature": temperature, "maxOutputTokens": max_output_tokens}
    if teacher.thinking_budget is not None:
        generation["thinkingConfig"] = {"thinkingBudget": teacher.thinking_budget}
    if schema is not None:
        generation |= {"responseMimeType": "application/json", "responseJsonSchema": schema}
    wire_role = {"user": "user", "assistant": "model"}
    body: dict[str, Any] = {
        "contents": [{"role": wire_role[turn.role], "parts": [{"text": turn.content}]} for turn in turns],
        "generationConfig": generation,
    }
    if system:
        body["systemInstruction"] = {"parts": [{"text": "\n\n".join(system)}]}
    return TeacherRequest(model=teacher.model, body=body, sample=sample, role=role)


def answer_request(
    config: Config, messages: Sequence[Message], *, sample: int, role: str, schema: dict[str, Any] | None = None
) -> TeacherRequest:
    """The request for one answer of the dataset: a prompt's sample number `sample` in a role."""
    generate = config.generate
    return build_request(
        config.teacher,
        messages,
        temperature=generate.temperature_of(sample),
        max_output_tokens=generate.max_output_tokens,
        sample=sample,
        role=role,
        schema=schema,
    )


def with_output_limit(request: TeacherRequest, max_output_tokens: int) -> TeacherRequest:
    """The same request with another limit on the answer: other paid work, with a name of its own."""
    generation = {**request.body["generationConfig"], "maxOutputTokens": max_output_tokens}
    body = {**request.body, "generationConfig": generation}
    return TeacherRequest(model=request.model, body=body, sample=request.sample, role=request.role)
