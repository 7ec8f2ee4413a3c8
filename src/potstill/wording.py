"""Small grammar of what is said to people. Pure."""

from __future__ import annotations

import re

OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and line feed, what turns the direction of writing, and halves of characters."""


def counted(count: int, noun: str) -> str:
    """A number and what is counted: `1 role`, `2 roles`. `noun` is in the singular and takes a plain s: `batch job`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def visible(text: str) -> str:
    """A text in which what a terminal would obey stands as its escape: it can neither move the cursor nor paint."""
    return OBEYED.sub(lambda found: ascii(found[0])[1:-1], text)
