"""Does the 90 % interval of `cost estimate` cover what the run then costs? Against two simpler intervals, in one run.

python benchmarks/cost_interval.py [RUNS]

A pilot of n answers is drawn, the other 1,000 - n follow, and their total lies inside the interval or not. Yardsticks:
the percentile bootstrap, and a lognormal's mean by Cox's method (Zhou and Gao 1997), both widened alike by the spread
of the answers to come.
"""

from __future__ import annotations

import math
import random
import statistics
import sys
from collections.abc import Callable, Sequence

from potstill.pricing.intervals import Z90, total_interval

ANSWERS = 1000
PILOTS = (10, 20, 50, 100)
RESAMPLES = 499
Ends = tuple[float, float]


def no_thinking(draw: random.Random) -> float:
    """Lognormal answers of about 480 tokens."""
    return draw.lognormvariate(6, 0.6)


def normal_thinking(draw: random.Random) -> float:
    """The same, and about 500 thinking tokens."""
    return draw.lognormvariate(6, 0.6) + max(0.0, draw.gauss(500, 150))


def heavy_thinking(draw: random.Random) -> float:
    """The same, and thinking with a heavy tail."""
    return draw.lognormvariate(6, 0.6) + draw.lognormvariate(5.5, 1.2)


def ours(pilot: Sequence[float], count: int, seed: int) -> Ends:
    """What `cost estimate` prints."""
    found = total_interval(pilot, count, seed=seed)
    assert found is not None
    return found.low, found.high


def percentile(pilot: Sequence[float], count: int, seed: int) -> Ends:
    """The percentile bootstrap of the mean."""
    draw, known = random.Random(seed), len(pilot)
    means = sorted(statistics.fmean(draw.choices(pilot, k=known)) for _ in range(RESAMPLES))
    wider = math.sqrt(1 + known / count)
    mean = statistics.fmean(pilot)
    low, high = means[int(0.05 * RESAMPLES)], means[int(0.95 * RESAMPLES)]
    return (mean - (mean - low) * wider) * count, (mean + (high - mean) * wider) * count


def lognormal(pilot: Sequence[float], count: int, seed: int) -> Ends:
    """A lognormal's mean by Cox's method."""
    del seed
    logs = [math.log(value) for value in pilot]
    known, variance = len(logs), statistics.variance(logs)
    spread = variance / known + variance**2 / (2 * (known - 1)) + math.expm1(variance) / count
    width = math.exp(Z90 * (1 + (Z90**2 + 1) / (4 * (known - 1))) * math.sqrt(spread))
    total = statistics.fmean(pilot) * count
    return total / width, total * width


def main() -> None:
    """Print a Markdown table."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    methods: dict[str, Callable[[Sequence[float], int, int], Ends]] = {
        "bootstrap-t (potstill)": ours,
        "percentile": percentile,
        "lognormal": lognormal,
    }
    print(f"| thinking | pilot | {' | '.join(f'{name}: inside / dearer / width' for name in methods)} |")
    print("|---|---|" + "---|" * len(methods))
    for answer in (no_thinking, normal_thinking, heavy_thinking):
        for known in PILOTS:
            print(f"| {answer.__name__.split('_')[0]} | {known} | {cells(answer, known, runs, methods)} |", flush=True)


def cells(
    answer: Callable[[random.Random], float],
    known: int,
    runs: int,
    methods: dict[str, Callable[[Sequence[float], int, int], Ends]],
) -> str:
    """Share of the runs inside the interval, share above its upper end, mean width over the true total."""
    draw = random.Random(known)
    drawn = [[answer(draw) for _ in range(ANSWERS)] for _ in range(runs)]
    found = []
    for method in methods.values():
        inside = above = 0
        widths = []
        for seed, values in enumerate(drawn):
            low, high = method(values[:known], ANSWERS - known, seed)
            total = sum(values[known:])
            inside += low <= total <= high
            above += total > high
            widths.append((high - low) / total)
        found.append(f"{inside / runs:.0%} / {above / runs:.0%} / {statistics.fmean(widths):.0%}")
    return " | ".join(found)


if __name__ == "__main__":
    main()
