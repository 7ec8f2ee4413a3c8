"""Many questions through one router: in order, resumable, and what they cost beside Gemini alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from potstill.errors import InputError, PotstillError, TeacherError
from potstill.files import read_text, write_atomic
from potstill.records import Record, Trace, Usd
from potstill.wording import counted


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
PERCENTILES = (50, 90, 99)


class Row(Record):
    """One answer of a batch: a line of the output file."""

    question: str
    answer: str
    trace: Trace

    @property
    def text(self) -> str:
        """The answer."""
        return self.answer


@dataclass(frozen=True)
class Failure:
    """A question that got no answer."""

    place: int
    question: str
    message: str


@dataclass(frozen=True)
class BatchResult:
    """Answers by the question's place, failures, and the error that ended the batch early."""

    answers: dict[int, Row]
    failures: tuple[Failure, ...]
    stopped: PotstillError | None


class Summary(Record):
    """Routes, cost and time of many questions. `hit_rate` is the share that the cache answered.

    `break_even` is the hit rate from which on the router is cheaper than Gemini alone, at what a question without a hit
    cost here; None where those cost no more than Gemini alone. `latency_s`: percentiles.
    """

    questions: int
    routes: dict[str, int]
    failed: int
    hit_rate: float
    cost_usd: Usd
    baseline_usd: Usd
    saved_usd: Usd
    break_even: float | None
    latency_s: dict[str, float]


class Journal:
    """The answers of an unfinished batch, `<output>.partial`: each is on disk before the next question is begun."""

    def __init__(self, output: Path) -> None:
        self._output = output
        self._path = output.with_name(output.name + ".partial")

    def known(self, questions: Sequence[str]) -> dict[int, Row]:
        """The answers of an earlier run to the questions at the same places; a torn last line is left out.

        Raises InputError where the journal belongs to other questions.
        """
        if not self._path.is_file():
            return {}
        found: dict[int, Row] = {}
        lines = read_text(self._path, "journal").split("\n")
        for number, line in enumerate(lines[:-1], start=1):
            place, row = self._read(line, number)
            if place >= len(questions) or questions[place] != row.question:
                message = f"{self._path}:{number}: belongs to other questions"
                raise InputError(message, hint="delete it to begin anew, or choose another --output")
            found[place] = row
        if lines[-1]:  # the process died while it wrote: what follows must begin on a line of its own
            write_atomic(self._path, "\n".join([*lines[:-1], ""]))
        return found

    def add(self, place: int, row: Row) -> None:
        """Keep one answer."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"place": place, "row": row.model_dump(mode="json")}, ensure_ascii=False) + "\n"
        with self._path.open("ab", buffering=0) as file:
            file.write(line.encode("utf-8", "surrogatepass"))

    def finish(self, result: BatchResult) -> None:
        """Write the output in the questions' order, failures among it; the journal stays until nothing is missing."""
        lines = {place: row.model_dump(mode="json") for place, row in result.answers.items()}
        lines |= {found.place: {"question": found.question, "error": found.message} for found in result.failures}
        text = "".join(json.dumps(lines[place], ensure_ascii=False) + "\n" for place in sorted(lines))
        write_atomic(self._output, text)
        if not result.failures and result.stopped is None:
            self._path.unlink(missing_ok=True)

    def _read(self, line: str, number: int) -> tuple[int, Row]:
        try:
            value = json.loads(line)
            return int(value["place"]), Row.model_validate(value["row"])
        except (ValueError, KeyError, TypeError, ValidationError) as error:
            message = f"{self._path}:{number}: not a line of a journal"
            raise InputError(message, hint="delete it to begin anew, or choose another --output") from error


