"""One contract for every encoder: hashing, MiniLM by ONNX Runtime, MiniLM by torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from potstill.errors import MachineError
from potstill.infer.encoder import Encoder, HashingEncoder, Vector
from potstill.infer.loading import load_encoder, model_folder
from potstill.infer.onnx_encoder import OnnxEncoder
from potstill.infer.sentence import SentenceEncoder

NAME = "all-MiniLM-L6-v2"
TEXTS = [
    "How much GPU memory do I need?",
    "a",
    "What is a LoRA adapter, and how is it trained? " * 6,
    "B\u00e9zier 8 GB!",
]


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the ONNX graphs are kept."""
    return tmp_path_factory.mktemp("graphs")


@pytest.fixture(scope="module")
def minilm(graphs: Path) -> Encoder:
    """The real MiniLM, from the package that carries it, run by ONNX Runtime."""
    return load_encoder(NAME, graphs)


@pytest.fixture(scope="module")
def by_torch() -> SentenceEncoder:
    """The same weights, run by sentence-transformers."""
    folder = model_folder(NAME)
    assert folder is not None
    return SentenceEncoder(NAME, folder)


@pytest.fixture(params=["hashing", "minilm", "by_torch"])
def encoder(request: pytest.FixtureRequest) -> Encoder:
    """The fake and the two real encoders."""
    return HashingEncoder() if request.param == "hashing" else request.getfixturevalue(request.param)


def cosine(one: Vector, other: Vector) -> float:
    """Dot product of unit vectors."""
    return sum(left * right for left, right in zip(one, other, strict=True))


def test_encoder_makes_unit_vectors(encoder: Encoder) -> None:
    """A vector has the stated dimensions and length one, and one text always has the same vector."""
    texts = ["What is a LoRA adapter?", "x", "How much memory?"]
    vectors = encoder.encode(texts)
    assert {len(vector) for vector in vectors} == {encoder.dims}
    assert [cosine(vector, vector) for vector in vectors] == pytest.approx([1.0] * 3, abs=1e-5)
    assert cosine(encoder.encode(texts[:1])[0], vectors[0]) == pytest.approx(1.0, abs=1e-5)


def test_encoder_puts_paraphrases_nearer(encoder: Encoder) -> None:
    """The same question in other words is nearer than another question."""
    one, same, other = encoder.encode(
        ["How much GPU memory do I need?", "How much GPU memory is needed?", "What is a good batch size?"]
    )
    assert cosine(one, same) > cosine(one, other)


def test_encoder_reads_english(encoder: Encoder) -> None:
    """English is readable, nothing is not."""
    assert encoder.unreadable("How much GPU memory do I need?") is None
    assert encoder.unreadable("  ") is not None


def test_hashing_id_is_stable_across_processes() -> None:
    """Hashing does not depend on the process: its vectors may be stored."""
    code = "from potstill.infer.encoder import HashingEncoder as E; print(E(8).encode(['abc'])[0])"
    outputs = {subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout for _ in range(2)}
    assert len(outputs) == 1


def test_minilm_knows_what_it_cannot_read(minilm: Encoder) -> None:
    """Chinese is mostly unknown tokens, and a long text would be cut: both are told."""
    assert "does not know" in str(minilm.unreadable("現在的顯示卡需要多少記憶體?"))
    assert "more than the 256" in str(minilm.unreadable("memory " * 300))


def test_both_engines_give_the_same_vectors(minilm: Encoder, by_torch: SentenceEncoder) -> None:
    """The graph built here computes what sentence-transformers computes, alone and padded in a batch."""
    for one, other in zip(minilm.encode(TEXTS), by_torch.encode(TEXTS), strict=True):
        assert one == pytest.approx(other, abs=2e-6)
    assert minilm.encode(TEXTS[:1])[0] == pytest.approx(minilm.encode(TEXTS)[0], abs=2e-6)
    assert minilm.unreadable(TEXTS[0]) is by_torch.unreadable(TEXTS[0]) is None


def test_two_engines_never_share_vectors(minilm: Encoder, by_torch: SentenceEncoder) -> None:
    """The id names model, weights, engine and precision, so vectors of two engines are never compared."""
    name, sha, precision = minilm.id.split("/")
    assert (name, len(sha), precision) == (NAME, 16, "onnx-float32")
    assert by_torch.id.endswith("/float32")


