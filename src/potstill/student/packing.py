"""Linear layers with weights laid out for oneDNN: on a CPU without Intel's own kernels less than half the time.

torch's float32 linear on CPU calls MKL, which is slow on other makers' processors; oneDNN, which torch carries, takes
weights that were reordered once. Measured in docs/serve.md.
"""

from __future__ import annotations

from typing import Any

MOST_BYTES = 4 * 2**30
"""Bases with more weights than this are left as they are: the second copy of the weights would cost too much memory."""


class _Packed:
    """The forward of one layer: one row by the plain weights, which is as fast, several by the packed ones."""

    def __init__(self, layer: Any) -> None:
        import torch

        self._layer = layer
        self._weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), None)  # noqa: SLF001

    def __call__(self, x: Any) -> Any:
        import torch

        layer = self._layer
        if x.numel() == x.shape[-1]:
            return torch.nn.functional.linear(x, layer.weight, layer.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self._weight, layer.bias, "none", [], "")  # noqa: SLF001


def pack(model: Any) -> bool:
    """Pack the linear layers of a float32 model on the CPU; whether it was done. Not for models that are trained on."""
    import torch

    layers: list[Any] = [layer for layer in model.modules() if type(layer) is torch.nn.Linear]
    size = sum(layer.weight.numel() * layer.weight.element_size() for layer in layers)
    plain = all(layer.weight.device.type == "cpu" and layer.weight.dtype == torch.float32 for layer in layers)
    if not plain or size > MOST_BYTES or not _has_packing():
        return False
    for layer in layers:
        if not isinstance(layer.forward, _Packed):
            layer.forward = _Packed(layer)
    return True


def _has_packing() -> bool:
    """Whether this build of torch carries the two operations, which inductor uses for frozen models."""
    import torch

    wanted = ("_reorder_linear_weight", "_linear_pointwise")
    available: Any = torch.backends.mkldnn.is_available
    return available() and all(hasattr(torch.ops.mkldnn, name) for name in wanted)
