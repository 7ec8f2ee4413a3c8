"""On-policy distillation on small real models: what the student writes, that a cut run goes on alike, and what it brings."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tests.unit.test_soft_targets import TRAINING, VOCABULARY, ignore, sampled, save_model
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, HeliumConfig, HeliumForCausalLM, LlamaForCausalLM

from potstill.config import DistillConfig, SoftTargets, StudentConfig
from potstill.distill.engine import use_packing
from potstill.distill.on_policy import answer_start, student_writes
from potstill.distill.packing import Document, pack
from potstill.distill.progress import Progress
from potstill.distill.soft_targets import soft_objective
from potstill.distill.train import Job, lora_model, train
from potstill.errors import InputError
from potstill.student.slots import fits_slots


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> StudentConfig:
    """A student with random weights."""
    return StudentConfig(base=str(save_model(tmp_path_factory.mktemp("student"), 0, scale=6.0)), device="cpu")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher whose next token is far from certain, but far from even too."""
    return save_model(tmp_path_factory.mktemp("teacher"), 1, scale=15.0)


def on_policy(folder: Path, student: StudentConfig, teacher: Path, share: float, **more: Any) -> Job:
    """A job over 24 texts of the teacher, of which the student rewrites a share in each step."""
    soft = {"teacher": str(teacher), "temperature": 1.0, "weight": 1.0, "divergence": "reverse"}
    settings = {**TRAINING, **more, "soft_targets": {**soft, "on_policy": share, "max_new_tokens": 16}}
    distill = DistillConfig.model_validate(settings)
    rows = sampled(teacher, 24, seed=3), sampled(teacher, 8, seed=4)
    objective = soft_objective(student, distill.soft_targets)
    refresh = student_writes(student, distill) if share else None
    return Job(distill, *rows, folder / "checkpoints", folder / "adapter", "plan", objective, refresh=refresh)


def other_base(family: str) -> Any:
    """Random weights: Gemma 3, whose layers look back three tokens and at everything in turn, or Helium, not for slots."""
    torch.manual_seed(0)
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "initializer_range": 0.5,
    }
    if family == "helium":
        return HeliumForCausalLM(HeliumConfig(**shape))
    kinds = ["sliding_attention", "full_attention"]
    return Gemma3ForCausalLM(Gemma3TextConfig(**shape, sliding_window=4, layer_types=kinds))


@pytest.mark.parametrize("family", ["llama", "gemma", "helium"])
def test_the_student_writes_only_answers(student: StudentConfig, family: str) -> None:
    """A document keeps prompt and weight; its answer ends at a stop or the limit, and the same numbers give the same.

    So it is where layers have windows, and where the base does not fit slots and is decoded in static batches.
    """
    llama = family == "llama"
    base = LlamaForCausalLM.from_pretrained(student.base, attn_implementation="sdpa") if llama else other_base(family)
    assert fits_slots(base) is (family != "helium")
    use_packing(base)
    model = lora_model(base, DistillConfig())
    soft = {"teacher": student.base, "on_policy": 1.0, "max_new_tokens": 30}
    refresh = student_writes(student, DistillConfig.model_validate({"soft_targets": soft, "max_length": 34}))(model)
    documents = [Document((5, 6, 7, 8, 9), (-100, -100, 7, 8, 9), 0.5), Document((4, 9), (-100, 9))] * 8
    torch.manual_seed(0)
    found = refresh(documents)
    for old, new in zip(documents, found, strict=True):
        start = answer_start(old)
        answer = new.ids[start:]
        assert new.ids[:start] == old.ids[:start]
        assert new.labels == (-100,) * start + answer
        assert (new.sampled, new.weight) == (True, old.weight)
        assert len(answer) <= 31, "the limit, and a stop token"
        assert len(new.ids) <= 35
        assert 1 not in answer[:-1], "nothing after the stop token"
    assert len({new.ids for new in found}) > 8
    assert model.training
    torch.manual_seed(0)
    assert refresh(documents) == found
    packed = pack([documents[0], found[0]], "cpu")
    assert float(packed.hard.sum()) == 0.5 * 3, "its own tokens are not learned as right"


