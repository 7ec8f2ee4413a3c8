"""A small learned judge of semantic hits: boosted trees over lexical features and the cosine.

Fitted with scikit-learn (gradient boosting, Friedman 2001, doi 10.1214/aos/1013203451), stored as numbers in JSON, and
evaluated here without any library in about a tenth of a millisecond.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from potstill.errors import MachineError
from potstill.infer.features import NAMES, features
from potstill.infer.pairs import Pair, dealt
from potstill.records import Record

TREES = 200
DEPTH = 2
LEARNING_RATE = 0.08
SUBSAMPLE = 0.7
LEAST_IN_LEAF = 20
LEAST_PAIRS = 400
"""Fewer pairs than this fit noise: the cosine alone then decides."""
FOLDS = 4
LEAF = -1


class Tree(Record):
    """One tree as parallel lists over its nodes; `feature` is -1 in a leaf, and `value` counts there only."""

    feature: tuple[int, ...]
    split: tuple[float, ...]
    low: tuple[int, ...]
    high: tuple[int, ...]
    value: tuple[float, ...]


class Verifier(Record):
    """The log-odds that one answer serves two questions: `start` plus one value of each tree."""

    names: tuple[str, ...]
    start: float
    trees: tuple[Tree, ...]

    @property
    def current(self) -> bool:
        """Whether this version of potstill computes its features: the first ones, or all; new ones come last."""
        return self.names == NAMES[: len(self.names)]

    def score(self, question: str, cached: str, cosine: float) -> float:
        """The estimated probability that one answer serves both questions, 0..1. Not calibrated by itself."""
        return self.probability(features(question, cached, cosine))

    def probability(self, row: Sequence[float]) -> float:
        """The same from a row of features."""
        odds = self.start + sum(_leaf(tree, row) for tree in self.trees)
        return 1.0 / (1.0 + math.exp(-odds))


def fit_verifier(pairs: Sequence[Pair], cosines: Sequence[float]) -> Verifier | None:
    """Fit on labelled pairs and their cosines; None where they are too few or all alike.

    Raises MachineError where scikit-learn is missing.
    """
    if len(pairs) < LEAST_PAIRS or len({pair.same for pair in pairs}) == 1:
        return None
    return _fitted(_rows(pairs, cosines), [pair.same for pair in pairs])


def cross_fitted(pairs: Sequence[Pair], cosines: Sequence[float]) -> list[float | None]:
    """The score of each pair by a verifier that has seen neither of its questions, as on pairs to come.

    None where there is no such verifier: its questions were dealt to two folds, or the others' labels are all alike.
    """
    folds = dealt(pairs, FOLDS, "fold ")
    rows = _rows(pairs, cosines)
    scores: list[float | None] = [None] * len(pairs)
    for fold in range(FOLDS):
        others = [number for number, parts in enumerate(folds) if fold not in parts]
        labels = [pairs[number].same for number in others]
        if all(labels) or not any(labels):
            continue
        verifier = _fitted([rows[number] for number in others], labels)
        for number, parts in enumerate(folds):
            if parts == (fold, fold):
                scores[number] = verifier.probability(rows[number])
    return scores


def _rows(pairs: Sequence[Pair], cosines: Sequence[float]) -> list[tuple[float, ...]]:
    return [features(pair.question, pair.cached, cosine) for pair, cosine in zip(pairs, cosines, strict=True)]


def _fitted(rows: Sequence[tuple[float, ...]], labels: Sequence[bool]) -> Verifier:
    try:
        from sklearn.ensemble import GradientBoostingClassifier
    except ImportError as error:
        message = "fitting the cache's verifier needs scikit-learn"
        raise MachineError(message, hint="pip install 'potstill[local]'") from error
    model = GradientBoostingClassifier(
        n_estimators=TREES,
        max_depth=DEPTH,
        learning_rate=LEARNING_RATE,
        subsample=SUBSAMPLE,
        min_samples_leaf=LEAST_IN_LEAF,
        random_state=0,
    ).fit(rows, labels)
    share = sum(labels) / len(labels)
    trees = tuple(_tree(fitted.tree_) for (fitted,) in model.estimators_)
    return Verifier(names=NAMES, start=math.log(share / (1 - share)), trees=trees)


def _tree(fitted: Any) -> Tree:
    return Tree(
        feature=tuple(max(LEAF, int(number)) for number in fitted.feature),
        split=tuple(float(value) for value in fitted.threshold),
        low=tuple(map(int, fitted.children_left)),
        high=tuple(map(int, fitted.children_right)),
        value=tuple(round(LEARNING_RATE * float(value), 6) for value in fitted.value[:, 0, 0]),
    )


def _leaf(tree: Tree, row: Sequence[float]) -> float:
    node = 0
    while tree.feature[node] != LEAF:
        node = tree.low[node] if row[tree.feature[node]] <= tree.split[node] else tree.high[node]
    return tree.value[node]
