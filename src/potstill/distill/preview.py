"""What the student would be trained on, for a reader: counts, warnings, and samples with their trained tokens. Pure."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from potstill.distill.data import Data, Rows
from potstill.records import Record
from potstill.wording import counted

FEW_HELD_OUT = 60
"""Held-out prompts below which not even a faultless student can be shown to agree in 90 % (Wilson)."""


class Stretch(Record):
    """A stretch of text, and whether its tokens are trained."""

    text: str
    learned: bool


def counts(data: Data, train: Rows) -> dict[str, Any]:
    """The numbers that say whether the dataset is what one thinks it is."""
    return {
        "samples": len(train.rows),
        "tokens": train.tokens,
        "learned": train.supervised,
        "learned_share": round(train.supervised / train.tokens, 4) if train.tokens else 0.0,
        "truncated": train.truncated,
        "dropped": train.dropped,
        "duplicates": data.duplicates,
        "held_out": len(data.held_out),
        "leaks": len(data.leaks),
        "roles": [role.name for role in data.roles],
        "rationales": len(train.rationales),
    }


def warnings(data: Data, train: Rows) -> list[str]:
    """What a reader should know before training."""
    found = []
    if train.truncated:
        found.append(
            f"cut at distill.max_length: {counted(train.truncated, 'sample')}, which never learn where to stop"
        )
    if train.dropped:
        found.append(f"dropped: {counted(train.dropped, 'sample')} whose prompt alone fills distill.max_length")
    if train.rationales and (lacking := len(train.rows) - len(train.rationales)):
        found.append(f"{lacking} training samples have no rationale and teach the answer alone")
    if data.duplicates:
        found.append(f"{data.duplicates} training samples repeat another one of the same role")
    if data.leaks:
        leak = data.leaks[0]
        found.append(
            f"left out of the verdict: {counted(len(data.leaks), 'held-out sample')} whose question stands in the training"
            f" data: {leak.sample.messages[-2].content!r} ~ {leak.near!r} ({leak.resemblance:.2f})"
        )
    prompts = len({sample.prompt_id for sample in data.held_out})
    if prompts < FEW_HELD_OUT:
        found.append(
            f"{counted(prompts, 'held-out prompt')}: too few to prove a 90 % agreement; raise generate.splits.test"
        )
    several = "has several system prompts in the dataset; the first one will be served"
    return [*found, *(f"role {role!r} {several}" for role in data.other_systems)]


def stretches(tokenizer: Any, row: dict[str, list[int]]) -> list[Stretch]:
    """One training row as text, cut where learning begins and ends; the control tokens are part of it."""
    pairs = list(zip(row["input_ids"], [label != -100 for label in row["labels"]], strict=True))  # noqa: PLR2004
    return [
        Stretch(text=tokenizer.decode([token for token, _ in run], skip_special_tokens=False), learned=learned)
        for learned, run in ((learned, list(run)) for learned, run in groupby(pairs, key=lambda pair: pair[1]))
    ]


def samples(tokenizer: Any, found: Rows) -> list[list[Stretch]]:
    """The first and the longest row, which between them show most of what can go wrong, and the first one's rationale."""
    if not found.rows:
        return []
    longest = max(range(len(found.rows)), key=lambda place: len(found.rows[place]["input_ids"]))
    rationale = next(iter(found.rationales.values()), None)
    shown = [found.rows[place] for place in dict.fromkeys((0, longest))] + ([rationale] if rationale else [])
    return [stretches(tokenizer, row) for row in shown]
