"""The loss on the learned rows only, in one pass: no logits are kept, none are computed for prompt tokens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from potstill.distill.packing import Packed
from potstill.student.fit import LOGITS_AT_ONCE, MIN_LOSS_ROWS
from potstill.student.onednn import PackedLinear

CHUNK_ELEMENTS = {"cuda": LOGITS_AT_ONCE, "cpu": 2**20}
"""Logits held at once; on a CPU 4 MiB of them, which its caches hold."""


@dataclass(frozen=True)
class Head:
    """A frozen output layer: `weight` (vocabulary, hidden), maybe `bias`, maybe Gemma 2's soft cap on the logits.

    `scale` is what Cohere and Granite multiply the logits by.
    `packed` is the same layer with its weights laid out anew, where that was done.
    """

    weight: Any
    bias: Any = None
    softcap: float | None = None
    scale: float = 1.0
    packed: PackedLinear | None = None

    def logits(self, hidden: Any) -> Any:
        """(rows, hidden) -> (rows, vocabulary), in float32."""
        import torch

        hidden = hidden.to(self.weight.dtype)
        linear = self.packed or partial(torch.nn.functional.linear, weight=self.weight, bias=self.bias)
        scores = linear(hidden).float()
        if self.scale != 1:
            scores = scores * self.scale
        return scores if self.softcap is None else self.softcap * torch.tanh(scores / self.softcap)

    def back(self, gradient: Any) -> Any:
        """The gradient of `hidden`, from that of the logits before their cap."""
        gradient = (gradient if self.scale == 1 else gradient * self.scale).to(self.weight.dtype)
        return gradient @ self.weight if self.packed is None else self.packed.back(gradient)

    @property
    def chunk_rows(self) -> int:
        """Rows of logits that are made at once."""
        elements = CHUNK_ELEMENTS.get(self.weight.device.type, CHUNK_ELEMENTS["cuda"])
        return max(MIN_LOSS_ROWS, elements // int(self.weight.shape[0]))


def head_of(model: Any) -> Head:
    """The output layer of a causal language model of transformers."""
    layer = model.get_output_embeddings()
    config = model.config.get_text_config()
    softcap = getattr(config, "final_logit_softcapping", None)
    scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
    packed = layer.forward if isinstance(layer.forward, PackedLinear) else None
    return Head(layer.weight, getattr(layer, "bias", None), softcap, scale, packed)


def token_loss(hidden: Any, head: Head, packed: Packed) -> Any:
    """Weighted sum, by `packed.hard`, over the learned tokens of -log p(token), in nats; differentiable in `hidden` (learned, hidden).

    Because the head is frozen, the gradient of the sum is known as soon as the logits are: it is made in the same pass
    and the logits are dropped, 4 * rows * hidden * vocabulary FLOP in place of 6 (compare arXiv 2410.10989, which
    does this in one kernel for a head that learns).
    """
    return _function().apply(hidden, head, packed.targets, packed.hard)


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
            size = head.chunk_rows
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
    chosen, top = scores.gather(1, targets[:, None]), scores.amax(dim=-1, keepdim=True)
    sums = scores.sub_(top).exp_().sum(dim=-1, keepdim=True)
    if gradient is not None:
        scores.mul_(weights[:, None] / sums)
        scores.scatter_add_(1, targets[:, None], -weights[:, None])
        if bend is not None:
            scores.mul_(bend)
        gradient[start : start + len(targets)] = head.back(scores).to(gradient.dtype)
    return ((top + sums.log() - chosen)[:, 0] * weights).sum()
