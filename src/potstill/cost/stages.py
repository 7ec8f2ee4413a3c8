"""The whole way priced, stage by stage: generate, judge, distill, and a month of answering. Pure but for what it is given.

Each stage has its expected price, an interval where there is history, and its worst case; and the words that it rests
on. Only what Gemini is paid for the dataset (generate and judge) is held against a limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal

from potstill.config import JudgeSettings
from potstill.cost.compare import Mix
from potstill.cost.estimate import ZERO, Estimate, Offer
from potstill.cost.scenarios import Pricing, ScenarioSpec, scenario_of
from potstill.cost.schemes import month
from potstill.cost.training import Training
from potstill.records import Usage
from potstill.wording import counted

JUDGE_PROMPT_TOKENS = 350
"""A rubric and its frame, beside the question and the answer: an assumption."""
JUDGE_ANSWER_TOKENS = 80
"""A verdict with its reason: an assumption."""
JUDGE_MOST_TOKENS = 512
"""The limit of one verdict that the worst case counts."""


@dataclass(frozen=True)
class Stage:
    """One stage in dollars; `paid_to` is "gemini" or "machine"; `monthly` where it recurs."""

    name: str
    expected_usd: Decimal
    low_usd: Decimal | None
    high_usd: Decimal | None
    worst_usd: Decimal
    basis: str
    paid_to: str = "gemini"
    monthly: bool = False


@dataclass(frozen=True)
class Asked:
    """What the stages after generate are priced with; None or 0: the stage is left out."""

    judge_share: Decimal = ZERO
    training: Training | None = None
    queries_a_day: int = 0
    mix: Mix | None = None
    hybrid: ScenarioSpec | None = None


def stages(found: Estimate, service: str, pricing: Pricing, asked: Asked) -> tuple[Stage, ...]:
    """All stages that there are figures for."""
    return tuple(_stages(found, service, pricing, asked))


def held(found: tuple[Stage, ...], figure: str) -> Decimal:
    """What a limit is held against: expected, high or worst of what Gemini is paid once. High without history: worst."""
    once = [stage for stage in found if stage.paid_to == "gemini" and not stage.monthly]
    if figure == "expected":
        return sum((stage.expected_usd for stage in once), ZERO)
    if figure == "worst":
        return sum((stage.worst_usd for stage in once), ZERO)
    return sum((stage.worst_usd if stage.high_usd is None else stage.high_usd for stage in once), ZERO)


def _stages(found: Estimate, service: str, pricing: Pricing, asked: Asked) -> Iterator[Stage]:
    offer = found.offer(service)
    basis = f"{found.todo} of {counted(found.cells, 'answer')}, {service}"
    yield Stage("generate", offer.expected_usd, offer.low_usd, offer.high_usd, offer.worst_usd, basis)
    if asked.judge_share:
        yield _judge(found, offer, pricing, asked.judge_share)
    if pricing.config.distill.judge.max_usd is not None:
        yield _duel(found, pricing, pricing.config.distill.judge)
    if asked.training is not None:
        trained = asked.training
        hours = f"{trained.hours:.2g} to {trained.worst_hours:.2g} GPU hours, {trained.kwh:.2g} kWh, {trained.machine}"
        basis = f"{hours}; {trained.tokens:,} tokens, {trained.parameters / 1e9:.3g} billion weights; {trained.basis}"
        yield Stage("distill", trained.usd, None, None, trained.worst_usd, basis, paid_to="machine")
    if asked.queries_a_day and asked.hybrid is not None and asked.mix is not None:
        yield _infer(pricing, asked.queries_a_day, asked.mix, asked.hybrid)


def _judge(found: Estimate, offer: Offer, pricing: Pricing, share: Decimal) -> Stage:
    """Every judged answer is read once more, with its question and a rubric, and a short verdict is written."""
    count = int(found.cells * share)
    usage = Usage(
        input_tokens=JUDGE_PROMPT_TOKENS + found.mean_input + found.mean_output, output_tokens=JUDGE_ANSWER_TOKENS
    )
    model = pricing.config.teacher.model
    each = pricing.book.cost(usage, model, offer.service, pricing.on).usd
    worst = pricing.book.worst_case(
        model,
        offer.service,
        pricing.on,
        input_tokens=JUDGE_PROMPT_TOKENS + found.mean_input + pricing.config.generate.max_output_tokens,
        max_output_tokens=JUDGE_MOST_TOKENS,
        thinking_budget=pricing.config.teacher.thinking_budget,
    )
    basis = (
        f"{counted(count, 'answer')} judged by {model}: assumed {JUDGE_PROMPT_TOKENS} tokens of rubric, "
        f"{JUDGE_ANSWER_TOKENS} of verdict"
    )
    return Stage("judge", each * count, None, None, worst * count, basis)


def _duel(found: Estimate, pricing: Pricing, judge: JudgeSettings) -> Stage:
    """The student's judge: two readings a held-out answer, positions swapped, and some questions answered once more."""
    splits = pricing.config.generate.splits
    held_out = int(found.cells * float(splits.test or splits.validation))
    pairs, again = min(judge.samples, held_out), min(judge.resamples, held_out)
    question, answer = found.mean_input, found.mean_output
    model = pricing.config.teacher.model
    reading = Usage(input_tokens=JUDGE_PROMPT_TOKENS + question + 2 * answer, output_tokens=JUDGE_ANSWER_TOKENS)
    resample = Usage(input_tokens=question, output_tokens=answer)
    usd = 2 * pairs * pricing.book.cost(reading, model, "standard", pricing.on).usd
    usd += again * pricing.book.cost(resample, model, "standard", pricing.on).usd
    most = judge.max_usd or ZERO
    basis = f"{counted(pairs, 'held-out answer')} read twice, {counted(again, 'question')} answered again; at most distill.judge.max_usd"
    return Stage("judge the student", min(usd, most), None, None, most, basis)


def _infer(pricing: Pricing, queries_a_day: int, mix: Mix, spec: ScenarioSpec) -> Stage:
    """A month of the router; the worst case is every query going through all steps and to Gemini."""
    expected = sum(month(scenario_of(spec, pricing), queries_a_day), ZERO)
    all_the_way = spec.model_copy(update={"hit_rate": ZERO, "escalation": Decimal(1)})
    worst = sum(month(scenario_of(all_the_way, pricing), queries_a_day), ZERO)
    alone = pricing.book.cost(pricing.usage, pricing.config.teacher.model, "standard", pricing.on).usd
    basis = (
        f"{queries_a_day} queries a day of {pricing.usage.input_tokens} + {pricing.usage.output_tokens} tokens, "
        f"{mix.hit_rate:.0%} from the cache, {mix.escalation:.0%} of the others to Gemini as well ({mix.origin}); "
        f"Gemini alone: ${alone * queries_a_day * 30:.2f}"
    )
    return Stage("infer, a month", expected, None, None, worst, basis, monthly=True)
