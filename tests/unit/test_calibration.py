"""Calibration: pairs and their splits, the bound, the verifier, the choice, and what is written."""

from __future__ import annotations

import gzip
import itertools
import json
import random
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.config import CacheConfig
from potstill.errors import InputError
from potstill.infer.calibrating import calibration_files, read_calibration, run_calibration
from potstill.infer.calibration import (
    Calibration,
    Circumstances,
    Point,
    calibrate,
    choose,
    design_effect,
    lower_bound,
    upper_bound,
)
from potstill.infer.features import NAMES, features
from potstill.infer.pairs import FEW, Pair, read_pairs, split_pairs
from potstill.infer.verifier import Verifier, fit_verifier
from potstill.workspace import Workspace

WORDS = [
    "memory",
    "speed",
    "price",
    "heat",
    "noise",
    "power",
    "width",
    "cooling",
    "driver",
    "battery",
    "screen",
    "storage",
    "network",
    "latency",
]
FORMS = ("What decides the {} of a {}?", "Please say what decides the {} of a {}", "How is the {} of a {} chosen?")


def made_pairs(count: int, noise: float = 0.0) -> list[Pair]:
    """Questions about two words each; a pair has one answer where both words are the same. `noise`: labels flipped."""
    draw = random.Random(7)
    found = []
    for number in range(count):
        one = (draw.choice(WORDS), f"{draw.choice(WORDS)} {number}")
        other = one if draw.random() < 0.5 else (draw.choice([word for word in WORDS if word != one[0]]), one[1])
        left, right = draw.sample(FORMS, 2)
        found.append(Pair(left.format(*one), right.format(*other), (one == other) != (draw.random() < noise)))
    return found


def weak_cosines(pairs: Sequence[Pair]) -> list[float]:
    """A cosine that knows next to nothing about the label: 0.9 give or take."""
    return [0.9 + 0.001 * (len(pair.question) % 7) for pair in pairs]


def about(max_wrong_rate: float) -> Circumstances:
    """What a calibration is made under."""
    return Circumstances("e", "made", max_wrong_rate, 10, datetime.now(UTC))


@pytest.mark.parametrize("suffix", [".tsv", ".tsv.gz"])
def test_pairs_from_tsv(tmp_path: Path, suffix: str) -> None:
    """Three columns, plain or packed; quotation marks are text."""
    text = 'What is "LoRA"?\tWhat\'s LoRA\t1\n\nWhat is C?\tWhat is D?\t0\n'
    path = tmp_path / f"pairs{suffix}"
    path.write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode())
    assert read_pairs(path) == (
        Pair('What is "LoRA"?', "What's LoRA", True),
        Pair("What is C?", "What is D?", False),
    )


def test_pairs_from_jsonl(tmp_path: Path) -> None:
    """One object a line with a, b and same."""
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"a": "什麼是量化?", "b": "量化是什麼?", "same": True}) + "\n", encoding="utf-8")
    assert read_pairs(path) == (Pair("什麼是量化?", "量化是什麼?", True),)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("p.tsv", "a\tb\t1\na\tb\n", "p.tsv:2: 2 columns"),
        ("p.tsv", "a\tb\tmaybe\n", "p.tsv:1: same"),
        ("p.tsv", "a\t \t1\n", "p.tsv:1: b"),
        ("p.jsonl", '{"a": "x", "b": "y", "same": 1}\n{"a": 3}\n', "p.jsonl:2: a"),
        ("p.jsonl", "{\n", "p.jsonl:1: not JSON"),
        ("p.tsv", "\n", "no pairs"),
        ("p.csv", "a,b,1\n", ".tsv or .jsonl"),
        ("p.tsv.gz", "not packed", "cannot read"),
    ],
)
def test_bad_pairs_are_named(tmp_path: Path, name: str, text: str, words: str) -> None:
    """File, line and field stand in the error."""
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=words.replace(".", r"\.")):
        read_pairs(tmp_path / name)


