"""How near in meaning two answers are, by an encoder that `cli` hands in; said only where it can read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from potstill.distill.asking import Judged
from potstill.student.familiar import Reader

READABLE = 0.9
"""Share of answers that an encoder must read; a mean over the rest alone would be that of a chosen few."""


def measured(judged: Sequence[Judged], encoder: Reader) -> list[Judged]:
    """Each answer with its similarity to the teacher's (cosine; Sentence-BERT, arXiv 1908.10084).

    An empty answer is like nothing: 0. None where the encoder cannot read one of the two, as MiniLM cannot read Chinese:
    what it does not know looks all alike to it.
    """
    places = [place for place, item in enumerate(judged) if _readable(item, encoder)]
    texts = [text for place in places for text in (judged[place].answer.text, judged[place].reference)]
    vectors = encoder.encode(texts) if texts else []
    found: dict[int, float] = {place: 0.0 for place, item in enumerate(judged) if not item.answer.text.strip()}
    for number, place in enumerate(places):
        left, right = vectors[2 * number], vectors[2 * number + 1]
        found[place] = sum(a * b for a, b in zip(left, right, strict=True))
    return [replace(item, similarity=found.get(place)) for place, item in enumerate(judged)]


def mean_similarity(judged: Sequence[Judged]) -> float | None:
    """The mean over a set of answers; None where too many of them could not be read."""
    known = [item.similarity for item in judged if item.similarity is not None]
    return sum(known) / len(known) if known and len(known) >= READABLE * len(judged) else None


def _readable(item: Judged, encoder: Reader) -> bool:
    return encoder.unreadable(item.answer.text) is None and encoder.unreadable(item.reference) is None
