"""What is asked of a student and what comes back, whichever engine runs it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

from potstill.records import Message, Record


class StudentQuery(Record):
    """One chat for one role. The role's system prompt is added unless `messages` brings a system turn.

    `temperature` 0 is greedy; `seed` makes sampling reproducible; `stop` ends the answer before any of these texts.
    """

    role: str
    messages: tuple[Message, ...]
    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


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
    """A stretch of new text for query number `index` of a batch; the last one carries the whole `answer`."""

    index: int
    text: str
    answer: StudentAnswer | None = None


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
