"""The whole stage: plan -> ask -> sift -> dataset."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal

from potstill.config import Config, Secrets
from potstill.errors import PotstillError
from potstill.generate.ask import Failed, Progress, Report, ask_all
from potstill.generate.dataset import DatasetManifest, sample_of, write_dataset
from potstill.generate.plan import Plan
from potstill.ledger import Ledger
from potstill.prompts import PromptFiles, load_roles
from potstill.records import Attempt, Sample
from potstill.teacher.opening import open_teacher
from potstill.teacher.paid import stored_answer
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
    return Plan(config, PromptFiles(config.generate.prompts), roles)


async def generate(config: Config, secrets: Secrets, workspace: Workspace, report: Report) -> Outcome:
    """Get every answer of the plan that is not in the ledger yet, then write the dataset from all of them."""
    plan = load_plan(config)
    async with open_teacher(config, secrets, workspace, command="generate") as teacher:
        progress = Progress(total=len(plan), started=0)
        stopped: PotstillError | None = None

        def follow(current: Progress) -> None:
            nonlocal progress
            progress = current
            report(current)

        try:
            workers = min(config.teacher.max_concurrency, max(1, len(plan)))
            progress = await ask_all(plan, teacher, follow, workers=workers)
        except PotstillError as error:
            stopped = error
        manifest = await asyncio.to_thread(write_dataset, workspace, plan, stored_samples(plan, teacher.ledger))
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
    return tuple(ledger.open_attempts())


def stored_samples(plan: Plan, ledger: Ledger) -> Iterator[Sample]:
    """One sample per answered cell, in the plan's order, from the ledger: the same ledger gives the same bytes."""
    for cell in plan:
        answer = stored_answer(ledger, cell.request)
        if answer is not None:
            yield sample_of(cell, answer, created_at=answer.answered_at)
