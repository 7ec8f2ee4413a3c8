"""Exports: merged weights that old readers understand too, and a Modelfile that renders what was trained on."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader, TokenType
from safetensors.torch import load_file
from tests.unit.test_template import TEMPLATES, chat, make_tokenizer
from tests.unit.test_verdict import sample
from tokenizers import Regex, pre_tokenizers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from potstill.config import ServeConfig, StudentConfig
from potstill.distill.export import export
from potstill.distill.gguf_file import SPLITS, refusal
from potstill.distill.modelfile import modelfile, template
from potstill.errors import InputError, QualityGateError
from potstill.records import Message
from potstill.serve.exported import export_commands
from potstill.student.base import base_sha, load_base
from potstill.student.manifest import StudentManifest, StudentRole
from potstill.student.template import render, stop_ids
from potstill.workspace import StudentFiles

ROPE = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
LLAMA_3, QWEN_2 = (next(rule for rule, name in SPLITS.items() if name == wanted) for wanted in ("llama-bpe", "qwen2"))


SENTENCEPIECE = "sentencepiece"
PIECES = (
    "he",
    "at",
    "an",
    "in",
    "heat",
    "\u2581w",
    "hy",
    "\u2581why",
    "\u2581he",
    "\u2581heat",
    "us",
    "use",
    "ca",
    "cause",
    "be",
    "because",
)
GEMMA_3 = {
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
    },
    "num_hidden_layers": 6, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8,
}  # fmt: skip


def sentencepiece_like(missing: int = 0) -> PreTrainedTokenizerFast:
    """A tokenizer of Gemma 3's kind: bytes for what is unknown, and as merges all pairs that make a piece, or all but some."""
    control = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    letters = sorted(set("".join(PIECES)) | set("abcdefghijklmnopqrstuvwxyz.?\n"))
    words = [*control, *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581\u2581", *letters, *PIECES]
    vocabulary = {word: number for number, word in enumerate(words)}
    merges = [
        (piece[:place], piece[place:])
        for piece in PIECES
        for place in range(1, len(piece))
        if piece[:place] in vocabulary and piece[place:] in vocabulary
    ]
    made = GemmaTokenizer(vocabulary, merges[missing:], mask_token=None)
    made.add_special_tokens({"additional_special_tokens": control[4:]})
    made.add_tokens(["\u2581\u2581"])
    made.chat_template = make_tokenizer("gemma3").chat_template
    return made


def make_student(folder: Path, family: str, template: str, cut: str, **shape: Any) -> StudentFiles:
    """A student on a two-layer 16-bit base, its adapter with random weights; `cut` is how its tokenizer cuts text."""
    import transformers
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    tokenizer = sentencepiece_like() if cut == SENTENCEPIECE else make_tokenizer(template)
    if cut != SENTENCEPIECE:
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        rule = pre_tokenizers.Split(Regex(cut), "isolated")
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([rule, level])
    tokenizer.save_pretrained(folder / "base")
    sizes = {
        "vocab_size": len(tokenizer) + 6, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048, "initializer_range": 0.1,
    }  # fmt: skip
    config = getattr(transformers, f"{family}Config")(**{**sizes, **shape})
    model = getattr(transformers, f"{family.removesuffix('Text')}ForCausalLM")(config).half()
    model.save_pretrained(folder / "base")
    files = StudentFiles(folder / "students" / "s")
    settings = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(model, settings).save_pretrained(files.adapter)
    base = str(folder / "base")
    manifest = StudentManifest(
        name="s", base=base, revision=None, base_sha=base_sha(StudentConfig(base=base)), template_sha="",
        roles=(StudentRole(name="expert", system="Be brief."),), adapters="shared", plan_id="", dataset_sha={},
        config={}, versions={}, samples=0, supervised_tokens=0, train_seconds=0, created_at=datetime.now(UTC),
    )  # fmt: skip
    files.manifest.write_text(manifest.model_dump_json())
    return files


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> StudentFiles:
    """A student on a base of Llama 3.2's kind."""
    return make_student(tmp_path_factory.mktemp("exported"), "Llama", "llama3_2", LLAMA_3, rope_parameters=ROPE)


CPU = StudentConfig(device="cpu")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_merged_model_says_what_the_adapter_says(student: StudentFiles) -> None:
    """On held-out answers the merged 16-bit model, read back from disk, says what the adapter says, also on a CPU.

    So does the GGUF file, and old readers find their keys.
    """
    found = export(student, CPU, [sample(f"why {number}") for number in range(3)])
    assert len(found) == 1
    for check in (found[0].agreement, found[0].gguf_agreement):
        assert check is not None
        assert check.positions > 10
        assert check.same_token == 1.0
        assert check.largest_logit_difference < 0.02
        assert check.same_answers == check.answered == 3
    folder = Path(found[0].folder)
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.float16}
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_theta"] == 500000.0
    assert config["rope_scaling"]["rope_type"] == "llama3"
    assert config["torch_dtype"] == config["dtype"]
    tokens = json.loads((folder / "tokenizer_config.json").read_text())
    assert tokens["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "backend" not in tokens
    assert tokens["chat_template"] == (folder / "chat_template.jinja").read_text()
    stops = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert stops == sorted({*stop_ids(make_tokenizer("llama3_2")), LlamaConfig().eos_token_id})
    reread = load_base(StudentConfig(base=str(folder), device="cpu"))
    assert reread.config.rope_parameters["rope_theta"] == 500000.0
    text = Path(found[0].modelfiles["expert"]).read_text()
    assert 'SYSTEM """Be brief."""' in text
    assert 'PARAMETER stop "<|eot_id|>"' in text
    assert text.startswith("FROM ./s.gguf\n")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_gguf_of_a_qwen_base_says_what_the_adapter_says(tmp_path: Path) -> None:
    """The other shape that is written: biases, tied embeddings, no BOS."""
    files = make_student(tmp_path, "Qwen2", "qwen2_5", QWEN_2, tie_word_embeddings=True)
    found = export(files, CPU, [sample()])[0].gguf_agreement
    assert found is not None
    assert found.same_token == 1.0
    assert found.largest_logit_difference < 0.02


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_gguf_of_a_gemma_base_says_what_the_adapter_says(tmp_path: Path) -> None:
    """Gemma 3's text models: norms with their 1, the window, and scores by which pieces are joined as by the merges."""
    found = export(make_student(tmp_path, "Gemma3Text", "gemma3", SENTENCEPIECE, **GEMMA_3), CPU, [sample()])[0]
    assert found.gguf is not None
    assert found.gguf_agreement is not None
    assert found.gguf_agreement.same_token == 1.0
    assert found.gguf_agreement.largest_logit_difference < 0.02
    written = GGUFReader(found.gguf)
    told = {name: field.contents() for name, field in written.fields.items()}
    assert (told["general.architecture"], told["tokenizer.ggml.model"]) == ("gemma3", "llama")
    assert told["gemma3.attention.sliding_window"] == 8
    assert told["tokenizer.ggml.add_space_prefix"] is False
    rows = zip(
        told["tokenizer.ggml.tokens"], told["tokenizer.ggml.scores"], told["tokenizer.ggml.token_type"], strict=True
    )
    kinds = {token: (score, TokenType(kind)) for token, score, kind in rows}
    assert [kinds[piece][0] for piece in PIECES] == sorted((kinds[piece][0] for piece in PIECES), reverse=True)
    assert kinds["a"][0] < kinds[PIECES[-1]][0]
    asked = ("<0x0A>", "  ", "<end_of_turn>", "he")
    assert [kinds[token][1].name for token in asked] == ["BYTE", "USER_DEFINED", "CONTROL", "NORMAL"]
    norm = next(tensor for tensor in written.tensors if tensor.name == "output_norm.weight")
    merged = load_file(Path(found.folder) / "model.safetensors")["model.norm.weight"].float()
    assert torch.equal(torch.tensor(norm.data), merged + 1)


@pytest.mark.parametrize(
    ("changed", "missing", "reason"),
    [
        ({}, 0, None),
        ({}, 1, "its kind of tokenizer"),
        ({"num_hidden_layers": 5, "layer_types": ["full_attention"] * 5}, 0, "a Gemma 3 with layers of its own kind"),
        ({"query_pre_attn_scalar": 16}, 0, "a Gemma 3 with attention or a head of its own kind"),
        ({"rope_parameters": {**GEMMA_3["rope_parameters"], "sliding_attention": {"rope_type": "default", "rope_theta": 5.0}}},
         0, "a Gemma 3 with a rope of its own kind"),
    ],
)  # fmt: skip
def test_only_the_gemma_that_llama_cpp_knows_is_written(
    changed: dict[str, Any], missing: int, reason: str | None
) -> None:
    """What llama.cpp takes for granted of Gemma 3 must be so, and every pair that makes a piece must be a merge."""
    shape = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1}
    model = Gemma3ForCausalLM(Gemma3TextConfig(**{**shape, **GEMMA_3, **changed}))
    assert refusal(model, sentencepiece_like(missing)) == reason


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_what_is_no_gguf_here_gets_the_command(tmp_path: Path) -> None:
    """A Gemma 3 of another kind is merged for readers old and new, and llama.cpp's own command stands where its GGUF file would."""
    ropes = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    }
    layers = ["sliding_attention", "full_attention"]
    files = make_student(
        tmp_path, "Gemma3Text", "gemma3", QWEN_2, rope_parameters=ropes, layer_types=layers, head_dim=8
    )
    found = export(files, CPU, [sample()])[0]
    assert (found.gguf, found.gguf_reason) == (None, "a Gemma 3 with layers of its own kind")
    assert found.folder in found.gguf_command
    assert Path(found.modelfiles["expert"]).read_text().startswith("FROM .\n")
    config = json.loads((Path(found.folder) / "config.json").read_text())
    assert (config["rope_theta"], config["rope_local_base_freq"]) == (1e6, 10000.0)
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}


