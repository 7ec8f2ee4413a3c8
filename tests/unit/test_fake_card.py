"""The CUDA paths on a card that computes nothing: devices and types go together, and no step waits for the card unasked.

torch must not be loaded before the card is there, so the paths run in a process of their own: this file as a script.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SHAPES = ("Llama", "Qwen2.5", "gemma-3")
MODES = [(family, half, again) for family in SHAPES for half in ("bf16", "fp16") for again in (False, True)]
GIB = 2**30


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What the paths gave: an error's text where there was one."""
    if shutil.which("g++") is None:
        pytest.skip("a fake card needs g++")
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.parametrize(("family", "half", "again"), MODES)
def test_a_training_step_runs_without_waiting(found: dict[str, Any], family: str, half: str, again: bool) -> None:
    """Packing, attention, loss and backward pass hold all tensors on the card, in types that go together, and never wait."""
    assert found[f"{family} {half} {again}"] == {"waits": {}}


def test_a_tensor_left_on_the_processor_is_found(found: dict[str, Any]) -> None:
    """The same step fails where what packing makes is not all brought to the card."""
    assert "cpu" in found["planted device"]
    assert "cuda:0" in found["planted device"]


def test_a_type_that_does_not_fit_is_found(found: dict[str, Any]) -> None:
    """The same step fails where adapters in float32 meet a base in 16 bits without autocast."""
    assert "dtype" in found["planted type"]


@pytest.mark.parametrize("half", ["bf16", "fp16"])
def test_slots_decode_on_the_card(found: dict[str, Any], half: str) -> None:
    """Prompts are read and rows of different adapters decoded on the card; only the chosen tokens are waited for."""
    assert found[f"slots {half}"]["tokens"] == [6, 6, 6, 6]
    assert {line.partition(":")[0] for line in found[f"slots {half}"]["waits"]} == {"sampling.py"}


def test_long_texts_fit_where_there_is_no_flash_kernel(found: dict[str, Any]) -> None:
    """On a T4, attention to 4,096 tokens with grouped heads never holds every score at once."""
    assert found["T4 peak"] < 1.5 * found["flash peak"]


def test_memory_that_ran_out_is_given_back(found: dict[str, Any]) -> None:
    """When a step fails half way, nothing of it stays on the card."""
    assert found["left after a shortage"] == 0


@pytest.mark.parametrize("base", ["Llama-3.2-1B", "gemma-3-1b"])
@pytest.mark.parametrize("again", [False, True])
def test_the_plan_agrees_with_a_trace(found: dict[str, Any], base: str, again: bool) -> None:
    """What `--plan` computes for a shape lies within 5 % of what its training step holds (four layers of it)."""
    assert 0.98 <= found[f"plan {base} {again}"] <= 1.05


def _attempt(run: Callable[[], Any]) -> Any:
    try:
        return run()
    except (RuntimeError, TypeError) as error:
        return str(error)


def _small(family: str) -> Any:
    from potstill.student.fit import Shape

    return Shape(family, 64, 2, 8, 4, 16, 128, 512, tied=True)


def _train(family: str, half: str, again: bool) -> Any:
    import fit_trace

    return {"waits": fit_trace.trace(_small(family), 1024, checkpointing=again, half=half).waits}


def _planted_device() -> Any:
    import torch

    from potstill.distill import engine
    from potstill.distill.packing import pack

    def forgetful(documents: Any, device: Any) -> Any:
        packed = pack(documents, device)
        return replace(packed, rows=torch.tensor(packed.rows.tolist()))

    engine.pack = forgetful  # type: ignore[assignment]
    try:
        return _train("Llama", "bf16", again=False)
    finally:
        engine.pack = pack


def _engine(card: Any, folder: str, shape: Any = None, half: str = "bf16") -> Any:
    import fit_trace
    import torch

    card.kind = "base"
    base = fit_trace.new_base(shape or _small("Llama"), getattr(torch, {"bf16": "bfloat16", "fp16": "float16"}[half]))
    return fit_trace.new_engine(base, Path(folder), half, checkpointing=False)


