"""What `distill --plan` says of memory, beside the bytes that a true training step holds on a card that computes nothing.

    python benchmarks/fit_trace.py [--only NAME] [--layers N] [--half nf4] [--out benchmarks/results/fit.md]

Runs potstill's own step (packing, loss, LoRA r 16 on all linear layers, Adam) on the full shapes under torch's
FakeTensorMode, counts every live tensor (see `fake_card`), and compares the peak with `fit.training_memory`. `--half nf4` is QLoRA through bitsandbytes' own layers. Needs g++.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import fake_card
from page import deliver, head

RANK = 16
DOCUMENT = 512
BUDGETS = (2048, 8192, 16384)
MODES = (("bf16", False), ("bf16", True), ("fp16", True), ("nf4", False), ("nf4", True))
"""Type, and whether activations are computed twice."""
GIB = 2**30
FAMILIES = {"Qwen2.5": "qwen2", "gemma-3": "gemma3_text", "Llama": "llama"}
ABOUT = (
    "Peak bytes of one step with half of the tokens learned, documents of 512 tokens, 16-bit weights, adapters and Adam "
    "in float32 under autocast, traced with no card and no data. bf16 on Hopper takes torch's flash kernel; fp16 as on a "
    "T4 its memory-efficient one. A trace shows every tensor that torch holds, each rounded up to 512 bytes as its "
    "allocator does, and the float32 sums of flash attention's backward kernel. It cannot show fragmentation, the "
    "workspaces of cuBLAS (tens of MiB), nor the CUDA context; `need` adds 5 % and 0.6 GiB for these."
)


@dataclass(frozen=True)
class Traced:
    """One run: the bytes at the peak by kind, and how often the step waited for the card."""

    peak: dict[str, int]
    waits: dict[str, int]

    @property
    def total(self) -> int:
        """All bytes at the peak."""
        return sum(self.peak.values())


def trace(shape: Any, tokens: int, *, checkpointing: bool, half: str = "bf16") -> Traced:
    """The peak of a training step: the second one, when Adam's moments exist."""
    import torch

    capability = (7, 5) if half == "fp16" else (9, 0)
    dtype = torch.float16 if half == "fp16" else torch.bfloat16
    make = four_bit_layer() if half == "nf4" else None  # bitsandbytes looks for a true card when it is imported
    with fake_card.running(capability) as card, tempfile.TemporaryDirectory() as folder:
        card.kind = "weights"
        base = new_base(shape, dtype)
        if make is not None:
            quantize(base, make)
        card.kind = "adapters"
        engine = new_engine(base, Path(folder), "fp16" if half == "fp16" else "bf16", checkpointing=checkpointing)
        learning = [each for each in engine.model.parameters() if each.requires_grad]
        optimizer = torch.optim.AdamW(learning, fused=True)
        card.kind = "activations"
        engine.step(documents((64,)))
        card.kind = "moments"
        optimizer.step()
        optimizer.zero_grad()
        card.kind = "activations"
        card.reset()
        engine.step(documents((DOCUMENT,) * (tokens // DOCUMENT)))
        return Traced({kind: size for kind, size in card.peak.items() if size}, dict(card.syncs))


def new_base(shape: Any, dtype: Any) -> Any:
    """A frozen base of a known shape on the card."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    family = next(family for name, family in FAMILIES.items() if name in shape.name)
    config = AutoConfig.for_model(
        family,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.mlp,
        vocab_size=shape.vocabulary,
        tie_word_embeddings=shape.tied,
    )
    with torch.device("cuda"):
        base = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return base.requires_grad_(requires_grad=False)


def quantize(base: Any, make: Callable[[Any], Any]) -> None:
    """Put 4-bit layers in the place of all linear ones but the head, as transformers does."""
    import torch

    names = [name for name, layer in base.named_modules() if type(layer) is torch.nn.Linear and "lm_head" not in name]
    for name in names:
        parent, _, last = name.rpartition(".")
        setattr(base.get_submodule(parent), last, make(base.get_submodule(name)))
    base.is_loaded_in_4bit = True


def four_bit_layer() -> Callable[[Any], Any]:
    """Makes bitsandbytes' layer of a linear one: its sizes and its way forward and back, but no numbers."""
    import torch
    from bitsandbytes import matmul_4bit
    from bitsandbytes.functional import QuantState
    from bitsandbytes.nn import Linear4bit

    class FourBit(Linear4bit):  # type: ignore[misc]
        """A layer of 4-bit weights in blocks of 64, their scales in 8 bits in blocks of 256."""

        def __init__(self, old: Any) -> None:
            torch.nn.Linear.__init__(self, old.in_features, old.out_features, bias=False, device="meta")
            size, device, dtype = old.weight.numel(), old.weight.device, old.weight.dtype
            self.weight = torch.nn.Parameter(
                torch.zeros(size // 2, 1, dtype=torch.uint8, device=device), requires_grad=False
            )
            self.weight.compress_statistics, self.weight.quant_type, self.weight.quant_state = True, "nf4", None
            self.bias, self.compute_dtype, blocks = old.bias, dtype, size // 64
            zeros = partial(torch.zeros, device=device)
            scales = QuantState(zeros(-(-blocks // 256)), code=zeros(256), blocksize=256, dtype=torch.float32)
            self.state = QuantState(
                zeros(blocks, dtype=torch.uint8), old.weight.shape, zeros(16), 64, "nf4", dtype, zeros(()), scales
            )

        def forward(self, x: Any) -> Any:
            given = x.dtype
            return matmul_4bit(x.to(self.compute_dtype), self.weight, self.state, bias=self.bias).to(given)

    return FourBit


def new_engine(base: Any, folder: Path, half: str, *, checkpointing: bool) -> Any:
    """The training engine over adapters on all linear layers."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    from potstill.config import DistillConfig
    from potstill.distill.attention import use_packed_attention
    from potstill.distill.engine import Engine, checkpoint_layers, cross_entropy
    from potstill.distill.oom import TokenLimit
    from potstill.distill.train import lora_model

    use_packed_attention(base)
    model = lora_model(base, DistillConfig.model_validate({"lora": {"r": RANK, "target_modules": "all-linear"}}))
    if checkpointing:
        checkpoint_layers(model)
    model.train()
    AcceleratorState._reset_state(reset_partial_state=True)  # noqa: SLF001  (it allows one precision a process)
    accelerator = Accelerator(mixed_precision=half)
    return Engine(model, cross_entropy(base), TokenLimit(None, folder / "limit.json", "fake"), accelerator)


def documents(lengths: tuple[int, ...]) -> list[Any]:
    """Documents of which the second half is learned."""
    from potstill.distill.packing import UNLEARNED, Document

    return [Document((7,) * size, (UNLEARNED,) * (size // 2) + (7,) * (size - size // 2)) for size in lengths]


def estimate(shape: Any, tokens: int, *, checkpointing: bool, nf4: bool) -> int:
    """What the plan says that torch allocates at most."""
    from potstill.student.fit import Recipe, training_memory

    return int(training_memory(shape, Recipe(tokens, RANK, nf4, checkpointing, shape.loss_rows)).peak)


def row(shape: Any, tokens: int, *, checkpointing: bool, half: str) -> dict[str, Any]:
    """One line of the table."""
    found = trace(shape, tokens, checkpointing=checkpointing, half=half)
    said = estimate(shape, tokens, checkpointing=checkpointing, nf4=half == "nf4")
    return {
        "base": shape.name.rpartition("/")[2],
        "half": half,
        "tokens": tokens,
        "checkpointing": checkpointing,
        **{f"{kind}_gib": round(size / GIB, 3) for kind, size in found.peak.items()},
        "traced_gib": round(found.total / GIB, 3),
        "plan_gib": round(said / GIB, 3),
        "plan_over_trace": round(said / found.total, 3),
        "waits": found.waits,
    }


def shapes(only: str, layers: int | None) -> list[Any]:
    """The known shapes that are traced."""
    from potstill.student.fit import KNOWN

    wanted = ("Llama-3.1-8B", "Qwen2.5-7B", "Llama-3.2-1B", "gemma-3-1b")
    chosen = [shape for name in wanted for shape in KNOWN if name in shape.name and only in shape.name]
    return [shape if layers is None else replace(shape, layers=layers) for shape in chosen]


def page(rows: list[dict[str, Any]]) -> list[str]:
    """The results as a page."""
    lines = [*head("Will it fit: the plan beside a trace", ABOUT), ""]
    lines += ["| base | | tokens | activations | traced peak, GiB | plan, GiB | plan / trace |", "|" + "---|" * 7]
    for each in rows:
        kept = "twice" if each["checkpointing"] else "kept"
        figures = f"{each['traced_gib']:.2f} | {each['plan_gib']:.2f} | {each['plan_over_trace']:.3f}"
        lines.append(f"| {each['base']} | {each['half']} | {each['tokens']:,} | {kept} | {figures} |")
    waits = sum(sum(each["waits"].values()) for each in rows)
    return [*lines, "", f"Times that the program waited for the card inside these {len(rows)} steps: {waits}."]


def main() -> None:
    """Trace everything and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="shapes whose name contains this")
    parser.add_argument("--layers", type=int, help="so many layers in place of the shape's own")
    parser.add_argument("--tokens", type=int, action="append", help=f"tokens of a micro-batch (default: {BUDGETS})")
    parser.add_argument("--half", action="append", choices=("bf16", "fp16", "nf4"), help="default: bf16 and fp16")
    parser.add_argument("--out", type=Path, help="write the page here too")
    given = parser.parse_args()
    fake_card.insert()
    rows = []
    for shape in shapes(given.only, given.layers):
        for tokens in given.tokens or BUDGETS:
            for half, checkpointing in [mode for mode in MODES if mode[0] in (given.half or ("bf16", "fp16"))]:
                rows.append(row(shape, tokens, checkpointing=checkpointing, half=half))
                print(json.dumps(rows[-1]), flush=True)
    deliver(page(rows), given.out)


if __name__ == "__main__":
    main()
