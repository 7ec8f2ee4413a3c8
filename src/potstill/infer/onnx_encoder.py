"""A sentence encoder run by ONNX Runtime in float32: under half a CPU second from cold, where torch takes ten.

Reads a model folder as sentence-transformers lays it out. Its graph is made once (see `bert`) and kept beside the cache;
its weights are mapped from the model's own safetensors file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from potstill.errors import MachineError
from potstill.files import write_atomic
from potstill.infer import bert
from potstill.infer.encoder import cannot_read
from potstill.records import content_id

GRAPH_VERSION = 1
"""Raised where the graph of one config changes."""
BATCH = 16
"""Texts run together, of like length: a batch is padded to its longest."""
PADDING_BIAS = -1e9
QUIET = 3
"""ONNX Runtime's log level from which it speaks: errors."""
WEIGHT = re.compile(r"(?:^|\.)((?:embeddings|encoder\.layer\.\d+)\..*(?:weight|bias))$")
"""A weight that the graph uses, behind whatever the model's own prefix is."""
DTYPES = {"F32": "<f4", "F16": "<f2"}


class UnsupportedModelError(Exception):
    """The folder is no model that the graph builder knows; sentence-transformers may still run it."""


class OnnxEncoder:
    """Implements `encoder.Encoder` with mean or first-token pooling (Sentence-BERT, arXiv 1908.10084)."""

    def __init__(self, name: str, folder: Path, graphs: Path) -> None:
        """Load the model of a folder; its graph is kept in `graphs`.

        Raises UnsupportedModelError for another kind of model, MachineError where a package is missing.
        """
        try:
            # Its official builds report their use to their maker; only this, set before it is loaded, ends all of that.
            os.putenv("ORT_DISABLE_TELEMETRY", "1")
            import onnxruntime
            from tokenizers import Tokenizer
        except ImportError as error:
            message = "the semantic cache needs onnxruntime and tokenizers"
            raise MachineError(message, hint="pip install 'potstill[local]', or set cache.encoder: hashing") from error
        self._layout = _Layout(folder)
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()  # the file pads to 128 tokens, which costs five times the work of a short question
        self._tokenizer.no_truncation()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = QUIET
        options.intra_op_num_threads = 1  # a question takes milliseconds: a second thread costs more than it gains
        weights = self._layout.weights()
        made = [onnxruntime.OrtValue.ortvalue_from_numpy(weight) for weight in weights.values()]
        options.add_external_initializers(list(weights), made)
        graph = _graph(self._layout, graphs)
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        sha = self._session.get_modelmeta().custom_metadata_map["weights_sha"]
        self.dims = int(self._layout.config["hidden_size"])
        self.id = f"{Path(name).name}/{sha[:16]}/onnx-float32"

    def unreadable(self, text: str) -> str | None:
        """Too many unknown tokens, or a text longer than the model reads."""
        tokens = self._tokenizer.encode(text, add_special_tokens=False).ids
        unknown = self._tokenizer.token_to_id(self._layout.unknown_token)
        return cannot_read(len(tokens), sum(token == unknown for token in tokens), self._layout.max_tokens)

    def encode(self, texts: Sequence[str]) -> list[tuple[float, ...]]:
        """One unit vector for each text; longer texts than the model reads are cut."""
        tokens = [self._cut(self._tokenizer.encode(text).ids) for text in texts]
        order = sorted(range(len(texts)), key=lambda place: len(tokens[place]))
        vectors: list[tuple[float, ...]] = [()] * len(texts)
        for start in range(0, len(order), BATCH):
            places = order[start : start + BATCH]
            made = self._run([tokens[place] for place in places])
            for place, vector in zip(places, made, strict=True):
                vectors[place] = vector
        return vectors

    def _run(self, batch: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
        import numpy as np

        longest = max(len(tokens) for tokens in batch)
        ids = np.full((len(batch), longest), int(self._layout.config["pad_token_id"]), np.int64)
        mask = np.zeros((len(batch), longest), np.float32)
        for row, tokens in enumerate(batch):
            ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1.0
        first = bert.first_position(self._layout.config)
        positions = np.arange(first, first + longest, dtype=np.int64)[None]
        bias = ((1.0 - mask) * PADDING_BIAS).astype(np.float32)[:, None, None, :]
        hidden = self._session.run(None, {"ids": ids, "positions": positions, "bias": bias})[0]
        if self._layout.first_token:
            pooled = hidden[:, 0]
        else:
            pooled = (hidden * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
        pooled /= np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), 1e-12)
        return [tuple(row) for row in pooled.tolist()]

    def _cut(self, tokens: list[int]) -> list[int]:
        limit = self._layout.max_tokens
        return tokens if len(tokens) <= limit else [*tokens[: limit - 1], tokens[-1]]


