"""`potstill generate` with all that makes data better, by the installed command against the emulator."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import COMMAND, Run

from potstill.ledger import read_attempts
from potstill.teacher.emulator import EmulatorSettings, Running, running

KEY = {"GEMINI_API_KEY": "a-key-for-the-emulator", "POTSTILL__TEACHER__RPM": "null"}
QUESTIONS = (
    "How much GPU memory does a small model need?",
    "What does quantization do to a model?",
    "Which LoRA rank should I choose?",
    "How much power does a graphics card draw?",
)


@pytest.fixture
def teacher() -> Iterator[Running]:
    """An emulator that knows the hardware FAQ."""
    with running(EmulatorSettings(faq="hardware.en", latency_s=0.0)) as emulator:
        yield emulator


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Four questions of the FAQ."""
    path = tmp_path / "questions.txt"
    path.write_text("\n".join(QUESTIONS) + "\n")
    return path


def rows(tmp_path: Path, name: str) -> list[dict]:
    """The lines of a file of the workspace."""
    return [json.loads(line) for line in (tmp_path / "workspace" / name).read_text().splitlines()]


def kept(tmp_path: Path) -> list[dict]:
    """All samples of all splits."""
    return [row for split in ("train", "validation", "test") for row in rows(tmp_path, f"dataset/{split}.jsonl")]


def commands(tmp_path: Path) -> set[str]:
    """Under which names the ledger has attempts."""
    return {attempt.command for attempt in read_attempts(tmp_path / "workspace" / "ledger.sqlite3")}


@pytest.mark.usefixtures("questions")
def test_grown_judged_chats_cost_nothing_again(potstill: Run, tmp_path: Path, teacher: Running) -> None:
    """Prompts grow, chats go on, answers are marked; the same again pays nothing, and another filter neither."""
    env = {**KEY, "GOOGLE_GEMINI_BASE_URL": teacher.url}
    (tmp_path / "guide.md").write_text("# Cooling\n\nClean the fans of the card twice a year.\n")
    settings = {
        "generate.grow.target": 3,
        "generate.grow.method": "evolve",
        "generate.grow.near_duplicates": 0.95,
        "generate.documents.files": "[guide.md]",
        "generate.turns": 2,
        "generate.temperatures": "[0.2, 1.0]",
        "generate.judge.enabled": "true",
        "generate.judge.min_score": 0.5,
        "teacher.rpm": "null",
    }
    flags = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    command = ("generate", "--prompts", "questions.txt", "--samples", "2", *flags, "--json")
    first = potstill(*command, "--export", "openai,sharegpt,alpaca,parquet", env=env)
    assert first.returncode == 0, first.stderr
    document = json.loads(first.stdout)
    assert document["grown"] >= 3
    assert commands(tmp_path) == {"grow", "generate", "converse", "judge"}
    assert set(document["beside_usd"]) == {"grow", "converse", "judge"}
    assert all(float(usd) > 0 for usd in document["beside_usd"].values())
    assert {len(row["messages"]) for row in kept(tmp_path)} == {5}
    assert {row["method"] for row in rows(tmp_path, "prompts/grown.jsonl")} == {"document", "evolve"}
    assert {Path(path).parent.name for path in document["exported"]} == {"openai", "sharegpt", "alpaca", "parquet"}
    sent = len(teacher.log())
    before = (tmp_path / "workspace" / "dataset" / "train.jsonl").read_bytes()
    assert potstill(*command, env=env).returncode == 0
    assert (tmp_path / "workspace" / "dataset" / "train.jsonl").read_bytes() == before
    strict = potstill(*command, "--set", "generate.judge.min_score=1", "--set", "generate.filters.keep_best=1", env=env)
    assert strict.returncode == 0, strict.stderr
    assert len(teacher.log()) == sent
    offline = potstill(*command, "--offline")
    assert offline.returncode == 0, offline.stderr
    assert (tmp_path / "workspace" / "dataset" / "train.jsonl").read_bytes() == before
    plan = json.loads(potstill(*command, "--plan").stdout)
    assert (plan["requests"], plan["steps"], float(plan["total"]["worst_usd"])) == (0, [], 0)


