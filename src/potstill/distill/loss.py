"""The loss on the learned rows only, in one pass: no logits are kept, none are computed for prompt tokens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from potstill.distill.packing import Packed

CHUNK_ELEMENTS = 2**25
"""Logits held at once: 32 Mi, which in float32 is 128 MiB."""


@dataclass(frozen=True)
class Head:
    """A frozen output layer: `weight` (vocabulary, hidden), maybe `bias`, maybe Gemma 2's soft cap on the logits."""

    weight: Any
    bias: Any = None
    softcap: float | None = None

    def logits(self, hidden: Any) -> Any:
        """(rows, hidden) -> (rows, vocabulary), in float32."""
        import torch

        scores = torch.nn.functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias).float()
        return scores if self.softcap is None else self.softcap * torch.tanh(scores / self.softcap)


def head_of(model: Any) -> Head:
    """The output layer of a causal language model of transformers."""
    layer = model.get_output_embeddings()
    softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return Head(layer.weight, getattr(layer, "bias", None), softcap)


def token_loss(hidden: Any, head: Head, packed: Packed) -> Any:
    """Weighted sum over the learned tokens of -log p(token), in nats; differentiable in `hidden` (learned, hidden).

    Because the head is frozen, the gradient of the sum is known as soon as the logits are: it is made in the same pass
    and the logits are dropped, 4 * rows * hidden * vocabulary FLOP in place of 6 (compare arXiv 2410.10989, which
    does this in one kernel for a head that learns).
    """
    return _function().apply(hidden, head, packed.targets, packed.weights)


def chunk_rows(vocabulary: int) -> int:
    """Rows of logits that are made at once."""
    return max(1, CHUNK_ELEMENTS // vocabulary)


@cache
def _function() -> Any:
    """The autograd function; made at the first use, because torch is not loaded with this module."""
    import torch

    class OnePass(torch.autograd.Function):
        """Loss and gradient of a frozen head, chunk by chunk."""

        @staticmethod
        def forward(ctx: Any, hidden: Any, head: Head, targets: Any, weights: Any) -> Any:
            total = torch.zeros((), dtype=torch.float32, device=hidden.device)
            gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
            size = chunk_rows(head.weight.shape[0])
            for start in range(0, hidden.shape[0], size):
                part = slice(start, start + size)
                total += _chunk(hidden[part], head, targets[part], weights[part], gradient, start)
            ctx.save_for_backward(gradient)
            return total

        @staticmethod
        def backward(ctx: Any, *outer: Any) -> Any:
            (gradient,) = ctx.saved_tensors
            return gradient * outer[0].to(gradient.dtype), None, None, None

    return OnePass


def _chunk(hidden: Any, head: Head, targets: Any, weights: Any, gradient: Any, start: int) -> Any:
    """The loss of some rows; their gradient is written into `gradient` from row `start` on, where there is one."""
    scores = head.logits(hidden)
    bend = None if head.softcap is None else 1 - (scores / head.softcap) ** 2  # derivative of the cap
    norm = scores.logsumexp(dim=-1)
    chosen = scores.gather(1, targets[:, None])[:, 0]
    if gradient is not None:
        scores.sub_(norm[:, None]).exp_()
        scores.scatter_add_(1, targets[:, None], scores.new_full((len(targets), 1), -1.0))
        scores.mul_(weights[:, None])
        if bend is not None:
            scores.mul_(bend)
        gradient[start : start + len(targets)] = (scores.to(head.weight.dtype) @ head.weight).to(gradient.dtype)
    return ((norm - chosen) * weights).sum()
