"""`potstill generate`: prompts x roles x samples -> the teacher -> a dataset."""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from potstill.cli.session import Session, with_session
from potstill.errors import BudgetError, PartialError, PotstillError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from potstill.generate.ask import Progress, Report
    from potstill.generate.run import Outcome

PLAIN_EVERY_S = 5.0


@with_session(
    prompts="generate.prompts",
    roles="generate.roles",
    samples="generate.samples_per_prompt",
    model="teacher.model",
    service="teacher.service",
    rpm="teacher.rpm",
    max_cost="budget.max_usd",
)
def generate(session: Session) -> None:
    """Get answers from the teacher and make a dataset of them. The same command again goes on where it stopped."""
    from potstill.generate.run import generate as run_generate

    if session.dry_run:
        _plan(session)
        return
    with _progress(session) as report:
        outcome = asyncio.run(run_generate(session.config, session.secrets, session.workspace, report))
    error = _error(outcome)
    document = {**_document(outcome), "exit_code": error.exit_code if error else 0}
    session.show(document, _text(session, outcome))
    if error is not None:
        session.complain(error)
        raise typer.Exit(error.exit_code)


def _error(outcome: Outcome) -> PotstillError | None:
    """What ended the run early, or that some answers could not be had."""
    if outcome.stopped is not None or not outcome.failed:
        return outcome.stopped
    message = f"{len(outcome.failed)} of the answers could not be had"
    return PartialError(message, hint="run the same command again: it asks for just these")


def _plan(session: Session) -> None:
    """What would be sent, and what it can cost; needs no key, sends and writes nothing."""
    from potstill.generate.forecast import forecast
    from potstill.generate.run import load_plan

    plan = load_plan(session.config)
    found = forecast(plan, session.workspace)
    text = (
        f"{found.cells} answers: {len(plan.prompts)} prompts x {len(plan.roles)} roles x "
        f"{session.config.generate.samples_per_prompt} samples; {found.paid} are paid for, {found.cells - found.paid} to ask\n"
        f"input about {found.input_tokens} tokens; at most ${found.worst_usd:f} ({found.service})"
    )
    session.show_plan({"cells": found.cells, "paid": found.paid, "worst_usd": str(found.worst_usd)}, text)
    limit = session.config.budget.max_usd
    if limit is not None and found.least_usd > limit:
        message = f"the input alone costs ${found.least_usd:f}, above the budget of ${limit:f}"
        raise BudgetError(message, hint="raise budget.max_usd / --max-cost, or ask for less")


def _document(outcome: Outcome) -> dict[str, Any]:
    manifest = outcome.manifest
    return {
        "samples": dict(manifest.samples),
        "rejected": dict(manifest.rejected),
        "paid": outcome.paid,
        "reused": outcome.reused,
        "spent_usd": format(outcome.spent_usd, "f"),
        "dataset_cost_usd": manifest.cost_usd,
        "failed": [vars(item) for item in outcome.failed],
        "possibly_paid": [item.model_dump(mode="json") for item in outcome.possibly_paid],
        "stopped": outcome.stopped.message if outcome.stopped else None,
    }


def _text(session: Session, outcome: Outcome) -> str:
    manifest = outcome.manifest
    splits = ", ".join(f"{count} {name}" for name, count in manifest.samples.items())
    lines = [
        f"dataset: {splits} in {session.workspace.dataset}",
        f"paid for {outcome.paid} answers, ${outcome.spent_usd:f}; {outcome.reused} were in the ledger already",
    ]
    if manifest.rejected:
        lines.append("sifted out: " + ", ".join(f"{count} {reason}" for reason, count in manifest.rejected.items()))
    if outcome.possibly_paid:
        held = sum(attempt.reserved_usd for attempt in outcome.possibly_paid)
        lines.append(f"possibly paid without an answer: {len(outcome.possibly_paid)} attempts, at most ${held:f}")
    lines += [
        f"failed: {item.role}, {item.prompt}, sample {item.sample}: {item.reason}: {item.detail}"
        for item in outcome.failed[:10]
    ]
    if len(outcome.failed) > 10:  # noqa: PLR2004  (a screenful)
        lines.append(f"... and {len(outcome.failed) - 10} more (all of them with --json)")
    return "\n".join(lines)


@contextmanager
def _progress(session: Session) -> Iterator[Report]:
    """A bar on a terminal, a line every few seconds elsewhere, nothing with --quiet."""
    import sys

    if session.quiet:
        yield lambda _: None
    elif sys.stderr.isatty():
        with _bar() as report:
            yield report
    else:
        yield _lines(session)


@contextmanager
def _bar() -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("generate"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Bar(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("generate", total=None, note="")

        def report(progress: Progress) -> None:
            finished = progress.done + len(progress.failed)
            bar.update(task, total=progress.total, completed=finished, note=_note(progress))

        yield report


def _lines(session: Session) -> Report:
    last = time.monotonic()

    def report(progress: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        finished = progress.done + len(progress.failed)
        if now - last >= PLAIN_EVERY_S or finished == progress.total:
            last = now
            eta = progress.eta_s(now)
            left = f", {eta:.0f} s to go" if eta else ""
            session.say(f"generate: {finished}/{progress.total}, {_note(progress)}{left}")

    return report


def _note(progress: Progress) -> str:
    rate = progress.rate(time.monotonic())
    expected = progress.expected_usd()
    total = f" of about ${expected:.4f}" if expected is not None else ""
    failed = f", {len(progress.failed)} failed" if progress.failed else ""
    return f"{rate:.1f}/s, ${progress.spent_usd:.4f}{total}{failed}"
