"""What a student's plan is known by: only what its weights follow from, and the same in a later release."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from potstill.config import Config, DistillConfig, StudentConfig, with_values
from potstill.distill.prepare import NOT_TRAINED, NOT_WEIGHED, plan_id, trained_plan
from potstill.student.manifest import StudentManifest

BASE, DATA = ("b" * 64, "t" * 64), {"train": "d" * 64}


def identity(config: Config) -> str:
    """The plan's identity of a config over one base and dataset."""
    return plan_id(BASE, DATA, config.distill, config.student)


def manifest(config: Config) -> StudentManifest:
    """What stands beside a student that was trained under a config."""
    return StudentManifest(
        name="s", base="b", revision=None, base_sha=BASE[0], template_sha=BASE[1], roles=(), adapters="shared",
        plan_id="c1:as an earlier release named it", dataset_sha=DATA,
        config=config.model_dump(mode="json", include={"student", "distill"}), versions={}, samples=1,
        supervised_tokens=1, train_seconds=1, created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )  # fmt: skip


def without(found: StudentManifest, *path: str) -> StudentManifest:
    """The manifest of a release that did not know a key yet."""
    read: dict[str, Any] = found.model_dump(mode="json")
    place = read["config"]
    for name in path[:-1]:
        place = place[name]
    del place[path[-1]]
    return StudentManifest.model_validate(read)


@pytest.mark.parametrize(
    "path",
    [("distill", "compile"), ("distill", "soft_targets", "on_policy"), ("distill", "rationale"), ("student", "dtype")],
)
def test_a_key_that_came_later_retrains_nobody(path: tuple[str, ...]) -> None:
    """A manifest without a key is that of the key's default; under another value the student is another one."""
    older = without(manifest(Config()), *path)
    assert trained_plan(older) == identity(Config())
    other = with_values(Config(), distill={"rationale": {"weight": 1.0}})
    assert trained_plan(without(manifest(other), "distill", "rationale", "weight")) != identity(other)


def test_a_default_that_changed_since_trains_anew() -> None:
    """The manifest says what was trained, whatever the default was then; a key that is gone is none to compare by."""
    was = with_values(Config(), distill={"epochs": 5.0})
    assert trained_plan(manifest(was)) == identity(was) != identity(Config())
    gone = manifest(Config()).model_dump(mode="json")
    gone["config"]["distill"]["a_key_of_old"] = 1
    assert trained_plan(StudentManifest.model_validate(gone)) is None


def test_what_the_weights_do_not_follow_from_is_left_out() -> None:
    """Where it is written, logged, judged or run does not matter; every setting of training does."""
    same = {
        "distill": {"name": "t", "gate": True, "margin": 0.3, "checkpoint_steps": 7, "tokens_per_batch": 64,
                    "report_to": ("wandb",), "activation_checkpointing": "on"},
        "student": {"device": "cpu", "base": "elsewhere", "revision": "main"},
    }  # fmt: skip
    assert identity(with_values(Config(), **same)) == identity(Config())
    for changed in ({"seed": 1}, {"lora": {"r": 8}}, {"max_length": 9}, {"soft_targets": {"teacher": "t"}}):
        assert identity(with_values(Config(), distill=changed)) != identity(Config()), changed
    assert identity(with_values(Config(), student={"quantization": "nf4"})) != identity(Config())
    assert set(NOT_TRAINED) < set(DistillConfig.model_fields)
    assert set(NOT_WEIGHED) < set(StudentConfig.model_fields)
