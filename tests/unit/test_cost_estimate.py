"""The estimate: what is left to pay for, how sure it is, what it is at most, and how long it takes."""

from __future__ import annotations

import asyncio
import json
import random
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from potstill.config import Config, with_values
from potstill.cost.estimate import Assumptions, Estimate, estimate
from potstill.cost.outputs import History, expect_outputs
from potstill.cost.work import count_work
from potstill.errors import InputError, UnknownModelError
from potstill.ledger import Intent, Ledger, PaidWork, Settlement, Ticket
from potstill.pricing.book import load_prices
from potstill.pricing.counting import formula
from potstill.prompts import load_prompts, load_roles
from potstill.records import Message, Usage
from potstill.teacher.calls import TeacherRequest, build_request
from potstill.workspace import Workspace

DAY = date(2026, 11, 24)
COUNTER = formula("en")


@pytest.fixture
def questions(tmp_path: Path) -> str:
    """A hundred questions of different lengths."""
    path = tmp_path / "questions.txt"
    path.write_text("".join(f"How much memory does model {n} need{' and why' * (n % 7)}?\n" for n in range(100)))
    return str(path)


def config_for(questions: str, teacher: dict[str, Any] | None = None, **generate: Any) -> Config:
    """A config on these questions."""
    return with_values(Config(), teacher=teacher or {}, generate={"prompts": (questions,), **generate})


def run(config: Config, workspace: Path, given: Assumptions | None = None, on: date = DAY) -> Estimate:
    """Estimate a config."""
    book = load_prices(config.prices)
    return estimate(config, book, Workspace(workspace), COUNTER, on, given or Assumptions())


def requests(config: Config) -> list[TeacherRequest]:
    """Every request of the plan, as `generate` makes it."""
    return [
        build_request(
            config.teacher,
            (Message(role="system", content=role.system), Message(role="user", content=prompt.text)),
            temperature=config.generate.temperature,
            max_output_tokens=config.generate.max_output_tokens,
            sample=sample,
            role=role.name,
        )
        for prompt in load_prompts(config.generate.prompts)
        for role in load_roles(config.generate.roles, config.language)
        for sample in range(config.generate.samples_per_prompt)
    ]


def pay(workspace: Path, asked: list[TeacherRequest], usages: list[Usage]) -> None:
    """Put answers into the ledger."""

    async def settle() -> None:
        with Ledger.open(Workspace(workspace).ledger) as ledger:
            for request, usage in zip(asked, usages, strict=True):
                intent = Intent(
                    request.key,
                    "generate",
                    request.role,
                    request.model,
                    "standard",
                    json.dumps(request.body),
                    Decimal("0.01"),
                )
                ticket = await ledger.reserve(intent)
                assert isinstance(ticket, Ticket)
                await ledger.settle(ticket.attempt, Settlement("{}", usage, Decimal("0.001"), "row", 0.1))

    workspace.mkdir(exist_ok=True)
    asyncio.run(settle())


def test_without_history_there_is_an_assumption_and_a_ceiling(questions: str, tmp_path: Path) -> None:
    """No answer yet: half the limit is assumed and said, no interval is given, and the ceiling is exact."""
    config = config_for(questions, max_output_tokens=1000)
    found = run(config, tmp_path / "w")
    offer = found.offer("standard")
    assert (found.cells, found.todo, found.output_tokens) == (100, 100, 50_000)
    assert "assumption: 50%" in found.assumption
    assert (offer.low_usd, offer.high_usd) == (None, None)
    assert offer.expected_usd == (found.input_tokens * Decimal("0.3") + 50_000 * Decimal("2.5")) / 1_000_000
    assert offer.expected_usd < offer.worst_usd
    assert offer.worst_usd >= (found.input_tokens * Decimal("0.3") + 100_000 * Decimal("2.5")) / 1_000_000
    assert found.offer("batch").expected_usd * 2 == offer.expected_usd
    assert not (tmp_path / "w").exists()


def test_a_stated_length_is_taken_and_said(questions: str, tmp_path: Path) -> None:
    """`--output-tokens 300` prices 300 tokens an answer, and the basis says whose figure that is."""
    found = run(config_for(questions), tmp_path / "w", Assumptions(output_tokens=300))
    assert found.output_tokens == 30_000
    assert "as you state" in found.assumption


def test_history_gives_an_interval_and_is_not_paid_again(questions: str, tmp_path: Path) -> None:
    """Thirty answers in the ledger: seventy are left, with an interval around their mean, below the ceiling."""
    config = config_for(questions)
    asked, draw = requests(config), random.Random(0)
    usages = [Usage(input_tokens=40, output_tokens=round(draw.lognormvariate(5, 0.5))) for _ in range(30)]
    pay(tmp_path / "w", asked[:30], usages)
    found = run(config, tmp_path / "w")
    offer = found.offer("standard")
    assert (found.paid, found.todo) == (30, 70)
    assert offer.low_usd is not None
    assert offer.high_usd is not None
    assert 0 < offer.low_usd < offer.expected_usd < offer.high_usd < offer.worst_usd
    assert "30 answers in the ledger" in found.assumption


def test_the_interval_covers_the_run_that_follows(questions: str, tmp_path: Path) -> None:
    """What the other seventy answers then cost lies inside the interval that was given for them."""
    config = config_for(questions)
    asked, draw = requests(config), random.Random(3)
    usages = [Usage(input_tokens=40, output_tokens=round(draw.lognormvariate(5, 0.5))) for _ in asked]
    pay(tmp_path / "w", asked[:30], usages[:30])
    offer = run(config, tmp_path / "w").offer("standard")
    book = load_prices(config.prices)
    bill = sum(book.cost(usage, config.teacher.model, "standard", DAY).usd for usage in usages[30:])
    assert offer.low_usd is not None
    assert offer.high_usd is not None
    assert offer.low_usd <= bill <= offer.high_usd


