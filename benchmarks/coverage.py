"""Does a calibration's promise hold? Many random splits of labelled pairs, and the wrong hits on what each held out.

python benchmarks/coverage.py EN.tsv.gz=all-MiniLM-L6-v2 ZH.tsv.gz=hashing --out benchmarks/results/coverage.md

In each split a verifier is fitted and a threshold chosen on eight tenths of the pairs, and its bound is set beside the
wrong rate of what it serves of the other two tenths. A promise of 95 % may be broken in one split of twenty. The held-out
rate is itself a sample: "clearly above" counts only where it could not be chance (exact binomial test at 5 %). Beside it stands
what the best fixed cosine serves, with the guard, its threshold tested in the same way with the whole level for itself.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
from page import deliver, head

from potstill.infer.bounds import LEVEL, lower_bound
from potstill.infer.calibration import COSINES, Circumstances, Point, Scored, calibrate, choose, sequence
from potstill.infer.guard import veto
from potstill.infer.loading import load_encoder
from potstill.infer.pairs import Pair, read_pairs, split_pairs

HEADER = (
    "| promised | layer on | bound, mean | wrong of served, all splits | above its bound | clearly above | right hits "
    "| best fixed cosine, splits: right hits |"
)
RATES = (0.05, 0.10, 0.125, 0.15, 0.20, 0.25)


class Outcome(NamedTuple):
    """What a rule serves of the held-out pairs, and the bound that it was given."""

    rule: str
    upper: float
    served: int
    wrong: int


class Cosines:
    """The cosine of every pair, encoded once."""

    def __init__(self, encoder: str, pairs: tuple[Pair, ...], folder: Path) -> None:
        loaded = load_encoder(encoder, folder)
        questions = sorted({text for pair in pairs for text in (pair.question, pair.cached)}, key=len)
        self.encoder = loaded.id
        self._known = dict(zip(questions, np.array(loaded.encode(questions), np.float32), strict=True))

        self._vetoed = {pair: veto(pair.question, pair.cached) is not None for pair in pairs}

    def of(self, pairs: Sequence[Pair]) -> list[float]:
        """Cosine similarity of each pair."""
        return [float(self._known[pair.question] @ self._known[pair.cached]) for pair in pairs]

    def scored(self, pairs: Sequence[Pair]) -> list[Scored]:
        """The pairs with cosine and guard alone."""
        return [
            Scored(pair, cosine, None, self._vetoed[pair]) for pair, cosine in zip(pairs, self.of(pairs), strict=True)
        ]


def outcome(point: Point | None, held: Sequence[Scored]) -> Outcome | None:
    """How a chosen threshold does on held-out pairs; None where none was chosen."""
    if point is None:
        return None
    served = [item.pair.same for item in held if item.value(point.signal) >= point.threshold]
    return Outcome(f"{point.signal} {point.threshold:.3f}", point.upper, len(served), served.count(False))


class Split(NamedTuple):
    """What one promised rate came to in one split: the calibrated rule, and the best fixed cosine."""

    rule: Outcome | None
    fixed: Outcome | None


def split(pairs: tuple[Pair, ...], cosines: Cosines, deal: str) -> dict[float, Split]:
    """Calibrate on one deal of the pairs, and measure every promised rate."""
    about = Circumstances(cosines.encoder, "", RATES[0], 0, datetime.now(UTC), deal=deal)
    found = calibrate(pairs, cosines.of, about)
    dealt = {name: cosines.scored(some) for name, some in split_pairs(pairs, deal).items()}
    alone = sequence(dealt["fit"], dealt["calibrate"], "cosine", COSINES, LEVEL)
    held = dealt["heldout"]
    if (verifier := found.verifier) is not None:
        held = [
            replace(item, probability=verifier.score(item.pair.question, item.pair.cached, item.cosine))
            for item in held
            if not item.vetoed
        ]
    return {rate: Split(outcome(choose(found.curve, rate), held), outcome(choose(alone, rate), held)) for rate in RATES}


def rows(path: Path, encoder: str, deals: Sequence[str], folder: Path) -> list[str]:
    """One line for each promised rate."""
    pairs = read_pairs(path)
    cosines = Cosines(encoder, pairs, folder)
    splits = []
    for deal in deals:
        splits.append(split(pairs, cosines, deal))
        print(path.name, repr(deal), splits[-1], flush=True)
    return [line(rate, [made[rate] for made in splits]) for rate in RATES]


def line(rate: float, splits: Sequence[Split]) -> str:
    """How often the layer was on, how its bound fared, and what a fixed cosine serves."""
    rules = [made.rule for made in splits if made.rule]
    fixed = [made.fixed for made in splits if made.fixed]
    beside = f"{len(fixed)}: {sum(made.served - made.wrong for made in fixed)}"
    if not rules:
        return f"| {rate:.1%} | 0 of {len(splits)} | | | | | | {beside} |"
    above = sum(made.wrong / made.served > made.upper for made in rules if made.served)
    clearly = sum(lower_bound(made.wrong, made.served, LEVEL) > made.upper for made in rules)
    served, wrong = sum(made.served for made in rules), sum(made.wrong for made in rules)
    bound = statistics.mean(made.upper for made in rules)
    return (
        f"| {rate:.1%} | {len(rules)} of {len(splits)} | {bound:.1%} | {wrong / served:.1%} ({wrong} of {served}) | {above} | {clearly} "
        f"| {served - wrong} | {beside} |"
    )


def main() -> None:
    """Split, calibrate, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="+", help="PAIRS=ENCODER")
    parser.add_argument("--splits", type=int, default=40)
    parser.add_argument("--deal", default="fresh ", help="what the splits are drawn by; another text draws others")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    page = head("The promise of a calibration, over random splits")
    with tempfile.TemporaryDirectory() as scratch:
        for given in options.sets:
            name, _, encoder = given.partition("=")
            page += ["", f"## {Path(name).name}, {encoder}", ""]
            deals = [f"{options.deal}{number}" for number in range(options.splits)]
            page += [HEADER, "|---" * 8 + "|", *rows(Path(name), encoder, deals, Path(scratch))]
    deliver(page, options.out)


if __name__ == "__main__":
    main()
