"""What rationales bring: held-out answers of a student that learns from few samples, with and without the teacher's reasoning.

    python benchmarks/rationales.py
    python benchmarks/rationales.py --fair

Which cable connects two parts hangs on the plugs that the parts have, and on a table of plugs and cables. Neither stands in
the question. The answer names the cable; the rationale names the plugs on the way. Held out are pairs of parts that were
never asked together. Base: a small Llama shape with random weights; adapters of full rank, so that this is training from
scratch, by `potstill distill` itself, verdict included. Questions, steps and seeds are the same with and without rationales;
with them a step holds both tasks, so it costs more.

`--fair` asks what the paper claims (arXiv 2305.02301): fewer labelled examples for the same quality. Each way takes the number
of steps at which 80 of the held-out pairs, which then count no more, went best; and pairs of rows cost the teacher the same
dollars, a rationale being a second request over the same catalogue (list price of the default teacher).
"""

from __future__ import annotations

import itertools
import json
import os
import random
import statistics
import sys
import tempfile
import time
from datetime import UTC, date, datetime
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
VALIDATION, STEPS = 80, (400, 1200, 2400)
FAIR = ((150, None), (300, None), (56, 1.0), (113, 1.0), (150, 1.0), (300, 1.0))
"""Training samples, and the weight of their rationales: 56 with rationales cost the teacher what 150 without do, 113 what 300 do."""
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


def held_out(folder: Path, weight: float | None, count: int, seed: int, **settings: Any) -> tuple[list[bool], float]:
    """Which held-out orders are answered right, and nats a token, by the verdict."""
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
    rows = map(json.loads, Workspace(folder / "w").student("student").evaluation.read_text("utf-8").splitlines())
    return [row["answer"] == row["reference"] for row in rows], done.verdict.student_score.nll or 0.0


def share(right: list[bool]) -> float:
    """Share of right answers."""
    return sum(right) / len(right)


def dollars(weight: float | None) -> float:
    """What one example costs the teacher's owner: an answer, and maybe its rationale, each with the catalogue as system prompt."""
    from potstill.config import Config
    from potstill.pricing.book import load_prices
    from potstill.pricing.tokens import estimate_tokens
    from potstill.prompts import fill, load_template
    from potstill.records import Usage

    config, draw = Config(), random.Random(0)
    plugs, cables = catalogue(draw)
    manual = [f"{part} has {plug}" for part, plug in plugs.items()]
    manual += [f"{left} to {right} takes {cable}" for (left, right), cable in cables.items()]
    question, answer, why = orders(random.Random(0))[0]
    template = load_template(config.generate.rationales.template, "en")
    asked = fill(template, {"question": question, "answer": answer}, origin="template rationale")
    book, total = load_prices(config.prices), 0.0
    for prompt, reply in ((question, answer), (asked, why))[: 1 if weight is None else 2]:
        read = estimate_tokens("\n".join(manual)) + estimate_tokens(prompt)
        usage = Usage(input_tokens=read, output_tokens=estimate_tokens(reply))
        total += float(book.cost(usage, config.teacher.model, "standard", date(2026, 11, 29)).usd)
    return total


def fair() -> None:
    """Print a row for each way and seed: right answers at the number of steps that validation chose."""
    print(
        "| learned | samples | teacher's cent | seed | right | steps | right at each number | CPU-s |\n|" + "---|" * 8
    )
    for seed, (count, weight) in itertools.product(SEEDS[:3], FAIR):
        found, started = {}, time.process_time()
        for steps in STEPS:
            with tempfile.TemporaryDirectory() as name:
                right, _ = held_out(Path(name), weight, count, seed, epochs=steps * BATCH / count)
            found[steps] = (share(right[:VALIDATION]), share(right[VALIDATION:]))
        best = max(found, key=lambda steps: (found[steps][0], -steps))
        name = "answers" if weight is None else "answers and rationales"
        each = ", ".join(f"{test:.1%}" for _, test in found.values())
        cents = f"{100 * count * dollars(weight):.2f}"
        row = (name, count, cents, seed, f"{found[best][1]:.1%}", best, each, f"{time.process_time() - started:.0f}")
        print(f"| {' | '.join(map(str, row))} |", flush=True)


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
                    answers, nats = held_out(Path(name), weight, count, seed, epochs=steps * BATCH / count)
                found.append((share(answers), nats))
            right, nll = zip(*found, strict=True)
            name = "answers" if weight is None else "answers and rationales"
            seconds = (time.process_time() - started) / len(SEEDS)
            each = ", ".join(f"{one:.1%}" for one in right)
            row = (f"{statistics.mean(right):.1%}", each, f"{statistics.mean(nll):.3f}", f"{seconds:.0f}")
            print(f"| {count} | {steps} | {name} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    fair() if "--fair" in sys.argv[1:] else main()
