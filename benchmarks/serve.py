"""Tokens of potstill's engine, per CPU second and per second, against what transformers and PEFT offer, in turn.

    OMP_NUM_THREADS=1 python benchmarks/serve.py --rounds 3
    python benchmarks/serve.py --rounds 3 --parts engines     # every core, as a server runs: look at the seconds

A Llama shape of 8 layers and hidden size 512 with random weights. Requests of even length (64 tokens of prompt, 48 of
answer) and ragged ones (16 to 112, 8 to 88), 1 to 64 at once; then 16 requests over four LoRA adapters; then four
roles for one query; then memory. Nothing stops early. CPU seconds are the process's own, all threads; the ratio of each
round is taken within the round, and the median over the rounds is printed. `--dtype bfloat16` is all contestants' type.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

COUNTS = (1, 4, 16, 64)
LOCKED = 4
"""One at a time costs the same for each request, so a few of them are enough."""
VOCABULARY = 4096
RANK = 16


class Rate(NamedTuple):
    """Tokens of answer per CPU second, and per second."""

    cpu: float
    clock: float


class Ask(NamedTuple):
    """One request: prompt ids, and how many tokens of answer."""

    prompt: list[int]
    answer: int
    adapter: int | None = None


def asks(count: int, kind: str, seed: int, adapters: int = 0) -> list[Ask]:
    """Random requests."""
    draw = random.Random(seed)
    made = []
    for place in range(count):
        prompt, answer = (64, 48) if kind == "uniform" else (draw.randint(16, 112), draw.randint(8, 88))
        ids = [draw.randrange(5, VOCABULARY) for _ in range(prompt)]
        made.append(Ask(ids, answer, place % adapters if adapters else None))
    return made


def shape(dtype: str = "float32", layers: int = 8, hidden: int = 512) -> Any:
    """The model: random weights, no end token."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3 // 32 * 32,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        max_position_embeddings=2048,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).to(getattr(torch, dtype)).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


class Silent:
    """Stands in for the tokenizer, whose cost is not compared: says nothing."""

    stops: frozenset[int] = frozenset()

    def stream(self) -> None:
        """No decoder."""

    def say(self, _stream: None, _token: int) -> str:
        """No text."""
        return ""


def adapters_of(model: Any, count: int) -> list[Any]:
    """Random adapters on q_proj and v_proj."""
    import torch

    from potstill.student.lora import Adapter

    made = []
    for _ in range(count):
        layers = {}
        for name, layer in model.named_modules():
            if name.endswith(("q_proj", "v_proj")):
                a = torch.randn(RANK, layer.in_features) * 0.05
                layers[name] = (a, torch.randn(RANK, layer.out_features) * 0.05)
        made.append(Adapter(layers))
    return made


def slots(model: Any, loaded: list[Any], numbers: list[int] | None = None) -> Callable[[list[Ask]], int]:
    """Potstill's engine."""
    from potstill.student.answers import StudentQuery
    from potstill.student.decoding import Row
    from potstill.student.lora import AdapterBank
    from potstill.student.onednn import pack
    from potstill.student.slot_memory import Prefixes
    from potstill.student.slots import SlotEngine

    bank = AdapterBank(model) if numbers is None else loaded[0]
    pack(model)
    engine = SlotEngine(model, bank, Prefixes(), 64)

    def run(work: list[Ask]) -> int:
        for ask in work:
            query = StudentQuery(role="r", max_new_tokens=ask.answer)
            adapter = None if ask.adapter is None or numbers is None else numbers[ask.adapter]
            engine.add(Row(query, ask.prompt, Silent(), adapter))  # type: ignore[arg-type]
        written = 0
        while engine.running or engine.waiting:
            written += sum(piece.answer.completion_tokens for piece in engine.step() if piece.answer)
        return written

    return run


def locked(model: Any) -> Callable[[list[Ask]], int]:
    """`generate`, one request at a time, as behind a lock."""
    import torch

    def run(work: list[Ask]) -> int:
        for ask in work[:LOCKED]:
            ids = torch.tensor([ask.prompt])
            with torch.inference_mode():
                model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=ask.answer, do_sample=False)
        return sum(ask.answer for ask in work[:LOCKED])

    return run


