"""An error-driven second round: the teacher is asked for more prompts like those that a student failed at.

LLM2LLM (arXiv 2403.15042) has the teacher write new data like the examples that the student gets wrong. There these are
training examples; here they are held-out questions, so every new prompt that comes near any held-out one is left out: the
next verdict must not have been trained on.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from potstill.config import Config
from potstill.errors import BudgetError
from potstill.generate.failures import Encode, Failures, clusters, read_failures, shares
from potstill.generate.grow import EXAMPLES, Ask, Growing, Growth, Pool, prompt_id, settled, take, whole, write_rows
from potstill.generate.neighbours import Neighbours
from potstill.generate.refine import Place
from potstill.ledger import Cap
from potstill.prompts import Prompt, PromptFiles, fill, prompt_files
from potstill.teacher.calls import Answer, Asks
from potstill.workspace import Workspace

ASKS_A_ROUND = 10_000
"""More than any round has requests: numbers them apart."""


@dataclass(frozen=True)
class SecondRound:
    """How many prompts grew near how many failures, and why others were left out.

    `ended`: the budget that ended it early, with what there was by then.
    """

    failed: int = 0
    clusters: int = 0
    growth: Growth = field(default_factory=Growth)
    ended: BudgetError | None = None


async def grow_near_failures(place: Place, encode: Encode) -> SecondRound | None:
    """Grow and write the prompts of the round that the config asks for; None where it asks for none.

    The same failures give the same requests in the same order: a rerun is replayed from the ledger. Raises InputError for
    an evaluation that cannot be read, PartialError where a request failed, and what the teacher raises.
    """
    config = place.config
    settings = config.generate.failures
    if settings.file is None:
        return None
    failures = read_failures(settings.file, place.workspace)
    if not failures.failed:
        return SecondRound()
    groups = clusters(failures.failed, encode(failures.failed), settings.clusters)
    cap = None if settings.max_usd is None else Cap("generate.failures.max_usd", settings.max_usd)
    with near_pool(config, failures) as pool:
        async with place.teacher(config, "failures", cap) as teacher:
            ended = await grow_near(config, teacher, groups, pool)
        file = round_file(place.workspace, failures)
        if len(pool.grown):
            write_rows(file, pool.grown)
        write_rows(file.with_suffix(".rejected"), pool.rejected)
        return SecondRound(len(failures.failed), len(groups), pool.growth(), ended)


@contextmanager
def near_pool(config: Config, failures: Failures) -> Iterator[Pool]:
    """The pool of a round: all earlier prompts, to be unlike them, and the held-out questions, which none may come near.

    A rerun grows its own prompts anew: it must not take them for copies nor, where some were held out since, for leaks.
    """
    generate, own = config.generate, str(round_file(Workspace(Path(config.workspace)), failures))
    files = prompt_files(config).files
    mine = {prompt.text for prompt in _prompts([name for name in files if name == own])}
    with (
        closing(Neighbours(generate.grow.near_duplicates)) as alike,
        closing(Neighbours(generate.failures.near_held_out)) as forbidden,
    ):
        for prompt in _prompts([name for name in files if name != own]):
            alike.add(prompt.text)
        for text in failures.held_out:
            if text not in mine:
                forbidden.add(text)
        yield Pool(alike, forbidden)


async def grow_near(config: Config, teacher: Asks, groups: Sequence[Sequence[str]], pool: Pool) -> BudgetError | None:
    """Grow prompts near each group of failed questions, as many as its share; gives the budget that ended it early."""
    growing, generate = Growing.of(config), config.generate
    left = shares([len(group) for group in groups], generate.failures.target)
    for number in range(1, generate.grow.max_rounds + 1):
        asks = _round(growing, number, groups, left)
        found = await settled([ask for _, ask in asks], teacher, config)
        before, ended = len(pool.grown), _budget(found)
        if ended is None:
            whole([ask for _, ask in asks], found)
        for (group, ask), answer in zip(asks, found, strict=True):
            if not isinstance(answer, Answer):
                break
            had = len(pool.grown)
            take(pool, growing, [(ask, answer)], most=had + left[group])
            left[group] -= len(pool.grown) - had
        if ended is not None or not any(left) or len(pool.grown) == before:
            return ended
    return None


def round_file(workspace: Workspace, failures: Failures) -> Path:
    """Where the prompts of a round stand."""
    return workspace.failure_rounds / f"{failures.id.rpartition(':')[2][:16]}.jsonl"


def _round(
    growing: Growing, number: int, groups: Sequence[Sequence[str]], left: Sequence[int]
) -> list[tuple[int, Ask]]:
    """Requests of a round with their groups, each drawn by the seed, the round and its place."""
    grow = growing.config.generate.grow
    asks: list[tuple[int, Ask]] = []
    for group, (members, wanted) in enumerate(zip(groups, left, strict=True)):
        for _ in range(math.ceil(wanted / grow.per_request)):
            place = number * ASKS_A_ROUND + len(asks)
            draw = random.Random(f"{grow.seed}:failures:{place}")  # noqa: S311  (reproducible, nothing secret)
            shown = draw.sample(list(members), min(EXAMPLES, len(members)))
            values = {
                "count": str(min(grow.per_request, wanted)),
                "examples": "\n".join(f"- {' '.join(text.split())}" for text in shown),
            }
            request = growing.request(fill(growing.templates["failures"], values, origin="template failures"), place)
            asks.append((group, Ask(request, "failures", tuple(map(prompt_id, shown)), number)))
    return asks


def _prompts(files: Sequence[str]) -> Iterator[Prompt]:
    return iter(PromptFiles(files, may_be_none=True))


def _budget(found: Sequence[Answer | BaseException]) -> BudgetError | None:
    """The budget that ended a round, where nothing else went wrong."""
    errors = [each for each in found if isinstance(each, BaseException)]
    first = next((each for each in errors if isinstance(each, BudgetError)), None)
    return first if all(isinstance(each, BudgetError) for each in errors) else None
