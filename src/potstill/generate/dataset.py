"""Samples on disk: three splits without leaks, what was sifted out, a card and a manifest."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Literal

from potstill import __version__
from potstill.config import Config, SplitConfig
from potstill.generate.plan import Cell, Plan
from potstill.generate.sift import Kept, Sieve
from potstill.prompts import Role
from potstill.records import Message, Record, Rejected, Sample, Usage, content_id, text_sha
from potstill.teacher.calls import Answer
from potstill.workspace import Workspace, write_atomic

SPLITS = ("train", "validation", "test")
Split = Literal["train", "validation", "test"]


class RoleNote(Record):
    """A role as the dataset was made with it."""

    name: str
    language: str
    system: str
    sha: str


class DatasetManifest(Record):
    """`dataset/manifest.json`: what the dataset was made from, and what it came to."""

    schema_version: Literal[1] = 1
    potstill: str
    created_at: datetime
    teacher_model: str
    models_answered: tuple[str, ...]
    roles: tuple[RoleNote, ...]
    prompts: int
    samples: Mapping[str, int]
    rejected: Mapping[str, int]
    missing: int
    cost_usd: str
    usage: Usage
    sha256: Mapping[str, str]
    config: Mapping[str, Any]


@dataclass
class Collected:
    """The answers of a run by split."""

    samples: dict[str, list[Sample]] = field(default_factory=lambda: {name: [] for name in SPLITS})
    rejected: list[Rejected] = field(default_factory=list)

    @property
    def everything(self) -> list[Sample]:
        """All samples that were paid for, the rejected ones included."""
        return [
            *(sample for split in self.samples.values() for sample in split),
            *(row.sample for row in self.rejected),
        ]


def split_of(prompt_id: str, splits: SplitConfig) -> Split:
    """The split of a prompt, by its own hash alone: adding prompts moves none, and all its samples stay together."""
    digest = hashlib.sha256(f"{splits.seed}:{prompt_id}".encode()).digest()
    position = int.from_bytes(digest[:8]) / 2**64
    if position < splits.test:
        return "test"
    return "validation" if position < splits.test + splits.validation else "train"


def sample_of(cell: Cell, answer: Answer, created_at: datetime) -> Sample:
    """A dataset line from a cell and its answer."""
    return Sample(
        id=content_id({"key": answer.key}),
        messages=(*cell.messages, Message(role="assistant", content=answer.text.strip())),
        role=cell.role.name,
        prompt_id=cell.prompt.id,
        sample=cell.sample,
        model=answer.model,
        finish_reason=answer.finish_reason,
        usage=answer.usage,
        cost_usd=answer.cost_usd,
        prompt_sha=text_sha(cell.prompt.text),
        created_at=created_at,
    )


def collect(samples: Sequence[Sample], config: Config) -> Collected:
    """Sift the samples, in their order, and deal the kept ones to the splits."""
    sieve, collected = Sieve(config.generate.filters), Collected()
    for sample in samples:
        verdict = sieve.judge(sample)
        if isinstance(verdict, Kept):
            collected.samples[split_of(sample.prompt_id, config.generate.splits)].append(sample)
        else:
            collected.rejected.append(Rejected(sample=sample, reason=verdict.reason, detail=verdict.detail))
    return collected


def write_dataset(workspace: Workspace, plan: Plan, samples: Sequence[Sample]) -> DatasetManifest:
    """Write the dataset folder; each file whole or not at all, the manifest last."""
    collected = collect(samples, plan.config)
    texts = {f"{name}.jsonl": "".join(row.to_line() for row in rows) for name, rows in collected.samples.items()}
    texts["rejected.jsonl"] = "".join(row.to_line() for row in collected.rejected)
    manifest = _manifest(plan, collected, {name: text_sha(text) for name, text in texts.items()})
    for name in SPLITS:
        write_atomic(workspace.split(name), texts[f"{name}.jsonl"])
    write_atomic(workspace.rejected, texts["rejected.jsonl"])
    write_atomic(workspace.dataset_card, card(manifest))
    write_atomic(workspace.dataset_manifest, manifest.model_dump_json(indent=2) + "\n")
    return manifest


def card(manifest: DatasetManifest) -> str:
    """The dataset card: a header that `datasets.load_dataset` reads, then what a reader wants to know."""
    languages = sorted({role.language for role in manifest.roles})
    header = ["---", "configs:", "- config_name: default", "  data_files:"]
    for name in SPLITS:
        if manifest.samples[name]:
            header += [f"  - split: {name}", f"    path: {name}.jsonl"]
    header += ["language:", *(f"- {language}" for language in languages), "---", ""]
    rejected = ", ".join(f"{count} {reason}" for reason, count in manifest.rejected.items()) or "none"
    body = [
        "# Dataset made by potstill",
        "",
        _summary(manifest),
        "",
        "| split | samples |",
        "|---|---|",
        *(f"| {name} | {manifest.samples[name]} |" for name in SPLITS),
        "",
        f"Sifted out: {rejected} (`rejected.jsonl`, each with its reason). All samples of one prompt are in one split.",
        "",
        "Roles: " + ", ".join(f"`{role.name}` ({role.language})" for role in manifest.roles) + ".",
        "",
        "The answers come from a hosted model. Its provider's terms hold for what is trained on them.",
        "",
        "```python",
        "from datasets import load_dataset",
        "",
        'data = load_dataset("path/to/dataset")',
        "```",
        "",
    ]
    return "\n".join([*header, *body])


def _summary(manifest: DatasetManifest) -> str:
    models = "`, `".join(manifest.models_answered) or manifest.teacher_model
    count = sum(manifest.samples.values())
    return (
        f"{count} answers of `{models}` to {manifest.prompts} prompts in {len(manifest.roles)} roles."
        f" It cost ${Decimal(manifest.cost_usd):f}."
    )


def _manifest(plan: Plan, collected: Collected, hashes: Mapping[str, str]) -> DatasetManifest:
    everything = collected.everything
    return DatasetManifest(
        potstill=__version__,
        created_at=datetime.now(UTC),
        teacher_model=plan.config.teacher.model,
        models_answered=tuple(sorted({sample.model for sample in everything})),
        roles=tuple(_role_note(role) for role in plan.roles),
        prompts=len(plan.prompts),
        samples={name: len(rows) for name, rows in collected.samples.items()},
        rejected=dict(Counter(row.reason for row in collected.rejected).most_common()),
        missing=len(plan) - len(everything),
        cost_usd=format(sum((sample.cost_usd for sample in everything), Decimal(0)), "f"),
        usage=sum((sample.usage for sample in everything), Usage()),
        sha256=hashes,
        config=plan.config.model_dump(mode="json", include={"language", "teacher", "generate"}),
    )


def _role_note(role: Role) -> RoleNote:
    return RoleNote(name=role.name, language=role.language, system=role.system, sha=role.sha)
