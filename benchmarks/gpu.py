"""All checks and benchmarks that need a CUDA card, in one call of under ten minutes; exit code 7 where there is none.

    python benchmarks/gpu.py [--part NAME ...] [--out gpu.json]

Checks: packed attention through torch's varlen kernel against each document alone; the one-pass loss; a real shortage
of memory, with the gradient kept; training and exact speed figures in bf16 and in fp16; QLoRA. Benchmarks: Llama-3.1-8B
and Qwen2.5-7B shapes with random weights, LoRA in bf16: tokens a second, MFU (4 FLOP a weight and token), peak memory
beside the estimator's, and TRL's SFTTrainer on the same tokens. A part that fails is reported and the next one runs;
the exit code is then 1. Every line of output is JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

BUDGET_S = 560
LLAMA_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
QWEN_7B = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
}
SMALL = {
    "vocab_size": 1024,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LENGTHS = (900, 700, 512, 500, 400, 333, 300, 200, 120, 64, 40, 27)
RANK = 16
BF16_TOLERANCE, FP32_TOLERANCE = 0.02, 1e-4


def new_base(kind: str, shape: dict[str, int], dtype: Any) -> Any:
    """A frozen base with random weights, made on the card."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

    config = {"llama": LlamaConfig, "qwen2": Qwen2Config}[kind](**shape, tie_word_embeddings=False)
    torch.manual_seed(0)
    with torch.device("cuda"):
        base = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return base.requires_grad_(requires_grad=False)


