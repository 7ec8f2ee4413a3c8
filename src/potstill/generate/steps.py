"""What the paid steps around a plan can come to: growing prompts, going on with chats, marks, rationales.

Ceilings, not estimates: every request at its dearest, and as if none of it were in the ledger. Growing asks for as many
requests as it needs when no new prompt is rejected; rejected ones make it more, up to `grow.max_rounds`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from itertools import islice
from pathlib import Path

from potstill.config import Config
from potstill.generate import converse, grow, judge
from potstill.generate.documents import read_passages
from potstill.generate.failures import read_failures
from potstill.generate.plan import Plan
from potstill.generate.second_round import round_file
from potstill.pricing.book import load_prices
from potstill.pricing.tokens import estimate_tokens
from potstill.prompts import load_template
from potstill.workspace import Workspace

SHOWN = 200
"""Prompts from which the usual length of one is taken."""


@dataclass(frozen=True)
class Step:
    """A step beside the plan: its requests, and the most that they can cost."""

    name: str
    requests: int
    worst_usd: Decimal


def steps(plan: Plan) -> tuple[Step, ...]:
    """The steps that a config asks for, before any is paid for."""
    return tuple(step for step in _steps(plan) if step.requests)


def cells_to_grow(config: Config, roles: int) -> int:
    """Answers that prompts still to be grown will add to a plan; those that have grown are in it already."""
    generate, workspace = config.generate, Workspace(Path(config.workspace))
    prompts = 0
    if not workspace.grown.is_file():
        passages = sum(1 for _ in read_passages(generate.documents))
        prompts += (generate.grow.target or 0) + passages * generate.documents.questions
    if not _round_is_done(config):
        prompts += generate.failures.target
    return prompts * roles * generate.samples_per_prompt


def _steps(plan: Plan) -> Iterator[Step]:
    config, generate = plan.config, plan.config.generate
    prompt_tokens = _usual([prompt.text for prompt in islice(plan.prompts, SHOWN)])
    system_tokens = _usual([role.system for role in plan.roles])
    answer, cells = generate.max_output_tokens, len(plan) + cells_to_grow(config, len(plan.roles))
    passages = sum(1 for _ in read_passages(generate.documents))
    asked = passages + _grow_requests(config)
    shown = max(grow.EXAMPLES * prompt_tokens, generate.documents.chunk_chars if passages else 0)
    yield _step(config, "grow", asked, _tokens(config, "self-instruct") + shown, grow.MAX_OUTPUT_TOKENS)
    if not _round_is_done(config):
        most = math.ceil(generate.failures.target / generate.grow.per_request) + generate.failures.clusters
        read = _tokens(config, "failures") + grow.EXAMPLES * prompt_tokens
        yield _step(config, "failures", most, read, grow.MAX_OUTPUT_TOKENS)
    further = cells * (generate.turns - 1)
    chat = system_tokens + prompt_tokens + (answer + converse.QUESTION_TOKENS) * generate.turns
    played = _step(config, "converse", further, _tokens(config, "follow-up") + chat, converse.QUESTION_TOKENS)
    answered = _step(config, "converse", further, chat, answer)
    yield Step("converse", 2 * further, played.worst_usd + answered.worst_usd)
    if generate.judge.enabled:
        read = _tokens(config, generate.judge.rubric) + chat
        yield _step(judge.judging(config), "judge", cells, read, judge.MAX_OUTPUT_TOKENS)
    if (why := generate.rationales).enabled:
        yield _step(config, "rationale", cells, _tokens(config, why.template) + chat, why.max_output_tokens)


def _round_is_done(config: Config) -> bool:
    """Whether no second round is asked for, nothing failed, or its prompts have grown."""
    name, workspace = config.generate.failures.file, Workspace(Path(config.workspace))
    failures = read_failures(name, workspace) if name is not None else None
    return failures is None or not failures.failed or round_file(workspace, failures).is_file()


def _grow_requests(config: Config) -> int:
    """Requests for `grow.target` prompts when each new one is taken."""
    settings = config.generate.grow
    each = {"self-instruct": settings.per_request, "evolve": 1, "both": (settings.per_request + 1) / 2}
    return math.ceil((settings.target or 0) / each[settings.method])


def _step(config: Config, name: str, requests: int, input_tokens: int, output_tokens: int) -> Step:
    service = "flex" if config.teacher.service == "batch" else config.teacher.service
    worst = load_prices(config.prices).worst_case(
        config.teacher.model,
        service,
        datetime.now(UTC).date(),
        input_tokens=input_tokens,
        max_output_tokens=output_tokens,
        thinking_budget=config.teacher.thinking_budget,
    )
    return Step(name, requests, worst * requests)


def _tokens(config: Config, template: str) -> int:
    return estimate_tokens(load_template(template, config.language))


def _usual(texts: Sequence[str]) -> int:
    """The longest of some texts, in tokens."""
    return max((estimate_tokens(text) for text in texts), default=0)
