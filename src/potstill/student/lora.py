"""LoRA adapters (arXiv 2106.09685) of one base, side by side: each row of a batch uses the one of its role.

Every linear layer that any adapter touches holds all adapters' A and B in one matrix each. A batch multiplies by the
stretch of them that its rows use and blanks, row by row, what is not theirs (measured in docs/serve.md: faster than
PEFT's mixed batches, than gathering A and B for each row, and than switching adapters).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.errors import InputError

PREFIX = "base_model.model."
"""What PEFT puts before a layer's name in a saved adapter."""


@dataclass(frozen=True, eq=False)
class Adapter:
    """One adapter's matrices by layer name: A (rank, in) and B (rank, out), B scaled by alpha / rank.

    Two are the same only where they are one object.
    """

    layers: Mapping[str, tuple[Any, Any]]


def read_adapter(folder: Path) -> Adapter:
    """Read a plain LoRA adapter in PEFT's format; raises InputError for one that is missing or not plain."""
    from peft import PeftConfig
    from safetensors.torch import load_file

    try:
        config = PeftConfig.from_pretrained(str(folder))
        weights = load_file(folder / "adapter_model.safetensors")
    except (OSError, ValueError) as error:
        message = f"cannot read the adapter in {folder}: {str(error).splitlines()[0]}"
        raise InputError(message, hint="make it anew with `potstill distill`") from error
    odd = [name for name in ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern") if getattr(config, name)]
    if odd or config.bias != "none" or config.fan_in_fan_out:
        message = f"the adapter in {folder} is no plain LoRA ({', '.join(odd) or 'bias'})"
        raise InputError(message, hint="serve it with PEFT itself, or merge it into its base")
    scale = config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r)
    names = [name.removesuffix(".lora_A.weight") for name in weights if name.endswith(".lora_A.weight")]
    pairs = {
        name.removeprefix(PREFIX): (
            weights[f"{name}.lora_A.weight"],
            weights[f"{name}.lora_B.weight"].T.contiguous() * scale,
        )
        for name in names
    }
    return Adapter(pairs)


@dataclass
class _Choice:
    """Which adapters the rows of the next forward use: a stretch of ranks, and a mask where there are several."""

    ranks: slice
    mask: Any | None


class _Layer:
    """The hook of one linear layer: adds the rows' adapters to its output."""

    def __init__(self, bank: AdapterBank, a: Any, b: Any) -> None:
        self._bank = bank
        self._a = a
        self._b = b

    def __call__(self, _module: Any, inputs: tuple[Any, ...], output: Any) -> Any:
        choice = self._bank.choice
        if choice is None:
            return output
        x = inputs[0]
        hidden = x.to(self._a.dtype) @ self._a[choice.ranks].T
        if choice.mask is not None:
            hidden = hidden * choice.mask
        return output + (hidden @ self._b[choice.ranks]).to(output.dtype)


class AdapterBank:
    """The adapters that are loaded over one base. Belongs to the thread that runs the base."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._adapters: dict[int, Adapter] = {}
        self._places: dict[int, int] = {}
        self._rank = 0
        self._made = 0
        self._hooks: list[Any] = []
        self.choice: _Choice | None = None

    @property
    def numbers(self) -> set[int]:
        """The numbers of what is loaded."""
        return set(self._adapters)

    def load(self, adapter: Adapter) -> int:
        """Add an adapter and give its number; raises InputError where it does not fit the base."""
        for name, (a, b) in adapter.layers.items():
            try:
                layer = self._model.get_submodule(name)
            except AttributeError as error:
                message = f"the adapter changes {name}, which the base does not have"
                raise InputError(message, hint="it was trained on another base") from error
            if (a.shape[1], b.shape[1]) != (layer.in_features, layer.out_features):
                message = f"the adapter's {name} is {a.shape[1]} to {b.shape[1]}, which does not fit the base"
                raise InputError(message, hint="it was trained on another base")
        self._made += 1
        self._adapters[self._made] = adapter
        self._lay_out()
        return self._made

    def unload(self, number: int) -> None:
        """Forget an adapter; no row may be using it."""
        del self._adapters[number]
        self._lay_out()

    def select(self, rows: Sequence[int | None]) -> None:
        """Say which adapter each row of the next forward uses; None: the bare base."""
        import torch

        used = sorted({self._places[number] for number in rows if number is not None})
        if not used:
            self.choice = None
            return
        first, last = used[0], used[-1]
        ranks = slice(first * self._rank, (last + 1) * self._rank)
        if len(used) == 1 and None not in rows:
            self.choice = _Choice(ranks, None)
            return
        parameter = next(self._model.parameters())
        mask = torch.zeros(len(rows), last - first + 1, dtype=_compute_dtype(parameter))
        for row, number in enumerate(rows):
            if number is not None:
                mask[row, self._places[number] - first] = 1
        mask = mask.repeat_interleave(self._rank, dim=1)[:, None].to(parameter.device)
        self.choice = _Choice(ranks, mask)

    def _lay_out(self) -> None:
        """Put all adapters' matrices side by side, ranks padded with zeros to the largest."""
        import torch

        for hook in self._hooks:
            hook.remove()
        self.choice = None
        self._places = {number: place for place, number in enumerate(self._adapters)}
        shapes = [a.shape[0] for adapter in self._adapters.values() for a, _ in adapter.layers.values()]
        self._rank = max(shapes, default=0)
        parameter = next(self._model.parameters())
        options = {"dtype": _compute_dtype(parameter), "device": parameter.device}
        names = dict.fromkeys(name for adapter in self._adapters.values() for name in adapter.layers)
        self._hooks = []
        for name in names:
            layer = self._model.get_submodule(name)
            a = torch.zeros(len(self._adapters) * self._rank, layer.in_features, **options)
            b = torch.zeros(len(self._adapters) * self._rank, layer.out_features, **options)
            for number, adapter in self._adapters.items():
                if name in adapter.layers:
                    start = self._places[number] * self._rank
                    own_a, own_b = adapter.layers[name]
                    a[start : start + own_a.shape[0]] = own_a
                    b[start : start + own_b.shape[0]] = own_b
            self._hooks.append(layer.register_forward_hook(_Layer(self, a, b)))


def _compute_dtype(parameter: Any) -> Any:
    """The adapters' type: the base's, or bfloat16 over quantised weights."""
    import torch

    return parameter.dtype if parameter.dtype.is_floating_point else torch.bfloat16
