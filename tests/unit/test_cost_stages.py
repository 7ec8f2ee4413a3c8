"""What comes after generate: judging, training and a month of answers; and what a limit is held against."""

from __future__ import annotations

import json
import struct
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from potstill.config import Config, with_values
from potstill.cost.estimate import Assumptions
from potstill.cost.stages import Stage, held
from potstill.cost.training import base_parameters, place_of, training
from potstill.cost.whole import Options, price_all
from potstill.errors import InputError
from potstill.files import write_atomic
from potstill.pricing.compute import load_compute
from potstill.student.manifest import StudentManifest
from potstill.workspace import Workspace

DAY = date(2026, 11, 24)
COMPUTE = load_compute()


def config(**sections: dict[str, object]) -> Config:
    """A config on the shipped questions."""
    return with_values(Config(), **{"generate": {"prompts": ("faq-train.en.txt",)}, **sections})


def stage(name: str, found: Config, workspace: Path, **options: object) -> Stage:
    """One stage of a config."""
    given = Options(Assumptions(output_tokens=200), **options)  # type: ignore[arg-type]
    whole = price_all(found, Workspace(workspace), DAY, given)
    return next(item for item in whole.stages if item.name == name)


def test_hours_follow_from_operations_and_peak() -> None:
    """A billion weights and a million tokens are 6e15 operations: seven minutes of 22 % of a T4's peak, at its rent."""
    place = place_of("colab-t4", Decimal("0.18"), COMPUTE)
    found = config(
        student={"base": "someone/model-1B"},
        distill={"epochs": 1, "max_length": 1000},
        generate={"prompts": ("faq-train.en.txt",), "splits": {"validation": 0, "test": 0}},
    )
    trained = training(found, Workspace(Path("none")), 1000, 1000, place)
    assert trained is not None
    seconds = 6 * 1e9 * 1e6 / (65e12 * 0.22)
    assert trained.hours == pytest.approx(seconds / 3600)
    assert trained.worst_hours == pytest.approx(trained.hours * 2.2)
    assert float(trained.usd) == pytest.approx(trained.hours * 0.107)
    assert trained.kwh == pytest.approx(trained.hours * 0.07)


def test_an_own_card_costs_its_power_and_a_strange_one_is_refused() -> None:
    """An own 4090 at 450 W and $0.20 a kWh costs nine cents an hour; a machine without known speed is an error."""
    assert place_of("rtx 4090", Decimal("0.2"), COMPUTE).usd_per_hour == Decimal("0.09")
    with pytest.raises(InputError, match="speed"):
        place_of("colab-g4", Decimal("0.18"), COMPUTE)


@pytest.mark.parametrize(
    ("base", "parameters"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", 7_600_000_000),
        ("someone/tiny-350M-chat", 350_000_000),
        ("someone/model-1.5b", 1_500_000_000),
        ("someone/gpt", None),
    ],
)
def test_weights_by_name(base: str, parameters: int | None) -> None:
    """Known models by their shape, others by what their name says, and no guess where it says nothing."""
    found = base_parameters(base)
    assert found == (None if parameters is None else pytest.approx(parameters, rel=0.01))


def test_weights_by_file(tmp_path: Path) -> None:
    """A local base is counted exactly, by the header of its safetensors file; a broken one is named."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]}, "__metadata__": {"x": "y"}})
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(48))
    assert base_parameters(str(tmp_path)) == 12
    (tmp_path / "model.safetensors").write_bytes(b"nonsense that is no header at all")
    with pytest.raises(InputError, match=r"model\.safetensors"):
        base_parameters(str(tmp_path))


def test_a_student_that_was_trained_here_sets_the_pace(tmp_path: Path) -> None:
    """Sixty seconds for a hundred samples and three epochs: twice the samples are expected to take two minutes."""
    found = config(generate={"prompts": ("faq-train.en.txt",), "splits": {"validation": 0, "test": 0}})
    manifest = StudentManifest.model_construct(
        schema_version=1,
        name="student",
        base=found.student.base,
        revision=None,
        base_sha="x",
        template_sha="x",
        roles=(),
        adapters="shared",
        plan_id="x",
        dataset_sha={},
        config={"distill": {"epochs": 3}},
        versions={},
        samples=100,
        supervised_tokens=1,
        train_seconds=60.0,
        created_at=datetime(2026, 11, 24, tzinfo=UTC),
    )
    write_atomic(Workspace(tmp_path).student("student").manifest, manifest.model_dump_json())
    place = place_of("RTX 4090", Decimal("0.18"), COMPUTE)
    trained = training(found, Workspace(tmp_path), 500, 200, place)
    assert trained is not None
    assert trained.hours * 3600 == pytest.approx(120)
    assert "took here" in trained.basis


def test_a_judge_is_priced_and_capped_by_its_own_budget(tmp_path: Path) -> None:
    """Judging everything costs more than half of it; the student's judge never more than distill.judge.max_usd."""
    some, everything = (
        stage("judge", config(), tmp_path, judge_share=Decimal(share)).expected_usd for share in ("0.5", "1")
    )
    assert 0 < some < everything
    judged = stage("judge the student", config(distill={"judge": {"max_usd": "0.01"}}), tmp_path)
    assert 0 < judged.expected_usd <= judged.worst_usd == Decimal("0.01")


def test_a_month_of_answers_is_bounded_by_all_of_them_going_to_gemini(tmp_path: Path) -> None:
    """Twice the queries, twice the month; the worst case is every query trying the student and then Gemini."""
    once, twice = (stage("infer, a month", config(), tmp_path, queries_a_day=n) for n in (500, 1000))
    assert twice.expected_usd == 2 * once.expected_usd
    assert once.expected_usd < once.worst_usd
    assert once.monthly


def test_a_limit_is_held_against_what_gemini_is_paid_once() -> None:
    """Rent, power and months do not count; without history the high figure is the ceiling."""

    def made(name: str, high: str | None, paid_to: str = "gemini", *, monthly: bool = False) -> Stage:
        usd = None if high is None else Decimal(high)
        return Stage(name, Decimal(1), None, usd, Decimal(5), "", paid_to, monthly)

    found = (
        made("generate", "2"),
        made("judge", None),
        made("distill", None, "machine"),
        made("infer", None, monthly=True),
    )
    assert [held(found, figure) for figure in ("expected", "high", "worst")] == [2, 7, 10]


@pytest.mark.parametrize(
    ("device", "card"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("Tesla V100-SXM2-16GB", "V100"),
        ("NVIDIA L40", None),
        ("NVIDIA RTX 40000", None),
    ],
)
def test_a_card_is_known_by_its_driver_s_name(device: str, card: str | None) -> None:
    """Speed and power come from one table, by whole words: an L40 is no L4, an H100 PCIe no H100."""
    found = COMPUTE.card_in(device)
    assert (None if found is None else found.name) == card
