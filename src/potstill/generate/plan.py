"""What is to be asked: prompts x roles x samples, each a cell with its own name. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from potstill.config import Config
from potstill.prompts import Prompt, Role
from potstill.records import Message, content_id
from potstill.teacher.calls import TeacherRequest, answer_request

CELL_FIELDS = {"samples_per_prompt", "temperature", "temperatures", "max_output_tokens", "truncated_limit"}
"""What of the `generate` section decides what is asked for, beside prompts, roles and schema."""


class Prompts(Protocol):
    """Prompts that can be gone through several times, in the same order."""

    def __iter__(self) -> Iterator[Prompt]:
        """Go through them."""

    def __len__(self) -> int:
        """How many there are."""

    def expect(self, count: int) -> None:
        """Take their number from an earlier pass."""

    @property
    def fingerprint(self) -> str:
        """Names them all: other prompts, another name."""


@dataclass(frozen=True)
class Cell:
    """One answer to get: prompt number `sample` of one prompt in one role."""

    prompt: Prompt
    role: Role
    sample: int
    request: TeacherRequest

    @property
    def messages(self) -> tuple[Message, ...]:
        """The chat without its answer."""
        return chat(self.role, self.prompt)


@dataclass(frozen=True)
class Plan:
    """All cells of a run, in the order prompt, role, sample; streamed anew on every pass.

    A cell's position in that order is its name within the plan: a run that goes on where another stopped skips what
    is done by position alone, without building a request.
    """

    config: Config
    prompts: Prompts
    roles: Sequence[Role]
    schema: dict[str, Any] | None = None

    @property
    def per_prompt(self) -> int:
        """Cells of one prompt."""
        return len(self.roles) * self.config.generate.samples_per_prompt

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to ask; reads one prompt at most."""
        return next(iter(self.prompts), None) is None

    @property
    def fingerprint(self) -> str:
        """Names the plan by everything that decides what its cells are."""
        generate = self.config.generate.model_dump(mode="json", include=CELL_FIELDS)
        teacher = self.config.teacher.model_dump(mode="json", include={"model", "thinking_budget"})
        roles = [[role.name, role.sha] for role in self.roles]
        return content_id([generate, teacher, self.prompts.fingerprint, roles, self.schema])

    def __len__(self) -> int:
        return len(self.prompts) * self.per_prompt

    def __iter__(self) -> Iterator[Cell]:
        return (cell for _, cell in self.cells())

    def cells(self, start: int = 0, holes: Iterable[int] = ()) -> Iterator[tuple[int, Cell]]:
        """Position and cell of the `holes` (positions below `start`, ascending), then of everything from `start` on."""
        waiting = iter(holes)
        hole = next(waiting, None)
        for index, prompt in enumerate(self.prompts):
            first = index * self.per_prompt
            past = first + self.per_prompt
            if past <= start and (hole is None or hole >= past):
                continue
            for position in range(first, past):
                is_hole = position == hole
                if is_hole:
                    hole = next(waiting, None)
                if is_hole or position >= start:
                    yield position, self._cell(prompt, position - first)

    def _cell(self, prompt: Prompt, index: int) -> Cell:
        """Cell number `index` of a prompt."""
        samples = self.config.generate.samples_per_prompt
        role, sample = self.roles[index // samples], index % samples
        messages = chat(role, prompt)
        request = answer_request(self.config, messages, sample=sample, role=role.name, schema=self.schema)
        return Cell(prompt, role, sample, request)


def chat(role: Role, prompt: Prompt) -> tuple[Message, ...]:
    """The role's system prompt and the question."""
    return (Message(role="system", content=role.system), Message(role="user", content=prompt.text))
