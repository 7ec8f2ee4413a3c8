"""Who answers what the cache does not: the student's roles, then Gemini as the policy says, and what happens on failure."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal

from potstill.config import Config
from potstill.errors import BudgetError, PotstillError, QuotaError, TeacherError, UsageError
from potstill.infer.agreement import agreement, drawn
from potstill.infer.breaker import CANCELLED, Breaker
from potstill.infer.decide import (
    SCHEMAS,
    AskTeacher,
    Decision,
    Nearness,
    TakeStudent,
    after_students,
    before_students,
    candidate_lines,
    ranking,
    read_reply,
    shown,
)
from potstill.infer.panel import Panel
from potstill.infer.settings import TEMPERATURE, Settings
from potstill.infer.work import Outcome, Work
from potstill.prompts import fill
from potstill.records import Message
from potstill.student.answers import StudentAnswer
from potstill.teacher.calls import Answer, Asks, Streams, build_request

WHOLE = "STOP"
"""The finish reason of an answer that was not cut off or blocked."""
OUTAGES = (TeacherError, BudgetError, QuotaError)
"""What a student's answer bridges."""


class Asking:
    """Students and teacher behind one question. `teacher` opens the teacher when it is first needed."""

    def __init__(
        self,
        settings: Settings,
        panel: Panel | None,
        teacher: Callable[[], Awaitable[Asks]],
        nearness: Callable[[Work], Awaitable[Nearness]] | None = None,
    ) -> None:
        """`nearness` says how near a question is to what the student was taught; None where its verdict does not ask."""
        self._settings = settings
        self._nearness = nearness
        self._panel = panel
        self._teacher = teacher
        self._breaker = Breaker()

    def follow(self, settings: Settings, nearness: Callable[[Work], Awaitable[Nearness]] | None) -> None:
        """Decide by these settings from now on."""
        self._settings = settings
        self._nearness = nearness

    @property
    def _config(self) -> Config:
        return self._settings.config

    async def ask(self, work: Work) -> Outcome:
        """Students, then Gemini as the policy says.

        Raises the student's error with `never`; TeacherError, BudgetError or QuotaError where Gemini failed and no student
        had an answer; KeyRefusedError.
        """
        if self._settings.policy.mode == "always":
            await self._teacher()  # a missing key is told before a student has worked for nothing
        step = await self._step(work)
        if isinstance(step, TakeStudent):
            keep = step.whole and step.answer.finish_reason == "stop"
            return from_student(step.answer, step.reason, keep=keep)
        if self._settings.policy.mode == "never":
            message = "infer.decide is never, and no student answered"
            raise UsageError(message, hint="distill a student, or let Gemini answer: --decide always")
        work.notes.append(step.reason)
        try:
            outcome = await self._decide(work, step)
        except OUTAGES as error:
            ranked = step.candidates or (ranking(await self._students(work)) if work.foreign else ())
            if not ranked:
                raise
            return from_student(ranked[0], f"unverified: Gemini did not answer ({error.message})", keep=False)
        if step.candidates:
            work.student_agreement = agreement(step.candidates[0].text, outcome.text)
        return outcome

    async def ready(self) -> None:
        """Open the teacher; raises KeyRefusedError without a key."""
        await self._teacher()

    async def fits(self, work: Work, answer: str) -> bool | None:
        """Whether an answer fits the question, by Gemini's word; None where it could not be asked."""
        candidate = StudentAnswer(role="cache", text=answer, finish_reason="stop", prompt_tokens=0, completion_tokens=0)
        try:
            reply = await self._about(work, "verify", [candidate])
        except PotstillError as error:
            work.notes.append(f"not audited: {error.message}")
            return None
        chosen = read_reply("verify", reply.text, [candidate])
        return chosen.text is not None if "unreadable" not in chosen.reason else None

    async def _step(self, work: Work) -> TakeStudent | AskTeacher:
        """What to do, after the student's roles have answered where the question is not foreign to them."""
        policy = self._settings.policy
        near = None
        if self._nearness is not None and policy.mode == "uncertain" and self._panel is not None:
            near = await self._nearness(work)
            work.taught_cosine = near.cosine
            if (foreign := before_students(policy, near)) is not None:
                work.foreign = True
                return foreign
        answers = await self._students(work)
        step = after_students(policy, answers, near)
        sure = isinstance(step, TakeStudent) and policy.mode == "uncertain"
        if sure and drawn(self._config.infer.escalate_share, work.key, "escalate"):
            work.escalated = True
            return AskTeacher(ranking(answers), f"escalated at random, although {step.reason}")
        return step

    async def _students(self, work: Work) -> list[StudentAnswer]:
        if self._panel is None:
            return []
        limit = self._config.infer.student_timeout_s
        try:
            async with asyncio.timeout(limit):
                answers = await self._panel.ask((*work.history, Message(role="user", content=work.question)))
        except (PotstillError, TimeoutError) as error:
            message = error.message if isinstance(error, PotstillError) else f"no answer within {limit:g} s"
            if self._settings.policy.mode == "never":
                raise (
                    error if isinstance(error, PotstillError) else TeacherError(message, reason="student")
                ) from error
            work.notes.append(f"student failed: {message}")
            return []
        work.roles = tuple(answer.role for answer in answers)
        return answers

    async def _decide(self, work: Work, step: AskTeacher) -> Outcome:
        """Gemini merges, selects or verifies; where that decides nothing, it answers alone."""
        if step.candidates:
            decision = self._config.infer.decision
            candidates = shown(decision, step.candidates)
            reply = await self._about(work, decision, candidates)
            chosen = read_reply(decision, reply.text, candidates)
            if chosen.text is not None:
                best = step.candidates[0].mean_logprob
                keep = reply.finish_reason == WHOLE
                return Outcome(chosen.text, "merged", chosen.reason, reply.model, mean_logprob=best, keep=keep)
            work.notes.append(chosen.reason)
        return await self._alone(work)

    async def _about(self, work: Work, decision: Decision, candidates: Sequence[StudentAnswer]) -> Answer:
        values = {"question": work.question, "candidates": candidate_lines(candidates)}
        prompt = fill(self._settings.templates[decision], values, origin=f"template {decision}")
        messages = (*work.history, Message(role="user", content=prompt))
        return await self._call(work, messages, role=None, schema_of=decision)

    async def _alone(self, work: Work) -> Outcome:
        role = self._settings.role
        system = Message(role="system", content=role.system)
        messages = (system, *work.history, Message(role="user", content=work.question))
        reply = await self._call(work, messages, role=role.name, schema_of="merge")
        if not reply.text.strip():
            message = f"Gemini gave no text ({reply.finish_reason})"
            raise TeacherError(message, reason=reply.finish_reason)
        keep = reply.finish_reason == WHOLE
        reason = "Gemini answered" if keep else f"Gemini answered, {reply.finish_reason}"
        return Outcome(reply.text, "teacher", reason, reply.model, keep=keep, alone_usd=reply.cost_usd)

    async def _call(self, work: Work, messages: Sequence[Message], *, role: str | None, schema_of: Decision) -> Answer:
        request = build_request(
            self._config.teacher,
            messages,
            temperature=TEMPERATURE,
            max_output_tokens=self._config.generate.max_output_tokens,
            sample=work.sample,
            role=role,
            schema=SCHEMAS[schema_of],
        )
        teacher = await self._teacher()
        if (refusal := self._breaker.refuses(time.monotonic())) is not None:
            message = f"Gemini was not asked: {refusal}"
            raise TeacherError(message, reason="breaker", hint="it is tried again by itself")
        error: PotstillError | None = TeacherError("cancelled", reason=CANCELLED)
        limit = self._config.infer.teacher_timeout_s
        try:
            async with asyncio.timeout(limit):
                if work.tell is not None and SCHEMAS[schema_of] is None and isinstance(teacher, Streams):
                    reply = await teacher.stream(request, from_first_word(work.tell))
                else:
                    reply = await teacher.ask(request)
            error = None
        except TimeoutError as late:
            error = TeacherError(f"no answer within {limit:g} s", reason="timeout")
            raise error from late
        except PotstillError as failed:
            error = failed
            raise
        finally:
            self._breaker.report(error, time.monotonic())
        work.spent += Decimal(0) if reply.reused else reply.cost_usd
        return reply


def from_student(answer: StudentAnswer, reason: str, *, keep: bool) -> Outcome:
    """A student's answer as an outcome."""
    return Outcome(answer.text, "student", f"{answer.role}: {reason}", mean_logprob=answer.mean_logprob, keep=keep)


def from_first_word(tell: Callable[[str], None]) -> Callable[[str], None]:
    """Pass text on once there is more than blanks: an answer of nothing else decides nothing, and another one follows."""
    held = ""

    def hear(piece: str) -> None:
        nonlocal held
        held += piece
        if held.strip():
            tell(held)
            held = ""

    return hear
