"""How much two answers say the same, and which answers are looked at twice. Pure."""

from __future__ import annotations

import hashlib
import re
from collections import Counter

WORD = re.compile(r"[^\W_\u3400-\u9fff]+|[\u3400-\u9fff]")
"""Words, and single Chinese characters."""


def agreement(one: str, other: str) -> float:
    """F1 over the words of two answers, 0..1 (as in SQuAD, arXiv 1606.05250). A low value need not mean a wrong answer."""
    left, right = Counter(WORD.findall(one.lower())), Counter(WORD.findall(other.lower()))
    common = (left & right).total()
    return 2 * common / (left.total() + right.total()) if common else 0.0


def drawn(share: float, *parts: str) -> bool:
    """Whether something belongs to a random share, by the hash of what it is: the same again gives the same again."""
    digest = hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8]) < share * 2**64
