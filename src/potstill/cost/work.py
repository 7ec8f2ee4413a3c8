"""What a `generate` run still has to pay for: every answer of prompts x roles x samples that the ledger does not hold."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.config import Config
from potstill.ledger import PaidWork
from potstill.pricing.counting import Counter
from potstill.prompts import load_roles, load_schema, prompt_files
from potstill.records import Message
from potstill.teacher.calls import answer_request

MOST_BILLED = 2000
"""Billed inputs that are kept to correct the count; more would not make it surer."""


@dataclass(frozen=True)
class Group:
    """So many answers to get in one role, each to an input of so many tokens, as counted."""

    role: str
    input_tokens: int
    count: int


@dataclass(frozen=True)
class Work:
    """All answers of the plan; what is left, by role and length; and, of what is paid, (counted, billed) inputs."""

    cells: int
    groups: tuple[Group, ...]
    billed: tuple[tuple[int, int], ...]

    @property
    def todo(self) -> int:
        """Answers still to be paid for."""
        return sum(group.count for group in self.groups)

    @property
    def paid(self) -> int:
        """Answers that the ledger holds already."""
        return self.cells - self.todo

    @property
    def input_tokens(self) -> int:
        """Counted input tokens still to be paid for."""
        return sum(group.input_tokens * group.count for group in self.groups)

    def by_role(self) -> dict[str, int]:
        """Answers still to be paid for in each role."""
        found: Tally[str] = Tally()
        for group in self.groups:
            found[group.role] += group.count
        return dict(found)


def count_work(config: Config, counter: Counter, paid: PaidWork) -> Work:
    """Count the plan; `paid` knows what is answered. Raises InputError for a bad prompt or role file.

    Nothing is held per answer: a plan of a million is a table of lengths. Without a ledger no key need be made.
    """
    roles = load_roles(config.generate.roles, config.language)
    schema = load_schema(config.generate.answer_schema)
    systems = [counter.count(role.system) for role in roles]
    samples = config.generate.samples_per_prompt
    todo: Tally[tuple[str, int]] = Tally()
    billed: list[tuple[int, int]] = []
    cells, fresh = 0, paid.empty
    for prompt in prompt_files(config):
        size = counter.count(prompt.text)
        for role, system in zip(roles, systems, strict=True):
            cells += samples
            if fresh:
                todo[role.name, system + size] += samples
                continue
            messages = (Message(role="system", content=role.system), Message(role="user", content=prompt.text))
            for key in _keys(config, messages, role.name, schema):
                if (tokens := paid.input_tokens(key)) is None:
                    todo[role.name, system + size] += 1
                    continue
                if len(billed) < MOST_BILLED:
                    billed.append((system + size, tokens))
    groups = tuple(Group(role, size, count) for (role, size), count in sorted(todo.items()))
    return Work(cells, groups, tuple(billed))


def _keys(config: Config, messages: Sequence[Message], role: str, schema: dict[str, Any] | None) -> Iterator[str]:
    for sample in range(config.generate.samples_per_prompt):
        yield answer_request(config, messages, sample=sample, role=role, schema=schema).key
