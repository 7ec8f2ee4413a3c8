"""Many questions through one router, and what they cost beside Gemini alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol

from potstill.errors import InputError, PotstillError, TeacherError
from potstill.records import Record, Trace, Usd


class Routed(Protocol):
    """An answer with its trace."""

    @property
    def text(self) -> str:
        """The answer."""

    @property
    def trace(self) -> Trace:
        """The way it took."""


class Routes(Protocol):
    """Something that answers questions: the router."""

    async def answer(self, question: str) -> Routed:
        """Answer one question."""


ROUTES = ("exact", "semantic", "student", "merged", "teacher")


@dataclass(frozen=True)
class Failure:
    """A question that got no answer."""

    place: int
    question: str
    message: str


@dataclass(frozen=True)
class BatchResult:
    """Answers by the question's place, failures, and the error that ended the batch early."""

    answers: dict[int, Routed]
    failures: tuple[Failure, ...]
    stopped: PotstillError | None


class Summary(Record):
    """Routes and cost of many questions. `hit_rate` is the share that the cache answered."""

    questions: int
    routes: dict[str, int]
    failed: int
    hit_rate: float
    cost_usd: Usd
    baseline_usd: Usd


async def answer_all(
    router: Routes, questions: Sequence[str], concurrency: int, on_done: Callable[[int], None] = lambda _: None
) -> BatchResult:
    """Answer questions, at most `concurrency` at a time; `on_done` is told how many are through.

    A question that fails for itself is a Failure. An error that would meet every further question ends the batch:
    what is under way is finished, nothing more is begun.
    """
    answers: dict[int, Routed] = {}
    failures: list[Failure] = []
    stops: list[PotstillError] = []
    waiting = iter(enumerate(questions))

    async def work() -> None:
        for place, question in waiting:
            if stops:
                return
            try:
                answers[place] = await router.answer(question)
            except (TeacherError, InputError) as error:
                failures.append(Failure(place, question, error.message))
            except PotstillError as error:
                stops.append(error)
                return
            on_done(len(answers) + len(failures))

    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, len(questions))):
            group.create_task(work())
    failures.sort(key=lambda failure: failure.place)
    return BatchResult(dict(sorted(answers.items())), tuple(failures), stops[0] if stops else None)


def summarise(traces: Iterable[Trace], failed: int = 0) -> Summary:
    """Count routes and add up cost."""
    found = list(traces)
    routes = {route: sum(trace.route == route for trace in found) for route in ROUTES}
    hits = routes["exact"] + routes["semantic"]
    return Summary(
        questions=len(found) + failed,
        routes=routes,
        failed=failed,
        hit_rate=hits / len(found) if found else 0.0,
        cost_usd=sum((trace.cost_usd for trace in found), Decimal(0)),
        baseline_usd=sum((trace.baseline_usd for trace in found), Decimal(0)),
    )


def beside_gemini(cost: Decimal, baseline: Decimal) -> str:
    """The cost beside Gemini alone, in words; says so where the router was the dearer way."""
    text = f"${cost.normalize():f}, Gemini alone about ${round(baseline, 9).normalize():f}"
    if baseline <= 0 or cost == baseline:
        return text
    share = abs(1 - cost / baseline)
    return f"{text}: {share:.0%} {'DEARER than Gemini alone' if cost > baseline else 'saved'}"
