"""The paid steps around a plan are named and bounded before anything is paid."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from potstill.config import Config, Secrets, with_values
from potstill.errors import BudgetError, UsageError
from potstill.generate.forecast import Forecast, forecast
from potstill.generate.run import Outcome, Terms, load_plan
from potstill.generate.run import generate as run
from potstill.generate.steps import Step, steps
from potstill.generate.todo import count_todo
from potstill.ledger import LedgerView
from potstill.pricing.book import read_book
from potstill.teacher.emulator import EmulatorSettings, Running, running
from potstill.workspace import Workspace

pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")


def found(tmp_path: Path, **generate: object) -> dict[str, Step]:
    """The steps of a config over three prompts."""
    (tmp_path / "q.txt").write_text("How hot?\nHow loud?\nHow dear?\n")
    base = Config(workspace=str(tmp_path / "w"))
    config = with_values(base, generate={"prompts": (str(tmp_path / "q.txt"),), **generate})
    plan = load_plan(config)
    workspace = Workspace(tmp_path / "w")
    with LedgerView(workspace.ledger) as ledger:
        todo = count_todo(plan, ledger)
    return {step.name: step for step in steps(plan, workspace, todo)}


def test_a_plain_plan_has_no_steps(tmp_path: Path) -> None:
    """Without growing, chats and marks there is nothing beside the plan."""
    assert found(tmp_path) == {}


def test_each_step_counts_its_requests(tmp_path: Path) -> None:
    """Passages and rounds for growing, two requests for each further turn, one mark an answer."""
    (tmp_path / "guide.md").write_text("# A\n\nOne.\n\n# B\n\nTwo.\n")
    whole = found(
        tmp_path,
        samples_per_prompt=2,
        turns=3,
        judge={"enabled": True},
        grow={"target": 20, "method": "self-instruct", "per_request": 8},
        documents={"files": (str(tmp_path / "guide.md"),), "questions": 1},
    )
    assert {name: step.requests for name, step in whole.items()} == {
        "grow": 2 + 3,
        "new_answers": 44,
        "converse": 4 * 50,
        "judge": 50,
    }
    assert all(step.worst_usd > 0 for step in whole.values())
    assert found(tmp_path, turns=2)["converse"].requests == 2 * 3


def test_a_second_round_is_counted_until_it_has_grown(tmp_path: Path) -> None:
    """Its requests, and the answers to its prompts; none of either where nothing failed."""
    from tests.unit.test_second_round import row

    path = tmp_path / "evaluation.jsonl"
    for good, answers in ((False, 20), (True, 0)):
        path.write_text(row("How hot?", good=good).to_line())
        failures = {"file": str(path), "target": 20}
        step = found(tmp_path, failures=failures)
        assert (step["new_answers"].requests if step else 0) == answers
        assert ("failures" in step) is bool(answers)


def test_new_prompts_are_counted_as_answers_until_they_have_grown(tmp_path: Path) -> None:
    """Each prompt to come is asked in every role and sample; once it has grown it is in the plan itself."""
    grows = {"judge": {"enabled": True}, "grow": {"target": 5, "method": "evolve"}, "samples_per_prompt": 3}
    before = found(tmp_path, **grows)
    assert {name: step.requests for name, step in before.items()} == {"grow": 5, "new_answers": 15, "judge": 9 + 15}
    grown = Workspace(tmp_path / "w").grown
    grown.parent.mkdir(parents=True)
    grown.write_text('{"prompt": "How heavy?"}\n{"prompt": "How old?"}\n')
    after = found(tmp_path, **grows)
    assert (after["new_answers"].requests, after["judge"].requests) == (9, 15 + 9)


def test_expectations_lie_under_the_worst_case(tmp_path: Path) -> None:
    """Of each step; a second try is expected of no answer and counted for every one at worst."""
    asked = {"turns": 2, "judge": {"enabled": True}, "rationales": {"enabled": True}, "truncated_limit": 9000}
    steps_ = found(tmp_path, **asked)
    assert steps_.pop("second_tries").expected_usd == 0
    assert set(steps_) == {"converse", "judge", "rationale"}
    assert all(0 < step.expected_usd < step.worst_usd for step in steps_.values())


def test_documents_alone_can_be_planned(tmp_path: Path) -> None:
    """Before its first run a config with documents and no prompts has an empty plan, and no error."""
    (tmp_path / "guide.md").write_text("# A\n\nOne.\n")
    only = found(tmp_path, prompts=(), documents={"files": (str(tmp_path / "guide.md"),)})
    assert only["grow"].requests == 1


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"judge": {"enabled": True, "model": "gemini-9"}}, "gemini-9"),
        ({"judge": {"enabled": True}}, "service flex"),
        ({"turns": 2}, "service flex"),
        ({"rationales": {"enabled": True, "template": "none.txt"}}, "none"),
    ],
)
async def test_a_step_that_cannot_be_paid_is_refused_first(tmp_path: Path, changes: dict[str, Any], word: str) -> None:
    """Without a price for the judge, or for the flex that a batch run's steps go as, or without a template: exit code 2.

    The plan and the run say so, the run before there is a ledger.
    """
    _, data = read_book(None)
    for model in data["models"]:
        model["prices"] = [price for price in model["prices"] if price["service"] != "flex" or word != "service flex"]
    (tmp_path / "prices.json").write_text(json.dumps(data))
    (tmp_path / "q.txt").write_text("How hot?\n")
    sections: dict[str, Any] = {"prices": {"file": str(tmp_path / "prices.json")}, "teacher": {"service": "batch"}}
    generate = {"prompts": (str(tmp_path / "q.txt"),), **changes}
    config = with_values(Config(workspace=str(tmp_path / "w")), generate=generate, **sections)
    workspace = Workspace(tmp_path / "w")
    with pytest.raises(UsageError, match=word) as planned:
        forecast(load_plan(config), workspace)
    with pytest.raises(UsageError, match=word):
        await run(config, Secrets(SecretStr("a-key")), workspace, Terms(lambda _: None, asyncio.Event()))
    assert planned.value.exit_code == 2
    assert not workspace.ledger.exists()


MODEL = "gemini-3.5-flash-lite"
ASKED = {
    "turns": 3,
    "judge": {"enabled": True, "min_score": 0.0},
    "rationales": {"enabled": True},
    "filters": {"keep_best": None},
}


@pytest.fixture
def teacher() -> Iterator[Running]:
    """An emulator with answers of about sixty tokens, no two alike."""
    with running(EmulatorSettings(latency_s=0.0, answer_tokens=60, answer_spread=0.4)) as emulator:
        yield emulator


def config_of(tmp_path: Path, teacher: Running, **generate: object) -> Config:
    """Sixty prompts of different lengths, and the steps around them."""
    path = tmp_path / "many.txt"
    words = [f"Why does part {number} hum{' and whirr' * (number % 5)}?" for number in range(60)]
    path.write_text("\n".join(words) + "\n")
    values = {"prompts": (str(path),), **ASKED, **generate}
    base = Config(workspace=str(tmp_path / "w"))
    return with_values(base, generate=values, teacher={"base_url": teacher.url, "rpm": None, "max_concurrency": 8})


async def made(config: Config, pilot: int | None = None) -> Outcome:
    """A run of a config."""
    terms = Terms(lambda _: None, asyncio.Event(), pilot=pilot)
    outcome = await run(config, Secrets(SecretStr("a-key")), Workspace(Path(config.workspace)), terms)
    assert outcome.stopped is None
    return outcome


def planned(config: Config) -> Forecast:
    """The plan of a config."""
    return forecast(load_plan(config), Workspace(Path(config.workspace)))


def paid(config: Config) -> dict[str, Decimal]:
    """What each step has cost so far."""
    with LedgerView(Path(config.workspace) / "ledger.sqlite3") as ledger:
        return {name: ledger.committed_by(name) for name in ("converse", "judge", "rationale")}


async def test_a_pilot_measures_the_steps_around_its_cells(tmp_path: Path, teacher: Running) -> None:
    """It pays for them once, and each is then foreseen to a quarter; the whole bill lies inside the interval."""
    config = config_of(tmp_path, teacher)
    await made(config, pilot=20)
    piloted, sent = paid(config), len(teacher.log())
    assert sent == 20 * (1 + 4 + 1 + 1)
    plan = planned(config)
    assert {step.name: step.requests for step in plan.steps} == {"converse": 160, "judge": 40, "rationale": 40}
    await made(config, pilot=20)
    assert len(teacher.log()) == sent
    outcome = await made(config)
    assert len(teacher.log()) == 3 * sent
    left = {name: usd - piloted[name] for name, usd in paid(config).items()}
    for step in plan.steps:
        assert Decimal("0.8") < step.expected_usd / left[step.name] < Decimal("1.25"), step
        assert step.low_usd < step.expected_usd < step.high_usd < step.worst_usd
    assert plan.low_usd is not None
    assert plan.low_usd < outcome.spent_usd + sum(left.values()) < plan.likely_usd
    assert planned(config).steps == ()


async def test_a_pilot_is_held_by_the_budget(tmp_path: Path, teacher: Running) -> None:
    """The steps of a pilot pass neither the budget nor the judge's own."""
    config = config_of(tmp_path, teacher, judge={"enabled": True, "max_usd": "0.001"})
    terms = Terms(lambda _: None, asyncio.Event(), pilot=20)
    outcome = await run(config, Secrets(SecretStr("a-key")), Workspace(tmp_path / "w"), terms)
    assert isinstance(outcome.stopped, BudgetError)
    assert Decimal(0) <= paid(config)["judge"] <= Decimal("0.001")
    assert paid(config)["rationale"] == 0