def test_missing_pairs_are_named(tmp_path: Path) -> None:
    """A file that is not there is an input error."""
    with pytest.raises(InputError, match=r"gone\.tsv"):
        read_pairs(tmp_path / "gone.tsv")


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=60))
def test_no_question_is_in_two_splits(links: list[tuple[int, int]]) -> None:
    """Pairs that share a question, also over others, are dealt together; where only few hang together none is lost."""
    splits = split_pairs([Pair(f"q{one}", f"q{other}", True) for one, other in links])
    seen = [{text for pair in found for text in (pair.question, pair.cached)} for found in splits.values()]
    assert sum(map(len, splits.values())) <= len(links)
    assert len(links) > FEW or sum(map(len, splits.values())) == len(links)
    assert all(not one & other for one, other in itertools.combinations(seen, 2))


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
        (0, 59, 0.05, 0.0495),  # 1 - level^(1/n): the rule of 59 for 5 %
        (0, 299, 0.05, 0.00997),
        (1, 20, 0.025, 0.2487),  # scipy.stats.beta.ppf(0.975, 2, 19)
        (10, 100, 0.025, 0.17622),
        (50, 1000, 0.05, 0.06301),
    ],
)
def test_bound_is_clopper_and_pearsons(wrong: int, served: int, level: float, bound: float) -> None:
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


def point(served: int, wrong: int, upper: float) -> Point:
    """A point of a curve."""
    return Point(signal="cosine", threshold=0.9, served=served, wrong=wrong, upper=upper, hit_rate=0.1, recall=0.1)


def test_choice_serves_most_under_the_bound() -> None:
    """Of the points under the bound the one with most right answers is taken; without one, none is."""
    few, many, broken = point(50, 0, 0.04), point(100, 2, 0.05), point(500, 60, 0.15)
    assert choose([few, many, broken], 0.05) == many
    assert choose([broken], 0.05) is None


@given(st.text(max_size=40), st.text(max_size=40))
def test_features_are_equal_both_ways_round(one: str, other: str) -> None:
    """Which question was cached makes no difference, and every feature is there."""
    assert features(one, other, 0.5) == features(other, one, 0.5)
    assert len(features(one, other, 0.5)) == len(NAMES)


def test_verifier_learns_what_the_cosine_does_not_see() -> None:
    """On pairs whose cosine says nothing, the words decide: fitted on half, right on the other half."""
    pairs = made_pairs(1000)
    fitted = fit_verifier(pairs[:500], weak_cosines(pairs[:500]))
    assert fitted is not None
    scores = [fitted.score(pair.question, pair.cached, 0.9) for pair in pairs[500:]]
    right = [(score > 0.5) == pair.same for score, pair in zip(scores, pairs[500:], strict=True)]
    assert sum(right) / len(right) > 0.95


def test_verifier_computes_what_scikit_learn_does() -> None:
    """The numbers in JSON, evaluated without any library, give scikit-learn's probabilities, also after a round trip."""
    from sklearn.ensemble import GradientBoostingClassifier

    from potstill.infer import verifier as module

    pairs = made_pairs(600, noise=0.1)
    cosines = weak_cosines(pairs)
    fitted = fit_verifier(pairs, cosines)
    assert fitted is not None
    again = Verifier.model_validate_json(fitted.model_dump_json())
    rows = [features(pair.question, pair.cached, cosine) for pair, cosine in zip(pairs, cosines, strict=True)]
    model = GradientBoostingClassifier(
        n_estimators=module.TREES,
        max_depth=module.DEPTH,
        learning_rate=module.LEARNING_RATE,
        subsample=module.SUBSAMPLE,
        min_samples_leaf=module.LEAST_IN_LEAF,
        random_state=0,
    ).fit(rows, [pair.same for pair in pairs])
    expected = model.predict_proba(rows)[:, 1]
    found = [again.score(pair.question, pair.cached, cosine) for pair, cosine in zip(pairs, cosines, strict=True)]
    assert found == pytest.approx(list(expected), abs=1e-4)


