"""The hybrid router: exact hit, semantic hit, students, Gemini; then stored. The thin shell around `decide`."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from weakref import WeakValueDictionary

from potstill.config import Config, Secrets
from potstill.errors import BudgetError, PotstillError, QuotaError, TeacherError, UsageError
from potstill.infer.cache import AnswerCache, open_cache
from potstill.infer.decide import (
    SCHEMAS,
    AskTeacher,
    Decision,
    Hit,
    Policy,
    TakeStudent,
    after_students,
    candidate_lines,
    judge_neighbours,
    ranking,
    read_reply,
    shown,
)
from potstill.infer.gate import cacheability
from potstill.infer.key import exact_key
from potstill.infer.panel import Panel
from potstill.infer.settings import TEMPERATURE, Settings, make_settings
from potstill.infer.store import Entry, Fresh
from potstill.infer.work import Outcome, Route, RouterAnswer, Work
from potstill.pricing.tokens import estimate_tokens
from potstill.prompts import fill
from potstill.records import Message, Trace, Usage, Usd
from potstill.student.answers import Student, StudentAnswer
from potstill.teacher.calls import Answer, Asks, build_request
from potstill.teacher.opening import open_teacher
from potstill.workspace import Workspace

WHOLE = "STOP"
"""The finish reason of an answer that was not cut off or blocked."""


class Router:
    """Answers questions at the lowest cost that its config allows. Make one with `open_router`."""

    def __init__(
        self,
        settings: Settings,
        cache: AnswerCache,
        panel: Panel | None,
        teacher: Callable[[], Awaitable[Asks]],
        traces: Path,
    ) -> None:
        """`teacher` opens the teacher when it is first needed: a hit needs neither key nor network."""
        self._settings = settings
        self._cache = cache
        self._panel = panel
        self._teacher = teacher
        self._traces = traces
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._encoding = asyncio.Lock()

    @property
    def policy(self) -> Policy:
        """When this router asks Gemini, and why."""
        return self._settings.policy

    async def answer(
        self, question: str, *, namespace: str | None = None, history: Sequence[Message] = ()
    ) -> RouterAnswer:
        """Answer one question. With `history` (earlier turns) the cache is neither read nor written.

        Equal questions that are asked at the same time wait for one another, so that one of them pays. Raises
        UsageError for an empty question, TeacherError when Gemini failed for it and no student had an answer;
        BudgetError, QuotaError or KeyRefusedError when no further question can go to Gemini.
        """
        if not question.strip():
            message = "the question is empty"
            raise UsageError(message)
        work = self._begin(question, namespace or self._settings.config.cache.namespace, tuple(history))
        if not work.cacheable:
            outcome = await self._ask(work)
        else:
            turn = self._turns.setdefault(work.key, asyncio.Lock())
            async with turn:
                outcome = self._exact(work) or await self._near(work) or await self._ask(work)
                outcome = self._store(work, outcome)
        answer = RouterAnswer(text=outcome.text, trace=self._trace(work, outcome))
        _append(self._traces / f"{work.at:%Y-%m-%d}.jsonl", answer.trace.to_line())
        return answer

    def _begin(self, question: str, namespace: str, history: tuple[Message, ...]) -> Work:
        scope = self._settings.scope.model_copy(update={"namespace": namespace}).id
        gate = cacheability(question, has_history=bool(history))
        work = Work(
            question=question.strip(),
            namespace=namespace,
            history=history,
            began=time.monotonic(),
            at=datetime.now(UTC),
            scope=scope,
            key=exact_key(scope, question),
            cacheable=gate.cacheable,
        )
        if not gate.cacheable:
            work.notes.append(f"not cacheable ({gate.reason})")
        return work

    def _exact(self, work: Work) -> Outcome | None:
        entry = self._cache.store.exact(work.key, work.scope, work.at.timestamp())
        return self._served(work, entry, "exact", "asked before", None) if entry else None

    async def _near(self, work: Work) -> Outcome | None:
        async with self._encoding:
            read = await asyncio.to_thread(self._cache.encode, work.question)
        work.read = self._cache.near(read, work.scope, work.at.timestamp())
        if work.read.skipped is not None:
            work.notes.append(f"semantic cache skipped: {work.read.skipped}")
            return None
        pairs = [(neighbour.entry.question, neighbour.cosine) for neighbour in work.read.neighbours]
        found = judge_neighbours(work.question, pairs, self._settings.config.cache.threshold)
        if not isinstance(found, Hit):
            work.notes.append(found.reason)
            return None
        neighbour = work.read.neighbours[found.place]
        return self._served(work, neighbour.entry, "semantic", found.reason, neighbour.cosine)

    def _served(self, work: Work, entry: Entry, route: Route, reason: str, cosine: float | None) -> Outcome:
        self._cache.store.served(entry, work.at.timestamp())
        return Outcome(entry.answer, route, reason, model=entry.model, cosine=cosine, entry=entry)

    async def _ask(self, work: Work) -> Outcome:
        """Students, then Gemini as the policy says."""
        if self._settings.policy.mode == "always":
            await self._teacher()  # a missing key is told before a student has worked for nothing
        answers = await self._students(work)
        step = after_students(self._settings.policy, answers)
        if isinstance(step, TakeStudent):
            whole = step.answer.finish_reason == "stop"
            return _from_student(step.answer, step.reason, keep=whole)
        if self._settings.policy.mode == "never":
            message = "infer.decide is never, and no student answered"
            raise UsageError(message, hint="distill a student, or let Gemini answer: --decide always")
        work.notes.append(step.reason)
        try:
            return await self._decide(work, step)
        except (TeacherError, BudgetError, QuotaError) as error:
            if not step.candidates:
                raise
            reason = f"unverified: Gemini did not answer ({error.message})"
            return _from_student(ranking(answers)[0], reason, keep=False)

    async def _students(self, work: Work) -> list[StudentAnswer]:
        if self._panel is None:
            return []
        try:
            answers = await self._panel.ask((*work.history, Message(role="user", content=work.question)))
        except PotstillError as error:
            if self._settings.policy.mode == "never":
                raise
            work.notes.append(f"student failed: {error.message}")
            return []
        work.roles = tuple(answer.role for answer in answers)
        return answers

    async def _decide(self, work: Work, step: AskTeacher) -> Outcome:
        """Gemini merges, selects or verifies; where that decides nothing, it answers alone."""
        if step.candidates:
            decision = self._settings.config.infer.decision
            candidates = shown(decision, step.candidates)
            values = {"question": work.question, "candidates": candidate_lines(candidates)}
            prompt = fill(self._settings.templates[decision], values, origin=f"template {decision}")
            messages = (*work.history, Message(role="user", content=prompt))
            reply = await self._call(work, messages, role=None, schema_of=decision)
            chosen = read_reply(decision, reply.text, candidates)
            if chosen.text is not None:
                best = step.candidates[0].mean_logprob
                keep = reply.finish_reason == WHOLE
                return Outcome(chosen.text, "merged", chosen.reason, reply.model, mean_logprob=best, keep=keep)
            work.notes.append(chosen.reason)
        return await self._alone(work)

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
        config = self._settings.config
        request = build_request(
            config.teacher,
            messages,
            temperature=TEMPERATURE,
            max_output_tokens=config.generate.max_output_tokens,
            sample=self._sample(work),
            role=role,
            schema=SCHEMAS[schema_of],
        )
        reply = await (await self._teacher()).ask(request)
        work.spent += Decimal(0) if reply.reused else reply.cost_usd
        return reply

    def _sample(self, work: Work) -> int:
        """Which answer of Gemini is wanted: the ledger gives an equal request its old answer for nothing.

        That is right after a crash, and wrong once the old answer was forgotten, has expired, or may never be reused.
        """
        return self._cache.store.rounds(work.key) if work.cacheable else int(work.at.timestamp() * 1_000_000)

    def _store(self, work: Work, outcome: Outcome) -> Outcome:
        if not outcome.keep:
            return outcome
        fresh = Fresh(
            id=work.key,
            scope=work.scope,
            namespace=work.namespace,
            question=work.question,
            answer=outcome.text,
            route=outcome.route,
            model=outcome.model,
        )
        return replace(outcome, entry=self._cache.put(fresh, work.at.timestamp(), work.read.vectors))

    def _trace(self, work: Work, outcome: Outcome) -> Trace:
        baseline = outcome.alone_usd
        return Trace(
            id=uuid.uuid4().hex,
            at=work.at,
            query=work.question,
            namespace=work.namespace,
            route=outcome.route,
            reason="; ".join([*work.notes, outcome.reason]),
            cosine=outcome.cosine,
            mean_logprob=outcome.mean_logprob,
            roles=work.roles,
            model=outcome.model,
            entry_id=outcome.entry.id if outcome.entry else None,
            cost_usd=work.spent,
            baseline_usd=self._estimate_alone(work, outcome.text) if baseline is None else baseline,
            latency_s=time.monotonic() - work.began,
        )

    def _estimate_alone(self, work: Work, answer: str) -> Usd:
        """What Gemini alone would have cost for this answer, by estimated tokens at today's price."""
        asked = "\n".join([self._settings.role.system, *(turn.content for turn in work.history), work.question])
        usage = Usage(input_tokens=estimate_tokens(asked), output_tokens=estimate_tokens(answer))
        teacher = self._settings.config.teacher
        return self._settings.book.cost(usage, teacher.model, teacher.service, work.at.date()).usd


