"""Texts that say nearly the same, found among any number of them in flat memory.

Similarity is the Jaccard index of two texts' shingles: four characters of alphabetic text, two of Chinese, so that one
changed word or character weighs about the same in both. Candidates come from MinHash signatures cut into bands (Broder
1997; Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, ch. 3), and the index itself decides: no estimate ever
makes two texts alike. Texts with different numbers are never alike ("7 GB", "8 GB": another question).
The bands stand in a temporary database that spills to disk.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from potstill.generate.shelf import temporary_database

BANDS = 12
ROWS = 4
"""Two texts at similarity s meet in at least one band with probability 1 - (1 - s^4)^12: 0.998 at 0.8, 0.54 at 0.5."""
SEED = 20_260_601
CANDIDATES = 24
"""Texts that one is compared with at most: those that share the most bands."""
BUCKET = 256
"""Texts that one band's bucket holds; one that is full is the mark of a template and tells nothing apart."""

EAST_ASIAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u3040-\u30ff"
RUN = re.compile(f"[{EAST_ASIAN}]+|[^{EAST_ASIAN}]+")
HAN = re.compile(f"[{EAST_ASIAN}]")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


@dataclass(frozen=True)
class Neighbour:
    """An earlier text, by its number, and how alike it is (0..1)."""

    number: int
    similarity: float


def normalised(text: str) -> str:
    """One width, one case, words parted by single spaces, no punctuation."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(character if character.isalnum() else " " for character in folded).split())


def shingles(text: str) -> frozenset[str]:
    """Overlapping pieces of a text: four characters of alphabetic text, two of Chinese; the whole of a shorter one."""
    found: set[str] = set()
    for run in RUN.findall(normalised(text)):
        size, padded = (2, run) if HAN.match(run) else (4, f" {run.strip()} ")
        found.update(padded[start : start + size] for start in range(max(1, len(padded) - size + 1)))
    return frozenset(found - {"  ", " "})


def numbers(text: str) -> tuple[str, ...]:
    """The numbers in a text, in their order."""
    return tuple(NUMBER.findall(unicodedata.normalize("NFKC", text)))


def similarity(left: str, right: str) -> float:
    """Jaccard index of the shingles of two texts: 1 for the same pieces, 0 for none in common or other numbers."""
    if numbers(left) != numbers(right):
        return 0.0
    return jaccard(shingles(left), shingles(right))


def jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    """Size of the common part over the size of the union; two empty sets are equal."""
    union = len(left | right)
    return len(left & right) / union if union else 1.0


class Neighbours:
    """Texts in the order in which they came; close it when done."""

    def __init__(self, threshold: float) -> None:
        """`threshold`: similarity from which on two texts are neighbours."""
        self._threshold = threshold
        self._count = 0
        self.database = temporary_database()
        """Where they stand; whoever keeps more about them can do so beside them, in the same memory."""
        self.database.execute("CREATE TABLE texts (number INTEGER PRIMARY KEY, text TEXT)")
        self.database.execute("CREATE TABLE bands (key INTEGER, n INTEGER, PRIMARY KEY (key, n)) WITHOUT ROWID")

    def __len__(self) -> int:
        return self._count

    def add(self, text: str) -> list[Neighbour]:
        """Take in a text, number `len(self)`; gives its earlier neighbours, the most alike first."""
        pieces = shingles(text)
        buckets = self._buckets(pieces, text)
        self.database.execute("INSERT INTO texts VALUES (?, ?)", (self._count, text))
        rows = [(key, self._count) for key, numbers in buckets.items() if len(numbers) < BUCKET]
        self.database.executemany("INSERT OR IGNORE INTO bands VALUES (?, ?)", rows)
        self._count += 1
        return self._nearest(pieces, buckets)

    def near(self, text: str) -> list[Neighbour]:
        """The neighbours of a text that is not taken in, the most alike first."""
        pieces = shingles(text)
        return self._nearest(pieces, self._buckets(pieces, text))

    def text(self, number: int) -> str:
        """The text of a number."""
        return str(self.database.execute("SELECT text FROM texts WHERE number = ?", (number,)).fetchone()[0])

    def close(self) -> None:
        """Let go of the temporary file."""
        self.database.close()

    def _buckets(self, pieces: frozenset[str], text: str) -> dict[int, list[int]]:
        """The numbers of the texts that stand under each of a text's keys."""
        select = f"SELECT n FROM bands WHERE key = ? LIMIT {BUCKET}"  # noqa: S608  (a constant)
        return {
            key: [number for (number,) in self.database.execute(select, (key,))] for key in _keys(pieces, numbers(text))
        }

    def _nearest(self, pieces: frozenset[str], buckets: dict[int, list[int]]) -> list[Neighbour]:
        """Compare with the texts that share most keys."""
        shared = Counter(number for found in buckets.values() for number in found)
        near = []
        for number, _ in shared.most_common(CANDIDATES):
            alike = jaccard(pieces, shingles(self.text(number)))
            if alike >= self._threshold:
                near.append(Neighbour(number, alike))
        return sorted(near, key=lambda neighbour: (-neighbour.similarity, neighbour.number))


def _keys(pieces: frozenset[str], figures: tuple[str, ...]) -> list[int]:
    """One 63-bit key per band of the MinHash signature, and one of all pieces; texts with other numbers share none."""
    from rensa import RMinHash

    ordered = sorted(pieces)
    minhash: Any = RMinHash(num_perm=BANDS * ROWS, seed=SEED)
    minhash.update(ordered)
    digest = minhash.digest()
    bands = [(band, digest[band * ROWS : (band + 1) * ROWS]) for band in range(BANDS)]
    return [_key(figures, content) for content in (*bands, ordered)]


def _key(figures: tuple[str, ...], content: object) -> int:
    return int.from_bytes(blake2b(repr((figures, content)).encode(), digest_size=8).digest()) >> 1
