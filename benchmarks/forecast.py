"""What `generate --plan` expects of each paid step over what the step then costs: before a pilot, and after one of 20.

python benchmarks/forecast.py [--runs 5] [--only NAME] [--out benchmarks/results/forecast.md]

Plan, pilot, plan, whole run, by the command line against the emulator, in a workspace of its own each time. Answers to
new prompts and second tries count with the cells: the ledger has all of them under one name.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from generate import KEY, emulator
from page import deliver, head

from potstill.ledger import LedgerView

PILOT = 20
STEPS = ("generate", "grow", "converse", "judge", "rationale")
SUMMED = {"new_answers": "generate", "second_tries": "generate"}
"""Steps that are paid under the name of the cells."""


@dataclass(frozen=True)
class Case:
    """A run to foresee: the emulator's options, and the config's."""

    name: str
    emulator: tuple[str, ...]
    values: tuple[str, ...]


CASES = (
    Case(
        "chats of three turns, marks, rationales",
        ("--length", "answer_tokens=60", "--length", "answer_spread=0.4"),
        (
            "generate.prompts=[faq-queries.en, ai-basics.en, costs.en]",
            "generate.roles=[generalist]",
            "generate.samples_per_prompt=4",
            "generate.temperatures=[0.4, 0.6, 0.8, 1.0]",
            "generate.turns=3",
            "generate.judge.enabled=true",
            "generate.judge.min_score=0",
            "generate.rationales.enabled=true",
        ),
    ),
    Case(
        "in Chinese: two turns, the best of three, rationales, long answers cut off and tried again",
        ("--length", "answer_tokens=60", "--length", "answer_spread=0.4"),
        (
            "language=zh-TW",
            "generate.prompts=[faq-train.zh-TW]",
            "generate.roles=[hardware-expert]",
            "generate.samples_per_prompt=3",
            "generate.temperatures=[0.6, 0.8, 1.0]",
            "generate.filters.keep_best=1",
            "generate.turns=2",
            "generate.max_output_tokens=110",
            "generate.truncated_limit=400",
            "generate.judge.enabled=true",
            "generate.judge.min_score=0",
            "generate.rationales.enabled=true",
        ),
    ),
    Case(
        "new prompts, thinking, marks",
        ("--faq", "hardware.en", "--length", "thinking_tokens=80", "--length", "thinking_spread=0.5"),
        (
            "generate.prompts=[faq-queries.en]",
            "generate.roles=[hardware-expert]",
            "generate.grow.target=80",
            "teacher.thinking_budget=1024",
            "generate.judge.enabled=true",
            "generate.judge.min_score=0",
        ),
    ),
)


def potstill(case: Case, folder: Path, url: str, *flags: str) -> dict[str, Any]:
    """Run `generate` as a user does, and read what it says."""
    sets = [word for value in ("teacher.rpm=null", *case.values) for word in ("--set", value)]
    command = [sys.executable, "-m", "potstill", "generate", "-w", str(folder), "--json", "-q", *sets, *flags]
    secrets = {"GEMINI_API_KEY": KEY, "GOOGLE_GEMINI_BASE_URL": url}
    done = subprocess.run(command, env={**os.environ, **secrets}, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in {0, 6}:
        message = f"{case.name}: exit code {done.returncode}"
        raise SystemExit(message)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def paid(folder: Path) -> dict[str, Decimal]:
    """What each step has cost so far."""
    with LedgerView(folder / "ledger.sqlite3") as ledger:
        return {name: ledger.committed_by(name) for name in STEPS}


def expected(plan: dict[str, Any]) -> dict[str, Decimal]:
    """What a plan expects of each step."""
    found = dict.fromkeys(STEPS, Decimal(0))
    found["generate"] = Decimal(plan["services"][plan["service"]]["expected_usd"])
    for step in plan["steps"]:
        found[SUMMED.get(step["step"], step["step"])] += Decimal(step["expected_usd"])
    return found


@dataclass(frozen=True)
class Run:
    """Expected over paid, by step and in all, before the pilot and after it; and where the rest of the bill lay."""

    before: dict[str, float]
    after: dict[str, float]
    is_inside: bool
    is_bounded: bool
    width: float
    pilot_share: float


def run(case: Case, seed: int) -> Run:
    """One run from the first plan to the end; another temperature makes the emulator think for another while."""
    case = replace(case, values=(*case.values, f"generate.temperature={1 + seed / 100}", f"generate.grow.seed={seed}"))
    with tempfile.TemporaryDirectory() as scratch, emulator("--seed", str(seed), *case.emulator) as (url, _):
        folder = Path(scratch)
        first = potstill(case, folder, url, "--plan")
        second = potstill(case, folder, url, "--pilot", str(PILOT))
        piloted = paid(folder)
        potstill(case, folder, url)
        whole = paid(folder)
    left = {name: whole[name] - piloted[name] for name in STEPS}
    rest, total = sum(left.values()), second["total"]
    return Run(
        ratios(expected(first), whole),
        ratios(expected(second), left),
        Decimal(total["low_usd"]) <= rest <= Decimal(total["likely_usd"]),
        sum(whole.values()) <= Decimal(first["total"]["worst_usd"]) and rest <= Decimal(total["worst_usd"]),
        float((Decimal(total["likely_usd"]) - Decimal(total["low_usd"])) / rest),
        float(sum(piloted.values()) / sum(whole.values())),
    )


def ratios(forecast: dict[str, Decimal], actual: dict[str, Decimal]) -> dict[str, float]:
    """Expected over paid, of each step that was paid for, and of all together."""
    found = {name: float(forecast[name] / usd) for name, usd in actual.items() if usd}
    return {**found, "all": float(sum(forecast.values()) / sum(actual.values()))}


def lines(case: Case, runs: list[Run]) -> list[str]:
    """A case's table: the median over the runs, and the range."""
    table = [f"## {case.name[0].upper()}{case.name[1:]}", "", "| step | before the pilot | after it |", "|---|---|---|"]
    for name in (*STEPS, "all"):
        columns = [
            [one.get(name) for one in side] for side in zip(*((run.before, run.after) for run in runs), strict=True)
        ]
        if any(value is not None for column in columns for value in column):
            table.append(f"| {name} | {' | '.join(middle(column) for column in columns)} |")
    within, bounded = sum(run.is_inside for run in runs), all(run.is_bounded for run in runs)
    width, share = (statistics.median(getattr(run, name) for run in runs) for name in ("width", "pilot_share"))
    inside = f"The rest of the bill lay inside the 90 % interval in {within} of {len(runs)} runs; its width is {width:.0%} of it."
    worst = (
        f"Under the worst case: {'always' if bounded else 'NOT ALWAYS'}. The pilot was {share:.0%} of the whole bill."
    )
    return [*table, "", f"{inside} {worst}", ""]


def middle(values: list[float | None]) -> str:
    """Median and range."""
    there = sorted(value for value in values if value is not None)
    return f"{statistics.median(there):.2f} ({there[0]:.2f} to {there[-1]:.2f})" if there else "-"


def main() -> None:
    """Run the cases and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", default="")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    about = f"Expected over paid, median and range of {options.runs} runs (seeds of the emulator); a pilot of {PILOT}."
    page = [*head("What a plan expects of the paid steps", about), ""]
    for case in CASES:
        if options.only in case.name:
            page += lines(case, [run(case, seed) for seed in range(options.runs)])
    deliver(page, options.out)


if __name__ == "__main__":
    main()
