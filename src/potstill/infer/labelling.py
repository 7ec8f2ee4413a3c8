"""Labelled pairs from a cache's own questions: near ones are found, and Gemini says whether one answer serves both."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from potstill.infer.cache import NEIGHBOURS, AnswerCache, Neighbourhood
from potstill.infer.store import Entry, Judged
from potstill.records import Usd

NEAR = 0.6
"""Pairs less alike than this are never served, so their labels teach nothing."""


class Labelled(NamedTuple):
    """The verdicts, how many pairs were wanted, what they cost, and why some got none."""

    judged: list[Judged]
    pairs: int
    cost_usd: Usd
    problem: str | None


@dataclass(frozen=True)
class Unlabelled:
    """A question, and a cached entry near it."""

    question: str
    entry: Entry


def near_pairs(cache: AnswerCache, most: int, now: float) -> list[Unlabelled]:
    """Near pairs of cached questions in one scope that have no verdict yet, the newest questions first. Blocking.

    Before others come pairs that have no question in common: each is evidence of its own. What is remembered meanwhile
    grows with `most` and with the verdicts, not with the cache.
    """
    judged = cache.store.judged()
    known = {frozenset((item.question, item.cached)) for item in judged}
    used = {text for pair in known for text in pair}
    apart: list[Unlabelled] = []
    linked: list[Unlabelled] = []
    for question, near in _near(cache, now):
        pair = frozenset((question, near.question))
        if pair in known:
            continue
        if pair & used:
            if len(linked) < most:  # later ones could only be left out
                known.add(pair)
                linked.append(Unlabelled(question, near))
            continue
        known.add(pair)
        used |= pair
        apart.append(Unlabelled(question, near))
        if len(apart) >= most:
            break
    return [*apart, *linked][:most]


def _near(cache: AnswerCache, now: float) -> Iterator[tuple[str, Entry]]:
    """Each cached question with the entries near it."""
    encoder = cache.encoder()
    for entry in cache.store.entries(newest_first=True):
        vector = cache.store.vectors_of(entry.number).get(encoder.id)
        if vector is None:
            continue
        read = Neighbourhood(encoder=encoder.id, vectors={encoder.id: vector})
        for near in cache.near(read, entry.scope, now, NEIGHBOURS + 1).neighbours:
            if near.cosine >= NEAR and entry.number != near.entry.number:
                yield entry.question, near.entry


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
