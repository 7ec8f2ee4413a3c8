"""Samples on disk: three splits without leaks, what was sifted out, a card and a manifest."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Literal

from potstill import __version__
from potstill.config import SplitConfig
from potstill.generate.plan import Cell, Plan
from potstill.generate.sift import Kept, Sieve
from potstill.prompts import Role
from potstill.records import Message, Record, Rejected, Sample, Usage, content_id, text_sha
from potstill.teacher.calls import Answer
from potstill.workspace import LineFile, Workspace, write_atomic

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
class Tally:
    """What has gone into a dataset, summed up as it is written."""

    samples: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(SPLITS, 0)))
    rejected: Counter[str] = field(default_factory=Counter)
    models: set[str] = field(default_factory=set)
    usage: Usage = field(default_factory=Usage)
    cost_usd: Decimal = Decimal(0)

    def add(self, sample: Sample) -> None:
        """Count a sample that was paid for, kept or not."""
        self.models.add(sample.model)
        self.usage += sample.usage
        self.cost_usd += sample.cost_usd


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


def write_dataset(workspace: Workspace, plan: Plan, samples: Iterable[Sample]) -> DatasetManifest:
    """Sift the samples, in the plan's order and one at a time, deal them to the splits, and write the dataset folder.

    Each file is put in its place whole or not at all, the manifest last; no sample is held in memory.
    """
    files = {name: LineFile(workspace.split(name)) for name in SPLITS} | {"rejected": LineFile(workspace.rejected)}
    try:
        tally = _write_lines(files, plan, samples)
        manifest = _manifest(plan, tally, {f"{name}.jsonl": file.sha256 for name, file in files.items()})
        for file in files.values():
            file.publish()
    finally:
        for file in files.values():
            file.discard()
    write_atomic(workspace.dataset_card, card(manifest))
    write_atomic(workspace.dataset_manifest, manifest.model_dump_json(indent=2) + "\n")
    return manifest


def _write_lines(files: Mapping[str, LineFile], plan: Plan, samples: Iterable[Sample]) -> Tally:
    generate = plan.config.generate
    sieve, tally = Sieve(generate.filters), Tally()
    for sample in samples:
        tally.add(sample)
        verdict = sieve.judge(sample)
        if isinstance(verdict, Kept):
            split = split_of(sample.prompt_id, generate.splits)
            files[split].write(sample.to_line())
            tally.samples[split] += 1
        else:
            row = Rejected(sample=sample, reason=verdict.reason, detail=verdict.detail)
            files["rejected"].write(row.to_line())
            tally.rejected[verdict.reason] += 1
    return tally


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


def _manifest(plan: Plan, tally: Tally, hashes: Mapping[str, str]) -> DatasetManifest:
    return DatasetManifest(
        potstill=__version__,
        created_at=datetime.now(UTC),
        teacher_model=plan.config.teacher.model,
        models_answered=tuple(sorted(tally.models)),
        roles=tuple(_role_note(role) for role in plan.roles),
        prompts=len(plan.prompts),
        samples=dict(tally.samples),
        rejected=dict(tally.rejected.most_common()),
        missing=len(plan) - tally.samples.total() - tally.rejected.total(),
        cost_usd=format(tally.cost_usd, "f"),
        usage=tally.usage,
        sha256=hashes,
        config=plan.config.model_dump(mode="json", include={"language", "teacher", "generate"}),
    )


def _role_note(role: Role) -> RoleNote:
    return RoleNote(name=role.name, language=role.language, system=role.system, sha=role.sha)
