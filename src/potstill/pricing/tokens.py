"""How many tokens a text is, without a tokenizer. Pure."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter

CJK_TOKENS = 0.775
CJK_PUNCTUATION_TOKENS = 1.19
ASCII_TOKENS = 0.256
OTHER_TOKENS = 0.586
"""Tokens a character by class, fitted against the Gemma vocabulary (262,144 entries) on English, Traditional Chinese,
code and JSON. Error on a total: -4 to +11 %; on one text up to 50 % in English and 28 % in Chinese (95th percentile)."""


CJK_RANGES = ((0x3400, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))
CJK_PUNCTUATION_RANGE = (0x3000, 0x303F)


def estimate_tokens(text: str) -> int:
    """Estimated tokens of a text, rounded up. Four characters a token would undercount Chinese by 58 to 69 %.

    Each distinct character is weighed once: 2,000 characters take microseconds, not a millisecond.
    """
    if text.isascii():
        return math.ceil(len(text) * ASCII_TOKENS)
    return math.ceil(sum(_weight(character) * count for character, count in Counter(text).items()))


def _weight(character: str) -> float:
    if character.isascii():
        return ASCII_TOKENS
    code = ord(character)
    if any(low <= code <= high for low, high in CJK_RANGES):
        return CJK_TOKENS
    low, high = CJK_PUNCTUATION_RANGE
    if low <= code <= high or unicodedata.east_asian_width(character) in "FW":
        return CJK_PUNCTUATION_TOKENS
    return OTHER_TOKENS