async def answer_all(
    router: Routes,
    questions: Sequence[str],
    concurrency: int,
    *,
    known: Mapping[int, Row] | None = None,
    on_done: Callable[[int, Row | None], None] = lambda _place, _row: None,
) -> BatchResult:
    """Answer questions, at most `concurrency` at a time; `on_done` is told of each, with None for a failure.

    `known` answers are taken as they are. A question that fails for itself is a Failure. An error that would meet every
    further question ends the batch: what is under way is finished, nothing more is begun.
    """
    answers: dict[int, Row] = dict(known or {})
    failures: list[Failure] = []
    stops: list[PotstillError] = []
    waiting = iter([(place, question) for place, question in enumerate(questions) if place not in answers])

    async def work() -> None:
        for place, question in waiting:
            if stops:
                return
            try:
                routed = await router.answer(question)
            except (TeacherError, InputError) as error:
                failures.append(Failure(place, question, error.message))
                on_done(place, None)
            except PotstillError as error:
                stops.append(error)
                return
            else:
                answers[place] = Row(question=question, answer=routed.text, trace=routed.trace)
                on_done(place, answers[place])

    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, len(questions))):
            group.create_task(work())
    failures.sort(key=lambda failure: failure.place)
    return BatchResult(dict(sorted(answers.items())), tuple(failures), stops[0] if stops else None)


def summarise(traces: Iterable[Trace], failed: int = 0) -> Summary:
    """Count routes, add up cost, rank times."""
    found = list(traces)
    routes = {route: sum(trace.route == route for trace in found) for route in ROUTES}
    hits = routes["exact"] + routes["semantic"]
    cost = sum((trace.cost_usd for trace in found), Decimal(0))
    baseline = sum((trace.baseline_usd for trace in found), Decimal(0))
    return Summary(
        questions=len(found) + failed,
        routes=routes,
        failed=failed,
        hit_rate=hits / len(found) if found else 0.0,
        cost_usd=cost,
        baseline_usd=baseline,
        saved_usd=baseline - cost,
        break_even=break_even(found),
        latency_s=percentiles([trace.latency_s for trace in found]),
    )


def break_even(traces: Sequence[Trace]) -> float | None:
    """The hit rate at which the router costs what Gemini alone does; None where it is cheaper at any."""
    misses = [trace for trace in traces if trace.route not in ("exact", "semantic")]
    cost = sum((trace.cost_usd for trace in misses), Decimal(0))
    baseline = sum((trace.baseline_usd for trace in misses), Decimal(0))
    return float(1 - baseline / cost) if cost > baseline else None


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """The smallest values that so many per cent do not pass."""
    ranked = sorted(values)
    return {f"p{share}": ranked[max(0, -(-share * len(ranked) // 100) - 1)] for share in PERCENTILES} if ranked else {}


def beside_gemini(cost: Decimal, baseline: Decimal) -> str:
    """The cost beside Gemini alone, in words; says so where the router was the dearer way."""
    text = f"${cost.normalize():f}, Gemini alone about ${round(baseline, 9).normalize():f}"
    if baseline <= 0 or cost == baseline:
        return text
    share = abs(1 - cost / baseline)
    return f"{text}: {share:.0%} {'DEARER than Gemini alone' if cost > baseline else 'saved'}"


def summary_lines(summary: Summary) -> list[str]:
    """What a reader is told of a batch."""
    routes = ", ".join(f"{count} {route}" for route, count in summary.routes.items() if count) or "none answered"
    lines = [
        f"{counted(summary.questions, 'question')}: {routes}; hit rate {summary.hit_rate:.0%}",
        f"cost {beside_gemini(summary.cost_usd, summary.baseline_usd)}",
    ]
    if summary.break_even is not None:
        lines.append(
            f"a question without a hit cost {1 / (1 - summary.break_even):.2f} times Gemini alone: "
            f"cheaper only from a hit rate of {summary.break_even:.0%} on; see infer.decide and infer.decision"
        )
    if summary.latency_s:
        lines.append("seconds: " + ", ".join(f"{name} {value:.3f}" for name, value in summary.latency_s.items()))
    return lines