def batched(model: Any, **more: Any) -> Callable[[list[Ask]], int]:
    """`generate` on static batches: padded on the left, all as long as the longest."""
    import torch

    def run(work: list[Ask]) -> int:
        width = max(len(ask.prompt) for ask in work)
        ids = torch.tensor([[0] * (width - len(ask.prompt)) + ask.prompt for ask in work])
        mask = torch.tensor([[0] * (width - len(ask.prompt)) + [1] * len(ask.prompt) for ask in work])
        longest = max(ask.answer for ask in work)
        names = {"adapter_names": [f"a{ask.adapter}" for ask in work]} if more.get("mixed") else {}
        with torch.inference_mode():
            model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=longest, do_sample=False, **names)
        return sum(ask.answer for ask in work)

    return run


def paged(model: Any, *, bounded: bool = True) -> Callable[[list[Ask]], int]:
    """Transformers' continuous batching, its manager kept between runs; `bounded`: its memory, for a small machine."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    config = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=128)
    sizes = {"num_blocks": 256, "max_batch_tokens": 512, "page_size": 32} if bounded else {}
    limits = ContinuousBatchingConfig(**sizes)

    def run(work: list[Ask]) -> int:
        with model.continuous_batching_context_manager(
            generation_config=config, continuous_batching_config=limits, persistent_manager=True
        ) as manager:
            waiting = {manager.add_request(ask.prompt, max_new_tokens=ask.answer) for ask in work}
            written = 0
            while waiting:
                result = manager.get_result(timeout=60)
                if result is None:
                    message = "transformers' continuous batching gave no result"
                    raise RuntimeError(message)
                if result.is_finished() and result.request_id in waiting:
                    waiting.discard(result.request_id)
                    written += len(result.generated_tokens)
        return written

    return run


def switched(model: Any) -> Callable[[list[Ask]], int]:
    """PEFT's `set_adapter`, one request at a time."""
    one = locked(model)

    def run(work: list[Ask]) -> int:
        written = 0
        for ask in work[:LOCKED]:
            model.set_adapter(f"a{ask.adapter}")
            written += one([ask])
        return written

    return run


def peft_of(loaded: list[Any]) -> Any:
    """The same adapters on a PEFT model of the same base."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(shape(), config, adapter_name="a0")
    for place in range(1, len(loaded)):
        model.add_adapter(f"a{place}", config)
    for place, adapter in enumerate(loaded):
        for name, (a, b) in adapter.layers.items():
            layer = model.get_submodule(f"base_model.model.{name}")
            layer.lora_A[f"a{place}"].weight.data.copy_(a)
            layer.lora_B[f"a{place}"].weight.data.copy_(b.T)
    return model.eval()


def rate(run: Callable[[list[Ask]], int], work: list[Ask]) -> Rate:
    """How fast one contestant answers."""
    began, clock = time.process_time(), time.perf_counter()
    written = run(work)
    return Rate(written / (time.process_time() - began), written / (time.perf_counter() - clock))


def compare(title: str, contestants: dict[str, Callable[[list[Ask]], int]], make: Callable[[int], list[Ask]],
            rounds: int) -> None:  # fmt: skip
    """Each contestant in turn, round after round; prints medians, and the median ratio of the first to each."""
    rates: dict[str, list[Rate]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name, run in contestants.items():
            try:
                rates[name].append(rate(run, make(number)))
            except (
                RuntimeError,
                ValueError,
                TypeError,
                KeyError,
            ) as error:  # a yardstick that fails is said so, and does not end the benchmark
                print(f"{title}: {name} failed: {type(error).__name__}: {str(error)[:200]}", flush=True)
                rates[name].append(Rate(float("nan"), float("nan")))
    print(f"{title}: per CPU second {_told(rates, 'cpu')}; per second {_told(rates, 'clock')}", flush=True)


def _told(rates: dict[str, list[Rate]], figure: str) -> str:
    """Medians of one figure, and the ratios of the first contestant to the others."""
    first, *others = found = {
        name: [getattr(each, figure) for each in each_round] for name, each_round in rates.items()
    }
    cells = ", ".join(f"{name} {statistics.median(values):.0f}" for name, values in found.items())
    ratios = [
        f"{statistics.median(a / b for a, b in zip(found[first], found[name], strict=True)):.2f}x {name}"
        for name in others
    ]
    return f"{cells} ({first} is {', '.join(ratios)})"


def engines(rounds: int, dtype: str) -> None:
    """Even and ragged lengths, 1 to 64 at once."""
    model, plain = shape(dtype), shape(dtype)
    contestants = {
        "slots": slots(model, []),
        "lock": locked(plain),
        "static": batched(plain),
        "transformers-cb": paged(plain),
    }
    for run in contestants.values():
        run(asks(2, "uniform", 99))  # everything is loaded and allocated before the first measurement
    for kind in ("uniform", "ragged"):
        for count in COUNTS:
            compare(f"{kind}, {count} at once", contestants, lambda n, c=count, k=kind: asks(c, k, n), rounds)


def adapters(rounds: int) -> None:
    """Requests mixed over four adapters, and how the engine's speed falls with the number of adapters."""
    from potstill.student.lora import AdapterBank

    model = shape()
    loaded = adapters_of(model, 16)
    bank = AdapterBank(model)
    numbers = [bank.load(adapter) for adapter in loaded]
    peft = peft_of(loaded[:4])
    contestants = {
        "slots": slots(model, [bank], numbers),
        "peft-switch": switched(peft),
        "peft-mixed": batched(peft, mixed=True),
    }
    for kind in ("uniform", "ragged"):
        for count in COUNTS[1:]:
            make = lambda n, c=count, k=kind: asks(c, k, n, adapters=4)  # noqa: E731
            compare(f"four adapters, {kind}, {count} at once", contestants, make, rounds)
    run = slots(model, [bank], numbers)
    for count in (1, 2, 4, 8, 16):
        found = [rate(run, asks(16, "uniform", n, adapters=count)).cpu for n in range(rounds)]
        print(f"16 requests over {count} of 16 adapters: slots {statistics.median(found):.0f}", flush=True)


