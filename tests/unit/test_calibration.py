"""Calibration: pairs and their splits, the verifier, the order of the tests, the choice, and what is written."""

from __future__ import annotations

import gzip
import itertools
import json
import math
import random
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.config import CacheConfig
from potstill.errors import InputError
from potstill.infer.bounds import LEVEL, design_effect, upper_bound
from potstill.infer.calibrating import calibration_files, read_calibration, run_calibration
from potstill.infer.calibration import (
    COSINES,
    Calibration,
    Circumstances,
    Point,
    Scored,
    calibrate,
    choose,
    sequence,
)
from potstill.infer.features import NAMES, features
from potstill.infer.guard import veto
from potstill.infer.pairs import FEW, Pair, dealt, read_pairs, split_pairs
from potstill.infer.verifier import FOLDS, Tree, Verifier, cross_fitted, fit_verifier
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


def point(served: int, wrong: int, upper: float) -> Point:
    """A point of a curve."""
    return Point(signal="cosine", threshold=0.9, served=served, wrong=wrong, upper=upper, hit_rate=0.1, recall=0.1)


def test_choice_serves_most_under_the_bound() -> None:
    """Of the points under the bound the one with most right answers is taken; without one, none is."""
    few, many, broken = point(50, 0, 0.04), point(100, 2, 0.05), point(500, 60, 0.15)
    assert choose([few, many, broken], 0.05) == many
    assert choose([broken], 0.05) is None


def served_at(cosine: float, wrong: int, right: int) -> list[Scored]:
    """So many pairs of their own at a cosine, of which so many are wrong."""
    labels = [False] * wrong + [True] * right
    return [
        Scored(Pair(f"a{cosine} {number}", f"b{cosine} {number}", same), cosine, None, vetoed=False)
        for number, same in enumerate(labels)
    ]


def test_looser_thresholds_are_tested_until_one_fails() -> None:
    """The first is what promised most on the fitted pairs; past a failure nothing is served, though a looser one looks better."""
    fitted = [*served_at(0.97, 5, 15), *served_at(0.93, 0, 300), *served_at(0.83, 100, 100)]
    tested = [*served_at(0.97, 0, 100), *served_at(0.93, 0, 100), *served_at(0.9, 40, 0), *served_at(0.85, 0, 2000)]
    points = sequence(fitted, tested, "cosine", (0.97, 0.93, 0.9, 0.85), 0.05)
    assert [point.threshold for point in points] == [0.93, 0.9, 0.85]
    assert points[0].upper == pytest.approx(upper_bound(0, 200, 0.05))
    assert points[1].upper == points[2].upper == pytest.approx(upper_bound(40, 240, 0.05))
    assert upper_bound(40, 2240, 0.05) < 0.05
    assert choose(points, 0.05) == points[0]


def test_level_is_divided_by_the_signals_alone() -> None:
    """With a cosine and a verifier each threshold is tested at half the level, however many there are."""
    pairs = made_pairs(1100)
    found = calibrate(pairs, weak_cosines, about(0.05))
    tested = split_pairs(pairs)["calibrate"]
    assert {point.signal for point in found.curve} == {"cosine", "verifier"}
    first = next(point for point in found.curve if point.signal == "cosine")
    effect = design_effect([pair for pair in tested if veto(pair.question, pair.cached) is None])
    assert first.upper == pytest.approx(upper_bound(first.wrong / effect, first.served / effect, LEVEL / 2))


def linked_pairs(draw: random.Random, rate: float) -> list[Scored]:
    """120 questions, four pairs about each, of which all are wrong at this rate or none; the cosine says nothing."""
    found = []
    for number in range(120):
        wrong, cosine = draw.random() < rate, draw.uniform(0.8, 1.0)
        found += [Scored(Pair(f"a{number}", f"b{number} {n}", not wrong), cosine, None, vetoed=False) for n in range(4)]
    return found


