"""Which language a text is in: English, Traditional or Simplified Chinese, told apart by character sets. Pure.

Chinese is what has Han characters and neither kana nor Hangul. A character that the Big5 code has and GB 2312 has not
is a sign of Traditional Chinese, the reverse one of Simplified; most are in both and say nothing. The signs are counted,
because Big5's second level holds a few simplified forms as rare characters of their own. A text without any sign ("OK",
a number, a short word that both scripts write alike) is undecided and fits either. Latin script counts as English.
Measured in docs/dataset.md.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal

Language = Literal["en", "zh-TW", "zh-CN", "zh", "other", "none"]
"""`zh`: Chinese that both scripts write alike; `none`: no letters at all (a number, a formula)."""

HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
KANA_OR_HANGUL = re.compile(r"[\u3040-\u30ff\u1100-\u11ff\uac00-\ud7af]")
LATIN_WORD = re.compile(r"[A-Za-z\u00c0-\u024f]+")
HAN_IN_A_WORD = 1.7
"""Han characters that say about as much as one Latin word, so that a Chinese text full of terms stays Chinese."""
DOMINANT = 0.5
"""Share of a text's words that its language must have."""
ONE_IN = 6
"""Kana or Hangul from one in so many East Asian characters on make a text Japanese or Korean."""


def language_of(text: str) -> Language:
    """The language of a text, by its characters alone."""
    han = len(HAN.findall(text))
    foreign = len(KANA_OR_HANGUL.findall(text))
    latin = len(LATIN_WORD.findall(text))
    letters = sum(character.isalpha() for character in text)
    if not letters:
        return "none"
    if foreign * ONE_IN >= han + foreign > 0:
        return "other"
    chinese_words = han / HAN_IN_A_WORD
    others = letters - han - sum(len(word) for word in LATIN_WORD.findall(text))
    if others > DOMINANT * letters:
        return "other"
    if chinese_words > DOMINANT * latin:
        return _script_of(text)
    return "en" if latin else "other"


def fits(found: Language, wanted: str) -> bool:
    """Whether a text may pass as one in `wanted` (`en`, `zh-TW` or `zh-CN`); what has no letters passes as any."""
    return found in {wanted, "none"} or (found == "zh" and wanted.startswith("zh"))


def _script_of(text: str) -> Language:
    signs = [_sign(character) for character in HAN.findall(text)]
    traditional, simplified = signs.count("zh-TW"), signs.count("zh-CN")
    if traditional == simplified:
        return "zh"
    return "zh-TW" if traditional > simplified else "zh-CN"


@lru_cache(maxsize=32_768)
def _sign(character: str) -> Language:
    """Which script a Han character points to."""
    big5, gb2312 = _encodes(character, "big5"), _encodes(character, "gb2312")
    if big5 == gb2312:
        return "zh"
    return "zh-TW" if big5 else "zh-CN"


def _encodes(character: str, codec: str) -> bool:
    try:
        character.encode(codec)
    except UnicodeEncodeError:
        return False
    return True
