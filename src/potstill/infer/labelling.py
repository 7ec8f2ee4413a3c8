"""Labelled pairs from a cache's own questions: near ones are found, and Gemini says whether one answer serves both."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from potstill.infer.cache import NEIGHBOURS, AnswerCache, Neighbourhood
from potstill.infer.store import Entry, Judged

NEAR = 0.6
"""Pairs less alike than this are never served, so their labels teach nothing."""


@dataclass(frozen=True)
class Unlabelled:
    """A question, and a cached entry near it."""

    question: str
    entry: Entry


def near_pairs(cache: AnswerCache, most: int, now: float) -> list[Unlabelled]:
    """Near pairs of cached questions in one scope that have no verdict yet, the newest questions first. Blocking."""
    known = {frozenset((item.question, item.cached)) for item in cache.store.judged()}
    encoder = cache.encoder()
    found: list[Unlabelled] = []
    for entry in reversed(list(cache.store.entries())):
        vector = cache.store.vectors_of(entry.number).get(encoder.id)
        if vector is None:
            continue
        read = Neighbourhood(encoder=encoder.id, vectors={encoder.id: vector})
        for near in cache.near(read, entry.scope, now, NEIGHBOURS + 1).neighbours:
            pair = frozenset((entry.question, near.entry.question))
            if near.cosine >= NEAR and entry.number != near.entry.number and pair not in known:
                known.add(pair)
                found.append(Unlabelled(entry.question, near.entry))
        if len(found) >= most:
            break
    return found[:most]


async def label(
    pairs: Sequence[Unlabelled], fits: Callable[[str, str], Awaitable[bool | None]], concurrency: int
) -> list[Judged]:
    """Ask of each pair whether the cached answer fits the other question, at most `concurrency` at a time.

    `fits` gives None where it could not be asked; such a pair stays without a verdict.
    """
    waiting = iter(pairs)
    judged: list[Judged] = []

    async def work() -> None:
        for pair in waiting:
            verdict = await fits(pair.question, pair.entry.answer)
            if verdict is not None:
                judged.append(Judged("label", pair.entry.namespace, pair.question, pair.entry.question, verdict))

    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, len(pairs))):
            group.create_task(work())
    return judged
