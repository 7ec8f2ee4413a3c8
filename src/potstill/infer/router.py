"""The hybrid router: exact hit, semantic hit, students, Gemini; then stored, and written down."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from weakref import WeakValueDictionary

from potstill.config import Config, Secrets
from potstill.errors import PotstillError, UsageError
from potstill.files import check_text
from potstill.infer.asking import Asking
from potstill.infer.cache import AnswerCache, open_cache
from potstill.infer.decide import Nearness, Policy
from potstill.infer.gate import cacheability
from potstill.infer.key import exact_key, first_sample
from potstill.infer.labelling import Labelled, label
from potstill.infer.nearness import Taught
from potstill.infer.panel import Panel
from potstill.infer.private import HIDDEN, hashed, secret_in
from potstill.infer.semantic import CacheLayers
from potstill.infer.settings import Settings, make_settings
from potstill.infer.watching import Watch
from potstill.infer.work import Outcome, RouterAnswer, Work
from potstill.pricing.tokens import estimate_tokens
from potstill.records import Message, Trace, Usage, Usd
from potstill.student.answers import Remote, Student
from potstill.teacher.calls import Asks
from potstill.workspace import Workspace


class Router:
    """Answers questions at the lowest cost that its config allows. Make one with `open_router`."""

    def __init__(
        self,
        settings: Settings,
        cache: AnswerCache,
        panel: Panel | None,
        teacher: Callable[[], Awaitable[Asks]],
        traces: Path,
        watch: Watch | None = None,
    ) -> None:
        """`teacher` opens the teacher when it is first needed: a hit needs neither key nor network.

        `watch` tells when the settings have changed on disk; None: they do not.
        """
        self._settings = settings
        self._watch = watch
        self._layers = CacheLayers(cache, settings.config.cache, settings.calibration, self._fits)
        self._asking = Asking(settings, panel, teacher, self._nearness(settings))
        self._traces = traces
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @property
    def policy(self) -> Policy:
        """When this router asks Gemini, and why."""
        return self._settings.policy

    async def answer(
        self,
        question: str,
        *,
        namespace: str | None = None,
        history: Sequence[Message] = (),
        read_cache: bool = True,
        store: bool = True,
        tell: Callable[[str], None] | None = None,
    ) -> RouterAnswer:
        """Answer one question. With `history` (earlier turns) the cache is neither read nor written.

        `read_cache` False asks anew, `store` False keeps nothing. Equal questions that are asked at the same time, also
        by other processes, wait for one another, so that one of them pays. `tell` takes the text of an answer that
        Gemini is writing while it arrives; what comes from cache or student is known as a whole only. A cancelled
        question sends nothing more. Raises UsageError for an empty question and for one that is no text, TeacherError when Gemini failed for it and
        no student had an answer; BudgetError, QuotaError or KeyRefusedError when no further question can go to Gemini.
        """
        if not question.strip():
            message = "the question is empty"
            raise UsageError(message)
        check_text(question, "the question")
        problem = self._follow()
        work = self._begin(question, namespace or self._settings.config.cache.namespace, tuple(history))
        work.tell = tell
        if problem is not None:
            work.notes.append(problem)
        if not work.cacheable:
            work.sample = _never_reused(work)
            outcome = await self._asking.ask(work)
        else:
            turn = self._turns.setdefault(work.key, asyncio.Lock())
            async with turn:
                outcome = await self._through_cache(work, read=read_cache, store=store)
        trace = self._trace(work, outcome)
        try:
            _append(self._traces / f"{work.at:%Y-%m-%d}.jsonl", trace.to_line())
        except OSError as error:  # the answer is there, and may have been paid for
            trace = trace.model_copy(update={"reason": f"{trace.reason}; trace not written: {error.strerror}"})
        return RouterAnswer(text=outcome.text, trace=trace)

    async def label(self, most: int) -> Labelled:
        """Have Gemini judge up to `most` near pairs of cached questions, and keep the verdicts.

        A pair that Gemini cannot be asked about (outage, budget, quota) is left out. Raises KeyRefusedError without a key.
        """
        await self._asking.ready()
        pairs = self._layers.unlabelled(most)
        spent: list[Usd] = []
        problems: list[str] = []

        async def fits(question: str, answer: str) -> bool | None:
            work = self._begin(question, self._settings.config.cache.namespace, ())
            verdict = await self._asking.fits(work, answer)
            spent.append(work.spent)
            if verdict is None:
                problems.extend([*work.notes[-1:], "an unreadable verdict"][:1])
            return verdict

        judged = await label(pairs, fits, self._settings.config.teacher.max_concurrency)
        self._layers.keep_verdicts(judged)
        return Labelled(judged, len(pairs), sum(spent, Decimal(0)), problems[0] if problems else None)

    def _nearness(self, settings: Settings) -> Callable[[Work], Awaitable[Nearness]] | None:
        familiar = settings.policy.familiar
        limit = settings.config.infer.student_timeout_s
        read = partial(self._layers.read, within_s=limit)
        return Taught(familiar, settings.questions, read).nearness if familiar else None

    def _follow(self) -> str | None:
        """Take over what has changed on disk; gives what is wrong with it, where something is."""
        try:
            fresh = self._watch.look(self._settings) if self._watch else None
        except PotstillError as error:
            return f"not taken over: {error.message}"
        if fresh is not None:
            self._settings = fresh
            self._layers.follow(fresh.calibration)
            self._asking.follow(fresh, self._nearness(fresh))
        return None

    async def _fits(self, work: Work, answer: str) -> bool | None:
        return await self._asking.fits(work, answer)

    def _begin(self, question: str, namespace: str, history: tuple[Message, ...]) -> Work:
        scope = self._settings.scope.model_copy(update={"namespace": namespace})
        gate = cacheability(question, has_history=bool(history))
        work = Work(
            question=question.strip(),
            namespace=namespace,
            history=history,
            began=time.monotonic(),
            at=datetime.now(UTC),
            scope=scope.id,
            key=exact_key(scope.id, question),
            cacheable=gate.cacheable,
            sample=first_sample(namespace),
        )
        if not gate.cacheable:
            work.notes.append(f"not cacheable ({gate.reason})")
        elif (secret := secret_in(question)) is not None:
            work.cacheable = False
            work.notes.append(f"not cacheable (it holds something like {secret})")
        return work

    async def _through_cache(self, work: Work, *, read: bool, store: bool) -> Outcome:
        hit = (self._layers.exact(work) or await self._layers.near(work)) if read else None
        if hit is not None:
            return hit
        work.sample = work.sample + self._layers.rounds(work) if read else _never_reused(work)
        if not (read and store):  # its answer is for itself alone
            return await self._asked(work, store=store)
        async with self._layers.alone(work) as found:
            return found or await self._asked(work, store=store)

    async def _asked(self, work: Work, *, store: bool) -> Outcome:
        outcome = await self._asking.ask(work)
        if store:
            scope = self._settings.scope.model_copy(update={"namespace": work.namespace})
            outcome = self._layers.store(work, outcome, scope)
        await self._layers.settle(work, outcome)
        return outcome

    def _trace(self, work: Work, outcome: Outcome) -> Trace:
        baseline = outcome.alone_usd
        return Trace(
            id=uuid.uuid4().hex,
            at=work.at,
            query=self._kept(work.question),
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
            score=work.score,
            nearest_cosine=work.near.cosine if work.near else None,
            nearest_agreement=work.nearest_agreement,
            student_agreement=work.student_agreement,
            escalated=work.escalated,
            taught_cosine=work.taught_cosine,
        )

    def _kept(self, question: str) -> str:
        """The question as a trace may hold it."""
        if secret_in(question) is not None:
            return HIDDEN
        return hashed(question) if self._settings.config.cache.hash_questions else question

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

    Raises UsageError, InputError or UnknownModelError where config, roles, calibration or prices are wrong.
    """
    watch = Watch(config, workspace, student)
    settings = make_settings(config, workspace, student)
    workspace.create()
    panel = None if student is None else Panel(student, settings.asked, config.infer.max_new_tokens)
    async with AsyncExitStack() as stack:
        if isinstance(student, Remote):
            stack.push_async_callback(student.close)
        cache = open_cache(config.cache, workspace, secrets.qdrant_key)
        stack.callback(cache.close)
        cache.store.drop_expired(time.time())
        opening = asyncio.Lock()
        opened: list[Asks] = []

        async def teacher() -> Asks:
            from potstill.teacher.opening import open_teacher  # a hit does not wait for ledger and SDK to be loaded

            async with opening:
                if not opened:
                    paid = open_teacher(config, secrets, workspace, command="infer")
                    opened.append(await stack.enter_async_context(paid))
                return opened[0]

        yield Router(settings, cache, panel, teacher, workspace.traces, watch)


def _never_reused(work: Work) -> int:
    """The sample number of an answer that must be new: the ledger would give an equal request its old one."""
    return int(work.at.timestamp() * 1_000_000)


def _append(path: Path, line: str) -> None:
    """Add a line in one write, so that lines of several processes do not mix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        file.write(line.encode("utf-8"))
