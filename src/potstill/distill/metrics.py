"""How far two answers agree: JSON by its values, other text by chrF."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

METRIC = "agreement with the teacher's answer: JSON by its values, other text by chrF (1: the same)"


class Agreement(NamedTuple):
    """`score` in 0..1; `exact` but for spacing; `well_formed`: JSON of the reference's shape, None where it is text."""

    score: float
    exact: bool
    well_formed: bool | None = None


def agreement(answer: str, reference: str) -> Agreement:
    """Compare an answer with the teacher's. A reference that is a JSON object or array is compared by values.

    Both are read in Unicode's composed form, so that one letter has one spelling; 1.0 is 1, and neither is `true`.
    """
    answer, reference = (unicodedata.normalize("NFC", text) for text in (answer, reference))
    wanted = _json(reference)
    if wanted is None:
        return Agreement(chrf(answer, reference), answer.split() == reference.split())
    found = _json(answer)
    if found is None:
        return Agreement(0.0, exact=False, well_formed=False)
    left, right = Counter(_leaves(found)), Counter(_leaves(wanted))
    whole = left.total() + right.total()
    score = 2 * (left & right).total() / whole if whole else 1.0
    return Agreement(score, exact=_written(found) == _written(wanted), well_formed=_shape(found) == _shape(wanted))


def chrf(answer: str, reference: str) -> float:
    """Character n-gram F-score (Popovic 2015, aclanthology W15-3049) by sacrebleu, in 0..1; needs no word boundaries."""
    if not reference.strip() or not answer.strip():
        return float(answer.split() == reference.split())
    return min(1.0, float(_scorer().sentence_score(answer, [reference]).score) / 100)


@cache
def _scorer() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


def _json(text: str) -> Any:
    """The object or array that a text is; None for any other text, a bare number or word included."""
    try:
        value = json.loads(text.strip().removeprefix("```json").removeprefix("```").removesuffix("```"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, (dict, list)) else None


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every value with the names that lead to it; the order of a list does not count."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _leaves(inner, (*path, name))
    elif isinstance(value, list) and value:
        for inner in value:
            yield from _leaves(inner, (*path, "[]"))
    else:
        yield path, _written(value)


def _written(value: Any) -> str:
    """One spelling for each value: names sorted, 3.0 as 3; true stays apart from 1, unlike in Python."""
    return json.dumps(_whole(value), sort_keys=True)


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _whole(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_whole(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _shape(value: Any) -> Any:
    """The names and types of a JSON value; a list is the set of its elements' shapes."""
    if isinstance(value, dict):
        return tuple(sorted((name, _shape(inner)) for name, inner in value.items()))
    if isinstance(value, list):
        return frozenset(_shape(inner) for inner in value)
    return "number" if isinstance(value, (int, float)) and not isinstance(value, bool) else type(value).__name__