class _Layout:
    """What a model folder says about the model. Raises UnsupportedModelError where it is of another kind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = self._json("config.json")
        self._weights_file = folder / "model.safetensors"
        if not bert.supported(self.config) or not self._weights_file.is_file():
            raise UnsupportedModelError(str(folder))
        self._refuse_further_modules()
        pooling = self._json("1_Pooling/config.json")
        self.first_token = bool(pooling.get("pooling_mode_cls_token"))
        if self.first_token == bool(pooling.get("pooling_mode_mean_tokens")):
            raise UnsupportedModelError(str(folder))
        limit = self._json("sentence_bert_config.json").get("max_seq_length") or self.config["max_position_embeddings"]
        self.max_tokens = int(limit)
        self.unknown_token = str(self._json("tokenizer_config.json").get("unk_token", "[UNK]"))

    @property
    def stamp(self) -> dict[str, Any]:
        """Changes when the folder's model does; costs no reading of the weights."""
        found = self._weights_file.stat()
        return {
            "graph": GRAPH_VERSION,
            "file": str(self._weights_file.resolve()),
            "size": found.st_size,
            "modified": found.st_mtime_ns,
            "config": self.config,
            "pooling": self.first_token,
            "tokenizer": hashlib.sha256((self.folder / "tokenizer.json").read_bytes()).hexdigest(),
        }

    def sha(self) -> str:
        """SHA-256 over config, tokenizer and all weights."""
        digest = hashlib.sha256(json.dumps([self.config, self.first_token, self.max_tokens]).encode())
        digest.update((self.folder / "tokenizer.json").read_bytes())
        with self._weights_file.open("rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
        return digest.hexdigest()

    def weights(self) -> dict[str, Any]:
        """The weights by name as float32 arrays, mapped from the file where it holds them so."""
        import numpy as np

        header, base = _header(self._weights_file)
        data = np.memmap(self._weights_file, dtype=np.uint8, mode="c")
        found: dict[str, Any] = {}
        for name, about in header.items():
            if (used := WEIGHT.search(name)) is None:
                continue
            if about["dtype"] not in DTYPES:
                raise UnsupportedModelError(str(self.folder))
            start, end = about["data_offsets"]
            weight = data[base + start : base + end].view(DTYPES[about["dtype"]]).reshape(about["shape"])
            found[used.group(1)] = np.ascontiguousarray(weight, dtype=np.float32)
        return found

    def _refuse_further_modules(self) -> None:
        path = self.folder / "modules.json"
        modules = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
        kinds = [str(module.get("type", "")).rsplit(".", 1)[-1] for module in modules]
        prompt = self._json("config_sentence_transformers.json").get("default_prompt_name")
        if prompt or kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
            raise UnsupportedModelError(str(self.folder))

    def _json(self, name: str) -> dict[str, Any]:
        try:
            found = json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The names, types and places of a safetensors file, and where its data begins."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header, 8 + length


def _graph(layout: _Layout, graphs: Path) -> bytes:
    """The model's graph, from its file, or made now and kept there."""
    name = content_id(layout.stamp).removeprefix("c1:")
    path = graphs / f"{name}.onnx"
    if path.is_file():
        return path.read_bytes()
    try:
        shapes = {name: weight.shape for name, weight in layout.weights().items()}
        made = bert.graph(layout.config, shapes, {"weights_sha": layout.sha()})
    except ImportError as error:
        message = "the first use of an encoder needs the package onnx"
        raise MachineError(message, hint="pip install 'potstill[local]', or set cache.encoder: hashing") from error
    except KeyError as error:
        raise UnsupportedModelError(str(layout.folder)) from error
    write_atomic(path, made)
    return made
