"""A second round near a student's failures: clustered, shared out, replayed, within its budget, and without leaks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.test_dataset_reading import line
from tests.unit.test_grow import asked, questions

from potstill.config import Config, with_values
from potstill.errors import BudgetError, InputError, PartialError, TeacherError
from potstill.generate.failures import Failures, clusters, read_failures, shares
from potstill.generate.grow import Grown, Growth, write_rows
from potstill.generate.neighbours import similarity
from potstill.generate.second_round import grow_near, near_pool, round_file
from potstill.prompts import prompt_files
from potstill.records import Evaluated
from potstill.teacher.calls import TeacherRequest
from potstill.teacher.scripted import ScriptedTeacher
from potstill.workspace import Workspace

HOT = ("How hot may a graphics card get?", "At which temperature does a card slow down?")
DEAR = ("What does an hour of a rented card cost?",)
HELD_OUT = (*HOT, *DEAR, "Which file format do adapters have?")
FAILURES = Failures((*HOT, *DEAR), HELD_OUT)
GROUPS = (HOT, DEAR)
NEW = {
    "hot": [
        "Is 70 degrees bad for a fan?",
        "Why do chips throttle in summer?",
        "When should thermal paste be renewed?",
        "Does dust make my machine warmer?",
        "Which airflow keeps memory cool?",
        "Can water blocks leak onto boards?",
        "How loud is passive heat removal?",
        "What harms silicon first when overheated?",
    ],
    "cost": [
        "Do clouds charge by the minute?",
        "Is electricity dearer than purchase?",
        "Who pays for idle machines overnight?",
        "Are spot prices stable across regions?",
    ],
}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """One earlier prompt, and nine to grow."""
    (tmp_path / "seeds.txt").write_text("Is 70 degrees bad for a fan?\n")
    generate = {"prompts": (str(tmp_path / "seeds.txt"),), "failures": {"target": 9}}
    return with_values(Config(workspace=str(tmp_path / "w")), generate=generate)


def row(question: str, *, good: bool) -> Evaluated:
    """A line of an evaluation."""
    return Evaluated(prompt_id="p", role="r", question=question, reference="a", answer="b", score=0.1, good=good)


def helpful(request: TeacherRequest) -> str:
    """New questions on the subject that is shown."""
    return questions(*NEW["hot" if HOT[0] in asked(request) else "cost"])


def test_failures_are_read_by_folder_verdict_or_file(tmp_path: Path) -> None:
    """What was not good failed, once each; all of it is held out, and so is what the dataset does not train on."""
    workspace = Workspace(tmp_path / "w")
    workspace.dataset.mkdir(parents=True)
    workspace.split("validation").write_text(line("v", "never judged"))
    rows = [row("one", good=False), row("two", good=True), row("one", good=False)]
    (tmp_path / "evaluation.jsonl").write_text("".join(each.to_line() for each in rows))
    for name in ("", "verdict.json", "evaluation.jsonl"):
        assert read_failures(str(tmp_path / name), workspace) == Failures(("one",), ("one", "two", "never judged"))


def test_an_evaluation_that_is_none_is_named(tmp_path: Path) -> None:
    """A missing file is an error of input; a bad line is named by file and number."""
    with pytest.raises(InputError, match="evaluation not found"):
        read_failures(str(tmp_path / "students" / "x" / "verdict.json"), Workspace(tmp_path))
    path = tmp_path / "evaluation.jsonl"
    path.write_text(row("one", good=False).to_line() + "{}\n")
    with pytest.raises(InputError, match=r"evaluation\.jsonl:2: "):
        read_failures(str(path), Workspace(tmp_path))


def test_a_damaged_line_of_the_dataset_is_named(tmp_path: Path) -> None:
    """A line that is no sample is an error of input with file and number, not a bug."""
    workspace = Workspace(tmp_path / "w")
    workspace.dataset.mkdir(parents=True)
    (tmp_path / "evaluation.jsonl").write_text(row("one", good=False).to_line())
    for damaged in ('{"messages": [{"role": "user"}]}', "{", "[]"):
        workspace.split("test").write_text(line("v", "held out") + damaged + "\n")
        with pytest.raises(InputError, match=r"test\.jsonl:2: "):
            read_failures(str(tmp_path / "evaluation.jsonl"), workspace)


def test_like_failures_share_a_cluster() -> None:
    """Texts fall to the centre they are most like; equal ones need no second centre; the largest cluster comes first."""
    texts, vectors = ("a", "b", "c", "d"), ((1.0, 0.0), (0.0, 1.0), (0.0, 1.0), (0.1, 0.995))
    assert clusters(texts, vectors, 2) == [["b", "c", "d"], ["a"]]
    assert clusters(texts[1:3], vectors[1:3], 5) == [["b", "c"]]
    assert sum(map(len, clusters(texts, vectors, 9))) == 4


@given(st.lists(st.integers(1, 50), min_size=1, max_size=9), st.integers(1, 300))
def test_shares_are_whole_and_proportional(sizes: list[int], total: int) -> None:
    """They add up to the total, and none is a whole prompt off its proportion."""
    found = shares(sizes, total)
    assert sum(found) == total
    assert all(abs(share - total * size / sum(sizes)) < 1 for share, size in zip(found, sizes, strict=True))


async def grown_near(config: Config, teacher: ScriptedTeacher) -> tuple[list[Grown], Growth, BudgetError | None]:
    """What grows near the failures, and what ended it."""
    with near_pool(config, FAILURES) as pool:
        ended = await grow_near(config, teacher, GROUPS, pool)
        return list(pool.grown), pool.growth(), ended


async def test_each_cluster_gets_its_share_and_a_rerun_the_same(config: Config) -> None:
    """Two thirds failed on heat: two thirds of the new prompts are about heat; written, they are grown again alike."""
    grown, growth, ended = await grown_near(config, ScriptedTeacher(helpful))
    assert ended is None
    texts = [each.prompt for each in grown]
    assert len([text for text in texts if text in NEW["hot"]]) == 6
    assert len(texts) == 9
    assert {each.method for each in grown} == {"failures"}
    assert growth.left_out["near-duplicate"] >= 1, "the earlier prompt is not grown once more"
    workspace = Workspace(Path(config.workspace))
    write_rows(round_file(workspace, FAILURES), grown)
    assert [prompt.text for prompt in prompt_files(config)][1:] == texts
    again, _, _ = await grown_near(config, ScriptedTeacher(helpful))
    assert again == grown


async def test_no_held_out_question_gets_into_training(config: Config) -> None:
    """A teacher that gives held-out questions back, alike but for a word, or in another case: none of it is taken."""
    leaky = [*HELD_OUT, *(text.upper() for text in HELD_OUT), *(text.replace("card", "GPU") for text in HELD_OUT)]

    def script(request: TeacherRequest) -> str:
        return questions(*leaky, *json.loads(helpful(request))["questions"])

    grown, growth, _ = await grown_near(config, ScriptedTeacher(script))
    assert len(grown) == 9
    most = max(similarity(each.prompt, held) for each in grown for held in HELD_OUT)
    assert most < config.generate.failures.near_held_out
    assert growth.left_out["near a held-out question"] >= len(leaky)


async def test_a_spent_budget_keeps_what_there_is(config: Config) -> None:
    """The prompts of the requests before it are kept, in order; another failure ends the round as in growing."""

    def poor(request: TeacherRequest) -> str:
        if HOT[0] not in asked(request):
            message = "spent"
            raise BudgetError(message)
        return helpful(request)

    grown, _, ended = await grown_near(config, ScriptedTeacher(poor))
    assert isinstance(ended, BudgetError)
    assert [each.prompt for each in grown] == NEW["hot"][1:7]

    def broken(_: TeacherRequest) -> str:
        message = "no"
        raise TeacherError(message, reason="no")

    with pytest.raises(PartialError, match="requests failed"):
        await grown_near(config, ScriptedTeacher(broken))
