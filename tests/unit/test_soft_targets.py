"""Soft targets on small real models: the divergences, the chunked loss, and that they beat hard targets alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from potstill.config import DistillConfig, SoftTargets, StudentConfig
from potstill.distill.data import Rows
from potstill.distill.engine import cross_entropy
from potstill.distill.loss import Head
from potstill.distill.packing import Document, pack
from potstill.distill.progress import Progress
from potstill.distill.soft_targets import check_teacher, divergence, soft_loss, soft_objective
from potstill.distill.train import Job, train
from potstill.errors import InputError
from potstill.student.base import load_base

VOCABULARY = 48
TRAINING: dict[str, Any] = {
    "lora": {"r": 16, "alpha": 64, "target_modules": "all-linear"},
    "epochs": 12,
    "batch_size": 8,
    "learning_rate": 0.01,
}


def save_model(folder: Path, seed: int, vocabulary: int = VOCABULARY, scale: float = 1.0) -> Path:
    """A Llama with random weights and a tokenizer of words; `scale` makes the distributions sharper."""
    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **shape))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
    model.save_pretrained(folder)
    words = {f"w{number}": number for number in range(vocabulary)}
    raw = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="w0", eos_token="w1", pad_token="w2")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {{ eos_token }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> StudentConfig:
    """A student with random weights."""
    return StudentConfig(base=str(save_model(tmp_path_factory.mktemp("student"), 0, scale=6.0)), device="cpu")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher whose next token is far from certain, but far from even too."""
    return save_model(tmp_path_factory.mktemp("teacher"), 1, scale=15.0)


def sampled(folder: Path, count: int, seed: int) -> Rows:
    """Texts that the teacher itself says, at temperature 1."""
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (count, 1), generator=generator)
    with torch.no_grad():
        for _ in range(16):
            chances = torch.softmax(model(input_ids=ids).logits[:, -1], dim=-1)
            ids = torch.cat([ids, torch.multinomial(chances, 1, generator=generator)], dim=-1)
    rows: list[Any] = [{"input_ids": row, "labels": [-100, *row[1:]]} for row in ids.tolist()]
    return Rows(rows, 0, 0, 0, 0)


@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
def test_divergence_is_zero_only_for_equals(kind: str) -> None:
    """A divergence is 0 between equal rows and positive else; only Jensen-Shannon is the same both ways."""
    left, right = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0)).unbind()
    assert torch.allclose(divergence(left, left, kind), torch.zeros(5), atol=1e-6)
    found, turned = divergence(left, right, kind), divergence(right, left, kind)
    assert bool((found > 1e-3).all())
    assert torch.allclose(found, turned, atol=1e-6) is (kind == "jsd")


def test_forward_and_reverse_are_kl() -> None:
    """Forward is torch's KL divergence from teacher to student, and reverse the other way."""
    left, right = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(1)).unbind()
    logs = torch.log_softmax(left, -1), torch.log_softmax(right, -1)
    kl = torch.nn.functional.kl_div
    assert torch.allclose(
        divergence(left, right, "forward"), kl(logs[1], logs[0], log_target=True, reduction="none").sum(-1)
    )
    assert torch.allclose(
        divergence(left, right, "reverse"), kl(logs[0], logs[1], log_target=True, reduction="none").sum(-1)
    )


def test_chunks_change_nothing() -> None:
    """Loss and gradient are the same in chunks of 4 rows as in one, for heads that are padded to different widths."""
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(13, 8, generator=generator, requires_grad=True)
    heads = Head(torch.randn(20, 8, generator=generator)), Head(torch.randn(24, 6, generator=generator))
    known, weights = torch.randn(13, 6, generator=generator), torch.rand(13, generator=generator)
    results = []
    for rows in (100, 4):
        loss = soft_loss((hidden, heads[0]), (known, heads[1]), weights, SoftTargets(), rows)
        results.append((loss.detach(), *torch.autograd.grad(loss, hidden)))
    for left, right in zip(*results, strict=True):
        assert torch.allclose(left, right, atol=1e-5)