@pytest.mark.parametrize(
    ("head_dim", "reason"), [(4, "its kind of tokenizer"), (8, "a Qwen 2 with heads of their own width")]
)
def test_a_qwen_whose_heads_are_not_its_width_is_not_written(head_dim: int, reason: str) -> None:
    """llama.cpp divides a Qwen's width by its heads, and would refuse the file."""
    shape = {
        "vocab_size": 8,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    model = Qwen2ForCausalLM(Qwen2Config(**shape, head_dim=head_dim))
    assert refusal(model, make_tokenizer("llama3")) == reason


@pytest.mark.parametrize("cut", ["[a-z]+", ""])
def test_unknown_tokenizer_is_not_written(cut: str) -> None:
    """A rule for cutting text that llama.cpp has no name for is no GGUF, the byte-level one without any rule neither."""
    tokenizer = make_tokenizer("llama3")
    if cut:
        level = tokenizer.backend_tokenizer.pre_tokenizer
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(cut), "isolated"), level]
        )
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    assert refusal(model, tokenizer) == "its kind of tokenizer"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_merge_that_goes_wrong_is_refused(student: StudentFiles) -> None:
    """An export that prefers other tokens than its adapter ends as a quality gate, not as a file that is trusted."""
    with pytest.raises(QualityGateError, match="prefers other tokens"):
        export(student, CPU, [sample()], least_agreement=1.1)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_export_that_is_cut_off_leaves_the_earlier_one(student: StudentFiles) -> None:
    """It is written beside its place: until it is whole, programs find the one before, and nothing of its own."""
    whole = export(student, CPU, [sample()])[0]
    assert whole.gguf is not None
    before = Path(whole.gguf).stat().st_ino

    manifest = student.manifest.read_text()
    student.manifest.write_text(manifest.replace("Be brief.", 'say \\"\\"\\" now'))  # refused by the last step
    with pytest.raises(InputError, match='"""'):
        export(student, CPU, [sample()])
    student.manifest.write_text(manifest)
    assert Path(whole.gguf).stat().st_ino == before
    found = export_commands(student.export, ServeConfig(engine="llama.cpp"))
    assert [line[line.index("--model") + 1] for line in found] == [whole.gguf]
    export(student, CPU, [sample()])
    assert sorted(folder.name for folder in student.export.iterdir()) == ["s"]