def documents(vocabulary: int, lengths: tuple[int, ...] = LENGTHS) -> list[Any]:
    """Random documents of which the second half is learned."""
    import torch

    from potstill.distill.packing import UNLEARNED, Document

    generator = torch.Generator().manual_seed(0)
    made = []
    for length in lengths:
        ids = tuple(torch.randint(5, vocabulary, (length,), generator=generator).tolist())
        made.append(Document(ids, (UNLEARNED,) * (length // 2) + ids[length // 2 :]))
    return made


def new_engine(base: Any, folder: Path, *, mixed: str = "bf16", checkpointing: bool = False) -> Any:
    """The training engine over adapters on all linear layers."""
    import torch
    from accelerate import Accelerator

    from potstill.config import DistillConfig
    from potstill.distill.engine import Engine, checkpoint_layers, cross_entropy, use_packing
    from potstill.distill.oom import TokenLimit
    from potstill.distill.train import lora_model

    use_packing(base)
    model = lora_model(base, DistillConfig.model_validate({"lora": {"r": RANK, "target_modules": "all-linear"}}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.01)
    if checkpointing:
        checkpoint_layers(model)
    model.train()
    limit = TokenLimit(None, folder / "limit.json", "gpu")
    return Engine(model, cross_entropy(base), limit, Accelerator(mixed_precision=mixed))


def check_packing() -> dict[str, Any]:
    """Hidden states of a packed row against each document alone, with and without a window, in both 16-bit types."""
    import torch
    from transformers import AutoModelForCausalLM, MistralConfig

    from potstill.distill.attention import use_packed_attention
    from potstill.distill.packing import pack

    found = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)):
        for window in (None, 128):
            torch.manual_seed(0)
            with torch.device("cuda"):
                config = MistralConfig(**SMALL, sliding_window=window)
                base = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
            rows = sorted(documents(SMALL["vocab_size"]), key=lambda each: -len(each.ids))
            packed = pack(rows, base.device)
            with torch.no_grad():
                alone = [base.model(torch.tensor([row.ids], device="cuda"), use_cache=False) for row in rows]
                use_packed_attention(base)
                together = base.model(
                    packed.input_ids, position_ids=packed.position_ids, use_cache=False, layout=packed.layout
                ).last_hidden_state[0]
            expected = torch.cat([each.last_hidden_state[0] for each in alone])
            difference = float((together - expected).abs().max() / expected.abs().max())
            found[f"{name}, window {window}"] = difference
            limit = {"bf16": 0.05, "fp16": 0.01, "fp32": 1e-4}[name]
            expect(difference < limit, f"packed differs by {difference} ({name}, window {window})")
    return found


def check_loss() -> dict[str, Any]:
    """The one-pass loss and its gradient against autograd through all logits, in float32 on the card."""
    import torch

    from potstill.distill.loss import Head, token_loss
    from potstill.distill.packing import pack

    torch.manual_seed(0)
    packed = pack(documents(5000), torch.device("cuda"))
    hidden = torch.randn(len(packed.targets), 256, device="cuda", requires_grad=True)
    head = Head(torch.randn(5000, 256, device="cuda") / 16)
    (found,) = torch.autograd.grad(token_loss(hidden, head, packed), hidden)
    plain = torch.nn.functional.cross_entropy(head.logits(hidden), packed.targets, reduction="sum")
    (expected,) = torch.autograd.grad(plain, hidden)
    difference = float((found - expected).abs().max())
    expect(difference < FP32_TOLERANCE, f"gradients differ by {difference}")
    return {"gradient_difference": difference}


def check_out_of_memory(folder: Path) -> dict[str, Any]:
    """The card's own allocator refuses: the step is split, and its gradient is that of the undisturbed step."""
    import torch

    shape = {**SMALL, "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
    engine = new_engine(new_base("llama", shape, torch.bfloat16), folder)
    rows = documents(shape["vocab_size"], (500,) * 64)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    engine.step(rows)
    whole = [each.grad.clone() for each in engine.model.parameters() if each.requires_grad]
    used = torch.cuda.max_memory_allocated() - before
    engine.model.zero_grad()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + used * 0.6) / total)
    try:
        engine.step(rows)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    split = [each.grad for each in engine.model.parameters() if each.requires_grad]
    scale = max(float(each.abs().max()) for each in whole)
    difference = max(float((a - b).abs().max()) for a, b in zip(whole, split, strict=True)) / scale
    expect(engine.limit.tokens is not None, "memory did not run out, so nothing was tested")
    expect(difference < BF16_TOLERANCE, f"gradients differ by {difference} of the largest (bf16)")
    return {"limit_tokens": engine.limit.tokens, "gradient_difference": difference}


def check_training(folder: Path) -> dict[str, Any]:
    """The stage's own `train` on the card, in bf16 and in fp16 as on a T4, and with nf4 where bitsandbytes is there."""
    import importlib.util

    import torch

    from potstill.config import DistillConfig, StudentConfig
    from potstill.distill.data import Rows
    from potstill.distill.train import Job, train

    new_base("llama", SMALL, torch.float32).save_pretrained(folder / "base")
    rows: list[Any] = [
        {"input_ids": [5 + (start + 7 * place) % 900 for place in range(40 + start)], "labels": []}
        for start in range(32)
    ]
    for row in rows:
        row["labels"] = [-100, *row["input_ids"][1:]]
    data = Rows(rows, 0, 0, 0, 0)
    settings = {"lora": {"target_modules": "all-linear"}, "epochs": 12, "batch_size": 8, "learning_rate": 0.01}
    distill = DistillConfig.model_validate(settings)
    kinds = {"bf16": {"dtype": "bfloat16"}, "fp16": {"dtype": "float16"}}
    if importlib.util.find_spec("bitsandbytes"):
        kinds["nf4"] = {"quantization": "nf4"}
    found: dict[str, Any] = {} if "nf4" in kinds else {"nf4": "skipped: no bitsandbytes"}
    for name, more in kinds.items():
        config = StudentConfig.model_validate({"base": str(folder / "base"), "device": "cuda", **more})
        job = Job(distill, data, data, folder / name / "checkpoints", folder / name / "adapter", name)
        log = train(config, job, lambda _: None)
        losses = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
        found[name] = {"first": losses[0], "last": losses[-1]}
        expect(losses[-1] < losses[0], f"{name}: the loss does not fall: {losses}")
    return found


def bench(kind: str, shape: dict[str, int], tokens: int, folder: Path, *, checkpointing: bool) -> dict[str, Any]:
    """Steps of packed documents of 512 tokens: tokens a second, MFU, and peak bytes beside the estimator's."""
    import torch

    from potstill.distill.progress import peak_flops
    from potstill.student.fit import Recipe, Shape, training_memory

    engine = new_engine(new_base(kind, shape, torch.bfloat16), folder, checkpointing=checkpointing)
    optimizer = torch.optim.AdamW([each for each in engine.model.parameters() if each.requires_grad], fused=True)
    rows = documents(shape["vocab_size"], (512,) * (tokens // 512))

    def step() -> None:
        engine.step(rows)
        optimizer.step()
        optimizer.zero_grad()

    rate = tokens / seconds_each(step)
    peak = torch.cuda.max_memory_allocated()
    parameters = engine.model.get_base_model().num_parameters(only_trainable=False)
    card = peak_flops(torch.device("cuda"))
    size = Shape(
        name=kind,
        hidden=shape["hidden_size"],
        layers=shape["num_hidden_layers"],
        heads=shape["num_attention_heads"],
        kv_heads=shape["num_key_value_heads"],
        head_dim=shape["hidden_size"] // shape["num_attention_heads"],
        mlp=shape["intermediate_size"],
        vocabulary=shape["vocab_size"],
        tied=False,
    )
    estimate = training_memory(size, Recipe(tokens=tokens, rank=RANK, checkpointing=checkpointing, loss_rows=256)).peak
    return {
        "tokens_per_s": rate,
        "mfu": None if card is None else 4 * parameters * rate / card,
        "peak_gib": peak / 2**30,
        "estimated_gib": estimate / 2**30,
        "estimate_over_peak": estimate / peak,
        "split_at": engine.limit.tokens,
    }


def bench_trl(kind: str, shape: dict[str, int], tokens: int, folder: Path, *, checkpointing: bool) -> dict[str, Any]:
    """TRL's SFTTrainer on the same documents, padded (they are equally long), with its own defaults else."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    steps = 8
    rows = documents(shape["vocab_size"], (512,) * (tokens // 512))
    data = [{"input_ids": list(row.ids), "labels": list(row.labels)} for row in rows] * steps
    settings = SFTConfig(
        output_dir=str(folder / "trl"),
        max_steps=steps,
        per_device_train_batch_size=len(rows),
        activation_checkpointing=checkpointing,
        bf16=True,
        max_length=None,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        model=new_base(kind, shape, torch.bfloat16),
        args=settings,
        train_dataset=Dataset.from_list(data),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=word_tokenizer(), pad_token="0", eos_token="1"),
        peft_config=LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    trainer.train()
    torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    return {"tokens_per_s_first_step_included": steps * tokens / seconds, "peak_gib": peak_gib()}


def word_tokenizer() -> Any:
    """A tokenizer that TRL insists on and does not need, because the rows are encoded."""
    from tokenizers import Tokenizer, models

    return Tokenizer(models.WordLevel({str(number): number for number in range(8)}, unk_token="0"))


def seconds_each(step: Callable[[], None], repeats: int = 6) -> float:
    """Mean seconds of a step after two to warm up."""
    import torch

    for _ in range(2):
        step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    for _ in range(repeats):
        step()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / repeats


def peak_gib() -> float:
    """Peak of the allocator since its last reset."""
    import torch

    return torch.cuda.max_memory_allocated() / 2**30


def expect(holds: bool, otherwise: str) -> None:
    """Fail a check with the figures that it found."""
    if not holds:
        raise AssertionError(otherwise)


def parts(folder: Path) -> dict[str, Callable[[], dict[str, Any]]]:
    """Everything in order: the checks first, then what takes longest; TRL right after ours."""
    found: dict[str, Callable[[], dict[str, Any]]] = {
        "packing": check_packing,
        "loss": check_loss,
        "out-of-memory": lambda: check_out_of_memory(folder),
        "training": lambda: check_training(folder),
    }
    for name, kind, shape in (("llama-8b", "llama", LLAMA_8B), ("qwen-7b", "qwen2", QWEN_7B)):
        for tokens, again in ((4096, False), (8192, True)):
            label = f"{name}, {tokens} tokens, checkpointing {again}"
            found[label] = lambda k=kind, s=shape, t=tokens, c=again: bench(k, s, t, folder, checkpointing=c)
            found["trl, " + label] = lambda k=kind, s=shape, t=tokens, c=again: bench_trl(
                k, s, t, folder, checkpointing=c
            )
    return found


def main() -> None:
    """Run the parts, each with an empty card, within the budget of time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", action="append", help="only parts whose name contains this")
    parser.add_argument("--out", type=Path, help="write all results here too")
    given = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print("benchmarks/gpu.py needs a CUDA card, and torch finds none", file=sys.stderr)
        raise SystemExit(7)
    card = torch.cuda.get_device_properties(0)
    results: dict[str, Any] = {"card": card.name, "memory_gib": card.total_memory / 2**30, "torch": torch.__version__}
    print(json.dumps(results), flush=True)
    began, failed = time.monotonic(), False
    with tempfile.TemporaryDirectory() as name:
        for label, part in parts(Path(name)).items():
            if given.part and not any(text in label for text in given.part):
                continue
            results[label], bad = run_part(part, BUDGET_S - (time.monotonic() - began))
            failed |= bad
            print(json.dumps({label: results[label]}), flush=True)
            if given.out:
                given.out.write_text(json.dumps(results, indent=2) + "\n")
    raise SystemExit(1 if failed else 0)


def run_part(part: Callable[[], dict[str, Any]], left_s: float) -> tuple[dict[str, Any], bool]:
    """One part's figures, and whether it failed; none is begun that could not end in time."""
    import torch

    if left_s < 60:  # noqa: PLR2004
        return {"skipped": "no time left"}, False
    began = time.monotonic()
    try:
        found, bad = part(), False
    except ImportError as error:
        found, bad = {"skipped": f"needs {error.name}"}, False
    except Exception:  # noqa: BLE001  (a part that fails must not hide the others' figures)
        found, bad = {"failed": traceback.format_exc(limit=-4)}, True
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return found | {"seconds": round(time.monotonic() - began, 1)}, bad


if __name__ == "__main__":
    main()
