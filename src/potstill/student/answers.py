"""What is asked of a student and what comes back, whichever engine runs it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from pydantic import Field

from potstill.errors import InputError
from potstill.records import Message, Record


class QueryError(InputError):
    """A query that a student cannot serve; `field` names what of it: `messages` stands for the prompt in either form."""

    def __init__(self, message: str, *, field: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.field = field


class StudentQuery(Record):
    """One chat for one role. The role's system prompt is added unless `messages` brings a system turn.

    `text` in place of `messages` is a bare text to be continued, without any template. `temperature` 0 is greedy;
    `seed` makes sampling reproducible; `stop` ends the answer before any of these texts; `top_logprobs` asks for the
    tokens with their log-probabilities and so many rivals of each; `logit_bias` (by token id) and the two penalties
    are added as OpenAI defines them; `json_schema` (a JSON document) allows only answers that fit it.
    """

    role: str
    messages: tuple[Message, ...] = ()
    max_new_tokens: int
    text: str | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = Field(default_factory=dict)
    json_schema: str | None = None


class Rival(NamedTuple):
    """A token and its natural log-probability under the model, before temperature, bias or schema."""

    token: int
    logprob: float


class Choice(NamedTuple):
    """A chosen token, its log-probability under the model as it is, and the likeliest tokens where asked for."""

    token: int
    logprob: float
    top: tuple[Rival, ...] = ()


class ChosenToken(NamedTuple):
    """A token of an answer: its text, its bytes (a character may span tokens), and the likeliest at its place."""

    text: str
    data: bytes
    logprob: float
    top: tuple[ChosenToken, ...] = ()


class StudentAnswer(Record):
    """One answer. `mean_logprob` and `min_logprob` are natural logs over its tokens; None where an engine has none."""

    role: str
    text: str
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int
    mean_logprob: float | None = None
    min_logprob: float | None = None


class Piece(Record):
    """A stretch of new text for query number `index` of a batch; the last one carries the whole `answer`.

    `tokens` are the tokens behind it, where the query asked for log-probabilities.
    """

    index: int
    text: str
    answer: StudentAnswer | None = None
    tokens: tuple[ChosenToken, ...] = ()


class Student(Protocol):
    """A student that answers several roles' queries in one batch."""

    @property
    def name(self) -> str:
        """The student's name, as its folder is called."""

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles it was trained on."""

    @property
    def fingerprint(self) -> str:
        """A hash of everything that changes its answers: base, adapters, template, system prompts."""

    def answer(self, queries: Sequence[StudentQuery]) -> list[StudentAnswer]:
        """Answer all queries in one batch, in their order. Blocking; raises InputError for an unknown role."""

    def stream(self, queries: Sequence[StudentQuery]) -> Iterator[Piece]:
        """Answer like `answer`, piece by piece; closing the iterator stops the work."""


@runtime_checkable
class Remote(Protocol):
    """A student behind a server, which makes its own batches: queries go to it as they come."""

    async def ask(self, queries: Sequence[StudentQuery]) -> list[StudentAnswer]:
        """Answer all queries, in their order; those of other calls are under way at the same time."""

    async def close(self) -> None:
        """Let go of the connections."""


class Prepared(Protocol):
    """A query that was checked and made ready for its engine."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the rendered prompt."""

    @property
    def room(self) -> int:
        """Tokens that the answer can have at most; a longer one ends there with the reason `length`."""


class Engine(Protocol):
    """Decoding that queries join and leave between two steps. `prepare` from any thread, the rest from one."""

    def prepare(self, query: StudentQuery) -> Prepared:
        """Render and check a query; raises InputError for an unknown role, QueryError for what it cannot serve."""

    def add(self, prepared: Prepared) -> int:
        """Let a query join; the number stands as `index` on its pieces."""

    def cancel(self, number: int) -> None:
        """Drop a query; its place is free at once."""

    def step(self) -> list[Piece]:
        """One step for everything that runs: at most one token for each query."""

    @property
    def running(self) -> int:
        """Queries that have a place."""

    @property
    def waiting(self) -> int:
        """Queries that wait for a place."""


class Continuous(Student, Protocol):
    """A student whose queries may join and leave a running batch."""

    @property
    def prefix_hits(self) -> int:
        """Prompts whose beginning, their role's system prompt, was not read again."""

    def open(self, slots: int) -> Engine:
        """An engine with places for so many queries at once."""
