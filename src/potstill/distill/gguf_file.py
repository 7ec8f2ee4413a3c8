"""A merged model as one GGUF file in float16, for llama.cpp and Ollama: Llama and Qwen 2 shapes with a byte-level BPE, Gemma 3.

The container, the names of keys and tensors are the `gguf` package's. What is done here is what llama.cpp expects of
a converter: query and key rows in its rotary order, rope factors as a tensor, Gemma's norms with the 1 that is added to
them, and the tokenizer's kind by name, or the scores that stand for SentencePiece's merges.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from potstill.student.template import stop_ids

SPLITS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "llama-bpe",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "qwen2",
    "": "gpt-2",
}
"""How a tokenizer cuts text into words -> llama.cpp's name for that; "" is the byte-level pre-tokenizer's own rule."""
ROPES = ("default", "linear", "llama3")
"""Kinds of rotary scaling that are a factor for each frequency and nothing else."""
VECTOR_DIMS = 1
FULL_EVERY, LOCAL_THETA = 6, 10000.0
"""Gemma 3 as llama.cpp knows it by heart: each sixth layer looks back at everything, the others turn by this theta."""
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
SPACE = "\u2581"
"""What SentencePiece writes for a space."""


def refusal(model: Any, tokenizer: Any) -> str | None:
    """Why this model cannot be written here; None where it can."""
    config = model.config
    if config.model_type == "gemma3_text":
        return _gemma_refusal(config, tokenizer)
    if config.model_type not in {"llama", "qwen2"}:
        return f"a model of type {config.model_type}"
    is_llama = config.model_type == "llama"
    rope = config.rope_parameters.get("rope_type", "default")
    unlike = {
        "a Llama with biases": getattr(config, "mlp_bias", False) or (is_llama and config.attention_bias),
        "a Qwen 2 with heads of their own width": not is_llama
        and _head_dim(config) * config.num_attention_heads != config.hidden_size,
        "a sliding window": getattr(config, "use_sliding_window", False),
        f"rope of type {rope}": rope not in ROPES,
        "its kind of tokenizer": _cut_of(_form(tokenizer)) is None,
    }
    return next((reason for reason, so in unlike.items() if so), None)


def _gemma_refusal(config: Any, tokenizer: Any) -> str | None:
    kinds = [("full" if (place + 1) % FULL_EVERY == 0 else "sliding") for place in range(config.num_hidden_layers)]
    ropes = config.rope_parameters
    if config.layer_types != [f"{kind}_attention" for kind in kinds] or config.attention_bias:
        return "a Gemma 3 with layers of its own kind"
    if ropes["sliding_attention"]["rope_theta"] != LOCAL_THETA or ropes["full_attention"]["rope_type"] != "default":
        return "a Gemma 3 with a rope of its own kind"
    if (
        config.query_pre_attn_scalar != config.head_dim
        or config.final_logit_softcapping
        or not config.tie_word_embeddings
    ):
        return "a Gemma 3 with attention or a head of its own kind"
    return None if _has_scores(_form(tokenizer)) else "its kind of tokenizer"


def write_gguf(model: Any, tokenizer: Any, path: Path, name: str) -> None:
    """Write weights (matrices in float16, vectors in float32), hyperparameters, tokenizer and chat template.

    One tensor at a time: the file takes no memory of its own. Only for a model that `refusal` lets pass.
    """
    import gguf

    config = model.config
    kind = config.model_type.removesuffix("_text")
    writer = gguf.GGUFWriter(path, kind)
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    _describe(writer, model)
    _add_tokenizer(writer, tokenizer, config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[kind.upper()], config.num_hidden_layers)
    for label, tensor in _tensors(model, names):
        dtype = _array(tensor[:0]).dtype
        writer.add_tensor_info(label, tensor.shape, dtype, tensor.numel() * dtype.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, tensor in _tensors(model, names):
        writer.write_tensor_data(_array(tensor))
    writer.close()


def _describe(writer: Any, model: Any) -> None:
    """The numbers of config.json by their names in GGUF."""
    config = model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(_head_dim(config))
    writer.add_value_length(_head_dim(config))
    writer.add_rope_dimension_count(_head_dim(config))
    ropes = config.rope_parameters
    writer.add_rope_freq_base(ropes.get("full_attention", ropes)["rope_theta"])
    if config.model_type == "gemma3_text":
        writer.add_sliding_window(config.sliding_window)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _tensors(model: Any, names: Any) -> Iterator[tuple[str, Any]]:
    """Every tensor with its name in GGUF."""
    config = model.config
    is_gemma = config.model_type == "gemma3_text"
    if not is_gemma and not bool(((factors := _rope_factors(model)) == 1).all()):
        yield "rope_freqs.weight", factors
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        found = tensor
        if config.model_type == "llama" and key.endswith(("q_proj.weight", "k_proj.weight")):
            found = _interleaved(tensor, _head_dim(config))
        if is_gemma and key.endswith("norm.weight"):
            found = tensor.float() + 1
        yield names.get_name(key, try_suffixes=(".weight", ".bias")), found


def _interleaved(weight: Any, head_dim: int) -> Any:
    """Rows of each head from transformers' order (first halves, then second) to llama.cpp's (pair by pair)."""
    rows, columns = weight.shape
    return weight.reshape(rows // head_dim, 2, head_dim // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _rope_factors(model: Any) -> Any:
    """By how much each rotary frequency is slowed down (1: as trained at first); a 16-bit model has lost its own."""
    import torch

    config = model.config
    size = _head_dim(config)
    plain = config.rope_parameters["rope_theta"] ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
    own = type(model.get_decoder().rotary_emb)(config).inv_freq.double()
    return (plain / own).float().round(decimals=5)


def _add_tokenizer(writer: Any, tokenizer: Any, size: int) -> None:
    """Tokens in the order of their ids, filled up to the embedding's size, what joins them, special tokens, the template."""
    import gguf

    form = _form(tokenizer)
    types = gguf.TokenType
    words = {number: word for word, number in tokenizer.get_vocab().items()}
    kinds = dict.fromkeys(words, types.NORMAL)
    kinds |= {token["id"]: types.CONTROL if token["special"] else types.USER_DEFINED for token in form["added_tokens"]}
    merges = _pairs(form)
    if form["model"].get("byte_fallback"):
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_add_space_prefix(False)
        writer.add_token_scores(_scores(words, merges, size))
        kinds |= {number: types.BYTE for number, word in words.items() if BYTE.fullmatch(word)}
        words |= {n: words[n].replace(SPACE, " ") for n, kind in kinds.items() if kind == types.USER_DEFINED}
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_cut_of(form))
        writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_token_list([words.get(number, f"[PAD{number}]") for number in range(size)])
    writer.add_token_types([kinds.get(number, types.UNUSED) for number in range(size)])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_eot_token_id(next(iter(sorted(stop_ids(tokenizer) - {tokenizer.eos_token_id})), tokenizer.eos_token_id))
    writer.add_pad_token_id(tokenizer.pad_token_id)
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_add_bos_token(tokenizer.bos_token_id is not None)
    writer.add_chat_template(tokenizer.chat_template)


