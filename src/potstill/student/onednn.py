"""Linear layers with weights laid out for oneDNN: on a CPU without Intel's own kernels less than half the time.

torch's float32 linear on CPU calls MKL, which is slow on other makers' processors; oneDNN, which torch carries, takes
weights that were reordered once. In bfloat16 torch calls oneDNN by itself, but has the weights reordered at every call.
Measured in benchmarks/results/serve.md and benchmarks/results/train.md.
"""

from __future__ import annotations

from functools import cache
from typing import Any

MOST_BYTES = 4 * 2**30
"""Bases whose further copies of the weights would take more than this are left as they are."""
FEW_ROWS = 32
"""Up to here, where few rows are decoded together, a shape of its own is worth its kernel."""


class PackedLinear:
    """A frozen linear layer, by packed weights.

    With `backward`, gradients reach the layer's input, through a second copy of the weights, laid out for the way back.
    """

    def __init__(self, layer: Any, *, backward: bool = False) -> None:
        self._layer = layer
        self._bias = layer.bias  # asking a module for its parameters anew takes time in every step
        self._weight = _reordered(layer.weight.detach())
        self._turned = _reordered(layer.weight.detach().t().contiguous()) if backward else None

    def __call__(self, x: Any) -> Any:
        """(..., in) -> (..., out)."""
        import torch

        if x.requires_grad and torch.is_grad_enabled():
            return _function().apply(x, self)
        return self.ahead(x)

    def ahead(self, x: Any) -> Any:
        """The layer itself, outside of autograd."""
        return _multiply(x, self._weight, self._bias)

    def back(self, gradient: Any) -> Any:
        """The input's gradient, (..., in), from the output's, (..., out)."""
        return gradient @ self._layer.weight if self._turned is None else _multiply(gradient, self._turned, None)


def rounded(rows: int) -> int:
    """The next number of rows, at most a sixteenth more, for which oneDNN is asked.

    It keeps a kernel of 0.6 MB for each shape that it meets; few different shapes keep that small.
    """
    if rows <= FEW_ROWS:
        return rows
    grain = max(16, 1 << (rows.bit_length() - 5))
    return -(-rows // grain) * grain


def _multiply(x: Any, weight: Any, bias: Any) -> Any:
    """By a packed weight; rows are added up to a round number."""
    import torch

    multiply = torch.ops.mkldnn._linear_pointwise.default  # noqa: SLF001
    width = x.shape[-1]
    rows = x.numel() // width
    missing = rounded(rows) - rows
    if not missing:
        # The operation flattens by itself; where few rows are decoded, views of them are a part of the time.
        return multiply(x, weight, bias, "none", [], "")
    flat = torch.cat([x.reshape(rows, width), x.new_zeros((missing, width))])
    return multiply(flat, weight, bias, "none", [], "")[:rows].view(*x.shape[:-1], -1)


def pack(model: Any, *, backward: bool = False) -> bool:
    """Pack the linear layers of a model on the CPU; whether it was done. Weights that learn are left alone.

    float32, and bfloat16 on processors that compute in it; torch knows no such weights in float16.

    `backward`: gradients are to flow through the layers, to adapters below; then the frozen weights are packed twice.
    """
    import torch

    layers: list[Any] = [layer for layer in model.modules() if type(layer) is torch.nn.Linear]
    if backward:
        layers = [layer for layer in layers if not layer.weight.requires_grad]
    size = sum(layer.weight.numel() * layer.weight.element_size() for layer in layers) * (2 if backward else 1)
    weights = [layer.weight for layer in layers]
    plain = all(
        type(each) is torch.nn.Parameter and each.device.type == "cpu" and _takes(each.dtype) for each in weights
    )  # a share of sharded weights is no such parameter
    if not plain or size > MOST_BYTES or not _has_packing():
        return False
    for layer in layers:
        if not isinstance(layer.forward, PackedLinear):
            layer.forward = PackedLinear(layer, backward=backward)
    return True


def _reordered(weight: Any) -> Any:
    import torch

    return torch.ops.mkldnn._reorder_linear_weight(weight, None)  # noqa: SLF001


@cache
def _function() -> Any:
    """The autograd function; made at the first use, because torch is not loaded with this module."""
    import torch

    class ThroughFrozen(torch.autograd.Function):
        """Gradients for the input alone: nothing of the forward need be kept."""

        @staticmethod
        def forward(ctx: Any, x: Any, layer: PackedLinear) -> Any:
            ctx.layer = layer
            return layer.ahead(x)

        @staticmethod
        def backward(ctx: Any, *outer: Any) -> Any:
            return ctx.layer.back(outer[0]), None

    return ThroughFrozen


def _takes(dtype: Any) -> bool:
    """Whether oneDNN computes with such weights on this processor."""
    import torch

    in_bf16: Any = torch.ops.mkldnn._is_mkldnn_bf16_supported  # noqa: SLF001
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(in_bf16()))


def _has_packing() -> bool:
    """Whether this build of torch carries the two operations, which inductor uses for frozen models."""
    import torch

    wanted = ("_reorder_linear_weight", "_linear_pointwise")
    available: Any = torch.backends.mkldnn.is_available
    return available() and all(hasattr(torch.ops.mkldnn, name) for name in wanted)
