"""All checks and benchmarks that need a CUDA card, in one call of under ten minutes; exit code 7 where there is none.

    python benchmarks/gpu.py [--part NAME ...] [--out gpu.json]
    python benchmarks/gpu.py --device cpu --here     # tiny shapes: tries the script, measures nothing

Checks: packed attention through torch's varlen kernel against each document alone, and as on a T4; the one-pass loss; a
real shortage of memory, with the gradient kept; training in bf16, in fp16 and over 4-bit weights. Benchmarks, with random
weights: Llama-3.1-8B and Qwen2.5-7B shapes, LoRA in bf16: tokens a second, MFU (4 FLOP a weight and token) and peak memory
beside the estimator's, and TRL's SFTTrainer on the same tokens; QLoRA's peak for the 8B shape; fp16 with the kernel of a T4;
tokens a second of the slots beside transformers' continuous batching, also over four adapters. Each part has a process of
its own: one that fails, hangs or takes the card's context with it is reported, the next one runs, and the exit code is
then 1. Every line of output is JSON.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
LLAMA_1B = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
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
LEAST_S, PART_S = 40, 150
"""Seconds: a part is not begun with less left, and is given up after so many."""


@dataclass(frozen=True)
class Load:
    """What is trained on: a family, its shape, tokens of a micro-batch, and how."""

    kind: str
    shape: dict[str, int]
    tokens: int
    checkpointing: bool = False
    nf4: bool = False
    half: str = "bf16"
    as_t4: bool = False


def device() -> str:
    """`cuda`, or `cpu` where the script is only tried."""
    return "cpu" if "--device cpu" in " ".join(sys.argv) else "cuda"


def halves() -> dict[str, Any]:
    """The 16-bit types that are tried; on a processor fp16 stands for no autocast."""
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16 if device() == "cuda" else torch.float32}


def new_base(kind: str, shape: dict[str, int], dtype: Any) -> Any:
    """A frozen base with random weights, made on the card."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

    config = {"llama": LlamaConfig, "qwen2": Qwen2Config}[kind](**shape, tie_word_embeddings=False)
    torch.manual_seed(0)
    with torch.device(device()):
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
    from accelerate.state import AcceleratorState

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
    AcceleratorState._reset_state(reset_partial_state=True)  # noqa: SLF001  (it allows one precision a process)
    precision = mixed if device() == "cuda" or mixed == "bf16" else "no"
    return Engine(model, cross_entropy(base), limit, Accelerator(mixed_precision=precision, cpu=device() == "cpu"))