def _scores(words: dict[int, str], merges: list[tuple[str, str]], size: int) -> list[float]:
    """What SentencePiece joins first has the highest score: minus the rank of the first pair that makes a token."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        ranks.setdefault("".join(pair), rank)
    return [-float(ranks.get(words.get(number, ""), len(merges))) for number in range(size)]


def _has_scores(form: dict[str, Any]) -> bool:
    """Whether merges stand for SentencePiece's scores, which join whatever makes a token: each such pair is a merge."""
    model, cut, change = form["model"], form["pre_tokenizer"] or {}, form["normalizer"] or {}
    if not model.get("byte_fallback") or (change.get("content"), cut.get("behavior")) != (SPACE, "MergedWithPrevious"):
        return False
    merges = set(_pairs(form))
    words = set(model["vocab"]) - {token["content"] for token in form["added_tokens"]}
    return all(
        (word[:place], word[place:]) in merges
        for word in words
        for place in range(1, len(word))
        if word[:place] in words and word[place:] in words
    )


def _pairs(form: dict[str, Any]) -> list[tuple[str, str]]:
    """The merges of a BPE, the first ones first."""
    pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in form["model"]["merges"])
    return [(left, right) for left, right in pairs]


def _cut_of(form: dict[str, Any]) -> str | None:
    """llama.cpp's name for how a byte-level BPE cuts text; None for any other tokenizer."""
    found = form["pre_tokenizer"] or {}
    parts = found.get("pretokenizers", [found])
    levels = [part for part in parts if part.get("type") == "ByteLevel"]
    rules = [part["pattern"].get("Regex") for part in parts if part.get("type") == "Split"]
    if form["model"]["type"] != "BPE" or len(levels) != 1 or len(levels) + len(rules) != len(parts):
        return None
    if levels[0]["add_prefix_space"] or levels[0]["use_regex"] == bool(rules) or len(rules) > 1:
        return None
    return SPLITS.get(rules[0] if rules else "")


def _form(tokenizer: Any) -> dict[str, Any]:
    """A tokenizer as tokenizer.json says it."""
    found: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return found


def _head_dim(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _array(tensor: Any) -> Any:
    import torch

    return tensor.to(torch.float32 if tensor.dim() == VECTOR_DIMS else torch.float16).contiguous().cpu().numpy()
