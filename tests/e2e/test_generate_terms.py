"""How a run is made: planned, piloted, offline, capped, followed by events, with tiers and second tries."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from tests.conftest import Run

from potstill.ledger import read_attempts
from potstill.teacher.emulator import EmulatorSettings, Running, running
from potstill.teacher.emulator.settings import Fault

KEY = {"GEMINI_API_KEY": "a-key-for-the-emulator"}
FLAGS = ("--prompts", "questions.txt", "--set", "teacher.rpm=null")


@pytest.fixture(autouse=True)
def questions(tmp_path: Path) -> Path:
    """Forty questions in the folder where the command runs."""
    path = tmp_path / "questions.txt"
    path.write_text("".join(f"How much memory does model number {number} need?\n" for number in range(40)))
    return path


@pytest.fixture
def teacher() -> Iterator[Running]:
    """An emulator that answers at once, in answers of about thirty tokens."""
    with running(EmulatorSettings(latency_s=0.0, answer_tokens=30, answer_spread=0.2)) as emulator:
        yield emulator


def env(teacher: Running) -> dict[str, str]:
    """Key and address of an emulator."""
    return {**KEY, "GOOGLE_GEMINI_BASE_URL": teacher.url}


def test_a_plan_needs_no_key_and_a_pilot_narrows_it(potstill: Run, tmp_path: Path, teacher: Running) -> None:
    """--plan sends and writes nothing; --pilot pays for a few spread answers, and then there is an interval.

    It holds the price of the whole run, in which the pilot's answers are not paid again.
    """
    plan = json.loads(potstill("generate", *FLAGS, "--plan", "--json").stdout)
    assert (plan["requests"], plan["services"]["standard"]["low_usd"]) == (40, None)
    assert float(plan["services"]["batch"]["worst_usd"]) == float(plan["services"]["standard"]["worst_usd"]) / 2
    assert not (tmp_path / "workspace").exists()
    piloted = potstill("generate", *FLAGS, "--pilot", "12", "--json", env=env(teacher))
    narrowed = json.loads(piloted.stdout)
    assert (piloted.returncode, narrowed["paid"], len(teacher.log())) == (0, 12, 12)
    assert not (tmp_path / "workspace" / "dataset").exists()
    whole = json.loads(potstill("generate", *FLAGS, "--json", env=env(teacher)).stdout)
    assert (whole["paid"], len(teacher.log())) == (28, 40)
    quote = narrowed["services"]["standard"]
    assert float(quote["low_usd"]) <= float(whole["spent_usd"]) <= float(quote["high_usd"])


def test_a_plan_above_the_budget_is_4(potstill: Run) -> None:
    """Without key and network, in one JSON document, so that a CI job can stop on it."""
    result = potstill("generate", *FLAGS, "--plan", "--max-cost", "0.001", "--json")
    assert result.returncode == 4
    document = json.loads(result.stdout)
    assert (document["over_budget"], document["left_usd"], document["exit_code"]) == (True, "0.001", 4)
    assert potstill("generate", *FLAGS, "--plan", "--max-cost", "1").returncode == 0


def test_the_paid_steps_around_the_cells_count_in_a_plan(potstill: Run) -> None:
    """A budget that the answers alone would keep is passed with the marks; each step stands apart, the total in all."""
    judged = ("--set", "generate.judge.enabled=true", "--plan", "--json")
    plain = json.loads(potstill("generate", *FLAGS, "--plan", "--json").stdout)
    most = str(Decimal(plain["total"]["likely_usd"]) + Decimal("0.0001"))
    assert potstill("generate", *FLAGS, "--plan", "--max-cost", most).returncode == 0
    result = potstill("generate", *FLAGS, *judged, "--max-cost", most)
    document = json.loads(result.stdout)
    assert (result.returncode, document["over_budget"]) == (4, True)
    (marks,) = document["steps"]
    assert (marks["step"], marks["requests"]) == ("judge", 40)
    for name in ("expected_usd", "worst_usd"):
        parts = Decimal(document["services"]["standard"][name]) + Decimal(marks[name])
        assert Decimal(document["total"][name]) == parts


def test_a_plan_offers_what_the_tier_has(potstill: Run) -> None:
    """The free tier has the standard service alone; another one is refused, and its days are said in one figure."""
    free = ("--set", "teacher.tier=free", "--plan")
    document = json.loads(potstill("generate", *FLAGS, *free, "--json").stdout)
    assert set(document["services"]) == {"standard"}
    assert f"{document['quota_days']} days (daily quota)" in potstill("generate", *FLAGS, *free).stdout
    for service in ("flex", "batch"):
        refused = potstill("generate", *FLAGS, *free, "--service", service)
        assert (refused.returncode, "not offered in teacher.tier: free" in refused.stderr) == (2, True)


def test_a_run_is_capped_and_then_made_whole_offline(potstill: Run, tmp_path: Path, teacher: Running) -> None:
    """--max-requests ends in 4 with what was had; --offline builds from the ledger without key or network.

    It ends in 6 for what is missing, and in 0 when nothing is; with no answer at all the earlier dataset stays.
    """
    capped = potstill("generate", *FLAGS, "--max-requests", "10", "--json", env=env(teacher))
    assert (capped.returncode, len(teacher.log())) == (4, 10)
    assert json.loads(capped.stdout)["left"] == 30
    told = potstill("generate", *FLAGS, "--offline", "--json")
    assert "run it without --offline" in told.stderr
    offline = json.loads(told.stdout)
    assert (offline["exit_code"], len(offline["failed"]), offline["failed"][0]["reason"]) == (6, 30, "offline")
    assert potstill("generate", *FLAGS, env=env(teacher)).returncode == 0
    before = (tmp_path / "workspace" / "dataset" / "train.jsonl").read_bytes()
    assert potstill("generate", *FLAGS, "--offline").returncode == 0
    assert (tmp_path / "workspace" / "dataset" / "train.jsonl").read_bytes() == before
    assert potstill("generate", *FLAGS, "--offline", "--set", "generate.temperature=0.1").returncode == 6
    assert (tmp_path / "workspace" / "dataset" / "train.jsonl").read_bytes() == before
    assert potstill("generate", *FLAGS, "--offline", "-w", "nowhere").returncode == 2
    assert len(teacher.log()) == 40


def test_events_are_json_lines(potstill: Run) -> None:
    """--json-events: each failure as it comes, progress, and the result last, or the error that came before any; nothing else."""
    with running(EmulatorSettings(latency_s=0.0, faults={"http-400": 0.2})) as flaky:
        result = potstill("generate", *FLAGS, "--json-events", env=env(flaky))
    assert result.returncode == 6, result.stderr
    events = [json.loads(line) for line in result.stdout.splitlines()]
    names = [event["event"] for event in events]
    assert names[-1] == "result"
    assert names.count("failed") == len(events[-1]["failed"]) > 0
    assert events[names.index("progress")]["total"] == 40
    for options in (("--json", "--json-events"), ("--offline", "--cancel-batches"), ("--pilot", "1", "--plan")):
        refused = potstill("generate", *FLAGS, *options)
        assert refused.returncode == 2
        assert f"{options[0]} and {options[-1]} contradict" in refused.stderr
    (plan,) = (json.loads(line) for line in potstill("generate", *FLAGS, "--plan", "--json-events").stdout.splitlines())
    assert (plan["event"], plan["cells"]) == ("plan", 40)
    early = potstill("generate", "--prompts", "nowhere.txt", "--json-events")
    (event,) = (json.loads(line) for line in early.stdout.splitlines())
    assert (event["event"], event["exit_code"]) == ("error", early.returncode) == ("error", 2)
    assert "nowhere.txt" in event["error"]


def test_paid_steps_are_followed_like_the_answers(potstill: Run, teacher: Running) -> None:
    """Events of the marks and rationales name their step and end with its total; lines say so without --json-events."""
    steps = ("--set", "generate.judge.enabled=true", "--set", "generate.judge.min_score=0")
    events = potstill("generate", *FLAGS, *steps, "--json-events", env=env(teacher)).stdout.splitlines()
    last = {event["step"]: event for event in map(json.loads, events) if event["event"] == "progress"}
    assert list(last) == ["generate", "judge"]
    assert all((event["done"], event["total"]) == (40, 40) for event in last.values())
    assert float(last["judge"]["spent_usd"]) > 0
    told = potstill("generate", *FLAGS, *steps, "--set", "generate.rationales.enabled=true", env=env(teacher)).stderr
    assert "judge: 40/40" in told
    assert "rationale: 40/40" in told


def test_a_cut_off_answer_gets_one_more_try_with_a_higher_limit(potstill: Run, tmp_path: Path) -> None:
    """With generate.truncated_limit each cut-off answer is asked for once more, at the cost of both.

    Without it nothing is asked again, and the answer is sifted out.
    """
    settings = EmulatorSettings(latency_s=0.0, answer_tokens=60)
    short = (*FLAGS, "--set", "generate.max_output_tokens=20", "--json")
    with running(settings) as teacher:
        first = json.loads(potstill("generate", *short, env=env(teacher)).stdout)
        assert first["rejected"] == {"truncated": 40}
        longer = (*short, "--set", "generate.truncated_limit=500")
        second = json.loads(potstill("generate", *longer, env=env(teacher)).stdout)
        assert "truncated" not in second["rejected"]
        assert len(teacher.log()) == 80
        again = json.loads(potstill("generate", *longer, env=env(teacher)).stdout)
        assert (again["paid"], len(teacher.log())) == (0, 80)
    assert float(again["dataset_cost_usd"]) == pytest.approx(float(first["spent_usd"]) + float(second["spent_usd"]))
    row = json.loads((tmp_path / "workspace" / "dataset" / "train.jsonl").read_text().splitlines()[0])
    assert row["finish_reason"] == "STOP"


def test_a_refused_answer_is_paid_once_and_listed(potstill: Run, tmp_path: Path) -> None:
    """SAFETY, RECITATION, blocked prompts and a limit spent on thinking are never repeated, now or by a rerun."""
    faults = {"safety": 0.25, "recitation": 0.25, "blocked": 0.25, "thinking-limit": 0.25}
    with running(EmulatorSettings(latency_s=0.0, faults=faults)) as teacher:
        for _ in range(2):
            result = potstill("generate", *FLAGS, "--json", env=env(teacher))
            assert result.returncode == 0, result.stderr
        assert len(teacher.log()) == 40
    document = json.loads(result.stdout)
    assert set(document["rejected"]) == {"refused", "truncated"}
    rejected = (tmp_path / "workspace" / "dataset" / "rejected.jsonl").read_text().splitlines()
    assert {json.loads(line)["sample"]["finish_reason"] for line in rejected} == {
        "SAFETY",
        "RECITATION",
        "PROMPT_BLOCKED",
        "MAX_TOKENS",
    }


def test_a_tier_fills_in_its_limits_where_nothing_was_said(potstill: Run) -> None:
    """Naming a tier sets the limits that the config leaves open, with their origin; what was said stays."""
    shown = json.loads(potstill("generate", "--prompts", "questions.txt", "--dry-run", "--json").stdout)["config"]
    assert shown["teacher.rpm"] == {"value": 150, "origin": "default"}
    flags = ("--set", "teacher.tier=free", "--set", "teacher.rpd=7", "--dry-run", "--json")
    tiered = json.loads(potstill("generate", "--prompts", "questions.txt", *flags).stdout)
    assert tiered["config"]["teacher.rpd"] == {"value": 7, "origin": "--set"}
    assert tiered["config"]["teacher.rpm"]["value"] == 10
    assert tiered["config"]["teacher.rpm"]["origin"].startswith("preset free: ")
    assert tiered["quota_days"] == 6


def test_flex_that_is_shed_goes_at_the_standard_price(potstill: Run, tmp_path: Path) -> None:
    """Flex answers at half price; a flex service that sheds everything falls back, and every answer comes."""
    with running(EmulatorSettings(latency_s=0.0)) as teacher:
        half = json.loads(potstill("generate", *FLAGS, "--service", "flex", "--json", env=env(teacher)).stdout)
        full = json.loads(potstill("generate", *FLAGS, "-w", "other", "--json", env=env(teacher)).stdout)
        assert {entry.service for entry in teacher.log()} == {"flex", "standard"}
    assert float(half["spent_usd"]) == pytest.approx(float(full["spent_usd"]) / 2)
    assert (tmp_path / "other").is_dir()


@pytest.mark.parametrize("fault", ["flex-503", "flex-429"])
def test_shed_flex_is_priced_as_what_it_was_sent_as(potstill: Run, tmp_path: Path, fault: Fault) -> None:
    """Flex sheds everything: two free refusals, then the standard price, in the ledger, the report and the teacher's bill."""
    (tmp_path / "questions.txt").write_text("How hot?\nHow loud?\n")
    settings = EmulatorSettings(latency_s=0.0, faults={fault: 1.0}, log=str(tmp_path / "bill.jsonl"))
    with running(settings) as teacher:
        shed = json.loads(potstill("generate", *FLAGS, "--service", "flex", "--json", env=env(teacher)).stdout)
    rows = read_attempts(tmp_path / "workspace" / "ledger.sqlite3")
    kinds = Counter((row.service, row.status, row.cost_usd > 0) for row in rows)
    assert kinds == {("flex", "failed", False): 4, ("standard", "done", True): 2}
    assert all("-standard-" in f"-{row.price_id}-".replace("/", "-") for row in rows if row.status == "done")
    report = json.loads(potstill("cost", "report", "--billing", "bill.jsonl", "--json").stdout)
    assert report["reconciled"]["agrees"]
    assert Decimal(report["groups"]["service"]["standard"]["usd"]) == Decimal(shed["spent_usd"]) > 0
