"""Training on a real tiny base: resumed exactly, stopped early, shared by two processes, logged."""

from __future__ import annotations

import math
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, LlamaConfig, LlamaForCausalLM

from potstill.config import Config, DistillConfig, StudentConfig
from potstill.distill.data import Rows
from potstill.distill.progress import Progress
from potstill.distill.resume import last_checkpoint, own_checkpoints, stop_early
from potstill.distill.sharding import WISH, wants_sharding
from potstill.distill.train import Job, default_learning_rate, train
from potstill.errors import MachineError
from potstill.student.base import load_base

SETTINGS: dict[str, Any] = {
    "lora": {"r": 4, "target_modules": "all-linear", "dropout": 0.1},
    "epochs": 4,
    "batch_size": 4,
    "learning_rate": 0.01,
    "checkpoint_steps": 4,
    "eval_steps": 3,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers with random weights."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=64, **shape)).save_pretrained(folder)
    return folder


def rows(count: int, seed: int = 0) -> Rows:
    """Rows in which each token follows from the one before, so that there is something to learn."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for length in torch.randint(6, 30, (count,), generator=generator).tolist():
        start = int(torch.randint(3, 60, (1,), generator=generator))
        ids = [3 + (start + 5 * place) % 60 for place in range(length)]
        made.append({"input_ids": ids, "labels": [-100, -100, *ids[2:]]})
    return Rows(made, 0, 0, 0, 0)


def job(folder: Path, validation: Rows | None = None, **settings: Any) -> Job:
    """A job of 22 rows, whose last batch is not full."""
    distill = DistillConfig.model_validate(SETTINGS | settings)
    held_out = rows(6, seed=9) if validation is None else validation
    return Job(distill, rows(22), held_out, folder / "checkpoints", folder / "adapter", "plan")


def weights(folder: Path) -> bytes:
    """The trained adapter's file."""
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def ignore(now: Progress) -> None:
    """Follow nothing."""


class CutError(Exception):
    """Stands for whatever ends a run in the middle."""


@pytest.mark.parametrize("step", [10, 20])
def test_interrupted_and_resumed_is_bit_for_bit_the_same(tmp_path: Path, base: Path, step: int) -> None:
    """A run that is cut off ends in the undisturbed run's bytes, dropout and validation included."""
    config = StudentConfig(base=str(base), device="cpu")
    log = train(config, job(tmp_path / "whole"), ignore)

    def cut(now: Progress) -> None:
        if now.step >= step:
            raise CutError

    with pytest.raises(CutError):
        train(config, job(tmp_path / "cut"), cut)
    assert last_checkpoint(tmp_path / "cut" / "checkpoints") is not None
    assert not (tmp_path / "cut" / "adapter").exists()
    resumed = train(config, job(tmp_path / "cut"), ignore)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    losses = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
    assert losses == [entry["eval_loss"] for entry in resumed if "eval_loss" in entry]
    learned = load_file(tmp_path / "whole" / "adapter" / "adapter_model.safetensors")
    assert max(float(each.abs().max()) for name, each in learned.items() if "lora_B" in name) > 1e-2


def test_a_trained_base_is_gone_when_the_next_one_is_loaded(tmp_path: Path, base: Path) -> None:
    """Loading a base frees the one that a finished Trainer still held: a card has no room for both."""
    config, held = StudentConfig(base=str(base), device="cpu"), []

    def load(settings: StudentConfig) -> Any:
        found = load_base(settings)
        held.append(weakref.ref(found))
        return found

    train(config, replace(job(tmp_path, epochs=1), load=load), ignore)
    load_base(config)
    assert held[0]() is None


def test_a_base_that_also_sees_is_trained_where_it_reads(tmp_path: Path) -> None:
    """Gemma 3's larger bases have a vision tower; adapters stand in the decoder alone, and learn."""
    text = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8,
    }  # fmt: skip
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**tower, "image_size": 28, "patch_size": 14}
    Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision)).save_pretrained(
        tmp_path / "base"
    )
    settings = {"lora": {"r": 4, "target_modules": "all-linear"}, "learning_rate": None, "epochs": 1}
    train(StudentConfig(base=str(tmp_path / "base"), device="cpu"), job(tmp_path, **settings), ignore)
    learned = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert all(".language_model.layers." in name for name in learned)
    assert min(float(each.abs().max()) for name, each in learned.items() if "lora_B" in name) > 1e-4