@pytest.mark.usefixtures("questions")
def test_the_judge_has_a_budget_of_its_own(potstill: Run, tmp_path: Path, teacher: Running) -> None:
    """When the judge's money is spent the run ends in 4; what is unmarked is set aside, and a higher limit finishes."""
    env = {**KEY, "GOOGLE_GEMINI_BASE_URL": teacher.url}
    command = ("generate", "--prompts", "questions.txt", "--set", "generate.judge.enabled=true", "--json")
    poor = potstill(*command, "--set", "generate.judge.max_usd=0.0015", "--set", "teacher.max_concurrency=1", env=env)
    assert poor.returncode == 4, poor.stderr
    assert "generate.judge.max_usd" in poor.stderr
    unmarked = json.loads(poor.stdout)["rejected"]["not judged"]
    assert 0 < unmarked <= 4
    spent = sum(a.cost_usd for a in read_attempts(tmp_path / "workspace" / "ledger.sqlite3") if a.command == "judge")
    assert spent <= 0.0015
    again = potstill(*command, "--set", "generate.judge.max_usd=0.0015", env=env)
    assert again.returncode == 4, again.stderr
    marks = [a for a in read_attempts(tmp_path / "workspace" / "ledger.sqlite3") if a.command == "judge"]
    assert sum(a.cost_usd if a.status == "done" else a.reserved_usd for a in marks) <= 0.0015
    rich = potstill(*command, "--set", "generate.judge.max_usd=1", env=env)
    assert rich.returncode == 0, rich.stderr
    assert "not judged" not in json.loads(rich.stdout)["rejected"]
    assert json.loads(rich.stdout)["paid"] == 0


@pytest.mark.usefixtures("questions")
def test_a_judge_out_of_reach_is_7_before_every_answer_has_failed(
    potstill: Run, tmp_path: Path, teacher: Running
) -> None:
    """The answers are there, the judge is not: the step ends after a round, and goes on when the judge is back."""
    flags = ("--samples", "10", "--set", "teacher.max_attempts=1", "--set", "teacher.max_concurrency=4", "--json")
    command = ("generate", "--prompts", "questions.txt", *flags)
    env = {**KEY, "GOOGLE_GEMINI_BASE_URL": teacher.url}
    assert potstill(*command, env=env).returncode == 0
    judged = (*command, "--set", "generate.judge.enabled=true")
    away = potstill(*judged, env={**KEY, "GOOGLE_GEMINI_BASE_URL": "http://127.0.0.1:9"})
    assert away.returncode == 7, away.stderr
    assert "cannot be reached" in away.stderr
    marks = [a for a in read_attempts(tmp_path / "workspace" / "ledger.sqlite3") if a.command == "judge"]
    assert 4 <= len(marks) <= 8
    assert potstill(*judged, env=env).returncode == 0


@pytest.mark.usefixtures("questions")
def test_rationales_switched_on_pay_for_themselves_alone(potstill: Run, tmp_path: Path, teacher: Running) -> None:
    """The plan names them; each kept answer gets one, paid once; answers, their ids and their cost stay as they were."""
    env = {**KEY, "GOOGLE_GEMINI_BASE_URL": teacher.url}
    command = ("generate", "--prompts", "questions.txt", "--json")
    assert potstill(*command, env=env).returncode == 0
    plain, sent = kept(tmp_path), len(teacher.log())
    assert not any("rationale" in row for row in plain)
    switch = ("--set", "generate.rationales.enabled=true")
    planned = json.loads(potstill(*command, *switch, "--plan").stdout)["steps"]
    assert [(step["step"], step["requests"]) for step in planned] == [("rationale", 4)]
    document = json.loads(potstill(*command, *switch, env=env).stdout)
    assert document["paid"] == 0
    assert float(document["beside_usd"]["rationale"]) > 0
    assert len(teacher.log()) == sent + 4
    reasoned = kept(tmp_path)
    assert all(row["rationale"] for row in reasoned)
    assert [{**row, "rationale": None} for row in reasoned] == [{**row, "rationale": None} for row in plain]
    assert potstill(*command, *switch, env=env).returncode == 0
    assert len(teacher.log()) == sent + 4
    assert kept(tmp_path) == reasoned


