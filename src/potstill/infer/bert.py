"""A BERT encoder as an ONNX graph without weights, built from the model's config alone.

The graph names its weights as they are called in the model's safetensors file; who runs it hands them over from there.
So a model of 90 MB costs a file of 20 KB, made in a tenth of a second, and torch takes no part.
BERT: arXiv 1810.04805; the layout is the one of Hugging Face's BertModel and XLMRobertaModel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

OPSET = 20
"""The first one with Gelu."""
IR_VERSION = 9
KINDS = ("bert", "roberta", "xlm-roberta")
HEAD_AXES = {"query": [0, 2, 1, 3], "key": [0, 2, 3, 1], "value": [0, 2, 1, 3]}


def supported(config: dict[str, Any]) -> bool:
    """Whether a `config.json` describes an encoder that `graph` can build."""
    return (
        config.get("model_type") in KINDS
        and config.get("hidden_act") == "gelu"
        and config.get("position_embedding_type", "absolute") == "absolute"
    )


def first_position(config: dict[str, Any]) -> int:
    """The number of a text's first position: RoBERTa counts from behind its padding token."""
    return 0 if config["model_type"] == "bert" else int(config["pad_token_id"]) + 1


def graph(config: dict[str, Any], shapes: dict[str, Sequence[int]], about: dict[str, str]) -> bytes:
    """The serialised graph of a `config.json`; `shapes` are those of the weights; `about` becomes its metadata.

    Inputs: `ids` (batch, tokens) int64, `positions` (1, tokens) int64, `bias` (batch, 1, 1, tokens) float32, which is 0
    for a token and very negative for padding. Output: `hidden` (batch, tokens, hidden size) float32.
    """
    return _Builder(config, shapes).serialised(about)


class _Builder:
    """Collects nodes; a value is named after the place where it is made."""

    def __init__(self, config: dict[str, Any], shapes: dict[str, Sequence[int]]) -> None:
        import numpy as np
        import onnx

        self._onnx, self._np, self._config, self._shapes = onnx, np, config, shapes
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._used: dict[str, None] = {}
        heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
        self._constant("flat", np.array([-1, hidden], np.int64))
        self._constant("hidden_size", np.array([hidden], np.int64))
        self._constant("heads", np.array([heads, hidden // heads], np.int64))
        self._constant("scale", np.array((hidden // heads) ** -0.5, np.float32))
        self._constant("kind", np.array(0, np.int64))

    def serialised(self, about: dict[str, str]) -> bytes:
        helper, kinds = self._onnx.helper, self._onnx.TensorProto
        value = self._embedded()
        for number in range(int(self._config["num_hidden_layers"])):
            value = self._layer(value, f"encoder.layer.{number}.")
        self._node("Reshape", [value, "whole"], "hidden")
        inputs = [
            helper.make_tensor_value_info("ids", kinds.INT64, ["batch", "tokens"]),
            helper.make_tensor_value_info("positions", kinds.INT64, [1, "tokens"]),
            helper.make_tensor_value_info("bias", kinds.FLOAT, ["batch", 1, 1, "tokens"]),
        ]
        shape = ["batch", "tokens", int(self._config["hidden_size"])]
        outputs = [helper.make_tensor_value_info("hidden", kinds.FLOAT, shape)]
        weights = [self._elsewhere(name) for name in self._used]
        made = helper.make_graph(self._nodes, "encoder", inputs, outputs, initializer=[*self._constants, *weights])
        model = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        helper.set_model_props(model, about)
        return bytes(model.SerializeToString())

    def _embedded(self) -> str:
        """Word, position and kind embeddings, as (batch * tokens, hidden); also the shapes that the layers need."""
        self._node("Shape", ["ids"], "shape")
        self._node("Concat", ["shape", "hidden_size"], "whole", axis=0)
        self._node("Concat", ["shape", "heads"], "by_head", axis=0)
        names = (("word", "ids"), ("position", "positions"), ("token_type", "kind"))
        parts = [
            self._node("Gather", [self._weight(f"embeddings.{name}_embeddings.weight"), value], f"embedded_{name}")
            for name, value in names
        ]
        total = self._node("Add", parts[:2], "embedded_placed")
        total = self._node("Add", [total, parts[2]], "embedded_sum")
        return self._node("Reshape", [self._norm(total, "embeddings.LayerNorm"), "flat"], "embedded")

    def _layer(self, value: str, name: str) -> str:
        mixed = self._linear(self._attention(value, name), f"{name}attention.output.dense")
        mixed = self._node("Add", [mixed, value], f"{name}attended")
        mixed = self._norm(mixed, f"{name}attention.output.LayerNorm")
        inner = self._node("Gelu", [self._linear(mixed, f"{name}intermediate.dense")], f"{name}gelu")
        inner = self._node("Add", [self._linear(inner, f"{name}output.dense"), mixed], f"{name}added")
        return self._norm(inner, f"{name}output.LayerNorm")

    def _attention(self, value: str, name: str) -> str:
        query, key, values = (self._heads(value, name, which) for which in HEAD_AXES)
        scores = self._node("MatMul", [query, key], f"{name}products")
        scores = self._node("Mul", [scores, "scale"], f"{name}scaled")
        scores = self._node("Add", [scores, "bias"], f"{name}masked")
        shares = self._node("Softmax", [scores], f"{name}shares", axis=-1)
        mixed = self._node("MatMul", [shares, values], f"{name}mixed")
        mixed = self._node("Transpose", [mixed], f"{name}turned", perm=[0, 2, 1, 3])
        return self._node("Reshape", [mixed, "flat"], f"{name}joined")

    def _heads(self, value: str, name: str, which: str) -> str:
        made = self._linear(value, f"{name}attention.self.{which}")
        made = self._node("Reshape", [made, "by_head"], f"{name}{which}_split")
        return self._node("Transpose", [made], f"{name}{which}_heads", perm=HEAD_AXES[which])

    def _linear(self, value: str, name: str) -> str:
        weights = [self._weight(f"{name}.weight"), self._weight(f"{name}.bias")]
        return self._node("Gemm", [value, *weights], f"{name}.out", transB=1)

    def _norm(self, value: str, name: str) -> str:
        weights = [self._weight(f"{name}.weight"), self._weight(f"{name}.bias")]
        epsilon = float(self._config["layer_norm_eps"])
        return self._node("LayerNormalization", [value, *weights], f"{name}.out", epsilon=epsilon, axis=-1)

    def _node(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self._nodes.append(self._onnx.helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def _constant(self, name: str, value: Any) -> None:
        self._constants.append(self._onnx.numpy_helper.from_array(value, name))

    def _weight(self, name: str) -> str:
        self._used[name] = None
        return name

    def _elsewhere(self, name: str) -> Any:
        """A weight that the one who runs the graph brings."""
        tensor = self._onnx.TensorProto(
            name=name, data_type=self._onnx.TensorProto.FLOAT, dims=list(self._shapes[name])
        )
        tensor.data_location = self._onnx.TensorProto.EXTERNAL
        place = tensor.external_data.add()
        place.key, place.value = "location", "weights"
        return tensor
