"""Which held-out questions are fair: none that stands, nearly word for word, among the training questions. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from potstill.records import Sample

GRAM = 4
"""Characters of a shingle."""


@dataclass(frozen=True)
class Leak:
    """A held-out sample, the training question that it repeats, and their resemblance in 0..1."""

    sample: Sample
    near: str
    resemblance: float


@dataclass(frozen=True)
class HeldOut:
    """The fair samples in their order, and those that leaked."""

    samples: list[Sample]
    leaks: list[Leak]


def question_of(sample: Sample) -> str:
    """What was asked: the user's turns."""
    return "\n".join(turn.content for turn in sample.messages if turn.role == "user")


def fair(train: Sequence[Sample], held_out: Sequence[Sample], threshold: float) -> HeldOut:
    """Take out what resembles a training question by `threshold` or more.

    Resemblance: Jaccard index of the sets of character 4-grams (Broder 1997, doi 10.1109/SEQUEN.1997.666900), letters
    and digits only, case and width folded. 1 with letters alike is a leak at any threshold.
    """
    shingles = _Shingles({question_of(sample) for sample in train})
    kept: list[Sample] = []
    leaks: list[Leak] = []
    found = {question: shingles.nearest(question) for question in {question_of(sample) for sample in held_out}}
    for sample in held_out:
        near, resemblance = found[question_of(sample)]
        if resemblance >= threshold:
            leaks.append(Leak(sample, near, resemblance))
        else:
            kept.append(sample)
    return HeldOut(kept, leaks)


def duplicates(samples: Sequence[Sample]) -> int:
    """How many samples repeat an earlier one of the same role: same question and same answer but for form."""
    seen = Counter(
        (sample.role, _plain(question_of(sample)), _plain(sample.messages[-1].content)) for sample in samples
    )
    return sum(count - 1 for count in seen.values())


class _Shingles:
    """An inverted index from shingle to questions."""

    def __init__(self, questions: set[str]) -> None:
        self._questions = sorted(questions)
        self._sizes: list[int] = []
        self._places: dict[str, list[int]] = defaultdict(list)
        for place, question in enumerate(self._questions):
            grams = _grams(question)
            self._sizes.append(len(grams))
            for gram in grams:
                self._places[gram].append(place)

    def nearest(self, question: str) -> tuple[str, float]:
        """The question that resembles this one most, and how much; ("", 0) where none shares a shingle."""
        grams = _grams(question)
        shared = Counter(place for gram in grams for place in self._places.get(gram, ()))
        scored = ((count / (len(grams) + self._sizes[place] - count), place) for place, count in shared.items())
        resemblance, place = max(scored, default=(0.0, -1))
        return (self._questions[place] if place >= 0 else "", resemblance)


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))


def _grams(text: str) -> frozenset[str]:
    plain = f" {_plain(text)} "
    return frozenset(plain[at : at + GRAM] for at in range(max(1, len(plain) - GRAM + 1)))
