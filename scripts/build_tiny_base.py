"""Pretrain a tiny Llama-shaped base on the docstrings of the Python standard library: a student for demo and tests.

    python scripts/build_tiny_base.py --out .cache/tiny-base

Nothing is downloaded. The text is what any Python installation carries; some of it is put into the chat template, so
that the control tokens and the end of an answer are known before LoRA, which leaves the embeddings as they are. The
same recipe and seed give the same weights on the same machine; a finished folder with the same recipe is kept.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import random
import sys
import sysconfig
import time
from pathlib import Path

CONTROL = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|pad|>"]
TEMPLATE = (
    "{{- '<|begin_of_text|>' }}{%- for m in messages %}"
    "{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}"
    "{%- endfor %}{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
SIZES = {
    "demo": {"layers": 4, "hidden": 192, "heads": 6, "mlp": 512, "vocabulary": 2048, "steps": 700, "rows": 12},
    "small": {"layers": 2, "hidden": 64, "heads": 4, "mlp": 128, "vocabulary": 512, "steps": 30, "rows": 8},
}
LENGTH = 128
SENTENCE_CHARS = (20, 160)
QUESTIONS = (
    "What does {} do?",
    "How does {} work?",
    "Tell me what {} is for.",
    "When should I use {}?",
    "Explain {} in plain words.",
    "Why do people use {}?",
    "What is {}?",
    "Is there a good way to describe {}?",
)
SYSTEMS = (
    "You are a Python engineer. Answer in one plain sentence.",
    "You are a writer of documentation. Answer in one or two plain sentences, with what matters for the reader.",
)


def docstrings(limit_files: int = 700) -> list[tuple[str, str]]:
    """(name, docstring) of the standard library's modules, classes and functions, in the order of their paths."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(path for path in root.rglob("*.py") if not {"site-packages", "test", "tests"} & set(path.parts))
    found = []
    for path in files[:limit_files]:
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue  # samples of broken source are part of some installations
        nodes = [node for node in ast.walk(tree) if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))]
        found += [(getattr(node, "name", path.stem), text) for node in nodes if (text := ast.get_docstring(node))]
    return found


def chats(pairs: list[tuple[str, str]], draw: random.Random) -> list[list[dict[str, str]]]:
    """Short chats made of docstrings: a question about a name, answered by the docstring's first sentence."""
    made = []
    for name, text in pairs:
        sentence = " ".join(text.split("\n\n")[0].split())
        if SENTENCE_CHARS[0] <= len(sentence) <= SENTENCE_CHARS[1]:
            question = draw.choice(QUESTIONS).format(name.strip("_").replace("_", " ") or "this")
            turns = [("system", draw.choice(SYSTEMS)), ("user", question), ("assistant", sentence)]
            made.append([{"role": role, "content": content} for role, content in turns])
    return made


def build_tokenizer(texts: list[str], vocabulary: int) -> object:
    """A byte-level BPE tokenizer learnt from the texts, with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=CONTROL, initial_alphabet=sorted(alphabet), show_progress=False
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token=CONTROL[0],
        eos_token="<|eot_id|>",
        pad_token="<|pad|>",
        extra_special_tokens=["<|start_header_id|>", "<|end_header_id|>"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def stream_of_ids(tokenizer, pairs, seed: int):  # noqa: ANN001, ANN201
    """All text as one line of token ids: chats with their control tokens, and plain docstrings between them."""
    draw = random.Random(seed)
    texts = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats(pairs, draw)]
    texts += ["<|begin_of_text|>" + text[:1500] + "<|eot_id|>" for _, text in pairs]
    draw.shuffle(texts)
    return [token for ids in tokenizer(texts, add_special_tokens=False)["input_ids"] for token in ids]


def train(model, ids: list[int], size: dict[str, int], seconds: float | None, seed: int) -> int:  # noqa: ANN001
    """Pretrain on random windows of the text; returns the steps made."""
    import torch

    data = torch.tensor(ids)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.05)
    began, steps = time.monotonic(), size["steps"]
    model.train()
    for step in range(steps):
        rate = 3e-3 * min(1.0, (step + 1) / 40) * (1 - 0.9 * step / steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        starts = torch.randint(0, len(data) - LENGTH, (size["rows"],), generator=generator)
        batch = torch.stack([data[start : start + LENGTH] for start in starts.tolist()])
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == steps - 1:
            print(f"pretrain: step {step + 1}/{steps}, loss {loss.item():.2f}", file=sys.stderr, flush=True)
        if seconds is not None and time.monotonic() - began > seconds:
            return step + 1
    return steps


def main() -> None:
    """Build the base, or keep it where it is finished."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the base")
    parser.add_argument("--size", choices=sorted(SIZES), default="demo")
    parser.add_argument("--steps", type=int, help="pretraining steps in place of the size's own")
    parser.add_argument("--seconds", type=float, help="stop pretraining after this time (then no two runs are equal)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    size = {**SIZES[given.size], **({"steps": given.steps} if given.steps else {})}
    text = json.dumps(
        [size, given.seed, given.seconds, ast.dump(ast.parse(Path(__file__).read_text(encoding="utf-8"))), sys.version]
    )
    recipe = hashlib.sha256(text.encode()).hexdigest()
    manifest = given.out / "base.json"
    if manifest.is_file() and json.loads(manifest.read_text(encoding="utf-8")).get("recipe") == recipe:
        print(f"the base in {given.out} is finished; kept")
        return
    build(given.out, size, given.seconds, given.seed)
    manifest.write_text(json.dumps({"recipe": recipe, **size, "seed": given.seed}) + "\n", encoding="utf-8")


def build(out: Path, size: dict[str, int], seconds: float | None, seed: int) -> None:
    """Pretrain and save, in the form that older readers understand as well."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(seed)
    pairs = docstrings()
    tokenizer = build_tokenizer([text for _, text in pairs], size["vocabulary"])
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size["hidden"],
        intermediate_size=size["mlp"],
        num_hidden_layers=size["layers"],
        num_attention_heads=size["heads"],
        num_key_value_heads=size["heads"],
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    print(f"pretrain: {model.num_parameters():,} parameters, {len(pairs)} docstrings", file=sys.stderr, flush=True)
    steps = train(model, stream_of_ids(tokenizer, pairs, seed), size, seconds, seed)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    print(f"a base of {model.num_parameters():,} parameters in {out}, {steps} steps")


if __name__ == "__main__":
    main()
