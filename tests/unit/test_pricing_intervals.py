"""The interval of a total: it holds its mean, narrows with knowledge, and covers what it promises."""

from __future__ import annotations

import random

from hypothesis import example, given
from hypothesis import strategies as st

from potstill.pricing.intervals import ENOUGH, PLENTY, combined, total_interval

ANSWERS = st.lists(st.integers(0, 4000), min_size=ENOUGH, max_size=60)


@given(st.lists(st.integers(0, 4000), max_size=ENOUGH - 1), st.integers(0, 1000))
def test_few_answers_give_no_interval(values: list[int], count: int) -> None:
    """Fewer answers than are enough give none, rather than one that would look measured."""
    assert total_interval(values, count) is None


@given(ANSWERS, st.integers(0, 1000))
@example([0] * 7 + [1071, 1100, 1745], 0)
def test_the_interval_holds_its_mean_and_the_ceiling(values: list[int], count: int) -> None:
    """The expected total lies inside, nothing is negative, and no end passes what the answers can be at most."""
    found = total_interval(values, count, ceiling=4000)
    assert found is not None
    slack = 1e-6 * max(1, found.expected)
    assert 0 <= found.low <= found.expected + slack
    assert found.expected <= found.high + slack <= 4000 * count + 2 * slack


def test_equal_answers_are_certain_and_the_seed_decides_the_rest() -> None:
    """Answers of one length leave no doubt; the same seed gives the same interval again."""
    point = total_interval([300] * 20, 100)
    assert point is not None
    assert (point.low, point.expected, point.high) == (30_000, 30_000, 30_000)
    spread = [100, 200, 300, 900] * 5
    assert total_interval(spread, 100, seed=3) == total_interval(spread, 100, seed=3)


def test_more_answers_narrow_it() -> None:
    """Ten times the answers give less than half the width, and many of them need no bootstrap."""
    draw = random.Random(0)
    values = [draw.lognormvariate(6, 0.6) for _ in range(PLENTY)]
    few, more, plenty = (total_interval(values[:known], 10_000) for known in (20, 200, PLENTY))
    assert few is not None
    assert more is not None
    assert plenty is not None
    assert more.high - more.low < (few.high - few.low) / 2
    assert plenty.high - plenty.low < (more.high - more.low) / 2
    assert (more.method, plenty.method) == ("bootstrap-t", "normal")


def test_independent_parts_add_in_quadrature() -> None:
    """Two equal parts are wider together than one, and narrower than twice one."""
    part = total_interval([100, 200, 300, 900] * 5, 100)
    assert part is not None
    both = combined([part, part])
    assert both.expected == 2 * part.expected
    assert part.high - part.expected < both.high - both.expected < 2 * (part.high - part.expected)


def test_it_covers_what_it_promises() -> None:
    """Of 100 runs with skewed answers and a pilot of 30, at least 83 % end inside the 90 % interval."""
    draw, inside = random.Random(1), 0
    for _ in range(100):
        answers = [draw.lognormvariate(6, 0.6) for _ in range(500)]
        found = total_interval(answers[:30], 470)
        assert found is not None
        inside += found.low <= sum(answers[30:]) <= found.high
    assert inside >= 0.83 * 100