@asynccontextmanager
async def open_router(
    config: Config, secrets: Secrets, workspace: Workspace, student: Student | None
) -> AsyncIterator[Router]:
    """The router of a config. Neither the encoder, the student nor the teacher is opened before it is needed.

    Raises UsageError, InputError or UnknownModelError where config, roles or prices are wrong.
    """
    settings = make_settings(config, workspace, student)
    workspace.create()
    panel = None if student is None else Panel(student, settings.asked, config.infer.max_new_tokens)
    async with AsyncExitStack() as stack:
        cache = open_cache(config.cache, workspace)
        stack.callback(cache.close)
        cache.store.drop_expired(time.time())
        opening = asyncio.Lock()
        opened: list[Asks] = []

        async def teacher() -> Asks:
            async with opening:
                if not opened:
                    paid = open_teacher(config, secrets, workspace, command="infer")
                    opened.append(await stack.enter_async_context(paid))
                return opened[0]

        yield Router(settings, cache, panel, teacher, workspace.traces)


def _from_student(answer: StudentAnswer, reason: str, *, keep: bool) -> Outcome:
    return Outcome(answer.text, "student", f"{answer.role}: {reason}", mean_logprob=answer.mean_logprob, keep=keep)


def _append(path: Path, line: str) -> None:
    """Add a line in one write, so that lines of several processes do not mix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        file.write(line.encode("utf-8"))
