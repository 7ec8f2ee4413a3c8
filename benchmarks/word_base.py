"""A small base for benchmarks that train from scratch: a Llama shape with random weights and a tokenizer of whole words."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))


def save_base(folder: Path, words: Iterable[str], seed: int, normalizer: Any = None) -> Path:
    """Save two layers of 64 that read these words, `<unk>` and the turns' names among them; `normalizer` is of tokenizers."""
    import torch
    from tests.tiny import CONTROL, TEMPLATE
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = dict.fromkeys([*CONTROL, *words])
    raw = Tokenizer(models.WordLevel({word: place for place, word in enumerate(vocabulary)}, unk_token="<unk>"))
    if normalizer is not None:
        raw.normalizer = normalizer
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token=CONTROL[0],
        eos_token="<|eot_id|>",
        pad_token="<|pad|>",
        unk_token="<unk>",
        extra_special_tokens=CONTROL[1:3],
    )
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(seed)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"bos_token_id": 0, "eos_token_id": 3, "pad_token_id": 4}
    config = LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.1, tie_word_embeddings=True, **shape, **ids)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
