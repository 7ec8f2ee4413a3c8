"""What a verifier looks at beside the cosine: the words, letters, numbers and order of two questions. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from difflib import SequenceMatcher
from itertools import pairwise, takewhile

from potstill.infer.guard import veto

WORD = re.compile(r"[a-z0-9+#']+|[\u3400-\u9fff]")
"""Latin words, and single Chinese characters."""
ENDINGS = ("ing", "ed", "es", "s", "ly")
SHORTEST_STEM = 3
GRAM = 3
_COMMON = """a an the of to in on for and or is are was were be do does did can could i you we it that this what how
why which who when where my your me with by from as at if there have has will would should please tell"""
COMMON = frozenset(_COMMON.split())

NAMES = (
    "cosine",
    "letters_shared",
    "words_shared",
    "content_shared",
    "content_alone_least",
    "content_alone_most",
    "content_both",
    "order_shared",
    "words_least",
    "words_difference",
    "first_word_same",
    "last_word_same",
    "vetoed",
    "content_contained",
    "blocks_shared",
    "longest_run",
    "words_from_start",
    "words_from_end",
)
"""The features in their order, new ones last. Shares are Jaccard similarities in 0..1; contained and run are shares of the
shorter question, blocks the share of words in matching blocks (difflib); the others are counts or 0/1."""


def features(question: str, cached: str, cosine: float) -> tuple[float, ...]:
    """The features of a question and a cached one, in the order of NAMES; equal both ways round."""
    mine, theirs = _words(question), _words(cached)
    stems, their_stems = {_stem(word) for word in mine}, {_stem(word) for word in theirs}
    content, their_content = stems - COMMON, their_stems - COMMON
    both = len(content & their_content)
    alone = sorted((len(content - their_content), len(their_content - content)))
    return (
        cosine,
        _shared(_grams(mine), _grams(theirs)),
        _shared(stems, their_stems),
        _shared(content, their_content),
        float(alone[0]),
        float(alone[1]),
        float(both),
        _shared(set(pairwise(mine)), set(pairwise(theirs))),
        float(min(len(mine), len(theirs))),
        float(abs(len(mine) - len(theirs))),
        float(mine[:1] == theirs[:1]),
        float(mine[-1:] == theirs[-1:]),
        float(veto(question, cached) is not None),
        both / max(1, min(len(content), len(their_content))),
        *_blocks(*sorted((mine, theirs))),
        float(_common(mine, theirs)),
        float(_common(mine[::-1], theirs[::-1])),
    )


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def _stem(word: str) -> str:
    for ending in ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= SHORTEST_STEM:
            return word.removesuffix(ending)
    return word


def _grams(words: list[str]) -> set[str]:
    text = f" {' '.join(words)} "
    return {text[start : start + GRAM] for start in range(len(text) - GRAM + 1)}


def _blocks(one: Sequence[str], other: Sequence[str]) -> tuple[float, float]:
    """The share of words in matching blocks, and the longest block's of the shorter text. Depends on which comes first."""
    sizes = [block.size for block in SequenceMatcher(None, one, other, autojunk=False).get_matching_blocks()]
    shorter = max(1, min(len(one), len(other)))
    return 2 * sum(sizes) / max(1, len(one) + len(other)), max(sizes) / shorter


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """How many words are the same from the start on."""
    return sum(1 for _ in takewhile(lambda words: words[0] == words[1], zip(one, other, strict=False)))


def _shared(one: AbstractSet[object], other: AbstractSet[object]) -> float:
    """Jaccard similarity; two empty sets share nothing that could be seen."""
    union = len(one | other)
    return len(one & other) / union if union else 0.0
