"""Samples on disk: three splits without leaks, what was sifted out, a card and a manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from typing import Literal

from potstill import __version__
from potstill.config import Config, SplitConfig
from potstill.files import LineFile, write_atomic
from potstill.generate.card import card
from potstill.generate.figures import DatasetManifest, RoleNote, Tally
from potstill.generate.groups import Copies, Groups
from potstill.generate.plan import Cell, Plan
from potstill.generate.sift import Gauge, Kept, sift
from potstill.prompts import Role
from potstill.records import Message, Rejected, Sample, content_id, text_sha
from potstill.teacher.calls import Answer
from potstill.workspace import Workspace

SPLITS = ("train", "validation", "test")
Split = Literal["train", "validation", "test"]
Keyed = tuple[str, str]
"""A prompt's id and its text."""


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


class Prompts:
    """What is known of the prompts before the first sample is dealt: which are alike, and which copy an earlier one."""

    def __init__(self, config: Config, prompts: Iterable[Keyed]) -> None:
        splits, filters = config.generate.splits, config.generate.filters
        self._splits = splits
        self._groups = Groups(splits.near_duplicates, splits.largest_group) if splits.near_duplicates else None
        self._copies = Copies(filters.near_duplicate_prompts) if filters.near_duplicate_prompts else None
        for key, text in prompts if self._groups or self._copies else ():
            if self._groups is not None:
                self._groups.add(key, text)
            if self._copies is not None:
                self._copies.add(key, text)

    def split_of(self, prompt_id: str) -> Split:
        """The split of a prompt: that of the earliest prompt in its group."""
        return split_of(self._groups.leader(prompt_id) if self._groups else prompt_id, self._splits)

    @property
    def original(self) -> Callable[[str], str | None] | None:
        """Which prompt an id's prompt copies; None where copies are let through."""
        return self._copies.original if self._copies else None

    def alike(self) -> dict[str, int]:
        """Groups of more than one prompt, counted by their size."""
        sizes = self._groups.sizes() if self._groups else {}
        return {str(size): count for size, count in sorted(sizes.items()) if size > 1}

    def close(self) -> None:
        """Let go of the temporary files."""
        for part in (self._groups, self._copies):
            if part is not None:
                part.close()


@dataclass(frozen=True)
class Extra:
    """Samples that came from elsewhere; their prompts are dealt to the splits with the plan's, and after them.

    They are gone through several times; `has` says whether a sample of this id is among them; `questions` is how many
    different ones they answer.
    """

    samples: Iterable[Sample] = ()
    has: Callable[[str], bool] = lambda _: False
    questions: int = 0

    def prompts(self) -> Iterator[Keyed]:
        """Ids and texts of the questions."""
        for sample in self.samples:
            yield sample.prompt_id, next(turn.content for turn in sample.messages if turn.role == "user")

    def after(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """The plan's samples, then those of these that are not among them."""
        twice: set[str] = set()
        for sample in samples:
            if self.has(sample.id):
                twice.add(sample.id)
            yield sample
        yield from (sample for sample in self.samples if sample.id not in twice)


def write_dataset(
    workspace: Workspace,
    plan: Plan,
    samples: Iterable[Sample],
    gauge: Gauge | None = None,
    extra: Extra = Extra(),
    finish: Callable[[Sample], Sample] = lambda sample: sample,
) -> DatasetManifest:
    """Sift the samples, in the plan's order and one at a time, deal them to the splits, and write the dataset folder.

    `gauge` is what they are measured by, the config's filters alone by default; `finish` adds to what is kept. Each file is put in its place whole or
    not at all, the manifest last; no sample is held in memory.
    """
    with ExitStack() as stack:
        prompts = stack.enter_context(closing(Prompts(plan.config, _all_prompts(plan, extra))))
        files = {name: LineFile(workspace.split(name)) for name in SPLITS} | {"rejected": LineFile(workspace.rejected)}
        for file in files.values():
            stack.callback(file.discard)
        whole = replace(gauge or Gauge(plan.config.generate.filters), alike_prompt=prompts.original)
        counted = _Counted(samples)
        tally = Tally(traced_prompts=extra.questions)
        for sample, verdict in sift(extra.after(counted), whole):
            tally.paid(sample)
            if isinstance(verdict, Kept):
                split = prompts.split_of(sample.prompt_id)
                files[split].write(finish(sample).to_line())
                tally.keep(sample, split)
            else:
                row = Rejected(sample=sample, reason=verdict.reason, detail=verdict.detail)
                files["rejected"].write(row.to_line())
                tally.reject(verdict.reason)
        tally.missing = len(plan) - counted.count
        manifest = _manifest(plan, tally, prompts, {f"{name}.jsonl": file.sha256 for name, file in files.items()})
        for file in files.values():
            file.publish()
    write_atomic(workspace.dataset_card, card(manifest))
    write_atomic(workspace.dataset_manifest, manifest.model_dump_json(indent=2) + "\n")
    return manifest


class _Counted:
    """Samples, counted as they go by."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._samples = samples
        self.count = 0

    def __iter__(self) -> Iterator[Sample]:
        for sample in self._samples:
            self.count += 1
            yield sample


def _all_prompts(plan: Plan, extra: Extra) -> Iterator[Keyed]:
    return chain(((prompt.id, prompt.text) for prompt in plan.prompts), extra.prompts())


def _manifest(plan: Plan, tally: Tally, prompts: Prompts, hashes: Mapping[str, str]) -> DatasetManifest:
    return DatasetManifest(
        potstill=__version__,
        created_at=datetime.now(UTC),
        teacher_model=plan.config.teacher.model,
        models_answered=tuple(sorted(tally.models)),
        roles=tuple(_role_note(role) for role in plan.roles),
        prompts=len(plan.prompts),
        traced_prompts=tally.traced_prompts,
        samples={name: tally.splits[name] for name in SPLITS},
        rejected=dict(tally.rejected.most_common()),
        missing=tally.missing,
        cost_usd=format(tally.cost_usd, "f"),
        usage=tally.usage,
        figures=tally.figures(),
        alike_prompts=prompts.alike(),
        sha256=hashes,
        config=plan.config.model_dump(mode="json", include={"language", "teacher", "generate"}),
    )


def _role_note(role: Role) -> RoleNote:
    return RoleNote(name=role.name, language=role.language, system=role.system, sha=role.sha)
