"""Tiny real models for tests: a byte-level tokenizer with a chat template, and Llama-shaped models of two layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from potstill.records import Message

CONTROL = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|pad|>"]
TEMPLATE = (
    "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>{{ m['content'] | trim }}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>{% endif %}"
)


def tiny_tokenizer() -> Any:
    """280 tokens: the control tokens, all bytes, and a few merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=280, special_tokens=CONTROL, initial_alphabet=letters, show_progress=False)
    raw.train_from_iterator(["how much memory does a model need"], trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token=CONTROL[0],
        eos_token="<|eot_id|>",
        pad_token="<|pad|>",
        extra_special_tokens=CONTROL[1:3],
    )
    made.chat_template = TEMPLATE
    made.padding_side = "left"
    return made


def tiny_model(tokenizer: Any, family: str = "Llama", **changes: Any) -> Any:
    """Two layers with seeded random weights, strong enough that answers differ."""
    import torch
    import transformers

    torch.manual_seed(0)
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "head_dim": 8,
        "initializer_range": 0.3,
        "max_position_embeddings": 2048,
        "bos_token_id": 0,
        "eos_token_id": 3,
        "pad_token_id": 4,
    }
    config = getattr(transformers, f"{family}Config")(**{**shape, **changes})
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def save_tiny(folder: Path) -> Any:
    """Put such a model and its tokenizer into a folder, as a base; gives the model."""
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder)
    model = tiny_model(tokenizer)
    model.save_pretrained(folder)
    return model


def chat(text: str, *answer: str) -> list[Message]:
    """A question, and its answer where one is given."""
    return [Message(role="user", content=text), *(Message(role="assistant", content=one) for one in answer)]
