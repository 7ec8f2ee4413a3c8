"""What a launcher of several processes asks for, by variables of its own."""

from __future__ import annotations

import os

YES = frozenset({"1", "on", "t", "true", "y", "yes"})


def take_wish(variable: str) -> bool:
    """Whether a launcher asks for something; the variable is removed, because libraries would act on it a second time."""
    return os.environ.pop(variable, "").lower() in YES