@contextmanager
def kernel_of_a_t4(wanted: bool = True) -> Iterator[None]:
    """Attention as on a card before Ampere, where it is wanted: neither torch's varlen kernel nor SDPA's flash one."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from potstill.distill import attention

    before = attention.FLASH_CAPABILITY
    if not wanted or device() == "cpu":
        yield
        return
    attention.FLASH_CAPABILITY = (99, 0)
    try:
        with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION]):  # the plain kernel is no way out
            yield
    finally:
        attention.FLASH_CAPABILITY = before


def check_packing() -> dict[str, Any]:
    """Hidden states of a packed row against each document alone: every type, with and without a window, and as on a T4."""
    import torch

    limits = {torch.bfloat16: 0.05, torch.float16: 0.01, torch.float32: 1e-4}
    found = {}
    for dtype, limit in limits.items():
        for window in (None, 128):
            for as_t4 in (False, True):
                name = f"{dtype}, window {window}{', as on a T4' if as_t4 else ''}"
                with kernel_of_a_t4(as_t4):
                    found[name] = packed_difference(dtype, window)
                expect(found[name] < limit, f"packed differs by {found[name]} ({name})")
    return found


def packed_difference(dtype: Any, window: int | None) -> float:
    """How far a packed row is from its documents alone, as a share of the largest number."""
    import torch
    from transformers import AutoModelForCausalLM, MistralConfig

    from potstill.distill.attention import use_packed_attention
    from potstill.distill.packing import pack

    torch.manual_seed(0)
    with torch.device(device()):
        config = MistralConfig(**SMALL, sliding_window=window)
        base = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager")
    rows = sorted(documents(SMALL["vocab_size"]), key=lambda each: -len(each.ids))
    packed = pack(rows, base.device)
    with torch.no_grad():
        alone = [base.model(torch.tensor([row.ids], device=device()), use_cache=False) for row in rows]
        use_packed_attention(base)
        together = base.model(
            packed.input_ids, position_ids=packed.position_ids, use_cache=False, layout=packed.layout
        ).last_hidden_state[0]
    expected = torch.cat([each.last_hidden_state[0] for each in alone])
    return float((together - expected).abs().max() / expected.abs().max())


def check_loss() -> dict[str, Any]:
    """The one-pass loss and its gradient against autograd through all logits, in float32 on the card."""
    import torch

    from potstill.distill.loss import Head, token_loss
    from potstill.distill.packing import pack

    torch.manual_seed(0)
    packed = pack(documents(5000), torch.device(device()))
    hidden = torch.randn(len(packed.targets), 256, device=device(), requires_grad=True)
    head = Head(torch.randn(5000, 256, device=device()) / 16)
    (found,) = torch.autograd.grad(token_loss(hidden, head, packed), hidden)
    plain = torch.nn.functional.cross_entropy(head.logits(hidden), packed.targets, reduction="sum")
    (expected,) = torch.autograd.grad(plain, hidden)
    difference = float((found - expected).abs().max())
    expect(difference < FP32_TOLERANCE, f"gradients differ by {difference}")
    return {"gradient_difference": difference}


def check_out_of_memory(folder: Path) -> dict[str, Any]:
    """The card's own allocator refuses: the step is split, and its gradient is that of the undisturbed step."""
    import torch

    if device() == "cpu":
        return {"skipped": "a processor has no limit to set"}

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
    if device() == "cpu":  # 16 bits are a card's, and so is nf4
        kinds = {"fp32": {"dtype": "float32"}}
    elif importlib.util.find_spec("bitsandbytes"):
        kinds["nf4"] = {"quantization": "nf4"}
    found: dict[str, Any] = {} if "nf4" in kinds else {"nf4": "skipped: no card or no bitsandbytes"}
    for name, more in kinds.items():
        config = StudentConfig.model_validate({"base": str(folder / "base"), "device": device(), **more})
        job = Job(distill, data, data, folder / name / "checkpoints", folder / name / "adapter", name)
        log = train(config, job, lambda _: None)
        losses = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
        found[name] = {"first": losses[0], "last": losses[-1]}
        expect(losses[-1] < losses[0], f"{name}: the loss does not fall: {losses}")
    return found


