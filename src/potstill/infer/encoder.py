"""Texts to unit vectors: the port, and a hashing encoder that needs no model."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from potstill.errors import MachineError
from potstill.infer.key import normalise

MAX_UNKNOWN = 0.1
"""Share of unknown tokens above which an encoder does not read a text: what it cannot read looks all alike to it."""
HASHING = "hashing"

LEFT_ALONE_S = 30.0
"""Seconds for which a model or an index that failed is not asked again: a hub that is away takes its time to say so."""
Loaded = TypeVar("Loaded")
Vector = Sequence[float]
"""What is stored and compared; an encoder gives tuples."""


class Encoder(Protocol):
    """Something that turns texts into vectors of length one."""

    @property
    def id(self) -> str:
        """Names model, weights and precision; vectors of two ids are never compared."""

    @property
    def dims(self) -> int:
        """Length of a vector."""

    def unreadable(self, text: str) -> str | None:
        """Why this encoder cannot read a text; None where it can."""

    def encode(self, texts: Sequence[str]) -> list[tuple[float, ...]]:
        """One unit vector for each text. Blocking."""


class HashingEncoder:
    """Character n-grams of one to three, hashed to `dims` counts: spelling alone, in any language, no model needed.

    Feature hashing (Weinberger et al., arXiv 0902.2206) without signs.
    """

    def __init__(self, dims: int = 512) -> None:
        self.dims = dims
        self.id = f"{HASHING}-{dims}-1"

    def unreadable(self, text: str) -> str | None:
        """Only a text without any letter is unreadable."""
        return None if text.strip() else "empty"

    def encode(self, texts: Sequence[str]) -> list[tuple[float, ...]]:
        """One unit vector for each text."""
        return [self._one(normalise(text).lower()) for text in texts]

    def _one(self, text: str) -> tuple[float, ...]:
        counts = [0.0] * self.dims
        padded = f" {text} "
        for size in (1, 2, 3):
            for start in range(len(padded) - size + 1):
                gram = padded[start : start + size].encode("utf-8", "surrogatepass")
                counts[int.from_bytes(hashlib.blake2b(gram, digest_size=4).digest()) % self.dims] += size
        length = math.sqrt(sum(count * count for count in counts))
        return tuple(count / length for count in counts)


class Lazy(Generic[Loaded]):
    """A model that is loaded when it is first asked for. Not to be shared between threads without a lock."""

    def __init__(self, load: Callable[[], Loaded]) -> None:
        self.load = load
        self.loaded: Loaded | None = None
        self._failed: tuple[MachineError, float] | None = None

    def get(self) -> Loaded:
        """The model. Blocking. Raises what `load` raises; a MachineError again at once, for a while."""
        if self.loaded is None:
            if self._failed is not None and time.monotonic() < self._failed[1]:
                raise self._failed[0].with_traceback(None)
            try:
                self.loaded = self.load()
            except MachineError as error:
                self._failed = error, time.monotonic() + LEFT_ALONE_S
                raise
        return self.loaded


def cannot_read(tokens: int, unknown: int, limit: int | None) -> str | None:
    """Why an encoder cannot read a text of so many tokens, two special ones apart; None where it can."""
    if not tokens:
        return "empty"
    if limit is not None and tokens + 2 > limit:
        return f"{tokens} tokens, more than the {limit} that the encoder reads"
    share = unknown / tokens
    return f"the encoder does not know {share:.0%} of its tokens" if share > MAX_UNKNOWN else None
