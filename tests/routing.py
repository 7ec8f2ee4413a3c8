"""A router over real storage with a scripted teacher and student: what the router's tests are made with."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from potstill.config import Config, with_values
from potstill.infer.cache import open_cache
from potstill.infer.panel import Panel
from potstill.infer.router import Router
from potstill.infer.settings import make_settings
from potstill.infer.watching import Watch
from potstill.records import RouterRule, Score, Verdict
from potstill.student.answers import Piece, Student, StudentAnswer, StudentQuery
from potstill.teacher.calls import Answer, TeacherRequest
from potstill.teacher.scripted import ScriptedTeacher
from potstill.workspace import Workspace

QUESTION = "How much GPU memory do I need to run a small model?"
PARAPHRASE = "How much GPU memory do I need to run small models?"


class RoleStudent:
    """A student that answers by a function of the query and counts its batches."""

    name = "demo"
    roles = ("hardware-expert", "cost-analyst")
    fingerprint = "student-1"

    def __init__(self, script: Callable[[StudentQuery], str] | None = None, logprob: float | None = -0.2) -> None:
        self._script = script or (lambda query: f"{query.role} says so")
        self._logprob = logprob
        self.batches: list[int] = []

    def answer(self, queries: Sequence[StudentQuery]) -> list[StudentAnswer]:
        """Answer by the script."""
        self.batches.append(len(queries))
        return [
            StudentAnswer(
                role=query.role,
                text=self._script(query),
                finish_reason="stop",
                prompt_tokens=9,
                completion_tokens=4,
                mean_logprob=self._logprob,
                min_logprob=self._logprob,
            )
            for query in queries
        ]

    def stream(self, queries: Sequence[StudentQuery]) -> Iterator[Piece]:
        """Each answer in one piece."""
        for place, answer in enumerate(self.answer(queries)):
            yield Piece(index=place, text=answer.text, answer=answer)


class PricedTeacher(ScriptedTeacher):
    """A scripted teacher whose answers cost a cent each."""

    def __init__(self, script: Callable[[TeacherRequest], str], *, finish_reason: str = "STOP") -> None:
        super().__init__(script)
        self._finish_reason = finish_reason
        self.requests: list[TeacherRequest] = []

    async def ask(self, request: TeacherRequest) -> Answer:
        """Answer for a cent; the second equal request is reused, as the ledger would."""
        self.requests.append(request)
        reused = self.asked[request.key] > 0
        answer = await super().ask(request)
        update = {"cost_usd": Decimal("0.01"), "finish_reason": self._finish_reason, "reused": reused}
        return answer.model_copy(update=update)


def failing(error: Exception) -> Callable[[TeacherRequest], str]:
    """A script that raises."""

    def script(_: TeacherRequest) -> str:
        raise error

    return script


def config(**infer: Any) -> Config:
    """Two roles, the hashing encoder, the in-memory-sized defaults."""
    return with_values(
        Config(),
        generate={"roles": ("hardware-expert", "cost-analyst"), "max_output_tokens": 128},
        cache={"encoder": "hashing", "threshold": 0.85},
        infer=infer,
    )


@asynccontextmanager
async def routing(
    folder: Path, teacher: ScriptedTeacher, student: Student | None = None, chosen: Config | None = None
) -> AsyncIterator[Router]:
    """A router over real storage, with the given teacher in place of the paid one."""
    chosen = chosen or config()
    workspace = Workspace(folder)
    settings = make_settings(chosen, workspace, student)
    panel = Panel(student, settings.asked, chosen.infer.max_new_tokens) if student else None
    cache = open_cache(chosen.cache, workspace)

    async def opened() -> ScriptedTeacher:
        return teacher

    try:
        yield Router(settings, cache, panel, opened, workspace.traces, Watch(chosen, workspace, student))
    finally:
        cache.close()


def text_of(request: TeacherRequest) -> str:
    """The last turn of a request."""
    return str(request.body["contents"][-1]["parts"][0]["text"])


def verdict(threshold: float | None, **rule: Any) -> Verdict:
    """A verdict with a router rule."""
    score = Score(n=10, exact=0.5, score=0.8, low=0.7, high=0.9)
    return Verdict(
        student="demo",
        base="base",
        teacher_model="gemini-3.5-flash-lite",
        metric="token_f1",
        base_score=score,
        student_score=score,
        by_role={"hardware-expert": score},
        margin=0.1,
        can_replace=True,
        reason="test",
        router=RouterRule(threshold=threshold, coverage=0.5, agreement_low=0.9, reason="test", **rule),
        paid_usd=Decimal(0),
        teacher_usd_per_request=Decimal(0),
        break_even_requests=None,
        created_at=datetime.now(UTC),
    )
