"""Vetoes on a semantic hit: questions that an encoder finds close and that ask for different things. Pure.

Cosine barely sees a changed number, a negation or an antonym (of such edits 90 to 98 % stay above 0.85 with MiniLM), so
these are compared as text, in English and Chinese. A veto costs one miss; the lists are short and no proof of equality.
"""

from __future__ import annotations

import re
from collections import Counter

from potstill.infer.words import (
    ANTONYMS,
    DIRECTIONS,
    NEGATION_ZH,
    NEGATIONS,
    NO_NEGATION_ZH,
    NO_NUMERAL_ZH,
    NUMBER_WORDS,
    NUMERALS_ZH,
    OPPOSED,
    OPPOSED_ZH,
)

WORD = re.compile(r"[A-Za-z][A-Za-z'\u2019+#.-]*[A-Za-z+#]|[A-Za-z]")
NUMBER = re.compile(r"\d+(?:[.,:/]\d+)*")


def veto(question: str, cached: str) -> str | None:
    """Why the answer to `cached` must not be served for `question`; None where nothing speaks against it."""
    numbers, cached_numbers = _numbers(question), _numbers(cached)
    if numbers != cached_numbers:
        return f"numbers differ: {_listed(numbers)} / {_listed(cached_numbers)}"
    if _negations(question) % 2 != _negations(cached) % 2:
        return "one of the two is negated"
    if (opposed := _opposed(question, cached)) is not None:
        return opposed
    return _swapped_names(question, cached) or _other_order(question, cached)


def _words(text: str) -> list[str]:
    return [word.lower().replace("\u2019", "'").removesuffix("'s") for word in WORD.findall(text)]


def _numbers(text: str) -> Counter[str]:
    found = Counter(number.replace(",", "") for number in NUMBER.findall(text))
    found.update(NUMBER_WORDS[word] for part in _words(text) for word in part.split("-") if word in NUMBER_WORDS)
    found.update(NUMERALS_ZH[sign] for sign in NO_NUMERAL_ZH.sub("", text) if sign in NUMERALS_ZH)
    return found


def _negations(text: str) -> int:
    english = sum(word in NEGATIONS or word.endswith("n't") for word in _words(text))
    return english + len(NEGATION_ZH.findall(NO_NEGATION_ZH.sub("", text)))


def _opposed(question: str, cached: str) -> str | None:
    """Each side holds one of two opposites that the other does not."""
    here, there = _terms(question), _terms(cached)
    mine, theirs = here - there, there - here
    if mine and theirs:
        for left, right in ANTONYMS:
            if left in mine and right in theirs:
                return f"opposites: {left!r} / {right!r}"
            if right in mine and left in theirs:
                return f"opposites: {right!r} / {left!r}"
    return None


def _terms(text: str) -> frozenset[str]:
    """The terms in a text that have an opposite: English words, and Chinese ones anywhere, as nothing sets words apart."""
    found = OPPOSED & set(_words(text))
    return found if text.isascii() else found | {term for term in OPPOSED_ZH if term in text}


def _swapped_names(question: str, cached: str) -> str | None:
    """Each side names something that the other does not: Python here, Ruby there."""
    mine, theirs = _names(question) - set(_words(cached)), _names(cached) - set(_words(question))
    return f"names differ: {', '.join(sorted(mine))} / {', '.join(sorted(theirs))}" if mine and theirs else None


def _names(text: str) -> set[str]:
    """Words with a capital, apart from a sentence's first and from I."""
    found = set()
    for match in WORD.finditer(text):
        opens = not re.search(r"[^\s\"'(]", text[: match.start()]) or re.search(r"[.?!:]\s*$", text[: match.start()])
        word = match.group(0)
        inside = any(letter.isupper() for letter in word[1:])
        if inside or (word[0].isupper() and not opens and word != "I" and not word.startswith("I'")):
            found.add(word.lower().replace("\u2019", "'").removesuffix("'s"))
    return found


def _other_order(question: str, cached: str) -> str | None:
    """The same words in another order, where a word of direction makes the order matter: from A to B."""
    mine, theirs = _words(question), _words(cached)
    if mine != theirs and Counter(mine) == Counter(theirs) and DIRECTIONS & set(mine):
        return "the same words in another order"
    return None


def _listed(numbers: Counter[str]) -> str:
    return ", ".join(sorted(numbers.elements())) or "none"
