"""What is to be asked: prompts x roles x samples, each a cell with its own name. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from potstill.config import Config
from potstill.prompts import Prompt, Role
from potstill.records import Message
from potstill.teacher.calls import TeacherRequest, build_request


class Prompts(Protocol):
    """Prompts that can be gone through several times, in the same order."""

    def __iter__(self) -> Iterator[Prompt]:
        """Go through them."""

    def __len__(self) -> int:
        """How many there are."""


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
    """All cells of a run, in the order prompt, role, sample; streamed anew on every pass."""

    config: Config
    prompts: Prompts
    roles: Sequence[Role]

    def __len__(self) -> int:
        return len(self.prompts) * len(self.roles) * self.config.generate.samples_per_prompt

    def __iter__(self) -> Iterator[Cell]:
        generate = self.config.generate
        for prompt in self.prompts:
            for role in self.roles:
                for sample in range(generate.samples_per_prompt):
                    request = build_request(
                        self.config.teacher,
                        chat(role, prompt),
                        temperature=generate.temperature,
                        max_output_tokens=generate.max_output_tokens,
                        sample=sample,
                        role=role.name,
                    )
                    yield Cell(prompt, role, sample, request)


def chat(role: Role, prompt: Prompt) -> tuple[Message, ...]:
    """The role's system prompt and the question."""
    return (Message(role="system", content=role.system), Message(role="user", content=prompt.text))
