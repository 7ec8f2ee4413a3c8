"""How fast training goes: tokens a second, and how much of the card that is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from potstill.pricing.compute import load_compute


@dataclass(frozen=True)
class Progress:
    """Where training stands. `mfu` is model FLOP over the card's peak (arXiv 2204.02311); None on a CPU."""

    step: int
    steps: int
    loss: float
    tokens_per_s: float
    mfu: float | None = None


Follow = Callable[[Progress], None]


class Meter:
    """Tokens a second since the last reading, evaluations and checkpoints included."""

    def __init__(self, parameters: int, peak: float | None) -> None:
        self._flop_per_token = 4.0 * parameters
        self._peak = peak
        self._at = time.monotonic()
        self._tokens = 0

    def read(self, tokens_seen: int) -> tuple[float, float | None]:
        """Tokens a second and MFU. LoRA costs 4 FLOP a weight and token: forward, and backward without weights' own."""
        now = time.monotonic()
        rate = (tokens_seen - self._tokens) / max(now - self._at, 1e-9)
        self._at, self._tokens = now, tokens_seen
        return rate, None if self._peak is None else rate * self._flop_per_token / self._peak


def peak_flops(device: Any) -> float | None:
    """FLOP/s of a card in 16 bits by its data sheet; None on a CPU or for a card that is not known."""
    import torch

    if device.type != "cuda":
        return None
    card = load_compute().card_in(torch.cuda.get_device_name(device))
    return None if card is None else float(card.tflops) * 1e12
