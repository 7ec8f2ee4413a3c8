"""A cross-encoder: reads two questions together and says how likely one answer serves both. Optional, by config.

It sees what two vectors cannot (Nogueira and Cho, arXiv 1901.04085), at the price of a forward pass for each candidate.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from potstill.errors import MachineError
from potstill.infer.loading import model_files
from potstill.infer.sentence import weights_sha


class CrossScorer:
    """A sentence-transformers CrossEncoder with one output, on the CPU."""

    def __init__(self, name: str) -> None:
        """Load a folder or a hub name; raises MachineError where it cannot be had or has another form."""
        hint = "a folder or a hub name of a CrossEncoder with one label; see cache.cross_encoder"
        try:
            from sentence_transformers import CrossEncoder
            from transformers.utils import logging as transformers_logging
        except ImportError as error:
            message = "cache.cross_encoder needs sentence-transformers"
            raise MachineError(message, hint="pip install 'potstill[local]'") from error
        transformers_logging.disable_progress_bar()
        folder = model_files(name)
        try:
            self._model = CrossEncoder(str(folder), device="cpu", local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError) as error:
            message = f"cross-encoder {name!r} cannot be loaded: {str(error).splitlines()[0]}"
            raise MachineError(message, hint=hint) from error
        if self._model.num_labels != 1:
            message = f"cross-encoder {name!r} has {self._model.num_labels} outputs, not one"
            raise MachineError(message, hint=hint)
        self.id = f"{Path(name).name}/{weights_sha(self._model)[:16]}"

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """The probability of each pair of questions, 0..1, not calibrated by itself. Blocking."""
        import torch

        probability = torch.nn.Sigmoid()  # by themselves some models give logits
        return [float(p) for p in self._model.predict(list(pairs), show_progress_bar=False, activation_fn=probability)]
