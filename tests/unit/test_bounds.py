"""The bounds on a share of wrong answers, and how much linked pairs count."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.infer.bounds import design_effect, lower_bound, upper_bound
from potstill.infer.pairs import Pair


def test_pairs_that_go_together_count_for_fewer() -> None:
    """Four pairs about one question, labelled alike, say as much as one; pairs without a common question count in full."""
    alone = [Pair(f"a{number}", f"b{number}", number % 3 > 0) for number in range(60)]
    assert design_effect(alone) == pytest.approx(1.0)
    linked = [Pair(f"a{group}", f"b{group}-{number}", group % 3 > 0) for group in range(60) for number in range(4)]
    assert design_effect(linked) == pytest.approx(4.0)
    assert design_effect([Pair("a", "b", same=True), Pair("a", "c", same=True)]) == 1.0
    assert design_effect([]) == 1.0


@pytest.mark.parametrize(
    ("wrong", "served", "level", "bound"),
    [
        (7.5, 75.2, 0.025, 0.19071),  # between whole numbers of pairs
        (0, 59, 0.05, 0.0495),  # 1 - level^(1/n): the rule of 59 for 5 %
        (0, 299, 0.05, 0.00997),
        (1, 20, 0.025, 0.2487),  # scipy.stats.beta.ppf(0.975, 2, 19)
        (10, 100, 0.025, 0.17622),
        (50, 1000, 0.05, 0.06301),
    ],
)
def test_bound_is_clopper_and_pearsons(wrong: float, served: float, level: float, bound: float) -> None:
    """Known values, and the same by scipy's beta distribution."""
    from scipy.stats import beta

    assert upper_bound(wrong, served, level) == pytest.approx(bound, abs=5e-4)
    assert upper_bound(wrong, served, level) == pytest.approx(beta.ppf(1 - level, wrong + 1, served - wrong), abs=1e-9)
    if wrong:
        assert lower_bound(wrong, served, level) == pytest.approx(beta.ppf(level, wrong, served - wrong + 1), abs=1e-9)


def test_bounds_at_the_ends() -> None:
    """Nothing served proves nothing; all wrong is all wrong; none wrong has no bound from below."""
    assert upper_bound(0, 0, 0.05) == 1.0
    assert upper_bound(5, 5, 0.05) == 1.0
    assert lower_bound(0, 0, 0.05) == 0.0
    assert lower_bound(0, 10, 0.05) == 0.0


@given(st.integers(1, 300), st.data())
def test_bound_lies_above_the_rate_and_falls_with_evidence(served: int, data: st.DataObject) -> None:
    """The bound is never below what was seen, and ten times the evidence at the same rate brings it down."""
    wrong = data.draw(st.integers(0, served))
    bound = upper_bound(wrong, served, 0.05)
    assert bound >= wrong / served
    assert upper_bound(10 * wrong, 10 * served, 0.05) <= bound


def test_promise_holds_in_repetition() -> None:
    """Of 200 calibrations on labels that are wrong at exactly the promised rate, at most about 5 % switch on."""
    draw = random.Random(1)
    broken = 0
    for _ in range(200):
        wrong = sum(draw.random() < 0.1 for _ in range(300))
        broken += upper_bound(wrong, 300, 0.05) <= 0.1
    assert broken <= 20