def test_minilm_loads_without_torch_and_without_network(graphs: Path, minilm: Encoder) -> None:
    """A warm start imports neither torch nor onnx, and opens no connection."""
    code = (
        "import socket, sys\nfrom pathlib import Path\n"
        "def refuse(*a, **k): raise SystemExit('network: ' + repr(a[1:]))\n"
        "socket.socket.connect = refuse; socket.getaddrinfo = refuse\n"
        "from potstill.infer.loading import load_encoder\n"
        f"print(load_encoder({NAME!r}, Path(sys.argv[1])).id)\n"
        "print([m for m in ('torch', 'transformers', 'onnx', 'sentence_transformers') if m in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", code, graphs], capture_output=True, text=True, check=False)
    assert result.stdout.splitlines() == [minilm.id, "[]"], result.stderr


def test_other_weights_have_another_id(tmp_path: Path, minilm: Encoder) -> None:
    """A model of the same name with one byte of its weights changed is another encoder, with another graph file."""
    folder = model_folder(NAME)
    assert folder is not None
    copied = shutil.copytree(folder, tmp_path / NAME)
    with (copied / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x3c")
    other = load_encoder(str(copied), tmp_path / "graphs")
    assert other.id.split("/")[0] == NAME
    assert other.id != minilm.id
    assert len(list((tmp_path / "graphs").iterdir())) == 1


def test_model_of_another_kind_goes_to_sentence_transformers(tmp_path: Path) -> None:
    """What the graph builder does not know is not guessed at: another activation leads to the other engine."""
    folder = model_folder(NAME)
    assert folder is not None
    copied = shutil.copytree(folder, tmp_path / "other")
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
    found = load_encoder(str(copied), tmp_path / "graphs")
    assert not isinstance(found, OnnxEncoder)
    assert found.id.endswith("/float32")


def test_unknown_folder_is_a_clear_error(tmp_path: Path) -> None:
    """A folder without a model is a MachineError that names it."""
    with pytest.raises(MachineError, match="cannot be loaded"):
        load_encoder(str(tmp_path), tmp_path)


@pytest.fixture(scope="module")
def multilingual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of the kind that multilingual encoders are (XLM-RoBERTa), with random weights."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import XLMRobertaConfig, XLMRobertaModel

    folder = tmp_path_factory.mktemp("multilingual")
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    words = {
        word: place
        for place, word in enumerate([*special, *["how", "much", "memory", "多", "少", "記", "憶", "體", "?"]])
    }
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = XLMRobertaConfig(vocab_size=len(words), max_position_embeddings=66, pad_token_id=1, **shape)
    XLMRobertaModel(config, add_pooling_layer=False).save_pretrained(folder)
    (folder / "1_Pooling").mkdir()
    kinds = ["Transformer", "Pooling", "Normalize"]
    files = {
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            "bos_token": "<s>",
            "eos_token": "</s>",
        },
        "sentence_bert_config.json": {"max_seq_length": 64, "do_lower_case": False},
        "1_Pooling/config.json": {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True},
        "modules.json": [
            {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for place, (kind, path) in enumerate(zip(kinds, ["", "1_Pooling", "2_Normalize"], strict=True))
        ],
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def test_multilingual_kind_gives_the_same_vectors(multilingual: Path, tmp_path: Path) -> None:
    """XLM-RoBERTa counts positions from behind its padding token: the graph does as sentence-transformers does."""
    found = load_encoder(str(multilingual), tmp_path)
    assert isinstance(found, OnnxEncoder)
    texts = ["how much memory ?", "多 少 記 憶 體 ?", "memory"]
    for one, other in zip(found.encode(texts), SentenceEncoder("x", multilingual).encode(texts), strict=True):
        assert one == pytest.approx(other, abs=2e-6)
    assert found.unreadable("多 少 記 憶 體 ?") is None
    assert "does not know" in str(found.unreadable("unheard of words"))


def test_encoder_reports_to_nobody(tmp_path: Path, graphs: Path) -> None:
    """ONNX Runtime's telemetry is off: it leaves neither a device id nor a file of events in the home folder."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom potstill.infer.loading import load_encoder\n"
        "load_encoder(sys.argv[1], Path(sys.argv[2])).encode(['hello'])"
    )
    env = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    homes = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", code, NAME, str(graphs)], env={**env, **homes}, check=True)
    assert not list(tmp_path.rglob("*onnxruntime*"))