@pytest.mark.usefixtures("questions")
def test_a_second_round_near_failures(potstill: Run, tmp_path: Path, teacher: Running) -> None:
    """New prompts near what failed, none near a held-out question; limits are kept, and the same again pays nothing."""
    from tests.unit.test_second_round import row

    from potstill.generate.neighbours import similarity

    env = {**KEY, "GOOGLE_GEMINI_BASE_URL": teacher.url}
    failed = ("How many watts does a card use?", "What does a GPU cost in electricity?", "Is a used card a good idea?")
    student = tmp_path / "student"
    student.mkdir()
    (student / "evaluation.jsonl").write_text("".join(row(text, good=False).to_line() for text in failed))
    command = ("generate", "--prompts", "questions.txt", "--from-failures", "student/verdict.json", "--json")
    sizes = ("--set", "generate.failures.target=12", "--set", "cache.encoder=hashing")
    planned = json.loads(potstill(*command, *sizes, "--plan").stdout)
    assert [step["step"] for step in planned["steps"]] == ["failures", "new_answers"]
    poor = potstill(*command, *sizes, "--set", "generate.failures.max_usd=0.0001", env=env)
    assert poor.returncode == 4, poor.stderr
    assert "generate.failures.max_usd" in poor.stderr
    assert json.loads(poor.stdout)["second_round"]["grown"] == 0
    done = potstill(*command, *sizes, "--set", "generate.failures.max_usd=1", env=env)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["second_round"]
    assert (found["failed"], found["grown"]) == (3, 12)
    assert float(json.loads(done.stdout)["beside_usd"]["failures"]) > 0
    grown = [
        row["prompt"]
        for path in (tmp_path / "workspace/prompts/failures").glob("*.jsonl")
        for row in map(json.loads, path.read_text().splitlines())
    ]
    assert len(grown) == 12
    assert max(similarity(text, held) for text in grown for held in failed) < 0.5
    assert len(kept(tmp_path)) > 4
    sent, before = len(teacher.log()), kept(tmp_path)
    assert potstill(*command, *sizes, env=env).returncode == 0
    assert (len(teacher.log()), kept(tmp_path)) == (sent, before)
    left = json.loads(potstill(*command, *sizes, "--plan").stdout)
    assert left["steps"] == []
    assert left["basis"] == "nothing to ask for"
    missing = potstill("generate", "--prompts", "questions.txt", "--from-failures", "nowhere/verdict.json", env=env)
    assert missing.returncode == 2
    assert "evaluation" in missing.stderr


@pytest.mark.usefixtures("questions")
def test_a_stop_while_growing_is_130_and_nothing_is_lost(potstill: Run, tmp_path: Path, teacher: Running) -> None:
    """Ctrl-C between two rounds: what was in flight is in the ledger, and the same command pays for the rest only."""
    grow = {"target": 12, "method": "evolve", "near_duplicates": 0.95, "max_rounds": 3}
    flags = [part for key, value in grow.items() for part in ("--set", f"generate.grow.{key}={value}")]
    command = ("generate", "--prompts", "questions.txt", "--set", "teacher.max_concurrency=2", *flags)
    with running(EmulatorSettings(faq="hardware.en", latency_s=0.5)) as slow:
        env = {**KEY, "GOOGLE_GEMINI_BASE_URL": slow.url}
        process = subprocess.Popen([str(COMMAND), *command], cwd=tmp_path, env={**os.environ, **env})
        deadline = time.monotonic() + 60
        while len(slow.log()) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        sent = len(slow.log())
    result = potstill(*command, env={**KEY, "GOOGLE_GEMINI_BASE_URL": teacher.url})
    assert result.returncode == 0, result.stderr
    attempts = read_attempts(tmp_path / "workspace" / "ledger.sqlite3")
    assert {attempt.status for attempt in attempts} == {"done"}
    assert len({attempt.key for attempt in attempts}) == len(attempts) == sent + len(teacher.log())


@pytest.mark.usefixtures("questions")
def test_answers_by_a_schema(potstill: Run, tmp_path: Path, teacher: Running) -> None:
    """Answers of the schema are kept; under a stricter one they are rejected with the place that is wrong."""
    env = {**KEY, "GOOGLE_GEMINI_BASE_URL": teacher.url}
    schema = {"type": "object", "properties": {"advice": {"type": "string"}}, "required": ["advice"]}
    (tmp_path / "form.json").write_text(json.dumps(schema))
    command = ("generate", "--prompts", "questions.txt", "--set", "generate.answer_schema=form.json")
    assert potstill(*command, env=env).returncode == 0
    assert all(set(json.loads(row["messages"][-1]["content"])) == {"advice"} for row in kept(tmp_path))
    schema["properties"]["advice"] = {"type": "string", "maxLength": 3}
    (tmp_path / "form.json").write_text(json.dumps(schema))
    assert potstill(*command, env=env).returncode == 0
    rejected = rows(tmp_path, "dataset/rejected.jsonl")
    assert {row["reason"] for row in rejected} == {"schema"}
    assert rejected[0]["detail"].startswith("$.advice")
    (tmp_path / "form.json").write_text('{"type": "no such type"}')
    broken = potstill(*command, env=env)
    assert broken.returncode == 2
    assert "form.json" in broken.stderr