def _planted_type() -> Any:
    import fake_card
    import fit_trace

    with fake_card.running() as card:
        engine = _engine(card, "/tmp")
        engine._autocast = nullcontext
        return engine.step(fit_trace.documents((64,)))


def _shortage() -> int:
    import fake_card
    import fit_trace
    import torch

    def refuse(tokens: int) -> None:
        if tokens < 200:
            raise torch.OutOfMemoryError

    with fake_card.running() as card:
        engine = _engine(card, "/tmp")
        engine.step(fit_trace.documents((64,)))
        engine._forget()
        before = card.held.total()
        engine.admit, engine.limit.tokens = refuse, 256
        total, failed = engine._attempt(fit_trace.documents((256, 100)), 1.0)
        assert failed
        del total
        engine._forget()
        return card.held.total() - before


def _peak(capability: tuple[int, int], half: str) -> int:
    import fake_card
    import fit_trace

    shape = replace(_small("Llama"), hidden=512, heads=32, kv_heads=8)
    with fake_card.running(capability) as card:
        engine = _engine(card, "/tmp", shape, half)
        card.reset()
        engine.step(fit_trace.documents((4096,)))
        return card.peak.total()


def _slots(half: str) -> Any:
    import fake_card
    import fit_trace
    import torch
    from tests.tiny import tiny_tokenizer

    from potstill.student.answers import StudentQuery
    from potstill.student.decoding import Row, Voice
    from potstill.student.lora import Adapter, AdapterBank
    from potstill.student.slots import Prefixes, SlotEngine

    voice = Voice(tiny_tokenizer(), frozenset())
    with fake_card.running() as card:
        model = fit_trace.new_base(_small("Llama"), {"bf16": torch.bfloat16, "fp16": torch.float16}[half])
        bank = AdapterBank(model)
        layers = {
            name: (torch.randn(4, layer.in_features), torch.randn(4, layer.out_features))
            for name, layer in model.named_modules()
            if name.endswith("_proj")
        }
        numbers = [bank.load(Adapter(layers)), bank.load(Adapter(layers)), None, None]
        engine = SlotEngine(model, bank, Prefixes(), 3)
        settings: list[dict[str, Any]] = [{}, {"temperature": 0.7, "top_p": 0.9, "seed": 1}, {"top_logprobs": 2}, {}]
        settings[3] = {"logit_bias": {3: 1.0}, "frequency_penalty": 0.5}
        rows = [
            Row(StudentQuery(role="", max_new_tokens=6, **more), [5] * size, voice, number, "key", 8)
            for more, size, number in zip(settings, (30, 700, 12, 40), numbers, strict=True)
        ]
        for row in rows:
            engine.add(row)
        card.reset()
        while engine.running or engine.waiting:
            engine.step()
        return {"tokens": [len(row.ids) for row in rows], "waits": dict(card.syncs)}


def _plan(base: str, again: bool) -> float:
    import fit_trace

    shape = fit_trace.shapes(base, 4)[0]
    return float(fit_trace.row(shape, 2048, checkpointing=again, half="bf16")["plan_over_trace"])


def main() -> None:
    """Insert the card, run all paths, print what they gave."""
    sys.path[:0] = [str(BENCHMARKS), str(BENCHMARKS.parent)]
    import fake_card

    fake_card.insert()
    found = {
        f"{family} {half} {again}": _attempt(lambda f=family, h=half, a=again: _train(f, h, a))
        for family, half, again in MODES
    }
    found["planted device"] = _attempt(_planted_device)
    found["planted type"] = _attempt(_planted_type)
    found |= {f"slots {half}": _attempt(lambda h=half: _slots(h)) for half in ("bf16", "fp16")}
    found["T4 peak"], found["flash peak"] = _peak((7, 5), "fp16"), _peak((8, 0), "fp16")
    found["left after a shortage"] = _attempt(_shortage)
    for base in ("Llama-3.2-1B", "gemma-3-1b"):
        found |= {f"plan {base} {again}": _plan(base, again) for again in (False, True)}
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
