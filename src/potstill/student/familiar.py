"""How near a question lies to those that a student was trained on: what its own log-probabilities do not see.

A student is sure of itself on topics that it was never taught. The distance to the nearest training example tells them
apart (nearest neighbours for out-of-distribution detection: Sun et al., arXiv 2204.06507).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from potstill.errors import InputError
from potstill.files import write_atomic

MOST = 20_000
"""Training questions that are kept at most, evenly from all: 15 MB, and three milliseconds for a lookup."""


class Reader(Protocol):
    """What turns texts into unit vectors; the cache's encoder is one."""

    @property
    def id(self) -> str:
        """Names model, weights and precision; vectors of two ids are never compared."""

    def unreadable(self, text: str) -> str | None:
        """Why this encoder cannot read a text; None where it can."""

    def encode(self, texts: Sequence[str]) -> list[tuple[float, ...]]:
        """One unit vector for each text. Blocking."""


@dataclass(frozen=True)
class Known:
    """The training questions as unit vectors (questions, dims) of the encoder with this id."""

    encoder: str
    vectors: Any

    def nearest(self, vector: Sequence[float]) -> float:
        """The cosine of the nearest training question."""
        import numpy as np

        return float((self.vectors @ np.asarray(vector, np.float32)).max())


def known_questions(questions: Iterable[str], reader: Reader) -> Known | None:
    """The training questions as a reader sees them; None where it cannot read half of them."""
    import numpy as np

    texts = sorted(set(questions))
    texts = [texts[place * len(texts) // MOST] for place in range(MOST)] if len(texts) > MOST else texts
    readable = [text for text in texts if reader.unreadable(text) is None]
    if not texts or 2 * len(readable) < len(texts):
        return None
    # Kept in half precision, and rounded so here already: a held-out question is measured against what is stored.
    return Known(reader.id, np.asarray(reader.encode(readable), np.float16).astype(np.float32))


def nearness(questions: Iterable[str], known: Known, reader: Reader) -> dict[str, float | None]:
    """The cosine of each question to its nearest training question; None for one that the reader cannot read."""
    texts = sorted(set(questions))
    readable = [text for text in texts if reader.unreadable(text) is None]
    found: dict[str, float | None] = dict.fromkeys(texts)
    found.update(zip(readable, map(known.nearest, reader.encode(readable)), strict=True))
    return found


def write_known(path: Path, known: Known) -> None:
    """Write `questions.safetensors`, in half precision."""
    import numpy as np
    from safetensors.numpy import save

    write_atomic(path, save({"vectors": known.vectors.astype(np.float16)}, {"encoder": known.encoder}))


def read_known(path: Path) -> Known | None:
    """What was written, or None where there is no file; raises InputError for one that is none."""
    if not path.is_file():
        return None
    import numpy as np
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            return Known((file.metadata() or {})["encoder"], file.get_tensor("vectors").astype(np.float32))
    except (SafetensorError, KeyError) as error:
        message = f"{path} holds no training questions: {error}"
        raise InputError(message, hint="delete it, and run `potstill distill` again") from error
