"""What soft targets bring: held-out loss of a student on few texts of a teacher, with and without its probabilities.

    python benchmarks/soft_targets.py

Student and teacher are small Llama shapes of one vocabulary, the teacher with random, sharpened weights; texts are
sampled from the teacher, so its own held-out loss is the floor.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

TEXTS, HELD_OUT, SEEDS = 24, 64, 3


def held_out(folder: Path, kind: str | None, seed: int) -> float:
    """Held-out nats a token after training by hard targets (None) or by one divergence."""
    from tests.unit.test_soft_targets import ignore, sampled, save_model

    from potstill.config import DistillConfig, SoftTargets, StudentConfig
    from potstill.distill.engine import cross_entropy
    from potstill.distill.soft_targets import soft_objective
    from potstill.distill.train import Job, train

    student = StudentConfig(base=str(save_model(folder / "student", seed, scale=6.0)), device="cpu")
    teacher = save_model(folder / "teacher", 100 + seed, scale=15.0)
    objective: Any = cross_entropy
    if kind:
        soft = {"teacher": str(teacher), "temperature": 1.0, "weight": 1.0, "divergence": kind}
        objective = soft_objective(student, SoftTargets.model_validate(soft))
    lora = {"r": 16, "alpha": 64, "target_modules": "all-linear"}
    distill = DistillConfig.model_validate({"lora": lora, "epochs": 12, "batch_size": 8, "learning_rate": 0.01})
    rows = sampled(teacher, TEXTS, seed=200 + seed), sampled(teacher, HELD_OUT, seed=300 + seed)
    log = train(student, Job(distill, *rows, folder / "c", folder / "a", "plan", objective), ignore)
    return [entry["eval_loss"] for entry in log if "eval_loss" in entry][-1]


def main() -> None:
    """Print a table: median over seeds."""
    print(f"| {TEXTS} texts | held-out NLL, median of {SEEDS} |\n|---|---|")
    for kind in (None, "forward", "reverse", "jsd"):
        found = []
        for seed in range(SEEDS):
            with tempfile.TemporaryDirectory() as name:
                found.append(held_out(Path(name), kind, seed))
        print(f"| {kind or 'hard targets only'} | {statistics.median(found):.3f} |", flush=True)


if __name__ == "__main__":
    main()
