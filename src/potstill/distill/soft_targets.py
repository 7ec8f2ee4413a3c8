"""Soft targets: the student also learns how likely a local teacher finds every other token (Hinton, arXiv 1503.02531)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from potstill.config import SoftTargets, StudentConfig
from potstill.distill.engine import Objective, use_packing
from potstill.distill.loss import Head, head_of, token_loss
from potstill.distill.packing import Packed
from potstill.errors import InputError
from potstill.student.base import load_base, load_tokenizer
from potstill.student.onednn import pack as pack_weights


def check_teacher(student: StudentConfig, soft: SoftTargets) -> None:
    """Raise InputError where the local teacher has another vocabulary than the student."""
    if soft.teacher is None:
        return
    if load_tokenizer(_teacher(student, soft)).get_vocab() != load_tokenizer(student).get_vocab():
        message = f"distill.soft_targets.teacher: {soft.teacher} has another vocabulary than {student.base}"
        raise InputError(message, hint="choose a teacher of the same family, or leave soft targets out")


def soft_objective(student: StudentConfig, soft: SoftTargets) -> Callable[[Any], Objective]:
    """What is minimised, given the base: `(1 - weight) * cross-entropy + weight * T^2 * divergence`, a token.

    The teacher (`soft.teacher`, a Hugging Face model on the student's device; see `check_teacher`) reads the same packed
    row. Without gradients, for the validation loss, it is cross-entropy alone.
    """

    def make(base: Any) -> Objective:
        import torch

        teacher = load_base(_teacher(student, soft)).eval()
        use_packing(teacher)
        pack_weights(teacher)
        decoder, teacher_head, head = teacher.get_decoder(), head_of(teacher), head_of(base)

        def objective(hidden: Any, packed: Packed) -> Any:
            if not torch.is_grad_enabled():
                return token_loss(hidden, head, packed)
            with torch.no_grad():
                out = decoder(
                    input_ids=packed.input_ids, position_ids=packed.position_ids, use_cache=False, layout=packed.layout
                )
                known = out.last_hidden_state[0].index_select(0, packed.rows)
            hard = (1 - soft.weight) * token_loss(hidden, head, packed) if soft.weight < 1 else 0.0
            return hard + soft.weight * soft_loss((hidden, head), (known, teacher_head), packed.weights, soft)

        return objective

    return make


def soft_loss(
    student: tuple[Any, Head], teacher: tuple[Any, Head], weights: Any, soft: SoftTargets, at_once: int | None = None
) -> Any:
    """Weighted sum of `T^2 * divergence` over rows; each side is (hidden of shape (rows, its size), head).

    Logits exist for `at_once` rows at a time (None: `Head.chunk_rows`), and are made again in the
    backward pass.
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    (hidden, head), (known, teacher_head) = student, teacher
    size = at_once or head.chunk_rows

    def part_loss(rows: Any, known_rows: Any, part: Any) -> Any:
        left, right = teacher_head.logits(known_rows), head.logits(rows)
        width = min(left.shape[-1], right.shape[-1])  # heads of one family are padded to different widths
        found = divergence(left[:, :width] / soft.temperature, right[:, :width] / soft.temperature, soft.divergence)
        return soft.temperature**2 * (part * found).sum()

    total = torch.zeros((), device=hidden.device)
    for start in range(0, hidden.shape[0], size):
        part = slice(start, start + size)
        total = total + checkpoint(part_loss, hidden[part], known[part], weights[part], use_reentrant=False)
    return total


def divergence(teacher: Any, student: Any, kind: str) -> Any:
    """Divergence of two rows of logits, in nats: (rows, vocabulary) twice -> (rows,).

    `forward`: KL(teacher, student), covers all that the teacher may say (arXiv 1503.02531). `reverse`: KL(student,
    teacher), keeps to what the teacher is sure of (arXiv 2306.08543). `jsd`: half way (arXiv 2306.13649).
    """
    import torch

    left, right = torch.log_softmax(teacher, dim=-1), torch.log_softmax(student, dim=-1)
    if kind == "forward":
        return _kl(left, right)
    if kind == "reverse":
        return _kl(right, left)
    middle = torch.logaddexp(left, right) - torch.log(torch.tensor(2.0))
    return 0.5 * _kl(left, middle) + 0.5 * _kl(right, middle)


def _teacher(student: StudentConfig, soft: SoftTargets) -> StudentConfig:
    return student.model_copy(update={"base": soft.teacher, "revision": soft.revision})


def _kl(left: Any, right: Any) -> Any:
    return (left.exp() * (left - right)).sum(dim=-1)
