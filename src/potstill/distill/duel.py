"""Paired judging by the teacher with swapped positions, and the teacher's agreement with itself, within a budget."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from potstill.config import Config, Secrets
from potstill.distill.asking import Judged
from potstill.distill.metrics import agreement
from potstill.distill.stats import ceiling, score_interval
from potstill.errors import BudgetError, QuotaError, TeacherError
from potstill.files import parse_json
from potstill.ledger import Cap
from potstill.prompts import fill, load_template
from potstill.records import Ceiling, Duel, Message
from potstill.teacher.calls import Answer, Asks, TeacherRequest, build_request
from potstill.teacher.opening import open_teacher
from potstill.workspace import Workspace

VERDICT_TOKENS = 64
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"better": {"type": "integer", "minimum": 0, "maximum": 2}},
    "required": ["better"],
}
"""0: neither is better; 1 or 2: that candidate is."""


@dataclass(frozen=True)
class Consulted:
    """What the teacher said: the answers with its word on each, the tally, and its agreement with itself.

    `keys` are the requests that were asked, `stopped` the limit that ended it early.
    """

    judged: list[Judged]
    duel: Duel | None
    ceiling: Ceiling | None
    keys: frozenset[str]
    stopped: str = ""


async def judge_by_teacher(
    config: Config, secrets: Secrets, workspace: Workspace, student: str, judged: Sequence[Judged]
) -> Consulted:
    """Open the paid teacher and consult it for at most `distill.judge.max_usd`; raises KeyRefusedError without a key.

    The ledger holds that limit before each attempt, over restarts and processes: `student` is the name that all attempts
    for this very student stand under.
    """
    cap = Cap("distill.judge.max_usd", config.distill.judge.max_usd or Decimal(0))
    async with open_teacher(config, secrets, workspace, command=f"distill {student}", cap=cap) as teacher:
        found = await consult(teacher, config, judged)
        spent = sum(map(teacher.ledger.committed, found.keys), Decimal(0))
    return replace(found, duel=found.duel and found.duel.model_copy(update={"cost_usd": spent}))


async def consult(teacher: Asks, config: Config, judged: Sequence[Judged]) -> Consulted:
    """Let the teacher choose between its stored answer and the student's, then answer some questions once more.

    Each pair is shown twice, the second time swapped; a choice that follows the position counts as a tie (position
    bias: arXiv 2306.05685). Equal answers are a tie and cost nothing.
    """
    settings = config.distill.judge
    pairs = [(item, _swapped(config, item)) for item in _spread(judged, settings.samples)]
    again = [(item, _once_more(config, item)) for item in _spread(judged, settings.resamples)]
    asked = [*(request for _, both in pairs for request in both), *(request for _, request in again)]
    answers, stopped = await _answers(teacher, asked)
    words = {id(item): word for item, both in pairs if (word := _choice(answers, both)) is not None}
    told = [replace(item, points=(words[id(item)] + 1) / 2) if id(item) in words else item for item in judged]
    own = [(item, answers[request.key].text) for item, request in again if request.key in answers]
    return Consulted(
        judged=told,
        duel=_tally(words, [item for item, _ in pairs if id(item) in words]),
        ceiling=ceiling(
            [(item.sample.prompt_id, agreement(text, item.reference).score) for item, text in own], "asked once more"
        ),
        keys=frozenset(request.key for request in asked),
        stopped=stopped,
    )


async def _answers(teacher: Asks, requests: Sequence[TeacherRequest]) -> tuple[dict[str, Answer], str]:
    """The answers by key and which limit left others without one."""
    answers: dict[str, Answer] = {}
    stopped = ""

    async def ask(request: TeacherRequest) -> None:
        nonlocal stopped
        try:
            answers[request.key] = await teacher.ask(request)
        except TeacherError:
            return
        except (BudgetError, QuotaError) as error:
            stopped = error.message

    await asyncio.gather(*map(ask, requests))
    return answers, stopped


def _swapped(config: Config, item: Judged) -> list[TeacherRequest]:
    """The pair in both orders; nothing where the answers are equal."""
    pair = (item.reference, item.answer.text)
    return [] if item.exact else [_request(config, item, pair), _request(config, item, pair[::-1])]


def _choice(answers: Mapping[str, Answer], requests: Sequence[TeacherRequest]) -> int | None:
    """1: the student's answer is better in both positions; -1: the teacher's is; 0: a tie; None: not judged."""
    choices = [_better(answers.get(request.key)) for request in requests]
    if None in choices:
        return None
    return {(2, 1): 1, (1, 2): -1}.get((choices[0] or 0, choices[1] or 0), 0) if choices else 0


def _request(config: Config, item: Judged, pair: tuple[str, str]) -> TeacherRequest:
    lines = "\n".join(f"{number}. {' '.join(text.split())}" for number, text in enumerate(pair, start=1))
    persona = " ".join(turn.content for turn in item.sample.messages if turn.role == "system") or item.sample.role
    values = {"persona": persona, "question": item.question, "candidates": lines}
    prompt = fill(load_template("judge", config.language), values)
    return build_request(
        config.teacher,
        (Message(role="user", content=prompt),),
        temperature=0.0,
        max_output_tokens=VERDICT_TOKENS,
        role=item.sample.role,
        schema=SCHEMA,
    )


def _better(reply: Answer | None) -> int | None:
    try:
        value = parse_json(reply.text)["better"] if reply else None
    except (ValueError, KeyError, TypeError):
        return None
    return value if value in {0, 1, 2} and not isinstance(value, bool) else None


def _tally(words: dict[int, int], items: Sequence[Judged]) -> Duel | None:
    if not items:
        return None
    points = [(words[id(item)] + 1) / 2 for item in items]
    found = score_interval(points, [item.sample.prompt_id for item in items])
    return Duel(
        n=len(items),
        wins=points.count(1.0),
        ties=points.count(0.5),
        losses=points.count(0.0),
        score=found.mean,
        low=found.low,
        high=found.high,
        cost_usd=Decimal(0),
    )


def _once_more(config: Config, item: Judged) -> TeacherRequest:
    """The question asked again, as sample number n + 1 of the plan, which a later run reuses."""
    generate = config.generate
    return build_request(
        config.teacher,
        item.sample.messages[:-1],
        temperature=generate.temperature,
        max_output_tokens=generate.max_output_tokens,
        sample=generate.samples_per_prompt,
        role=item.sample.role,
    )


def _spread(items: Sequence[Judged], count: int) -> list[Judged]:
    """Up to `count` items, evenly from the whole list, so that every role and topic has its share."""
    if count >= len(items):
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]
