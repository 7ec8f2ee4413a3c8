"""What a dataset comes to: its manifest, and figures summed up while it is written; nothing is held per sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal

from potstill.generate.languages import language_of
from potstill.records import Record, Sample, Usage


class Lengths(Record):
    """Lengths in characters: mean, median, 95th percentile, longest."""

    mean: float
    median: int
    p95: int
    longest: int


class Figures(Record):
    """Counts of the samples that were kept."""

    by_role: Mapping[str, int] = {}
    languages: Mapping[str, int] = {}
    prompt_chars: Lengths | None = None
    answer_chars: Lengths | None = None
    turns: Mapping[str, int] = {}


class RoleNote(Record):
    """A role as the dataset was made with it."""

    name: str
    language: str
    system: str
    sha: str


class DatasetManifest(Record):
    """`dataset/manifest.json`: what the dataset was made from, and what it came to.

    `prompts` are the plan's; `traced_prompts` the questions whose answers came from what `infer` had paid for.
    `alike_prompts`: how many groups of near-duplicate prompts there are of each size; each group is in one split.
    """

    schema_version: Literal[1] = 1
    potstill: str
    created_at: datetime
    teacher_model: str
    models_answered: tuple[str, ...]
    roles: tuple[RoleNote, ...]
    prompts: int
    traced_prompts: int = 0
    samples: Mapping[str, int]
    rejected: Mapping[str, int]
    missing: int
    cost_usd: str
    usage: Usage
    figures: Figures = Figures()
    alike_prompts: Mapping[str, int] = {}
    sha256: Mapping[str, str]
    config: Mapping[str, Any]


@dataclass
class Tally:
    """Counts samples as they go by. `paid` figures hold the rejected ones too; `missing` are cells without an answer."""

    traced_prompts: int = 0
    missing: int = 0

    splits: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    models: set[str] = field(default_factory=set)
    usage: Usage = field(default_factory=Usage)
    cost_usd: Decimal = Decimal(0)
    _roles: Counter[str] = field(default_factory=Counter)
    _languages: Counter[str] = field(default_factory=Counter)
    _prompts: Counter[int] = field(default_factory=Counter)
    _answers: Counter[int] = field(default_factory=Counter)
    _turns: Counter[str] = field(default_factory=Counter)

    def paid(self, sample: Sample) -> None:
        """Count a sample that was paid for, kept or not."""
        self.models.add(sample.model)
        self.usage += sample.usage
        self.cost_usd += sample.cost_usd

    def reject(self, reason: str) -> None:
        """Count a sample that is left out."""
        self.rejected[reason] += 1

    def keep(self, sample: Sample, split: str) -> None:
        """Count a sample of a split."""
        users = [message.content for message in sample.messages if message.role == "user"]
        answer = sample.messages[-1].content
        self.splits[split] += 1
        self._roles[sample.role] += 1
        self._languages[language_of(answer)] += 1
        self._prompts[len(users[0])] += 1
        self._answers[len(answer)] += 1
        self._turns[str(len(users))] += 1

    def figures(self) -> Figures:
        """The counts as they stand in the manifest."""
        return Figures(
            by_role=dict(sorted(self._roles.items())),
            languages=dict(self._languages.most_common()),
            prompt_chars=lengths(self._prompts),
            answer_chars=lengths(self._answers),
            turns=dict(sorted(self._turns.items())),
        )


def lengths(counts: Counter[int]) -> Lengths | None:
    """The distribution of lengths that were counted; None for none."""
    total = counts.total()
    if not total:
        return None
    mean = sum(length * count for length, count in counts.items()) / total
    return Lengths(mean=round(mean, 1), median=_quantile(counts, 0.5), p95=_quantile(counts, 0.95), longest=max(counts))


def _quantile(counts: Counter[int], share: float) -> int:
    """The smallest length that at least so large a share does not pass."""
    wanted, seen = share * counts.total(), 0
    for length in sorted(counts):
        seen += counts[length]
        if seen >= wanted:
            return length
    return max(counts)