def test_early_stopping_keeps_the_best(tmp_path: Path, base: Path) -> None:
    """Validation that contradicts training stops the run early, and the adapter saved is that of the lowest loss."""
    reverse = Rows([{"input_ids": [3, *range(60, 4, -3)], "labels": [-100, *range(60, 4, -3)]}], 0, 0, 0, 0)
    settings = {"early_stopping": 2, "eval_steps": 1, "epochs": 30, "lora": {"r": 4, "target_modules": "all-linear"}}
    settings["checkpoint_steps"] = 1
    config = StudentConfig(base=str(base), device="cpu")
    log = train(config, job(tmp_path, reverse, **settings), ignore)
    losses = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
    assert len(losses) < 100
    assert losses[-3] == min(losses), "two evaluations after the best one it stopped"
    best = load_file(tmp_path / "checkpoints" / "best" / "adapter_model.safetensors")
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert best.keys() == saved.keys()
    assert all(torch.equal(best[name], saved[name]) for name in best)
    newest = Path(str(last_checkpoint(tmp_path / "checkpoints")))
    last = load_file(newest / "adapter_model.safetensors")
    assert not all(torch.equal(last[name], saved[name]) for name in last), "not the last weights, but the best ones"


def test_the_rate_rises_and_falls(tmp_path: Path, base: Path) -> None:
    """After a linear rise over the first tenth of the steps, the learning rate follows half a cosine down to 0."""
    settings = {"warmup_ratio": 0.1, "epochs": 10, "lora": {"r": 4, "target_modules": ["q_proj"]}, "eval_steps": None}
    log = train(StudentConfig(base=str(base), device="cpu"), job(tmp_path, **settings), ignore)
    rates = {entry["step"]: entry["learning_rate"] for entry in log if "learning_rate" in entry}
    assert set(rates) == {10, 20, 30, 40, 50, 60}
    for step, rate in rates.items():
        done = [(place - 6) / 54 for place in (step - 1, step)]  # logged before or after the step's own change
        expected = [0.01 * (1 + math.cos(math.pi * share)) / 2 for share in done]
        assert min(expected) - 1e-9 <= rate <= max(expected) + 1e-9


def test_the_default_rate_is_the_published_fit() -> None:
    """Figures that tinker-cookbook's fit gives: Llama 1B, 3B and 8B, Qwen 2.5 0.5B and 7B; a tiny base is held at 0.01."""
    known = {("llama", 2048): 4.9e-4, ("llama", 3072): 3.6e-4, ("llama", 4096): 2.9e-4}
    known |= {("qwen2", 896): 5.3e-4, ("qwen2", 3584): 4.8e-4}
    for (family, hidden), rate in known.items():
        assert default_learning_rate(hidden, family) == pytest.approx(rate, rel=0.02)
    assert default_learning_rate(8) == 0.01


@pytest.mark.parametrize("checkpoint_steps", [1, 5])
def test_a_run_that_stopped_early_is_not_gone_on_with(tmp_path: Path, base: Path, checkpoint_steps: int) -> None:
    """Cut off after that, in another role's training or before the manifest, the same command trains no step more."""
    reverse = Rows([{"input_ids": [3, *range(60, 4, -3)], "labels": [-100, *range(60, 4, -3)]}], 0, 0, 0, 0)
    settings = {"early_stopping": 2, "eval_steps": 1, "epochs": 30, "checkpoint_steps": checkpoint_steps}
    config = StudentConfig(base=str(base), device="cpu")
    logs = [train(config, job(tmp_path, reverse, **settings), ignore) for _ in range(2)]
    losses, again = ([entry["eval_loss"] for entry in log if "eval_loss" in entry] for log in logs)
    assert again == losses