async def test_the_steps_of_chats_are_foreseen_from_the_answers_alone(tmp_path: Path, teacher: Running) -> None:
    """Without a pilot of theirs, what is known of the answers is used: chats grow turn by turn, rationales are as long."""
    await made(config_of(tmp_path, teacher, turns=1, judge={"enabled": False}, rationales={"enabled": False}))
    config = config_of(tmp_path, teacher)
    plan = planned(config)
    await made(config)
    actual = paid(config)
    for step in plan.steps:
        assert Decimal("0.5") < step.expected_usd / actual[step.name] < Decimal(2), step
        assert step.worst_usd > actual[step.name]


async def test_second_tries_are_foreseen_from_a_pilot(tmp_path: Path, teacher: Running) -> None:
    """Seen in a pilot they are expected, and do not make the cells look longer; unseen, 3 in n may come."""
    alone: dict[str, Any] = {"turns": 1, "judge": {"enabled": False}, "rationales": {"enabled": False}}
    often = config_of(tmp_path, teacher, **alone, max_output_tokens=60, truncated_limit=4000)
    await made(often, pilot=20)
    plan = planned(often)
    (again,) = plan.steps
    assert Decimal(0) <= again.low_usd < again.expected_usd < again.high_usd < again.worst_usd
    with LedgerView(Path(often.workspace) / "ledger.sqlite3") as ledger:
        assert len(ledger.outputs(MODEL, "generate", 99)) > 20
        known = ledger.outputs(MODEL, "generate", 99, but_limit=4000)
    assert len(known) == 20
    assert max(text for text, _ in known) <= 60
    never = config_of(tmp_path, teacher, **alone, max_output_tokens=2000, truncated_limit=4000)
    await made(never, pilot=20)
    (unseen,) = planned(never).steps
    assert unseen.expected_usd == 0 < unseen.high_usd < unseen.worst_usd


def test_every_request_of_a_chat_counts_at_worst(tmp_path: Path) -> None:
    """At its own limit: a question's is smaller than an answer's; and each reads all that came before it."""
    two, three = (found(tmp_path, turns=turns)["converse"].worst_usd for turns in (2, 3))
    answers = found(tmp_path, turns=2, max_output_tokens=2048)["converse"].worst_usd
    assert three > 2 * two
    assert answers > two