def test_promise_holds_over_linked_pairs() -> None:
    """Labels wrong a little more often than promised, linked, at every threshold: hardly one calibration in twenty switches on."""
    draw = random.Random(3)
    on = sum(
        choose(sequence(linked_pairs(draw, 0.21), linked_pairs(draw, 0.21), "cosine", COSINES[::4], LEVEL), 0.2)
        is not None
        for _ in range(200)
    )
    assert on <= 10


def test_links_among_the_served_pairs_count_where_they_are_closer() -> None:
    """Near pairs that all are about few questions prove less than as many in a set whose other pairs stand alone."""
    near = [
        Scored(Pair(f"a{n % 20}", f"b{n}", n % 20 > 0), 0.97, None, vetoed=False) for n in range(200)
    ]  # one of twenty questions wrong, ten pairs each
    alone = served_at(0.7, 500, 500)
    (point,) = sequence(near, [*near, *alone], "cosine", (0.95,), 0.05)
    assert (point.served, point.wrong) == (200, 10)
    assert point.upper == pytest.approx(upper_bound(1, 20, 0.05), abs=0.01)


@given(st.text(max_size=40), st.text(max_size=40))
def test_features_are_equal_both_ways_round(one: str, other: str) -> None:
    """Which question was cached makes no difference, and every feature is there."""
    assert features(one, other, 0.5) == features(other, one, 0.5)
    assert all(math.isfinite(value) for value in features(one, other, 0.5))
    assert len(features(one, other, 0.5)) == len(NAMES)


def test_order_of_words_is_seen() -> None:
    """Matching blocks, the longest run and the common words at both ends tell where two questions part."""
    row = features("How do I learn to code in a year?", "How do I learn to sing in a year?", 0.9)
    seen = dict(zip(NAMES, row, strict=True))
    assert (seen["words_from_start"], seen["words_from_end"]) == (5, 3)
    assert (seen["blocks_shared"], seen["longest_run"]) == (16 / 18, 5 / 9)
    assert seen["content_contained"] == 2 / 3


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


def test_cross_fitted_scores_know_no_label() -> None:
    """On labels that are chance, a fitted verifier remembers its own pairs and those that have not seen them know nothing."""
    draw = random.Random(5)
    pairs = [Pair(pair.question, pair.cached, draw.random() < 0.5) for pair in made_pairs(800)]
    cosines = [draw.random() for _ in pairs]
    fitted = fit_verifier(pairs, cosines)
    assert fitted is not None
    own = [fitted.score(pair.question, pair.cached, cosine) for pair, cosine in zip(pairs, cosines, strict=True)]

    def right(scores: Sequence[float | None]) -> float:
        return sum((score or 0.0) > 0.5 for score, pair in zip(scores, pairs, strict=True) if pair.same) / len(pairs)

    assert right(own) > 0.3
    assert 0.15 < right(cross_fitted(pairs, cosines)) < 0.3


def test_cross_fitted_pairs_between_two_folds_have_no_score() -> None:
    """Where all pairs hang together, those whose questions were dealt apart are left out: one side would have been seen."""
    chain = [Pair(f"q{number}", f"q{number + step}", number % 3 > 0) for number in range(300) for step in (1, 2)]
    folds = dealt(chain, FOLDS, "fold ")
    scores = cross_fitted(chain, [0.9] * len(chain))
    assert [score is not None for score in scores] == [one == other for one, other in folds]
    assert 50 < sum(score is not None for score in scores) < 300


def test_verifier_of_fewer_features_stays_in_force() -> None:
    """One that was stored before features were added scores as it did; one of unknown features is not current."""
    pairs = made_pairs(500)
    older = [features(pair.question, pair.cached, 0.9)[:-5] for pair in pairs]
    stored = Verifier(
        names=NAMES[:-5],
        start=0.5,
        trees=(Tree(feature=(3, -1, -1), split=(0.4, 0, 0), low=(1, 0, 0), high=(2, 0, 0), value=(0, -1, 1)),),
    )
    assert stored.current
    assert stored.score(pairs[0].question, pairs[0].cached, 0.9) == stored.probability(older[0])
    assert not stored.model_copy(update={"names": (*NAMES[:-1], "other")}).current


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
