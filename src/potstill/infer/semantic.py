"""The cache as the router uses it: lookups that never stop a question, audits of hits, and what is written back."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from typing import Any, TypeVar

from potstill.config import CacheConfig
from potstill.errors import MachineError, PotstillError
from potstill.infer.agreement import agreement, drawn
from potstill.infer.cache import AnswerCache, Neighbour, Neighbourhood
from potstill.infer.calibration import Calibration
from potstill.infer.claims import LOOK_S, RENEW_S
from potstill.infer.cross import CrossScorer
from potstill.infer.encoder import Lazy
from potstill.infer.key import Scope
from potstill.infer.labelling import Unlabelled, near_pairs
from potstill.infer.private import hashed
from potstill.infer.rule import Candidate, Hit, Off, Rule, judge_neighbours, semantic_rule
from potstill.infer.store import Entry, Fresh, Judged
from potstill.infer.work import Outcome, Work

T = TypeVar("T")

RULE_S = 60.0
"""Seconds for which the rule in force is not looked at anew."""
Fits = Callable[[Work, str], Awaitable[bool | None]]
"""Whether a cached answer fits a question, by the teacher's word; None where it could not be asked."""


class CacheLayers:
    """Exact and semantic layer over one cache. What breaks in them is noted on the question, which goes on without."""

    def __init__(self, cache: AnswerCache, config: CacheConfig, calibration: Calibration | None, fits: Fits) -> None:
        self._cache = cache
        self._config = config
        self._calibration = calibration
        self._fits = fits
        self._encoding = asyncio.Lock()
        self._cross = Lazy(lambda: CrossScorer(config.cross_encoder or ""))
        self._readings: set[asyncio.Task[Any]] = set()
        self._rules: dict[str, tuple[Rule | Off, float]] = {}

    def follow(self, calibration: Calibration | None) -> None:
        """Serve by this calibration from now on."""
        self._calibration = calibration
        self._rules.clear()

    def exact(self, work: Work) -> Outcome | None:
        """The answer to the same question."""
        if self._cache.broken is not None:
            work.notes.append(f"cache passed by: {self._cache.broken}")
        with _passing_by(work):
            entry = self._cache.store.exact(work.key, work.scope, work.at.timestamp())
            return self._served(work, entry, Outcome(entry.answer, "exact", "asked before")) if entry else None
        return None

    async def near(self, work: Work) -> Outcome | None:
        """The answer to a near question, where the rule allows it."""
        if self._config.hash_questions:
            work.notes.append("semantic cache off: questions are kept as hashes")
            return None
        read = await self._read(work, work.question, self._config.deadline_s)
        if read is None or read.encoder is None:
            return None
        with _passing_by(work):
            work.read = read  # kept where the index fails: the answer is stored with its vector all the same
            work.read = self._cache.near(read, work.scope, work.at.timestamp())
            if work.read.skipped is not None:
                work.notes.append(f"semantic cache passed by: {work.read.skipped}")
                return None
            return await self._judged(work, self._rule(read.encoder))
        return None

    @asynccontextmanager
    async def alone(self, work: Work) -> AsyncIterator[Outcome | None]:
        """Hold a question, so that no other process asks it meanwhile; or give the answer of the one that was asking it."""
        found = await self._turn(work)
        renewing = asyncio.create_task(self._renew(work)) if found is None else None
        try:
            yield found
        finally:
            if renewing is not None:
                renewing.cancel()
                with suppress(PotstillError, sqlite3.Error):  # the lease ends by itself
                    self._cache.store.claims.release(work.key)

    async def _turn(self, work: Work) -> Outcome | None:
        """Wait until the question is ours, or was answered elsewhere; a store that breaks lets it go on."""
        with _passing_by(work):
            store = self._cache.store
            while True:
                mine = store.claims.take(work.key, time.time())
                # after the claim: it may have been stored just now
                entry = store.exact(work.key, work.scope, time.time())
                if entry is not None:
                    if mine:
                        store.claims.release(work.key)
                    return self._served(work, entry, Outcome(entry.answer, "exact", "another process was asking it"))
                if mine:
                    return None
                await asyncio.sleep(LOOK_S)
        return None

    async def _renew(self, work: Work) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            with suppress(PotstillError, sqlite3.Error):
                self._cache.store.claims.renew(work.key, time.time())

    def store(self, work: Work, outcome: Outcome, scope: Scope) -> Outcome:
        """Keep an answer that may be served again."""
        if not outcome.keep:
            return outcome
        hide = self._config.hash_questions
        fresh = Fresh(
            id=work.key,
            scope=work.scope,
            namespace=work.namespace,
            question=hashed(work.question) if hide else work.question,
            answer=outcome.text,
            route=outcome.route,
            model=outcome.model,
        )
        with _passing_by(work):
            self._cache.store.name_scope(work.scope, scope.model_dump_json())
            vectors = {} if hide else work.read.vectors
            return replace(outcome, entry=self._cache.put(fresh, work.at.timestamp(), vectors))
        return outcome

    async def settle(self, work: Work, outcome: Outcome) -> None:
        """Compare what the cache would have served with what Gemini said; in shadow mode also ask whether it fits."""
        if work.near is None or outcome.route not in ("teacher", "merged"):
            return
        work.nearest_agreement = agreement(work.near.entry.answer, outcome.text)
        if work.shadowed:
            fits = await self._fits(work, work.near.entry.answer)
            self._note(work, work.near, fits, "shadow")

    def rounds(self, work: Work) -> int:
        """How often an answer to this question was dropped; 0 where the store cannot say."""
        try:
            return self._cache.store.rounds(work.key, work.at.timestamp())
        except (PotstillError, sqlite3.Error):
            return 0

    def unlabelled(self, most: int) -> list[Unlabelled]:
        """Near pairs of cached questions without a verdict. Blocking; no question may be under way."""
        return near_pairs(self._cache, most, time.time())

    def keep_verdicts(self, judged: Sequence[Judged]) -> None:
        """Write verdicts down, for the next calibration."""
        for item in judged:
            self._cache.store.note_judged(item, time.time())

    async def read(self, work: Work, within_s: float) -> Neighbourhood | None:
        """The vector of all that a chat has asked; a reading that the cache did not wait for is waited for here.

        None where the encoder failed, or took longer than `within_s`.
        """
        if work.read.encoder is not None:
            return work.read
        if work.reading is not None and work.reading.done() and work.reading.exception() is not None:
            return None  # it has just been told
        asked = [turn.content for turn in work.history if turn.role == "user"]
        found = await self._read(work, "\n".join([*asked, work.question]), within_s)
        if found is not None and not work.history:
            work.read = found
        return found

    async def _read(self, work: Work, text: str, within_s: float) -> Neighbourhood | None:
        """A text's vector; None after the deadline, or where the encoder cannot be had."""
        if work.reading is None:
            work.reading = asyncio.create_task(self._encoded(text))
        return await self._in_time(work, work.reading, "vector", within_s)

    async def _in_time(self, work: Work, task: asyncio.Task[T], what: str, within_s: float) -> T | None:
        """What a model says; None after the deadline, or where it fails."""
        self._readings.add(task)
        task.add_done_callback(self._readings.discard)
        done, _ = await asyncio.wait([task], timeout=within_s)
        if not done:
            task.add_done_callback(_forgotten)
            work.notes.append(f"semantic cache passed by: no {what} within {within_s:g} s")
            return None
        with _passing_by(work):
            return task.result()
        return None

    async def _encoded(self, question: str) -> Neighbourhood:
        async with self._encoding:
            return await asyncio.to_thread(self._cache.encode, question)

    async def _judged(self, work: Work, rule: Rule | Off) -> Outcome | None:
        neighbours = work.read.neighbours
        if isinstance(rule, Off):
            work.notes.append(f"semantic cache off: {rule.reason}")
            return None
        candidates = [Candidate(item.entry.question, item.cosine, item.entry.floor) for item in neighbours]
        if rule.cross_encoder is not None and candidates:
            candidates = await self._crossed(work, candidates, rule.cross_encoder)
        found = judge_neighbours(work.question, candidates, rule)
        work.score = found.score
        work.near = None if found.place is None else neighbours[found.place]
        if not isinstance(found, Hit) or work.near is None:
            work.notes.append(found.reason)
            return None
        if self._config.shadow:
            work.shadowed = True
            work.notes.append(f"shadow: would have served {work.near.entry.id}, {found.reason}")
            return None
        if drawn(self._config.audit_share, work.key, work.near.entry.id) and not await self._audit(work, work.near):
            return None
        entry = work.near.entry
        return self._served(work, entry, Outcome(entry.answer, "semantic", found.reason, cosine=work.near.cosine))

    async def _crossed(self, work: Work, candidates: Sequence[Candidate], calibrated: str) -> list[Candidate]:
        """The candidates with the cross-encoder's scores; none of them where it fails or is too slow."""

        def score() -> list[float]:
            scorer = self._cross.get()
            if scorer.id != calibrated:
                message = f"cache.cross_encoder is {scorer.id}, calibrated was {calibrated}"
                raise MachineError(message)
            return scorer.score([(work.question, found.question) for found in candidates])

        async def scored() -> list[float]:
            async with self._encoding:
                return await asyncio.to_thread(score)

        limit = self._config.deadline_s
        found = await self._in_time(work, asyncio.create_task(scored()), "word of the cross-encoder", limit) or []
        return [replace(one, crossed=value) for one, value in zip(candidates, found, strict=False)]

    async def _audit(self, work: Work, near: Neighbour) -> bool:
        fits = await self._fits(work, near.entry.answer)
        self._note(work, near, fits, "audit")
        if fits is False and work.score is not None:
            self._cache.store.raise_floor(near.entry.id, work.score)
        if fits is not None:
            work.notes.append(f"audited: the cached answer {'fits' if fits else 'does not fit'}")
        return fits is not False

    def _note(self, work: Work, near: Neighbour, fits: bool | None, source: str) -> None:
        if fits is None:
            return
        with _passing_by(work):
            judged = Judged(source, work.namespace, work.question, near.entry.question, fits)
            self._cache.store.note_judged(judged, work.at.timestamp())
            self._rules.clear()

    def _served(self, work: Work, entry: Entry, outcome: Outcome) -> Outcome:
        with _passing_by(work):
            self._cache.store.served(entry, work.at.timestamp())
        return replace(outcome, model=entry.model, entry=entry)

    def _rule(self, encoder: str) -> Rule | Off:
        """The rule in force; looked at anew every so often, because the cache grows and other processes audit too."""
        now = time.monotonic()
        known = self._rules.get(encoder)
        if known is None or now > known[1]:
            store = self._cache.store
            since = self._calibration.created_at.timestamp() if self._calibration else time.time()
            found = semantic_rule(self._config, self._calibration, encoder, store.judged(since), store.count())
            known = self._rules[encoder] = (found, now + RULE_S)
        return known[0]


def _forgotten(task: asyncio.Task[Any]) -> None:
    """Look at the error of a reading that nobody waits for any more, so that asyncio does not complain of it."""
    if not task.cancelled():
        task.exception()


@contextmanager
def _passing_by(work: Work) -> Iterator[None]:
    """Note what the cache failed at, and go on."""
    try:
        yield
    except PotstillError as error:
        work.notes.append(f"cache passed by: {error.message}")
    except sqlite3.Error as error:
        work.notes.append(f"cache passed by: {error}")