def test_billed_inputs_correct_the_count(questions: str, tmp_path: Path) -> None:
    """Where Gemini billed a quarter more than was counted, the rest is expected to cost a quarter more, and it is said."""
    config = config_for(questions)
    asked = requests(config)
    before = run(config, tmp_path / "none").input_tokens
    counted = [sum(COUNTER.count(text) for text in _texts(request)) for request in asked]
    usages = [Usage(input_tokens=round(size * 1.25), output_tokens=100) for size in counted]
    pay(tmp_path / "w", asked[:50], usages[:50])
    found = run(config, tmp_path / "w")
    left = sum(counted[50:])
    assert found.input_tokens == pytest.approx(left * 1.25, rel=0.01)
    assert "times 1.2" in found.counted
    assert before == sum(counted)


def test_roles_are_told_apart(questions: str, tmp_path: Path) -> None:
    """A terse and a talkative role each keep their own mean: 20 and 400 tokens, not 210 for both."""
    config = config_for(questions, roles=("hardware-expert", "cost-analyst"))
    asked = requests(config)[:60]
    usages = [Usage(input_tokens=40, output_tokens=20 if request.role == "cost-analyst" else 400) for request in asked]
    pay(tmp_path / "w", asked, usages)
    found = run(config, tmp_path / "w")
    assert found.output_by_role == {"cost-analyst": 20, "hardware-expert": 400}


def test_a_pilot_file_serves_as_history(questions: str, tmp_path: Path) -> None:
    """Answers of another workspace, as a dataset file, give the lengths; a bad line is named."""
    row = {
        "id": "s",
        "messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}],
        "role": "hardware-expert",
        "prompt_id": "p",
        "sample": 0,
        "model": "m",
        "finish_reason": "STOP",
        "usage": {"input_tokens": 5, "output_tokens": 150},
        "cost_usd": "0.001",
        "prompt_sha": "x",
        "created_at": "2026-11-24T00:00:00Z",
    }
    pilot = tmp_path / "pilot.jsonl"
    pilot.write_text("".join(json.dumps(row) + "\n" for _ in range(12)))
    found = run(config_for(questions), tmp_path / "w", Assumptions(pilot=pilot))
    assert found.output_tokens == 15_000
    assert "12 answers in pilot" in found.assumption
    pilot.write_text(json.dumps(row) + "\n{}\n")
    with pytest.raises(InputError, match=r"pilot\.jsonl:2"):
        run(config_for(questions), tmp_path / "w", Assumptions(pilot=pilot))


def test_limits_decide_the_time(questions: str, tmp_path: Path) -> None:
    """Twenty requests a day take four days and the rest of the fifth; a batch takes its target."""
    found = run(config_for(questions, {"rpd": 20, "rpm": 5}), tmp_path / "w")
    finish = found.offer("standard").finish
    assert (finish.limit, finish.seconds) == ("rpd", 4 * 86_400 + 240)
    assert found.offer("batch").finish.seconds == 86_400


def test_the_free_tier_charges_nothing_and_has_no_batch(questions: str, tmp_path: Path) -> None:
    """Free: expected nothing, ceiling at the list price, one service."""
    found = run(config_for(questions, {"tier": "free"}), tmp_path / "w")
    assert [offer.service for offer in found.services] == ["standard"]
    assert found.services[0].expected_usd == 0 < found.services[0].worst_usd


def test_a_cliff_in_the_window_is_told_and_no_price_is_refused(questions: str, tmp_path: Path) -> None:
    """3.8-flash doubles on New Year's Day; a model without a price is an error, never free."""
    found = run(config_for(questions, {"model": "gemini-3.8-flash"}), tmp_path / "w")
    assert [change.day for change in found.ahead] == [date(2027, 1, 1)]
    january = run(config_for(questions, {"model": "gemini-3.8-flash"}), tmp_path / "w", on=date(2027, 1, 1))
    assert january.offer("standard").expected_usd == 2 * found.offer("standard").expected_usd
    with pytest.raises(UnknownModelError):
        run(config_for(questions, {"model": "gemini-9"}), tmp_path / "w")


def test_more_of_anything_never_costs_less(questions: str, tmp_path: Path) -> None:
    """More samples, roles or output tokens never lower the expected price or the ceiling."""
    base = run(config_for(questions), tmp_path / "w").offer("standard")
    for more in ({"samples_per_prompt": 2}, {"roles": ("hardware-expert", "ai-expert")}, {"max_output_tokens": 2048}):
        dearer = run(config_for(questions, **more), tmp_path / "w").offer("standard")
        assert dearer.expected_usd > base.expected_usd
        assert dearer.worst_usd > base.worst_usd


def test_work_is_a_table_of_lengths(questions: str) -> None:
    """Ten samples a prompt are counted, not listed: as many groups as there are different lengths."""
    work = count_work(config_for(questions, samples_per_prompt=10), COUNTER, PaidWork(None))
    assert work.todo == 1000
    assert len(work.groups) <= 15


def test_no_answers_to_come_cost_nothing() -> None:
    """Nothing to do is nothing to pay, with history and without."""
    history = History({"r": (10,) * 20}, (), "the ledger")
    assert expect_outputs(history, {}, 100, None).expected == 0
    assert expect_outputs(History({}, (), "the ledger"), {}, 100, None).expected == 0


def _texts(request: TeacherRequest) -> list[str]:
    body = request.body
    return [body["systemInstruction"]["parts"][0]["text"], body["contents"][0]["parts"][0]["text"]]