def test_another_base_is_refused(student: StudentFiles, tmp_path: Path) -> None:
    """Merging into a base that is not the one that was trained on would make nonsense; it is refused."""
    other = StudentFiles(tmp_path)
    text = student.manifest.read_text().replace('"base_sha":"', '"base_sha":"0')
    other.manifest.write_text(text)
    with pytest.raises(InputError, match="not the one"):
        export(other, CPU, [sample()])


def go(form: str, system: str, prompt: str, response: str) -> str:
    """Render an Ollama template as Ollama does for one turn."""
    with_system, without = re.fullmatch(
        r"\{\{ if \.System \}\}(.*?)\{\{ else \}\}(.*?)\{\{ end \}\}.*", form, re.DOTALL
    ).groups()
    rest = form.split("{{ end }}", 1)[1]
    text = (with_system if system else without) + rest
    for name, value in (("System", system), ("Prompt", prompt), ("Response", response)):
        text = text.replace("{{ ." + name + " }}", value)
    return text


@pytest.mark.parametrize("family", sorted(set(TEMPLATES) - {"qwen3"}))
def test_modelfile_renders_what_was_trained_on(family: str) -> None:
    """Ollama's rendering of one and of two turns is the base's own, byte for byte but for the BOS that Ollama adds."""
    tokenizer: Any = make_tokenizer(family)
    form = template(tokenizer)
    one = [*chat("why?", "heat")]
    two = [*one, Message(role="user", content="and?"), Message(role="assistant", content="dust")]
    bos = tokenizer.bos_token or ""
    assert bos + go(form, "Be brief.", "why?", "heat") == render(tokenizer, one, answer_next=False)
    both = go(form, "Be brief.", "why?", "heat") + go(form, "", "and?", "dust")
    assert bos + both == render(tokenizer, two, answer_next=False)


def test_what_a_modelfile_cannot_hold_is_refused() -> None:
    """Three quotes end a text in a Modelfile, so a system prompt with them is refused, not cut."""
    with pytest.raises(InputError, match='"""'):
        modelfile(make_tokenizer("qwen2_5"), ".", 'say """ now')
