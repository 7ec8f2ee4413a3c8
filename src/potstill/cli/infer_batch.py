"""Many questions of `potstill infer`: a file or standard input in, answers and a summary out."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from potstill.cli.infer_router import router_of
from potstill.cli.infer_screen import on_screen, tell
from potstill.cli.session import Session
from potstill.errors import PartialError, PotstillError
from potstill.wording import counted

if TYPE_CHECKING:
    from potstill.infer.batch import BatchResult, Journal

SHOWN_FAILURES = 10
SAY_EVERY_S = 5.0
"""Seconds between two lines of progress."""


@dataclass(frozen=True)
class Wanted:
    """How the answers are given."""

    jsonl: bool
    output: Path | None
    trace: bool


def answer_many(session: Session, questions: Sequence[str], wanted: Wanted) -> None:
    """Answer them, show answers and summary; raises PartialError where some got none, or what stopped the run."""
    from potstill.infer.batch import Journal, summarise, summary_lines

    journal = Journal(wanted.output) if wanted.output is not None else None
    result = asyncio.run(_run_batch(session, questions, journal))
    traces = [row.trace for row in result.answers.values()]
    summary = summarise(traces, len(result.failures))
    document: dict[str, Any] = {
        "summary": summary.model_dump(mode="json"),
        "failed": [vars(failure) for failure in result.failures],
        "stopped": result.stopped.message if result.stopped else None,
    }
    if journal is not None:
        journal.finish(result)
        session.show({**document, "output": str(wanted.output)}, f"{counted(len(traces), 'answer')} in {wanted.output}")
    else:
        answers = [row.model_dump(mode="json") for row in result.answers.values()]
        session.show({**document, "answers": answers}, _batch_text(result, jsonl=wanted.jsonl))
    if wanted.trace:
        for found in traces:
            tell(session, found, whole=True)
    for line in summary_lines(summary):
        session.say(line)
    for failure in result.failures[:SHOWN_FAILURES]:
        session.say(f"failed: {failure.question}: {failure.message}")
    if (more := len(result.failures) - SHOWN_FAILURES) > 0:
        session.say(f"failed: {more} more; --output and --json list them all")
    _end(session, result)


def _end(session: Session, result: BatchResult) -> None:
    """Leave with the exit code of what went wrong; with --json the one document has already told it."""
    error: PotstillError | None = result.stopped
    if error is None and result.failures:
        message = f"{counted(len(result.failures), 'question')} got no answer"
        error = PartialError(message, hint="run the same command again: the others are in the cache or the ledger")
    if error is not None and session.as_json:
        raise typer.Exit(error.exit_code)
    if error is not None:
        raise error


async def _run_batch(session: Session, questions: Sequence[str], journal: Journal | None) -> BatchResult:
    from potstill.infer.batch import Row, answer_all

    known = journal.known(questions) if journal is not None else {}
    if known:
        session.say(f"answered before: {len(known)} of {counted(len(questions), 'question')}")
    done, said = len(known), time.monotonic()

    def note(place: int, row: Row | None) -> None:
        nonlocal done, said
        done += 1
        if journal is not None and row is not None:
            journal.add(place, row)
        if (now := time.monotonic()) - said >= SAY_EVERY_S:
            said = now
            session.say(f"{done} of {len(questions)}")

    async with router_of(session) as router:
        return await answer_all(router, questions, session.config.teacher.max_concurrency, known=known, on_done=note)


def _batch_text(result: BatchResult, *, jsonl: bool) -> str:
    rows = result.answers.values()
    if jsonl:
        return "\n".join(json.dumps(row.model_dump(mode="json"), ensure_ascii=False) for row in rows)
    return "\n".join(on_screen(f"[{row.trace.route}] {row.question}\n{row.answer}\n") for row in rows)
