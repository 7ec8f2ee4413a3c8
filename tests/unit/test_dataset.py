"""The dataset folder: splits without leaks, a manifest that adds up, a card that the hub can read."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from potstill.config import Config, SplitConfig, with_values
from potstill.generate.dataset import SPLITS, sample_of, split_of, write_dataset
from potstill.generate.figures import lengths
from potstill.generate.plan import Plan
from potstill.prompts import PromptFiles, Role
from potstill.records import Sample
from potstill.teacher.paid import free_answer
from potstill.workspace import Workspace

ROLES = (Role(name="a", language="en", system="You are A."), Role(name="b", language="zh-TW", system="你是 B。"))
AT = datetime(2026, 1, 1, tzinfo=UTC)
TOPICS = ("memory", "heat", "power", "noise", "price", "speed", "weight", "colour", "age", "origin")


def plan_of(tmp_path: Path, prompts: list[str], **generate: object) -> Plan:
    """A plan over a prompt file."""
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts))
    config = with_values(Config(), generate={"prompts": (str(path),), **generate})
    return Plan(config, PromptFiles(config.generate.prompts), ROLES)


def answered(plan: Plan) -> list[Sample]:
    """Every cell answered in its own words."""
    return [
        sample_of(cell, free_answer(cell.request, f"{cell.role.name} says of {cell.prompt.text}: {number}"), AT)
        for number, cell in enumerate(plan)
    ]


def rows(workspace: Workspace, name: str) -> list[dict]:
    """The lines of one file of the dataset."""
    return [json.loads(line) for line in (workspace.dataset / f"{name}.jsonl").read_text().splitlines()]


@given(st.lists(st.text(), unique=True, max_size=50), st.floats(0, 0.4), st.floats(0, 0.4), st.integers())
def test_the_split_of_a_prompt_is_its_own(prompts: list[str], test: float, validation: float, seed: int) -> None:
    """A prompt's split depends on nothing but itself, the shares and the seed."""
    splits = SplitConfig(test=test, validation=validation, seed=seed)
    assert [split_of(prompt, splits) for prompt in prompts] == [split_of(prompt, splits) for prompt in prompts]
    assert {split_of(prompt, SplitConfig(test=0, validation=0)) for prompt in prompts} <= {"train"}


def test_shares_come_out_as_asked() -> None:
    """Of ten thousand prompts about a tenth each is held out."""
    counts = Counter(split_of(f"prompt {number}", SplitConfig()) for number in range(10_000))
    assert counts["test"] == pytest.approx(1000, abs=120)
    assert counts["validation"] == pytest.approx(1000, abs=120)


def test_nearly_equal_prompts_share_a_split(tmp_path: Path) -> None:
    """However a question is spelt, it and its twins stand in one split; without the threshold they part."""
    texts = [
        f"{word} the {topic} of my graphics card{end}"
        for topic in TOPICS
        for word in ("Tell me", "tell me")
        for end in ("?", "!", " ...")
    ]
    plan = plan_of(tmp_path, texts, splits={"test": 0.3, "validation": 0.3})
    manifest = write_dataset(Workspace(tmp_path), plan, answered(plan))
    places = {
        topic: {
            name for name in SPLITS for row in rows(Workspace(tmp_path), name) if topic in row["messages"][1]["content"]
        }
        for topic in TOPICS
    }
    assert all(len(found) == 1 for found in places.values())
    assert manifest.alike_prompts == {"6": 10}
    apart = plan_of(tmp_path, texts, splits={"test": 0.3, "validation": 0.3, "near_duplicates": None})
    write_dataset(Workspace(tmp_path), apart, answered(apart))
    assert len(rows(Workspace(tmp_path), "test")) % 12


def test_datasets_loads_it(tmp_path: Path) -> None:
    """`datasets.load_dataset` reads every split of the folder, by the card's header."""
    from datasets import load_dataset

    workspace, plan = Workspace(tmp_path), plan_of(tmp_path, [f"{topic}?" for topic in TOPICS * 3])
    write_dataset(workspace, plan, answered(plan))
    found = load_dataset(str(workspace.dataset), cache_dir=str(tmp_path / "cache"))
    assert {name: len(part) for name, part in found.items()} == {name: len(rows(workspace, name)) for name in SPLITS}
    assert found["train"][0]["messages"] == rows(workspace, "train")[0]["messages"]


def test_added_prompts_move_no_sample(tmp_path: Path) -> None:
    """After prompts were added at the end, every earlier sample stands in the split where it stood."""

    def splits(prompts: list[str]) -> dict[str, str]:
        plan = plan_of(tmp_path, prompts)
        write_dataset(Workspace(tmp_path), plan, answered(plan))
        return {row["prompt_id"]: name for name in SPLITS for row in rows(Workspace(tmp_path), name)}

    first = [f"What about the {topic} of a card?" for topic in TOPICS]
    before, after = splits(first), splits([*first, *(f"what about the {topic} of a card" for topic in TOPICS), "New?"])
    assert before.items() <= after.items()
    assert len(after) == 21


def test_the_manifest_adds_up(tmp_path: Path) -> None:
    """Samples, rejects and missing cells are all the cells; every reject is on disk with its reason."""
    plan = plan_of(tmp_path, ["What is heat?", "What is noise?"], samples_per_prompt=2)
    samples = answered(plan)[:-1]
    broken = samples[0].model_copy(update={"finish_reason": "SAFETY"})
    manifest = write_dataset(Workspace(tmp_path), plan, [broken, *samples[1:]])
    assert sum(manifest.samples.values()) + sum(manifest.rejected.values()) + manifest.missing == len(plan) == 8
    assert [row["reason"] for row in rows(Workspace(tmp_path), "rejected")] == ["refused"]
    assert manifest.figures.by_role == {"a": 3, "b": 3}
    assert manifest.figures.answer_chars is not None
    assert manifest.figures.answer_chars.longest == max(len(row.messages[-1].content) for row in samples)


def test_alike_prompts_can_be_left_out(tmp_path: Path) -> None:
    """With the filter on, answers to a prompt's twin are rejected, with the words of the first."""
    plan = plan_of(
        tmp_path, ["What is heat for a card?", "what is heat for a card"], filters={"near_duplicate_prompts": 0.8}
    )
    manifest = write_dataset(Workspace(tmp_path), plan, answered(plan))
    assert manifest.rejected == {"near-duplicate prompt": 2}
    assert "What is heat" in rows(Workspace(tmp_path), "rejected")[0]["detail"]


def test_the_card_is_read_by_the_hub(tmp_path: Path) -> None:
    """Its header is YAML that names each split that has samples, and the languages; the body has the figures."""
    plan = plan_of(tmp_path, ["What is heat?"])
    write_dataset(Workspace(tmp_path), plan, answered(plan))
    _, header, body = Workspace(tmp_path).dataset_card.read_text().split("---\n", 2)
    data = yaml.safe_load(header)
    (named,) = [entry["split"] for entry in data["configs"][0]["data_files"]]
    assert rows(Workspace(tmp_path), named)
    assert data["language"] == ["en", "zh"]
    assert "| a | 1 |" in body
    assert "95th percentile" in body


@given(st.lists(st.integers(0, 500), min_size=1))
def test_lengths_are_those_of_the_list(values: list[int]) -> None:
    """Mean, median and longest, from counts alone."""
    found = lengths(Counter(values))
    assert found is not None
    assert found.longest == max(values)
    assert found.mean == pytest.approx(sum(values) / len(values), abs=0.06)
    assert found.median == sorted(values)[(len(values) - 1) // 2]
    assert found.median <= found.p95 <= found.longest
