"""What rationales bring: held-out answers of a student that learns from few samples, with and without the teacher's reasoning.

    python benchmarks/rationales.py

Which cable connects two parts hangs on the plugs that the parts have, and on a table of plugs and cables. Neither stands in
the question. The answer names the cable; the rationale names the plugs on the way. Held out are pairs of parts that were
never asked together. Base: a small Llama shape with random weights; adapters of full rank, so that this is training from
scratch, by `potstill distill` itself, verdict included. Questions, steps and seeds are the same with and without rationales;
with them a step holds both tasks, so it costs more.
"""

from __future__ import annotations

import itertools
import os
import random
import statistics
import tempfile
import time
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from word_base import save_base

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

PARTS = tuple(f"{kind}{number}" for kind in ("pump", "lamp", "fan", "valve") for number in range(6))
PLUGS = ("red", "blue", "green", "white")
CABLES = tuple(f"cable{number}" for number in range(6))
OTHERS = ("clerk", "system", "user", "assistant", "connect", "to", "has", "takes", "explain", "<unk>")
WORDS = (*OTHERS, *PARTS, *PLUGS, *CABLES)
HELD_OUT, SEEDS = 200, (0, 1, 2, 3)
BATCH = 10
RUNS = ((100, 600), (200, 300), (200, 600), (200, 1200), (300, 600))
"""Training samples and optimizer steps."""


def catalogue(draw: random.Random) -> tuple[dict[str, str], dict[tuple[str, str], str]]:
    """The plug of each part, and the cable between two plugs."""
    plugs = {part: draw.choice(PLUGS) for part in PARTS}
    return plugs, {pair: draw.choice(CABLES) for pair in itertools.product(PLUGS, repeat=2)}


def orders(draw: random.Random) -> list[tuple[str, str, str]]:
    """Question, answer and rationale for all pairs of parts, shuffled."""
    plugs, cables = catalogue(draw)
    found = []
    for left, right in itertools.permutations(PARTS, 2):
        cable = cables[plugs[left], plugs[right]]
        why = f"{left} has {plugs[left]} {right} has {plugs[right]} {plugs[left]} to {plugs[right]} takes {cable}"
        found.append((f"connect {left} to {right}", cable, why))
    draw.shuffle(found)
    return found


def write_dataset(workspace: Any, count: int, seed: int) -> None:
    """Some training samples with rationales, and held-out ones with none."""
    from potstill.records import Message, Sample, Usage

    rows = orders(random.Random(seed))[: count + HELD_OUT]
    workspace.dataset.mkdir(parents=True)
    lines = []
    for number, (question, answer, why) in enumerate(rows):
        turns = (("user", question), ("assistant", answer))
        lines.append(
            Sample(
                id=f"c1:{number}",
                messages=tuple(Message(role=role, content=text) for role, text in turns),
                role="clerk",
                prompt_id=f"p{number}",
                sample=0,
                model="rule",
                finish_reason="STOP",
                usage=Usage(),
                cost_usd=Decimal("0.001"),
                prompt_sha="0",
                created_at=datetime(2026, 11, 24, tzinfo=UTC),
                rationale=why,
            ).to_line()
        )
    parts = {"train": lines[:count], "validation": [], "test": lines[count:]}
    for name, part in parts.items():
        workspace.split(name).write_text("".join(part), encoding="utf-8")


def held_out(folder: Path, weight: float | None, count: int, seed: int, **settings: Any) -> tuple[float, float]:
    """Share of held-out orders answered right, and nats a token, by the verdict."""
    from potstill.config import Config
    from potstill.distill.run import distill
    from potstill.workspace import Workspace

    (folder / "explain.txt").write_text("explain {{ question }}")
    write_dataset(Workspace(folder / "w"), count, seed)
    config = Config.model_validate(
        {
            "workspace": str(folder / "w"),
            "student": {"base": str(save_base(folder / "base", WORDS, seed)), "device": "cpu"},
            "distill": {
                "lora": {"r": 64, "alpha": 64, "target_modules": "all-linear"},
                "batch_size": BATCH,
                "learning_rate": 0.003,
                "checkpoint_steps": 100_000,
                "max_new_tokens": 4,
                "near_duplicate": 1.0,
                "seed": seed,
                "rationale": {"weight": weight, "template": str(folder / "explain.txt")},
                **settings,
            },
        }
    )
    done = distill(config, Workspace(folder / "w"), lambda _: None, lambda _: None)
    assert done is not None
    return done.verdict.student_score.exact, done.verdict.student_score.nll or 0.0


def main() -> None:
    """Print a table: mean over seeds, and each seed's share of right answers."""
    print(
        "| samples | steps | learned | right, mean | right, by seed | NLL, mean | CPU-s a run |\n|---|---|---|---|---|---|---|"
    )
    for count, steps in RUNS:
        for weight in (None, 1.0):
            found, started = [], time.process_time()
            for seed in SEEDS:
                with tempfile.TemporaryDirectory() as name:
                    found.append(held_out(Path(name), weight, count, seed, epochs=steps * BATCH / count))
            right, nll = zip(*found, strict=True)
            name = "answers" if weight is None else "answers and rationales"
            seconds = (time.process_time() - started) / len(SEEDS)
            each = ", ".join(f"{share:.1%}" for share in right)
            row = (f"{statistics.mean(right):.1%}", each, f"{statistics.mean(nll):.3f}", f"{seconds:.0f}")
            print(f"| {count} | {steps} | {name} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