@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
def test_soft_loss_is_the_papers_formula(kind: str) -> None:
    """T^2 times the divergence of the distributions at temperature T, weighted and summed, as written out by hand."""
    generator = torch.Generator().manual_seed(3)
    hidden, known = torch.randn(2, 5, 8, generator=generator).unbind()
    heads = [Head(torch.randn(11, 8, generator=generator)) for _ in range(2)]
    weights, temperature = torch.rand(5, generator=generator), 2.5
    soft = SoftTargets.model_validate({"temperature": temperature, "divergence": kind})
    found = soft_loss((hidden, heads[0]), (known, heads[1]), weights, soft)
    student, teacher = (
        torch.softmax((rows @ head.weight.T).double() / temperature, dim=-1)
        for rows, head in zip((hidden, known), heads, strict=True)
    )
    middle = (teacher + student) / 2
    terms = {
        "forward": teacher * (teacher / student).log(),
        "reverse": student * (student / teacher).log(),
        "jsd": 0.5 * teacher * (teacher / middle).log() + 0.5 * student * (student / middle).log(),
    }
    expected = temperature**2 * (weights * terms[kind].sum(-1)).sum()
    assert abs(float(found) - float(expected)) < 1e-4 * float(expected)


def test_the_objective_mixes_both_losses(student: StudentConfig, teacher: Path) -> None:
    """(1 - weight) of cross-entropy and `weight` of the soft loss; of a text that the student wrote, the soft one alone."""
    soft = SoftTargets.model_validate({"teacher": str(teacher), "temperature": 2.0, "weight": 0.3})
    base = load_base(student)
    objective = soft_objective(student, soft)(base)
    ids = (5, 9, 14, 7, 33)
    row = torch.tensor([ids])
    known = LlamaForCausalLM.from_pretrained(teacher).eval()
    with torch.no_grad():
        hidden = base.get_decoder()(input_ids=row).last_hidden_state[0, :-1]
        target, wanted = base(input_ids=row).logits[0, :-1], known(input_ids=row).logits[0, :-1]
    hard = float(torch.nn.functional.cross_entropy(target, row[0, 1:], reduction="sum"))
    mild = 4 * float(divergence(wanted / 2, target / 2, "forward").sum())
    for said in (False, True):
        packed = pack([Document(ids, (-100, *ids[1:]), weight=2.0, sampled=said)], torch.device("cpu"))
        expected = 2 * (0.3 * mild + (0.0 if said else 0.7 * hard))
        assert float(objective(hidden, packed)) == pytest.approx(expected, rel=1e-4)
    packed = pack([Document(ids, (-100, *ids[1:]))], torch.device("cpu"))
    with torch.no_grad():
        assert float(objective(hidden, packed)) == pytest.approx(hard, rel=1e-4)


def test_another_vocabulary_is_refused(tmp_path: Path, student: StudentConfig) -> None:
    """A teacher with other tokens is an input error before anything is trained."""
    other = save_model(tmp_path, 2, vocabulary=VOCABULARY + 4)
    with pytest.raises(InputError, match="another vocabulary"):
        check_teacher(student, SoftTargets(teacher=str(other)))


@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
def test_soft_targets_beat_hard_ones_on_held_out_text(
    tmp_path: Path, student: StudentConfig, teacher: Path, kind: str
) -> None:
    """On 24 sampled texts, the student that also sees the teacher's probabilities predicts new texts better."""
    soft = SoftTargets.model_validate({"teacher": str(teacher), "temperature": 1.0, "weight": 1.0, "divergence": kind})
    distill = DistillConfig.model_validate(TRAINING)
    rows = sampled(teacher, 24, seed=3), sampled(teacher, 64, seed=4)
    losses = {}
    for name, objective in (("hard", cross_entropy), ("soft", soft_objective(student, soft))):
        folder = tmp_path / name
        log = train(student, Job(distill, *rows, folder / "c", folder / "a", "plan", objective), ignore)
        losses[name] = [entry["eval_loss"] for entry in log if "eval_loss" in entry][-1]
    assert losses["soft"] < losses["hard"], losses


def ignore(now: Progress) -> None:
    """Follow nothing."""
