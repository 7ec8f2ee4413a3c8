"""Training speed: potstill against the plain padded HF Trainer and TRL's SFTTrainer, the same base, data and steps.

    python benchmarks/train.py [--repeats 3]

Non-padding tokens per CPU second of one thread (wall time would measure the neighbours), peak memory above what was
there before training, and the loss on held-out chats, measured by one piece of code for all. Each run has a process
of its own; the order turns from repeat to repeat. Needs TRL (the `dev` extra) beside `local`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from potstill.distill.packing import UNLEARNED

RUNS = ("potstill", "hf-padded", "trl-padded", "trl-packing")
SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
VOCABULARY, CHATS, HELD_OUT, BATCH, SHORTEST, LONGEST, RATE = 8192, 500, 100, 8, 30, 706, 1e-3
LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
TRL_PACK = 1024


def build(folder: Path) -> None:
    """A base with random weights and chats of docstrings: questions of a line, answers of 20 to 700 tokens."""
    import torch
    from build_tiny_base import build_tokenizer, docstrings
    from transformers import LlamaConfig, LlamaForCausalLM

    from potstill.records import Message
    from potstill.student.template import encode_prompt

    pairs = docstrings()
    tokenizer = build_tokenizer([text for _, text in pairs], VOCABULARY)
    draw = random.Random(0)
    draw.shuffle(pairs)
    rows = []
    for name, text in pairs:
        turns = (("system", "You explain Python."), ("user", f"What is {name}?"))
        prompt = encode_prompt(tokenizer, [Message(role=role, content=content) for role, content in turns])
        answer = tokenizer(text + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
        if SHORTEST <= len(prompt) + len(answer) <= LONGEST:
            rows.append({"input_ids": prompt + answer, "labels": [UNLEARNED] * len(prompt) + answer})
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, **SHAPE)
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    (folder / "train.json").write_text(json.dumps(rows[:CHATS]))
    (folder / "held-out.json").write_text(json.dumps(rows[CHATS : CHATS + HELD_OUT]))


def one_run(name: str, folder: Path) -> dict[str, float]:
    """Train once; seconds and bytes are those of training alone."""
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    rows = json.loads((folder / "train.json").read_text())
    out = folder / "out" / name
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    start = {"potstill": by_potstill, "hf-padded": by_trainer}.get(name, by_trl)(name, folder, rows, out)
    before, began, wall = peak_bytes(), time.process_time(), time.monotonic()
    model = start()
    seconds, wall = time.process_time() - began, time.monotonic() - wall
    tokens = sum(len(row["input_ids"]) for row in rows)
    return {
        "tokens": tokens,
        "cpu_s": seconds,
        "wall_s": wall,
        "tokens_per_cpu_s": tokens / seconds,
        "peak_mb": (peak_bytes() - before) / 1e6,
        "nll": held_out_loss(model, json.loads((folder / "held-out.json").read_text())),
    }


def peak_bytes() -> int:
    """The largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def by_potstill(_name: str, folder: Path, rows: list[Any], out: Path) -> Any:
    """The stage's own `train`, loading the base and saving the adapter included."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    import potstill.distill.train as engine
    from potstill.config import DistillConfig, StudentConfig
    from potstill.distill.data import Rows

    settings = {
        "lora": {"r": LORA["r"], "alpha": LORA["lora_alpha"], "target_modules": "all-linear"},
        "epochs": 1,
        "batch_size": BATCH,
        "learning_rate": RATE,
        "checkpoint_steps": 10_000,
    }
    distill = DistillConfig.model_validate(settings)
    base = str(folder / "base")
    job = engine.Job(distill, Rows(rows, 0, 0, 0, 0), Rows([], 0, 0, 0, 0), out / "checkpoints", out / "adapter", "1")

    def start() -> Any:
        engine.train(StudentConfig(base=base, device="cpu"), job, lambda _: None)
        return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(out / "adapter"))

    return start


def arguments(kind: Any, out: Path, **more: Any) -> Any:
    """The settings that all runs share."""
    return kind(
        output_dir=str(out),
        num_train_epochs=1,
        learning_rate=RATE,
        lr_scheduler_type="cosine",
        warmup_steps=0.03,
        weight_decay=0.0,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        **more,
    )


def by_trainer(_name: str, folder: Path, rows: list[Any], out: Path) -> Any:
    """The plain HF Trainer: each batch is padded to its longest row."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "base"), LoraConfig(**LORA))
    settings = arguments(TrainingArguments, out, per_device_train_batch_size=BATCH)
    collator = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=UNLEARNED)
    trainer = Trainer(model=model, args=settings, train_dataset=rows, data_collator=collator)

    def start() -> Any:
        trainer.train()
        return model

    return start


def by_trl(name: str, folder: Path, rows: list[Any], out: Path) -> Any:
    """TRL's SFTTrainer on the same labels, padded or packed; checkpointing is off, which is its faster setting."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    packing = name == "trl-packing"
    more = {"packing": True, "max_length": TRL_PACK} if packing else {"max_length": None}
    settings = arguments(
        SFTConfig, out, per_device_train_batch_size=1 if packing else BATCH, activation_checkpointing=False, **more
    )
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder / "base"),
        args=settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder / "base"),
        peft_config=LoraConfig(**LORA),
    )

    def start() -> Any:
        trainer.train()
        return trainer.model

    return start


def held_out_loss(model: Any, rows: list[Any]) -> float:
    """Nats a learned token, chat by chat, through the model's own forward pass."""
    import torch

    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for row in rows:
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
            labels = torch.tensor(row["labels"][1:])
            total += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
            count += int((labels != UNLEARNED).sum())
    return total / count


def run_all(folder: Path, repeats: int) -> dict[str, list[dict[str, float]]]:
    """Every run in a fresh process, each repeat beginning with another one."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in RUNS}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    for repeat in range(repeats):
        for place in range(len(RUNS)):
            name = RUNS[(repeat + place) % len(RUNS)]
            command = [sys.executable, __file__, "--run", name, "--folder", str(folder)]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(name, json.dumps(found[name][-1]), file=sys.stderr, flush=True)
    return found


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """Medians over the repeats, and the ratios to potstill."""
    middle = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in found.items()
    }
    ours = middle["potstill"]
    lines = [
        "| run | tokens per CPU-s | potstill is faster by | peak MB while training | held-out NLL |",
        "|---|---|---|---|---|",
    ]
    for name, run in middle.items():
        ratio = ours["tokens_per_cpu_s"] / run["tokens_per_cpu_s"]
        lines.append(
            f"| {name} | {run['tokens_per_cpu_s']:.0f} | {ratio:.2f}x | {run['peak_mb']:.0f} | {run['nll']:.4f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Build, run in turn, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--run", choices=RUNS, help="one run in this process (used by the benchmark itself)")
    parser.add_argument("--folder", type=Path, help="where base and data are")
    given = parser.parse_args()
    if given.run:
        print(json.dumps(one_run(given.run, given.folder)))
        return
    with tempfile.TemporaryDirectory() as name:
        build(Path(name))
        rows = json.loads((Path(name) / "train.json").read_text())
        tokens = sum(len(row["input_ids"]) for row in rows)
        learned = sum(label != UNLEARNED for row in rows for label in row["labels"])
        lengths = sorted(len(row["input_ids"]) for row in rows)
        print(f"{len(rows)} chats, {tokens} tokens, {learned} learned; median {lengths[len(lengths) // 2]}")
        print(table(run_all(Path(name), given.repeats)))


if __name__ == "__main__":
    main()
