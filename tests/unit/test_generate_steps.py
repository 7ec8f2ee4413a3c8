"""The paid steps around a plan are named and bounded before anything is paid."""

from __future__ import annotations

from pathlib import Path

from potstill.config import Config, with_values
from potstill.generate.run import load_plan
from potstill.generate.steps import Step, cells_to_grow, steps
from potstill.workspace import Workspace


def found(tmp_path: Path, **generate: object) -> dict[str, Step]:
    """The steps of a config over three prompts."""
    (tmp_path / "q.txt").write_text("How hot?\nHow loud?\nHow dear?\n")
    base = Config(workspace=str(tmp_path / "w"))
    config = with_values(base, generate={"prompts": (str(tmp_path / "q.txt"),), **generate})
    return {step.name: step for step in steps(load_plan(config))}


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
    assert {name: step.requests for name, step in whole.items()} == {"grow": 2 + 3, "converse": 4 * 50, "judge": 50}
    assert all(step.worst_usd > 0 for step in whole.values())
    assert found(tmp_path, turns=2)["converse"].requests == 2 * 3


def test_a_second_round_is_counted_until_it_has_grown(tmp_path: Path) -> None:
    """Its requests, and the answers to its prompts; none of either where nothing failed."""
    from tests.unit.test_second_round import row

    path = tmp_path / "evaluation.jsonl"
    for good, answers in ((False, 20), (True, 0)):
        path.write_text(row("How hot?", good=good).to_line())
        failures = {"file": str(path), "target": 20}
        config = with_values(Config(workspace=str(tmp_path / "w")), generate={"failures": failures})
        assert cells_to_grow(config, 1) == answers
        step = found(tmp_path, failures=failures)
        assert ("failures" in step) is bool(answers)


def test_new_prompts_are_counted_as_answers_until_they_have_grown(tmp_path: Path) -> None:
    """Each prompt to come is asked in every role and sample; once it has grown it is in the plan itself."""
    config = with_values(
        Config(workspace=str(tmp_path / "w")), generate={"grow": {"target": 5}, "samples_per_prompt": 3}
    )
    assert cells_to_grow(config, roles=2) == 30
    assert found(tmp_path, judge={"enabled": True}, grow={"target": 5})["judge"].requests == 3 + 5
    grown = Workspace(tmp_path / "w").grown
    grown.parent.mkdir(parents=True)
    grown.write_text('{"prompt": "How heavy?"}\n')
    assert cells_to_grow(config, roles=2) == 0
    assert found(tmp_path, judge={"enabled": True}, grow={"target": 5})["judge"].requests == 3 + 1


def test_documents_alone_can_be_planned(tmp_path: Path) -> None:
    """Before its first run a config with documents and no prompts has an empty plan, and no error."""
    (tmp_path / "guide.md").write_text("# A\n\nOne.\n")
    only = found(tmp_path, prompts=(), documents={"files": (str(tmp_path / "guide.md"),)})
    assert only["grow"].requests == 1