def roles(rounds: int) -> None:
    """CPU time of four roles for one query in one batch, against one role."""
    from potstill.student.lora import AdapterBank

    model = shape()
    bank = AdapterBank(model)
    numbers = [bank.load(adapter) for adapter in adapters_of(model, 4)]
    run = slots(model, [bank], numbers)
    ratios, alone = [], []
    for number in range(max(5, rounds)):
        (one,) = asks(1, "uniform", number, adapters=1)
        spent = []
        for batches in ([[one]], [[one._replace(adapter=place) for place in range(4)]], [[one]] * 4):
            began = time.process_time()
            for work in batches:
                run(work)
            spent.append(time.process_time() - began)
        ratios.append(spent[1] / spent[0])
        alone.append(spent[2] / spent[0])
    print(f"four roles for one query: {statistics.median(ratios):.2f}x the CPU time of one role; one after another "
          f"{statistics.median(alone):.2f}x", flush=True)  # fmt: skip


def memory() -> None:
    """Peak memory of one process with four adapters, and of one that serves a single one."""
    for count in (1, 4):
        code = f"import benchmarks.serve as b; b.resident({count})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        print(f"one process with {count} adapter(s): {done.stdout.strip()} MiB resident", flush=True)


def resident(count: int) -> None:
    """Print the peak resident memory of serving so many adapters."""
    from potstill.student.lora import AdapterBank

    model = shape()
    bank = AdapterBank(model)
    numbers = [bank.load(adapter) for adapter in adapters_of(model, count)]
    slots(model, [bank], numbers)(asks(4, "uniform", 0, adapters=count))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", default="engines,adapters,roles,memory")
    parser.add_argument("--dtype", default="float32", help="of the part `engines`")
    given = parser.parse_args()
    import torch

    print(
        json.dumps({"threads": torch.get_num_threads(), "torch": torch.__version__, "dtype": given.dtype}), flush=True
    )
    parts = {
        "engines": lambda: engines(given.rounds, given.dtype),
        "adapters": lambda: adapters(given.rounds),
        "roles": lambda: roles(given.rounds),
        "memory": memory,
    }
    for part in given.parts.split(","):
        parts[part]()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
