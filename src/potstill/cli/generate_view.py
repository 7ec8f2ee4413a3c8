"""How `potstill generate` looks: its plan, its progress on a terminal and elsewhere, its result."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from potstill.cli.session import Session
from potstill.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from decimal import Decimal

    from potstill.generate.ask import Progress, Report
    from potstill.generate.forecast import Forecast, Quote
    from potstill.generate.grow import Growth
    from potstill.generate.plan import Plan
    from potstill.generate.run import Outcome

PLAIN_EVERY_S = 5.0
EVENT_EVERY_S = 1.0
SCREENFUL = 10
STEP_WORDS = {
    "grow": "new prompts",
    "failures": "second round",
    "new_answers": "their answers",
    "second_tries": "second tries",
    "converse": "further turns",
    "judge": "marks",
    "rationale": "rationales",
}
MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86_400


def document_of(outcome: Outcome) -> dict[str, Any]:
    """The result as JSON."""
    manifest, progress = outcome.manifest, outcome.progress
    return {
        "samples": dict(manifest.samples) if manifest else None,
        "rejected": dict(manifest.rejected) if manifest else None,
        "paid": progress.paid,
        "reused": progress.reused,
        "left": progress.left,
        "spent_usd": format(progress.spent_usd, "f"),
        "dataset_cost_usd": manifest.cost_usd if manifest else None,
        "failed": [vars(item) for item in outcome.failed],
        "possibly_paid": [item.model_dump(mode="json") for item in outcome.possibly_paid],
        "stopped": getattr(outcome.stopped, "message", None),
        "retry_at": retry_at.isoformat() if (retry_at := getattr(outcome.stopped, "retry_at", None)) else None,
        "grown": outcome.grown.grown if outcome.grown else None,
        "not_grown": dict(outcome.grown.left_out) if outcome.grown else None,
        "second_round": _second_round(outcome),
        "beside_usd": {name: format(usd, "f") for name, usd in outcome.beside_usd.items()},
        "exported": [str(path) for path in outcome.published.files],
        "pushed": outcome.published.url,
    }


def pilot_text(outcome: Outcome) -> str:
    """What a pilot paid for."""
    progress = outcome.progress
    paid = f"the pilot paid for {counted(progress.paid, 'answer')}, ${progress.spent_usd:f}"
    return f"{paid}; for the steps around answers, in all runs: {_beside(outcome)}" if outcome.beside_usd else paid


def _beside(outcome: Outcome) -> str:
    return ", ".join(f"{name} ${usd:f}" for name, usd in outcome.beside_usd.items())


def _second_round(outcome: Outcome) -> dict[str, Any] | None:
    found = outcome.second_round
    if found is None:
        return None
    counts = {"failed": found.failed, "clusters": found.clusters, "grown": found.growth.grown}
    return {**counts, "left_out": dict(found.growth.left_out)}


def text_of(session: Session, outcome: Outcome) -> str:
    """The result for a reader."""
    return "\n".join([*_grown(outcome), *_dataset(session, outcome), *_unanswered(outcome)])


def _grown(outcome: Outcome) -> Iterator[str]:
    if (second := outcome.second_round) is not None:
        failed = f"{counted(second.failed, 'failed question')} in {counted(second.clusters, 'cluster')}"
        near = f"{failed}: {counted(second.growth.grown, 'new prompt')} near them"
        yield near + _left_out(second.growth)
    if outcome.grown is not None:
        yield f"prompts grown: {outcome.grown.grown}" + _left_out(outcome.grown)


def _left_out(growth: Growth) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in growth.left_out.items())
    return f"; left out: {reasons}" if reasons else ""


def _dataset(session: Session, outcome: Outcome) -> Iterator[str]:
    manifest, progress = outcome.manifest, outcome.progress
    if manifest is not None:
        splits = ", ".join(f"{count} {name}" for name, count in manifest.samples.items())
        yield f"dataset: {splits} in {session.workspace.dataset}"
        if manifest.traced_prompts:
            yield f"with the answers to {counted(manifest.traced_prompts, 'question')} that infer had paid for"
    reused = f"{progress.reused} {'was' if progress.reused == 1 else 'were'} in the ledger already"
    yield f"paid for {counted(progress.paid, 'answer')}, ${progress.spent_usd:f}; {reused}"
    if outcome.beside_usd:
        yield f"paid beside the answers, in all runs: {_beside(outcome)}"
    yield from (f"exported: {path}" for path in outcome.published.files)
    if outcome.published.url:
        yield f"pushed to {outcome.published.url}"
    if progress.left:
        yield f"not asked yet: {progress.left}"
    if manifest is not None and manifest.rejected:
        yield "sifted out: " + ", ".join(f"{count} {reason}" for reason, count in manifest.rejected.items())


def _unanswered(outcome: Outcome) -> Iterator[str]:
    """What may have been paid for nothing, and what failed: the first of it."""
    if outcome.possibly_paid:
        held = sum(attempt.reserved_usd for attempt in outcome.possibly_paid)
        attempts = counted(len(outcome.possibly_paid), "attempt")
        yield f"possibly paid without an answer: {attempts}, at most ${held:f}"
    for item in outcome.failed[:SCREENFUL]:
        why = item.detail if item.detail.startswith(item.reason) else f"{item.reason}: {item.detail}"
        yield f"failed: {item.role}, {item.prompt}, sample {item.sample}: {why}"
    if len(outcome.failed) > SCREENFUL:
        yield f"... and {len(outcome.failed) - SCREENFUL} more (all of them with --json)"


def plan_document(found: Forecast) -> dict[str, Any]:
    """The plan as JSON."""
    return {
        "cells": found.todo.cells,
        "paid": found.todo.paid,
        "requests": found.todo.requests,
        "input_tokens": found.todo.input_tokens,
        "basis": found.basis,
        "services": {quote.service: _quote_document(quote) for quote in found.quotes},
        "steps": [
            {
                "step": step.name,
                "requests": step.requests,
                **_dollars(expected=step.expected_usd, low=step.low_usd, high=step.high_usd, worst=step.worst_usd),
            }
            for step in found.steps
        ],
        "total": _dollars(
            expected=found.expected_usd, low=found.low_usd, likely=found.likely_usd, worst=found.worst_usd
        ),
        "service": found.service,
        "quota_days": found.quota_days,
        "left_usd": None if found.left_usd is None else format(found.left_usd, "f"),
        "over_budget": found.over_budget,
    }


def plan_text(session: Session, plan: Plan, found: Forecast) -> str:
    """The plan for a reader."""
    samples = session.config.generate.samples_per_prompt
    prompts = found.todo.cells // plan.per_prompt
    factors = (counted(prompts, "prompt"), counted(len(plan.roles), "role"), counted(samples, "sample"))
    cells = f"{counted(found.todo.cells, 'answer')}: {' x '.join(factors)}"
    lines = [
        f"{cells}; {found.todo.paid} paid for, {found.todo.requests} to ask",
        f"input: about {found.todo.input_tokens} tokens",
        f"output: {found.basis}",
        "",
        f"{'service':10}{'expected':>12}{'90 % interval':>26}{'at worst':>12}   time",
    ]
    for quote in found.quotes:
        chosen = "*" if quote.service == found.service else " "
        between = f"${quote.low_usd:.4f} to ${quote.high_usd:.4f}" if quote.low_usd is not None else "-"
        lines.append(
            f"{chosen}{quote.service:9}{f'${quote.expected_usd:.4f}':>12}{between:>26}{f'${quote.worst_usd:.4f}':>12}"
            f"   {_time(found, quote)}"
        )
        lines += [f"  {quote.finish.warning}"] if quote.finish.warning else []
    if found.steps:
        lines += ["", f"{'besides':16}{'requests':>9}{'expected':>12}{'at worst':>12}"]
        lines += [
            f"{STEP_WORDS[step.name]:16}{step.requests:>9}{f'${step.expected_usd:.4f}':>12}{f'${step.worst_usd:.4f}':>12}"
            for step in found.steps
        ]
        low = "" if found.low_usd is None else f"at least ${found.low_usd:.4f}, "
        total = f"expected ${found.expected_usd:.4f}, likely {low}at most ${found.likely_usd:.4f}"
        lines.append(f"in all ({found.service}): {total}, at worst ${found.worst_usd:.4f}")
    if found.left_usd is not None:
        lines.append(f"budget left: ${found.left_usd:f}; the run stops before it would be passed")
    return "\n".join(lines)


@contextmanager
def followed(session: Session, *, events: bool) -> Iterator[Report]:
    """JSON events; else a bar on a terminal, a line every few seconds elsewhere, nothing with --quiet."""
    import sys

    if events:
        yield _events(session)
    elif session.quiet:
        yield lambda _: None
    elif sys.stderr.isatty():
        with _bar() as report:
            yield report
    else:
        yield _lines(session)


def _events(session: Session) -> Report:
    """A `failed` event for each request that failed for good, and `progress` once a second and at the end of a step."""
    last, told, step = float("-inf"), 0, ""

    def report(progress: Progress) -> None:
        nonlocal last, told, step
        if progress.step != step:
            last, told, step = float("-inf"), 0, progress.step
        for item in progress.failed[told:]:
            session.event("failed", {"step": step, **vars(item)})
        told = len(progress.failed)
        now = time.monotonic()
        if now - last >= EVENT_EVERY_S or progress.over:
            last = now
            session.event("progress", _progress_document(progress, now))

    return report


def _progress_document(progress: Progress, now: float) -> dict[str, Any]:
    expected = progress.expected_usd()
    return {
        "step": progress.step,
        "done": progress.done,
        "total": progress.total or None,
        "paid": progress.paid,
        "failed": len(progress.failed),
        "batch_jobs": progress.jobs,
        "spent_usd": format(progress.spent_usd, "f"),
        "expected_usd": None if expected is None else format(expected, "f"),
        "per_second": round(progress.rate(now), 3),
        "eta_s": progress.eta_s(now),
    }


@contextmanager
def _bar() -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Bar(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        tasks: dict[str, TaskID] = {}

        def report(progress: Progress) -> None:
            if progress.step not in tasks:
                tasks[progress.step] = bar.add_task(progress.step, total=None, note="")
            finished = progress.done + len(progress.failed)
            bar.update(tasks[progress.step], total=progress.total or None, completed=finished, note=_note(progress))

        yield report


def _lines(session: Session) -> Report:
    last = time.monotonic()

    def report(progress: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PLAIN_EVERY_S or progress.over:
            last = now
            finished = progress.done + len(progress.failed)
            total = f"/{progress.total}" if progress.total else ""
            eta = progress.eta_s(now)
            left = f", {eta:.0f} s to go" if eta else ""
            session.say(f"{progress.step}: {finished}{total}, {_note(progress)}{left}")

    return report


def _note(progress: Progress) -> str:
    rate = f"{progress.rate(time.monotonic()):.1f}/s, " if progress.paid else ""
    expected = progress.expected_usd()
    total = f" of about ${expected:.4f}" if expected is not None else ""
    failed = f", {len(progress.failed)} failed" if progress.failed else ""
    jobs = f", {counted(progress.jobs, 'batch job')} under way" if progress.jobs else ""
    return f"{rate}${progress.spent_usd:.4f}{total}{failed}{jobs}"


def _quote_document(quote: Quote) -> dict[str, Any]:
    usd = {"expected": quote.expected_usd, "low": quote.low_usd, "high": quote.high_usd, "worst": quote.worst_usd}
    return {
        **_dollars(**usd),
        "seconds": quote.finish.seconds,
        "limit": quote.finish.limit,
        "warning": quote.finish.warning or None,
    }


def _dollars(**values: Decimal | None) -> dict[str, str | None]:
    """Exact amounts as texts, under names that say the unit."""
    return {f"{name}_usd": None if usd is None else format(usd, "f") for name, usd in values.items()}


def _time(found: Forecast, quote: Quote) -> str:
    """How long a run takes, and what holds it back; in days of the quota where that does."""
    if quote.finish.limit == "rpd":
        return f"{counted(found.quota_days or 0, 'day')} (daily quota)"
    return f"{_span(quote.finish.seconds)} ({quote.finish.limit})"


def _span(seconds: float) -> str:
    if seconds < MINUTE_S:
        return counted(round(seconds), "second")
    if seconds < 2 * HOUR_S:
        return f"{seconds / 60:.1f} minutes"
    return f"{seconds / HOUR_S:.1f} hours" if seconds < 2 * DAY_S else f"{seconds / DAY_S:.1f} days"
