"""The whole stage: plan -> ask -> sift -> dataset."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from decimal import Decimal

from potstill.config import Config, Secrets
from potstill.errors import PotstillError
from potstill.generate.ask import Failed, Progress, Report, ask_all
from potstill.generate.dataset import DatasetManifest, sample_of, write_dataset
from potstill.generate.plan import Cell, Plan
from potstill.ledger import Ledger
from potstill.prompts import load_prompts, load_roles
from potstill.records import Attempt, Sample
from potstill.teacher.calls import Answer
from potstill.teacher.paid import open_teacher
from potstill.workspace import Workspace


@dataclass(frozen=True)
class Outcome:
    """What a run came to. `stopped` is the error that ended it early; the dataset then holds what there is."""

    manifest: DatasetManifest
    paid: int
    reused: int
    spent_usd: Decimal
    failed: tuple[Failed, ...]
    possibly_paid: tuple[Attempt, ...]
    stopped: PotstillError | None


def load_plan(config: Config) -> Plan:
    """The plan of a config; raises InputError for a bad prompt or role file."""
    roles = load_roles(config.generate.roles, config.language)
    return Plan(config, load_prompts(config.generate.prompts), roles)


async def generate(config: Config, secrets: Secrets, workspace: Workspace, report: Report) -> Outcome:
    """Get every answer of the plan that is not in the ledger yet, then write the dataset from all of them."""
    plan = load_plan(config)
    collector = _Collector()
    async with open_teacher(config, secrets, workspace, command="generate") as teacher:
        progress = Progress(total=len(plan), started=0)
        stopped: PotstillError | None = None

        def follow(current: Progress) -> None:
            nonlocal progress
            progress = current
            report(current)

        try:
            workers = min(config.teacher.max_concurrency, max(1, len(plan)))
            progress = await ask_all(plan, teacher, collector.keep, follow, workers=workers)
        except PotstillError as error:
            stopped = error
        manifest = await asyncio.to_thread(write_dataset, workspace, plan, collector.samples(plan, teacher.ledger))
        return Outcome(
            manifest=manifest,
            paid=progress.paid,
            reused=progress.reused,
            spent_usd=progress.spent_usd,
            failed=tuple(progress.failed),
            possibly_paid=possibly_paid(teacher.ledger),
            stopped=stopped,
        )


def possibly_paid(ledger: Ledger) -> tuple[Attempt, ...]:
    """Attempts that left and have no answer on disk: the teacher may have billed them."""
    return tuple(attempt for attempt in ledger.attempts() if attempt.status == "open")


class _Collector:
    """Answers by cell, put back into the order of the plan."""

    def __init__(self) -> None:
        self._answers: dict[str, tuple[Cell, Answer]] = {}

    def keep(self, cell: Cell, answer: Answer) -> None:
        self._answers[answer.key] = (cell, answer)

    def samples(self, plan: Plan, ledger: Ledger) -> list[Sample]:
        """One sample per answered cell; its time is the answer's own, so that the same ledger gives the same bytes."""
        found = []
        for cell in plan:
            if (pair := self._answers.get(cell.request.key)) is None:
                continue
            stored = ledger.answer(cell.request.key)
            if stored is not None:
                found.append(sample_of(*pair, created_at=stored.finished_at))
        return found
