"""What a change of the config changes about the bill: two versions, estimated on the same day by the same book. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from potstill.config import Config, flatten
from potstill.cost.estimate import ZERO, Estimate
from potstill.cost.stages import Stage

QUIET = {"generate.prompts", "generate.roles", "prices.file"}
"""Lists of files: shown by what they come to, for a revision's files have other names."""


@dataclass(frozen=True)
class Priced:
    """One version with its estimate."""

    name: str
    config: Config
    estimate: Estimate
    stages: tuple[Stage, ...]


@dataclass(frozen=True)
class Delta:
    """One stage before and after, in dollars; None: the stage is not there."""

    name: str
    before_usd: Decimal | None
    after_usd: Decimal | None
    before_worst_usd: Decimal | None
    after_worst_usd: Decimal | None
    monthly: bool

    @property
    def change_usd(self) -> Decimal:
        """Dollars that the expected price rises by."""
        return (self.after_usd or ZERO) - (self.before_usd or ZERO)

    @property
    def change_share(self) -> Decimal | None:
        """The same over what it was."""
        return self.change_usd / self.before_usd if self.before_usd else None


@dataclass(frozen=True)
class Difference:
    """All stages, the figures behind them, and the config keys that differ (key, before, after)."""

    deltas: tuple[Delta, ...]
    figures: tuple[tuple[str, str, str], ...]
    keys: tuple[tuple[str, str, str], ...]

    @property
    def change_usd(self) -> Decimal:
        """Dollars that Gemini is paid more once, for the dataset."""
        return sum((delta.change_usd for delta in self.deltas if delta.name in {"generate", "judge"}), ZERO)


def difference(before: Priced, after: Priced) -> Difference:
    """Hold two versions against each other."""
    names = list(dict.fromkeys(stage.name for stage in (*before.stages, *after.stages)))
    return Difference(
        deltas=tuple(_delta(name, before.stages, after.stages) for name in names),
        figures=tuple(_figures(before, after)),
        keys=tuple(_keys(before.config, after.config)),
    )


def _delta(name: str, before: Sequence[Stage], after: Sequence[Stage]) -> Delta:
    old = next((stage for stage in before if stage.name == name), None)
    new = next((stage for stage in after if stage.name == name), None)
    return Delta(
        name=name,
        before_usd=old.expected_usd if old else None,
        after_usd=new.expected_usd if new else None,
        before_worst_usd=old.worst_usd if old else None,
        after_worst_usd=new.worst_usd if new else None,
        monthly=bool((old and old.monthly) or (new and new.monthly)),
    )


def _figures(before: Priced, after: Priced) -> list[tuple[str, str, str]]:
    pairs = [
        ("model", before.config.teacher.model, after.config.teacher.model),
        ("service", before.config.teacher.service, after.config.teacher.service),
        ("answers", f"{before.estimate.todo:,}", f"{after.estimate.todo:,}"),
        ("input tokens", f"{before.estimate.input_tokens:,}", f"{after.estimate.input_tokens:,}"),
        ("output tokens", f"{before.estimate.output_tokens:,}", f"{after.estimate.output_tokens:,}"),
        ("roles", str(len(before.config.generate.roles)), str(len(after.config.generate.roles))),
    ]
    return [row for row in pairs if row[1] != row[2]]


def _keys(before: Config, after: Config) -> list[tuple[str, str, str]]:
    old, new = flatten(before), flatten(after)
    return [(key, _shown(old[key]), _shown(new[key])) for key in new if key not in QUIET and old.get(key) != new[key]]


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