def test_the_last_answer_is_rewritten() -> None:
    """Of a chat with two answers, the prompt reaches up to the second one."""
    assert answer_start(Document(tuple(range(3, 10)), (-100, 4, 5, -100, -100, 8, 9))) == 5
    assert answer_start(Document((3, 4, 5), (3, 4, 5))) == 1, "at least one token to begin with"


def test_a_cut_run_goes_on_with_the_same_answers(tmp_path: Path, student: StudentConfig, teacher: Path) -> None:
    """Interrupted and resumed, a run in which the student writes ends in the undisturbed run's bytes."""
    more = {"epochs": 5, "checkpoint_steps": 4}
    train(student, on_policy(tmp_path / "whole", student, teacher, 0.5, **more), ignore)

    def cut(now: Progress) -> None:
        if now.step >= 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(student, on_policy(tmp_path / "cut", student, teacher, 0.5, **more), cut)
    train(student, on_policy(tmp_path / "cut", student, teacher, 0.5, **more), ignore)
    left, right = (
        (tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes() for name in ("whole", "cut")
    )
    assert left == right


def test_what_it_writes_comes_closer_to_its_teacher(tmp_path: Path, student: StudentConfig, teacher: Path) -> None:
    """After learning from its own texts too, what the student writes is likelier to the teacher than without."""
    losses = {}
    for share in (0.0, 1.0):
        train(student, on_policy(tmp_path / str(share), student, teacher, share), ignore)
        losses[share] = surprise(student, tmp_path / str(share) / "adapter", teacher)
    assert losses[1.0] < losses[0.0], losses


def surprise(student: StudentConfig, adapter: Path, teacher: Path) -> float:
    """Nats a token that the teacher gives to 256 texts which the student samples."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers for a property by its former name
        model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(student.base), str(adapter)).eval()
    judge = LlamaForCausalLM.from_pretrained(teacher).eval()
    torch.manual_seed(5)
    ids = torch.randint(3, VOCABULARY, (256, 1))
    with torch.no_grad():
        for _ in range(16):
            ids = torch.cat([ids, torch.multinomial(torch.softmax(model(input_ids=ids).logits[:, -1], -1), 1)], dim=-1)
        logits = judge(input_ids=ids).logits[:, :-1]
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))


def test_plan_and_dry_run_say_what_the_local_teacher_does(
    student: StudentConfig, teacher: Path, tmp_path: Path
) -> None:
    """`--plan` takes the local teacher's weights off the card's memory; `--dry-run` says who writes and who scores.

    A teacher of another vocabulary is refused there already.
    """
    from tests.unit.test_dataset_reading import line, write
    from typer.testing import CliRunner

    from potstill.cli.app import app
    from potstill.workspace import Workspace

    write(Workspace(tmp_path), train=line("one", "a question"), test=line("held", "a fair thing"))
    keys = (
        f"student.base={student.base}",
        f"distill.soft_targets.teacher={teacher}",
        "distill.soft_targets.on_policy=0.5",
    )
    command = ["distill", "-w", str(tmp_path), *(part for key in keys for part in ("--set", key))]
    planned = CliRunner().invoke(app, [*command, "--plan", "--memory-gib", "8", "--json"])
    assert planned.exit_code == 0, planned.output
    document = json.loads(planned.stdout)
    assert document["local_teacher_bytes"] > 2 * VOCABULARY * 32
    assert document["free_bytes"] == 8 * 2**30 - document["local_teacher_bytes"]
    shown = CliRunner().invoke(app, [*command, "--dry-run"])
    assert shown.exit_code == 0, shown.output
    other = save_model(tmp_path / "other", 2, vocabulary=VOCABULARY + 4)
    refused = CliRunner().invoke(app, [*command, "--set", f"distill.soft_targets.teacher={other}", "--dry-run"])
    assert isinstance(refused.exception, InputError)
    assert f"by the local teacher {teacher} on these answers, of them 50% written by the student" in shown.stdout


def test_on_policy_needs_a_teacher() -> None:
    """Without a local teacher nobody could score what the student writes: an error of the config."""
    with pytest.raises(ValueError, match=r"on_policy needs soft_targets\.teacher"):
        SoftTargets(on_policy=0.5)
