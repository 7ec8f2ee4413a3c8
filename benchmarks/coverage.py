"""Does a calibration's promise hold? Many random splits of labelled pairs, and the wrong hits on what each held out.

python benchmarks/coverage.py EN.tsv.gz=all-MiniLM-L6-v2 ZH.tsv.gz=hashing --out benchmarks/results/coverage.md

In each split a verifier is fitted and a threshold chosen on eight tenths of the pairs, and its bound is set beside the
wrong rate of what it serves of the other two tenths. A promise of 95 % may be broken in one split of twenty. The held-out
rate is itself a sample: "clearly above" counts only where it could not be chance (exact binomial test at 5 %).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from page import deliver, head

from potstill.infer.calibration import LEVEL, Calibration, Circumstances, calibrate, choose, lower_bound
from potstill.infer.guard import veto
from potstill.infer.loading import load_encoder
from potstill.infer.pairs import Pair, read_pairs, split_pairs
from potstill.infer.rule import Rule

RATES = (0.05, 0.10, 0.125, 0.15, 0.20, 0.25)
Outcome = tuple[float, int, int]
"""Bound, served and wrong of the held-out pairs."""


class Cosines:
    """The cosine of every pair, encoded once."""

    def __init__(self, encoder: str, pairs: tuple[Pair, ...], folder: Path) -> None:
        loaded = load_encoder(encoder, folder)
        questions = sorted({text for pair in pairs for text in (pair.question, pair.cached)}, key=len)
        self.encoder = loaded.id
        self._known = dict(zip(questions, np.array(loaded.encode(questions), np.float32), strict=True))

    def of(self, pairs: list[Pair] | tuple[Pair, ...]) -> list[float]:
        """Cosine similarity of each pair."""
        return [float(self._known[pair.question] @ self._known[pair.cached]) for pair in pairs]


def outcomes(found: Calibration, held: list[tuple[Pair, float, bool]]) -> dict[float, Outcome | None]:
    """What each promised rate comes to on held-out pairs; None where the layer stays off."""
    made: dict[float, Outcome | None] = {}
    for rate in RATES:
        best = choose(found.curve, rate)
        made[rate] = None
        if best is not None:
            rule = Rule(best.threshold, "", found.verifier if best.signal == "verifier" else None)
            scored = (
                (pair.same, rule.score(pair.question, pair.cached, cosine)) for pair, cosine, no in held if not no
            )
            served = [same for same, score in scored if score >= rule.threshold]
            made[rate] = (best.upper, len(served), served.count(False))
    return made


def rows(path: Path, encoder: str, splits: int, folder: Path) -> list[str]:
    """One line for each promised rate."""
    pairs = read_pairs(path)
    cosines = Cosines(encoder, pairs, folder)
    found: dict[float, list[Outcome]] = {rate: [] for rate in RATES}
    for number in range(splits):
        about = Circumstances(cosines.encoder, path.name, RATES[0], 0, datetime.now(UTC), deal=f"{number} ")
        calibration = calibrate(pairs, cosines.of, about)
        kept = split_pairs(pairs, about.deal)["heldout"]
        vetoed = [veto(pair.question, pair.cached) is not None for pair in kept]
        made = outcomes(calibration, list(zip(kept, cosines.of(kept), vetoed, strict=True)))
        for rate, outcome in made.items():
            found[rate] += [outcome] if outcome else []
        print(path.name, number, made, flush=True)
    return [line(rate, outcomes, splits) for rate, outcomes in found.items()]


def line(rate: float, found: list[Outcome], splits: int) -> str:
    """How often the layer was on, and how its bound fared."""
    if not found:
        return f"| {rate:.1%} | 0 of {splits} | | | | |"
    above = sum(wrong / served > upper for upper, served, wrong in found if served)
    clearly = sum(lower_bound(wrong, served, LEVEL) > upper for upper, served, wrong in found)
    served, wrong = sum(item[1] for item in found), sum(item[2] for item in found)
    bound = statistics.mean(item[0] for item in found)
    return f"| {rate:.1%} | {len(found)} of {splits} | {bound:.1%} | {wrong / served:.1%} ({wrong} of {served}) | {above} | {clearly} |"


def main() -> None:
    """Split, calibrate, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="+", help="PAIRS=ENCODER")
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    page = head("The promise of a calibration, over random splits")
    with tempfile.TemporaryDirectory() as scratch:
        for given in options.sets:
            name, _, encoder = given.partition("=")
            page += ["", f"## {Path(name).name}, {encoder}", ""]
            page.append(
                "| promised | layer on | bound, mean | wrong of served, all splits | above its bound | clearly above |"
            )
            page += ["|---|---|---|---|---|---|", *rows(Path(name), encoder, options.splits, Path(scratch))]
    deliver(page, options.out)


if __name__ == "__main__":
    main()