@pytest.mark.parametrize(
    ("wish", "settings", "said"),
    [
        ("ACCELERATE_USE_DEEPSPEED", {}, "DeepSpeed"),
        (WISH, {"distill": {"compile": True}}, "distill.compile"),
        (WISH, {"student": {"quantization": "nf4"}}, "nf4"),
        (WISH, {"distill": {"soft_targets": {"teacher": "base", "on_policy": 0.5}}}, "on_policy"),
    ],
)
def test_what_cannot_be_sharded_is_refused(
    monkeypatch: pytest.MonkeyPatch, wish: str, settings: dict[str, Any], said: str
) -> None:
    """DeepSpeed, and FSDP with what it does not go with, end in code 7 and name it, before anything is loaded."""
    monkeypatch.setenv(wish, "true")
    with pytest.raises(MachineError, match=said):
        wants_sharding(Config.model_validate(settings))


def test_without_a_wish_nothing_is_sharded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the launcher says nothing, or no, each process holds the whole base."""
    monkeypatch.delenv(WISH, raising=False)
    assert not wants_sharding(Config())
    monkeypatch.setenv(WISH, "false")
    assert not wants_sharding(Config())


def test_without_a_group_no_build_of_torch_is_asked_for_fsdp() -> None:
    """One process alone trains also where torch carries no FSDP."""
    code = (
        "import sys\nsys.modules['torch.distributed.fsdp'] = None\nimport torch\n"
        "from potstill.distill.sharding import is_sharded\nprint(is_sharded(torch.nn.Linear(1, 1)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == ["False"]


def test_progress_and_tensorboard(tmp_path: Path, base: Path) -> None:
    """Progress carries tokens a second (no MFU on a CPU), and `report_to: tensorboard` leaves an event file."""
    told: list[Progress] = []
    config = StudentConfig(base=str(base), device="cpu")
    log = train(config, job(tmp_path, report_to=["tensorboard"], epochs=2), told.append)
    assert [now.step for now in told] == [10]
    assert told[0].tokens_per_s > 0
    assert told[0].mfu is None
    assert any("tokens_per_s" in entry for entry in log)
    assert list(tmp_path.rglob("events.out.tfevents*"))


def test_only_whole_checkpoints_of_this_plan_are_kept(tmp_path: Path) -> None:
    """A checkpoint without its last file, or with half of it, is removed; so is everything of another plan."""
    own_checkpoints(tmp_path / "c", "plan")
    for name, text in (("checkpoint-5", "{}"), ("checkpoint-10", '{"a": '), ("checkpoint-100", None)):
        (tmp_path / "c" / name).mkdir()
        if text is not None:
            (tmp_path / "c" / name / "trainer_state.json").write_text(text, encoding="utf-8")
    own_checkpoints(tmp_path / "c", "plan")
    assert last_checkpoint(tmp_path / "c") == str(tmp_path / "c" / "checkpoint-5")
    assert [path.name for path in (tmp_path / "c").glob("checkpoint-*")] == ["checkpoint-5"]
    own_checkpoints(tmp_path / "c", "another plan")
    assert last_checkpoint(tmp_path / "c") is None


@pytest.mark.parametrize(
    ("losses", "patience", "stops"),
    [([3.0, 2.0, 2.5, 2.0], 2, True), ([3.0, 2.0, 2.5, 1.9], 2, False), ([1.0, 2.0], 2, False), ([1.0, 2.0], 1, True)],
)
def test_stop_early(losses: list[float], patience: int, *, stops: bool) -> None:
    """It stops when none of the last evaluations was better than the best before them."""
    assert stop_early(losses, patience) is stops