@pytest.mark.usefixtures("questions")
def test_push_without_token_or_hub_is_clear(potstill: Run, tmp_path: Path, teacher: Running) -> None:
    """Without HF_TOKEN the end is 3, without a hub 7 with what to do, by a name that no hub takes 2.

    The dataset is there in each case, and no token is shown.
    """
    env = {**KEY, "GOOGLE_GEMINI_BASE_URL": teacher.url, "HF_TOKEN": ""}
    command = ("generate", "--prompts", "questions.txt", "--push", "someone/hardware")
    result = potstill(*command, env=env)
    assert result.returncode == 3
    assert "HF_TOKEN" in result.stderr
    assert len(kept(tmp_path)) == 4
    away = {"HF_TOKEN": "hf_a-secret-token", "HF_ENDPOINT": "http://127.0.0.1:9"}
    result = potstill(*command, "--offline", env=away)
    assert result.returncode == 7, result.stderr
    assert "hub cannot be reached" in result.stderr
    assert "hf_a-secret-token" not in result.stdout + result.stderr
    refused = potstill(
        "generate", "--prompts", "questions.txt", "--push", "someone/hardware.git", "--offline", env=away
    )
    assert refused.returncode == 2, refused.stderr
    assert "generate.push" in refused.stderr


@pytest.mark.usefixtures("questions")
def test_what_infer_paid_for_becomes_data(potstill: Run, tmp_path: Path, teacher: Running) -> None:
    """Answers that the router had from the teacher are samples of the next round, for nothing and without a key."""
    env = {**KEY, "GOOGLE_GEMINI_BASE_URL": teacher.url}
    for question in QUESTIONS[:2]:
        answered = potstill("infer", question, env=env)
        assert answered.returncode == 0, answered.stderr
    sent = len(teacher.log())
    result = potstill("generate", "--from-traces", "--json")
    assert result.returncode == 0, result.stderr
    samples = kept(tmp_path)
    assert sorted(row["messages"][1]["content"] for row in samples) == sorted(QUESTIONS[:2])
    assert {row["role"] for row in samples} == {"hardware-expert"}
    assert "to 2 questions of `infer` in 1 role" in (tmp_path / "workspace" / "dataset" / "README.md").read_text()
    both = potstill("generate", "--from-traces", "--prompts", "questions.txt", env=env)
    assert "with the answers to 2 questions that infer had paid for" in both.stdout
    assert "to 4 prompts and 2 questions of `infer`" in (tmp_path / "workspace" / "dataset" / "README.md").read_text()
    assert len(teacher.log()) == sent + 4


def test_traces_alone_where_there_are_none(potstill: Run) -> None:
    """Without a ledger the end is 2 and says that nothing was paid for here; no key is asked for."""
    result = potstill("generate", "--from-traces")
    assert result.returncode == 2
    assert "nothing was paid for in this workspace" in result.stderr


def test_a_dataset_in_traditional_chinese(potstill: Run, tmp_path: Path) -> None:
    """Role, tasks, emulator and filter in Traditional Chinese: every answer is kept, and in its role's words."""
    with running(EmulatorSettings(faq="hardware.zh-TW", latency_s=0.0)) as emulator:
        result = potstill(
            "generate",
            *("--prompts", "faq-queries.zh-TW.txt", "--roles", "hardware-expert,cost-analyst", "--json"),
            *("--set", "language=zh-TW", "--set", "generate.filters.languages=[zh-TW]", "--set", "teacher.rpm=null"),
            env={**KEY, "GOOGLE_GEMINI_BASE_URL": emulator.url},
        )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["rejected"] == {}
    answers = {row["role"]: row["messages"][-1]["content"] for row in kept(tmp_path)}
    assert set(answers) == {"hardware-expert", "cost-analyst"}
    assert answers["hardware-expert"] != answers["cost-analyst"]