def test_few_pairs_fit_no_verifier() -> None:
    """Too few pairs, or pairs all alike, teach nothing."""
    pairs = made_pairs(100)
    assert fit_verifier(pairs, weak_cosines(pairs)) is None
    alike = [Pair(pair.question, pair.cached, True) for pair in made_pairs(1000)]
    assert fit_verifier(alike, weak_cosines(alike)) is None


def test_verifier_is_chosen_where_it_serves_more() -> None:
    """Where the cosine cannot tell, the verifier meets the bound, and the held-out pairs keep the promise."""
    found = calibrate(made_pairs(1800), weak_cosines, about(0.05))
    assert found.signal == "verifier"
    assert found.upper is not None
    assert found.upper <= 0.05
    chosen, *fixed = found.held_out
    assert chosen.wrong_rate <= 0.05
    assert all(row.wrong_rate > 0.05 for row in fixed if row.served)
    assert sum(found.pairs.values()) == 1800


def test_layer_stays_off_where_no_threshold_holds() -> None:
    """Labels that are a fifth noise allow no 5 %: no signal, no threshold, and the reason names the best bound."""
    found = calibrate(made_pairs(1100, noise=0.2), weak_cosines, about(0.05))
    assert (found.signal, found.threshold) == (None, None)
    assert "no threshold keeps wrong hits under 5.0%" in found.reason


def test_calibration_is_written_drawn_and_read_again(tmp_path: Path) -> None:
    """With the shipped encoder: JSON that reads back, and a PNG, both beside the entries."""
    config, workspace = CacheConfig(encoder="hashing", max_wrong_rate=0.1), Workspace(tmp_path)
    steps: list[tuple[int, int]] = []
    found = run_calibration(config, workspace, made_pairs(1200), "made", lambda done, of: steps.append((done, of)))
    files = calibration_files(config, workspace)
    assert read_calibration(files.json) == found
    assert files.png.read_bytes().startswith(b"\x89PNG")
    assert steps[-1][0] == steps[-1][1]


def test_unreadable_pairs_are_told(tmp_path: Path) -> None:
    """An encoder that reads none of the pairs calibrates nothing, and says which encoder that was."""
    pairs = [Pair("現在的顯示卡需要多少記憶體?", "顯示卡要多少記憶體?", True)]
    with pytest.raises(InputError, match="reads none of the 1 pairs"):
        run_calibration(CacheConfig(), Workspace(tmp_path), pairs, "made")


def test_broken_calibration_names_file_and_field(tmp_path: Path) -> None:
    """A calibration that cannot be read is an input error; one that is missing is none."""
    path = tmp_path / "calibration.json"
    assert read_calibration(path) is None
    path.write_text('{"schema_version": 1}')
    with pytest.raises(InputError, match=r"calibration\.json: created_at"):
        read_calibration(path)
    path.write_text("{")
    with pytest.raises(InputError, match=r"calibration\.json"):
        read_calibration(path)


def test_calibration_carries_no_question() -> None:
    """Pairs may be licensed or private: what is written holds numbers about them, never their text."""
    found: Calibration = calibrate(made_pairs(300), weak_cosines, about(0.05))
    assert not any(word in found.model_dump_json() for word in ("What decides", "cooling"))


def test_pairs_of_one_small_cache_reach_every_split() -> None:
    """Pairs that all hang together are taken apart: each split gets some, and still no question stands in two."""
    chain = [Pair(f"q{number}", f"q{number + step}", True) for number in range(200) for step in (1, 2, 3)]
    splits = split_pairs(chain)
    assert all(len(found) > 10 for found in splits.values())
    questions = [{text for pair in found for text in (pair.question, pair.cached)} for found in splits.values()]
    assert sum(map(len, questions)) == len(set().union(*questions))
