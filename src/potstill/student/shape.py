"""The shape of a base from its `config.json` alone: a folder's, a known model's, or the hub's. No weights are read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from potstill.config import StudentConfig
from potstill.errors import InputError, MachineError
from potstill.files import read_text
from potstill.student.fit import KNOWN, Shape
from potstill.student.hub import one_look

NAMES = {
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp": "intermediate_size",
    "vocabulary": "vocab_size",
}


def read_shape(config: StudentConfig) -> Shape:
    """The base's shape; raises InputError for a config.json that lacks a number, MachineError for an unknown hub name."""
    folder = Path(config.base)
    if folder.is_dir():
        path = folder / "config.json"
        try:
            values = json.loads(read_text(path, "base config"))
        except json.JSONDecodeError as error:
            message = f"{path}:{error.lineno}: not valid JSON: {error.msg}"
            raise InputError(message) from error
        return shape_of(config.base, _with_defaults(values) if isinstance(values, dict) else {}, str(path))
    known = next((shape for shape in KNOWN if shape.name.lower() == config.base.lower()), None)
    return known or _from_hub(config)


def shape_of(name: str, values: Mapping[str, Any], origin: str) -> Shape:
    """The shape that a decoder's config.json describes; of one with several parts, that of its `text_config`."""
    inner = values.get("text_config")
    numbers = {**values, **inner} if isinstance(inner, dict) else values
    missing = [key for key in NAMES.values() if not isinstance(numbers.get(key), int) or numbers[key] < 1]
    if missing:
        message = f"{origin}: no usable {', '.join(missing)}, so its memory cannot be computed"
        raise InputError(message, hint="name a decoder-only model in Hugging Face format")
    found = {field: int(numbers[key]) for field, key in NAMES.items()}
    shape = Shape(
        name=name,
        **found,
        kv_heads=int(numbers.get("num_key_value_heads") or found["heads"]),
        head_dim=int(numbers.get("head_dim") or found["hidden"] // found["heads"]),
        tied=bool(numbers.get("tie_word_embeddings", False)),
        unused_parameters=_vision(values.get("vision_config")),
    )
    return replace(shape, further_normed=_further_normed(shape, str(numbers.get("model_type"))))


def _further_normed(shape: Shape, family: str) -> int:
    """Gemma norms attention's and the MLP's output too, and like Qwen 3 queries and keys."""
    heads = (shape.heads + shape.kv_heads) * shape.head_dim
    outputs = 2 * shape.hidden if family.startswith(("gemma2", "gemma3")) else 0
    return outputs + (heads if family.startswith(("gemma3", "qwen3", "olmo2")) else 0)


def _vision(values: Any) -> int:
    """Weights of a vision tower's linear layers; 0 where there is none."""
    if not isinstance(values, dict) or "num_hidden_layers" not in values:
        return 0
    width, mlp = int(values["hidden_size"]), int(values["intermediate_size"])
    return int(values["num_hidden_layers"]) * (4 * width * width + 2 * width * mlp)


def _with_defaults(values: dict[str, Any]) -> Mapping[str, Any]:
    """A config.json with what its family takes for granted, as Gemma does most numbers; as it is for an unknown family."""
    from transformers import AutoConfig

    try:
        found = AutoConfig.for_model(**values)
    except (KeyError, TypeError, ValueError):
        return values
    return dict(found.to_dict())


def _from_hub(config: StudentConfig) -> Shape:
    from transformers import AutoConfig

    try:
        with one_look(config.base):
            found = AutoConfig.from_pretrained(config.base, revision=config.revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        message = f"no config.json of {config.base!r}: {str(error).strip().splitlines()[0]}"
        known = ", ".join(shape.name for shape in KNOWN)
        raise MachineError(message, hint=f"name a folder, or one of {known}") from error
    return shape_of(config.base, found.to_dict(), config.base)