def bench(load: Load, folder: Path) -> dict[str, Any]:
    """Steps of packed documents of 512 tokens: tokens a second, MFU, and peak bytes beside the estimator's."""
    import torch

    from potstill.distill.progress import peak_flops
    from potstill.student.fit import Recipe, training_memory
    from potstill.student.shape import shape_of

    base = new_base(load.kind, load.shape, halves()[load.half])
    parameters = base.num_parameters()
    engine = new_engine(
        in_4_bits(base) if load.nf4 else base, folder, mixed=load.half, checkpointing=load.checkpointing
    )
    optimizer = torch.optim.AdamW([each for each in engine.model.parameters() if each.requires_grad], fused=True)
    rows = documents(load.shape["vocab_size"], (512,) * (load.tokens // 512))

    def step() -> None:
        engine.step(rows)
        optimizer.step()
        optimizer.zero_grad()

    with kernel_of_a_t4(load.as_t4):
        rate = load.tokens / seconds_each(step)
    card = peak_flops(torch.device(device()))
    shape = shape_of(load.kind, {**load.shape, "model_type": load.kind}, "")
    recipe = Recipe(load.tokens, RANK, load.nf4, load.checkpointing, shape.loss_rows)
    estimate = training_memory(shape, recipe).peak / 2**30
    return {
        "tokens_per_s": rate,
        "mfu": None if card is None else 4 * parameters * rate / card,
        "peak_gib": peak_gib(),
        "estimated_gib": estimate,
        "estimate_over_peak": estimate / peak_gib() if peak_gib() else None,
        "split_at": engine.limit.tokens,
    }


def in_4_bits(base: Any) -> Any:
    """The same base with QLoRA's 4-bit weights, as transformers loads them: all linear layers but the head."""
    import torch
    from bitsandbytes.nn import Linear4bit, Params4bit

    names = [name for name, layer in base.named_modules() if type(layer) is torch.nn.Linear and "lm_head" not in name]
    for name in names:
        parent = base.get_submodule(name.rpartition(".")[0])
        old = base.get_submodule(name)
        new = Linear4bit(
            old.in_features, old.out_features, old.bias is not None, base.dtype, quant_type="nf4", device="meta"
        )
        new.weight = Params4bit(old.weight.data.cpu(), requires_grad=False, quant_type="nf4", module=new)
        new.bias = old.bias
        setattr(parent, name.rpartition(".")[2], new.to(device()))
        del old
    base.is_loaded_in_4bit = True
    return base


def bench_trl(load: Load, folder: Path) -> dict[str, Any]:
    """TRL's SFTTrainer on the same documents, padded (they are equally long), with its own defaults else."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    steps = 8
    rows = documents(load.shape["vocab_size"], (512,) * (load.tokens // 512))
    data = [{"input_ids": list(row.ids), "labels": list(row.labels)} for row in rows] * steps
    settings = SFTConfig(
        output_dir=str(folder / "trl"),
        max_steps=steps,
        per_device_train_batch_size=len(rows),
        activation_checkpointing=load.checkpointing,
        bf16=device() == "cuda",
        use_cpu=device() == "cpu",
        max_length=None,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        model=new_base(load.kind, load.shape, halves()["bf16"]),
        args=settings,
        train_dataset=Dataset.from_list(data),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=word_tokenizer(), pad_token="0", eos_token="1"),
        peft_config=LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.add_callback(timer := step_timer())
    reset_peak()
    trainer.train()
    later = timer.at[-1] - timer.at[1]
    return {"tokens_per_s": (len(timer.at) - 2) * load.tokens / later, "peak_gib": peak_gib()}


def step_timer() -> Any:
    """A callback that notes when each step has ended on the card; the first two are for warming up."""
    from transformers import TrainerCallback

    class Timer(TrainerCallback):  # type: ignore[misc]
        """`at`: seconds of the clock at the end of each step."""

        def __init__(self) -> None:
            self.at: list[float] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            synchronize()
            self.at.append(time.perf_counter())

    return Timer()


def bench_serving(shape: dict[str, int]) -> dict[str, Any]:
    """The slots beside transformers' continuous batching: tokens a second at 16 and 64 requests, even and ragged."""
    import serve

    from potstill.student.lora import AdapterBank

    serve.VOCABULARY = shape["vocab_size"]
    model = new_base("llama", shape, halves()["bf16"]).eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    bank = AdapterBank(model)
    numbers = [bank.load(adapter) for adapter in serve.adapters_of(model, 4)]
    slots, paged = serve.slots(model, [bank], numbers), serve.paged(model, bounded=device() == "cpu")
    found: dict[str, Any] = {}
    for count in (16, 64) if device() == "cuda" else (2,):
        for kind in ("uniform", "ragged"):
            work = serve.asks(count, kind, 2)
            found[f"slots, {count} {kind}"] = best_rate(slots, work)
            try:
                found[f"continuous batching, {count} {kind}"] = best_rate(paged, work)
            except Exception as error:  # noqa: BLE001  (a yardstick that fails is said so, and our own figures stay)
                found[f"continuous batching, {count} {kind}"] = f"failed: {error!r:.300}"
        found[f"slots, {count} ragged over four adapters"] = best_rate(slots, serve.asks(count, "ragged", 2, 4))
    return found | {"peak_gib": peak_gib()}


def best_rate(run: Callable[[Any], int], work: Any, repeats: int = 2) -> float:
    """Tokens of answer a second, the better of some runs after one to warm up."""
    rates = []
    for _ in range(1 + repeats):
        began = time.perf_counter()
        written = run(work)
        synchronize()
        rates.append(written / (time.perf_counter() - began))
    return max(rates[1:])


def word_tokenizer() -> Any:
    """A tokenizer that TRL insists on and does not need, because the rows are encoded."""
    from tokenizers import Tokenizer, models

    return Tokenizer(models.WordLevel({str(number): number for number in range(8)}, unk_token="0"))


def seconds_each(step: Callable[[], None], repeats: int = 6) -> float:
    """Mean seconds of a step after two to warm up."""
    for _ in range(2):
        step()
    synchronize()
    reset_peak()
    began = time.perf_counter()
    for _ in range(repeats):
        step()
    synchronize()
    return (time.perf_counter() - began) / repeats


def synchronize() -> None:
    """Wait for the card."""
    import torch

    if device() == "cuda":
        torch.cuda.synchronize()


def reset_peak() -> None:
    """Look for a peak anew."""
    import torch

    if device() == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_gib() -> float:
    """Peak of the allocator since its last reset; 0 on a processor."""
    import torch

    return torch.cuda.max_memory_allocated() / 2**30 if device() == "cuda" else 0.0


def expect(holds: bool, otherwise: str) -> None:
    """Fail a check with the figures that it found."""
    if not holds:
        raise AssertionError(otherwise)


def parts(folder: Path) -> dict[str, Callable[[], dict[str, Any]]]:
    """Everything in order: the checks first, then what the results pages ask for; TRL right after ours."""
    tiny = device() == "cpu"
    llama, qwen, small = (SMALL, SMALL, SMALL) if tiny else (LLAMA_8B, QWEN_7B, LLAMA_1B)
    loads = {
        f"{name}, {tokens} tokens, checkpointing {again}": Load(kind, shape, 512 if tiny else tokens, again)
        for name, kind, shape in (("llama-8b", "llama", llama), ("qwen-7b", "qwen2", qwen))
        for tokens, again in ((4096, False), (16384, False), (8192, True))
    }
    found: dict[str, Callable[[], dict[str, Any]]] = {
        "packing": check_packing,
        "loss": check_loss,
        "training": lambda: check_training(folder),
        "out-of-memory": lambda: check_out_of_memory(folder),
    }
    for label, load in loads.items():
        found[label] = lambda load=load: bench(load, folder)
        if load.tokens != 16384:  # noqa: PLR2004  (where only a step that keeps its activations well fills the card)
            found["trl, " + label] = lambda load=load: bench_trl(load, folder)
    qlora = Load("llama", llama, 512 if tiny else 2048, checkpointing=True, nf4=True)
    as_t4 = Load("llama", small, 512 if tiny else 4096, half="fp16", as_t4=True)
    return found | {
        "qlora, llama-8b": lambda: bench(qlora, folder),
        "fp16 as on a T4, llama-1b": lambda: bench(as_t4, folder),
        "serving, llama-8b": lambda: bench_serving(llama),
    }


def main() -> None:
    """Run the parts, each in a process of its own, within the budget of time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", action="append", help="only parts whose name contains this")
    parser.add_argument("--out", type=Path, help="write all results here too")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: tiny shapes, to try the script")
    parser.add_argument("--here", action="store_true", help="all parts in this process")
    given = parser.parse_args()
    began = time.monotonic()
    results: dict[str, Any] = {"card": card()}
    print(json.dumps(results), flush=True)
    with tempfile.TemporaryDirectory() as name:
        for label, part in parts(Path(name)).items():
            if given.part and not any(text in label for text in given.part):
                continue
            left_s = BUDGET_S - (time.monotonic() - began)
            command = [__file__, "--device", given.device, "--here", "--part", label]
            results[label] = run_part(part) if given.here else apart(command, label, left_s)
            print(json.dumps({label: results[label]}), flush=True)
            if given.out:
                given.out.write_text(json.dumps(results, indent=2) + "\n")
    raise SystemExit(1 if any("failed" in each for each in results.values()) else 0)


def card() -> dict[str, Any]:
    """The card, and the versions; exit code 7 where there is none."""
    import torch

    versions = {name: installed(name) for name in ("torch", "transformers", "peft", "trl", "bitsandbytes")}
    if device() == "cpu":
        return {"name": "none, tiny shapes", **versions}
    if not torch.cuda.is_available():
        print("benchmarks/gpu.py needs a CUDA card, and torch finds none", file=sys.stderr)
        raise SystemExit(7)
    found = torch.cuda.get_device_properties(0)
    return {"name": found.name, "memory_gib": found.total_memory / 2**30, "cuda": torch.version.cuda, **versions}


def installed(name: str) -> str | None:
    """A package's version."""
    return importlib.metadata.version(name) if importlib.util.find_spec(name) else None


def apart(command: list[str], label: str, left_s: float, most_s: float = PART_S) -> dict[str, Any]:
    """One part's figures from a process of its own; none is begun that could not end in time."""
    if left_s < LEAST_S:
        return {"skipped": "no time left"}
    try:
        done = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, timeout=min(left_s, most_s), check=False
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"no end after {min(left_s, most_s):.0f} s"}
    for line in done.stdout.splitlines():
        if line.startswith(json.dumps({label: 0})[:-2]):
            return dict(json.loads(line)[label])
    return {"failed": f"exit code {done.returncode}: {done.stderr[-2000:]}"}


def run_part(part: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """One part's figures, or why there are none."""
    began = time.monotonic()
    try:
        found = part()
    except ImportError as error:
        found = {"skipped": f"needs {error.name}"}
    except Exception:  # noqa: BLE001  (a part that fails must not hide the others' figures)
        found = {"failed": traceback.format_exc(limit=-4)}
    gc.collect()
    return found | {"seconds": round(time.monotonic() - began, 1)}


if __name__ == "__main__":
    main()
