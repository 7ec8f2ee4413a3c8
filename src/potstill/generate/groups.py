"""Prompts that say nearly the same: which belong together, and which copy an earlier one. In flat memory."""

from __future__ import annotations

import sqlite3
from collections import Counter

from potstill.generate.neighbours import Neighbours
from potstill.generate.shelf import temporary_database

SHOWN_CHARS = 100
"""How much of a text is shown in a reason."""


class Groups:
    """Keys of texts, such that neighbours share a group. A group is named by its earliest key.

    A text that is added joins a group or opens one: it moves no earlier text, but where it stands between two groups,
    which then become one. A group takes `largest` texts: more of them are the work of a template, not copies, and are
    dealt in bunches of that size.
    """

    def __init__(self, threshold: float, largest: int) -> None:
        self._neighbours = Neighbours(threshold)
        self._largest = largest
        self._keys = _Names(self._neighbours.database)

    def add(self, key: str, text: str) -> None:
        """Take in a text under a key of its own."""
        number = len(self._neighbours)
        near = self._neighbours.add(text)
        self._keys.add(number, key)
        for neighbour in near:
            self._keys.join(number, neighbour.number, self._largest)

    def leader(self, key: str) -> str:
        """The key that names the group of a key; a key that was never added is its own."""
        return self._keys.leader(key)

    def sizes(self) -> Counter[int]:
        """How many groups there are of each size."""
        return self._keys.sizes()

    def close(self) -> None:
        """Let go of the temporary file."""
        self._neighbours.close()


class Copies:
    """Keys of texts that are near an earlier one. Copies of copies are measured against the original."""

    def __init__(self, threshold: float) -> None:
        self._originals = Neighbours(threshold)
        self._database = temporary_database()
        self._database.execute("CREATE TABLE copies (key TEXT PRIMARY KEY, original TEXT) WITHOUT ROWID")

    def add(self, key: str, text: str) -> bool:
        """Take in a text under a key; whether it is a copy."""
        near = self._originals.near(text)
        if not near:
            self._originals.add(text)
            return False
        original = self._originals.text(near[0].number)[:SHOWN_CHARS]
        self._database.execute("INSERT OR IGNORE INTO copies VALUES (?, ?)", (key, original))
        return True

    def original(self, key: str) -> str | None:
        """The beginning of the text that a key's text copies; None where it copies none."""
        row = self._database.execute("SELECT original FROM copies WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def close(self) -> None:
        """Let go of the temporary files."""
        self._originals.close()
        self._database.close()


class _Names:
    """Which group each key is in, by the number of the group's earliest text, in a temporary database.

    Most texts are alone, so the index of followers leaves the leaders out.
    """

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self._database.execute("CREATE TABLE names (number INTEGER PRIMARY KEY, key TEXT, leader INTEGER)")
        self._database.execute("CREATE UNIQUE INDEX by_key ON names (key)")
        self._database.execute("CREATE INDEX followers ON names (leader) WHERE leader <> number")

    def add(self, number: int, key: str) -> None:
        self._database.execute("INSERT OR IGNORE INTO names VALUES (?, ?, ?)", (number, key, number))

    def join(self, left: int, right: int, largest: int) -> None:
        """Make one group of two, unless it would be too large; the earlier leader names it."""
        leaders = sorted({self._leader(left), self._leader(right)})
        if len(leaders) == 1 or sum(self._size(leader) for leader in leaders) > largest:
            return
        self._database.execute("UPDATE names SET leader = ? WHERE leader = ? AND leader <> number", leaders)
        self._database.execute("UPDATE names SET leader = ? WHERE number = ?", leaders)

    def leader(self, key: str) -> str:
        row = self._database.execute(
            "SELECT leading.key FROM names JOIN names AS leading ON leading.number = names.leader WHERE names.key = ?",
            (key,),
        ).fetchone()
        return key if row is None else str(row[0])

    def sizes(self) -> Counter[int]:
        """Read off the index of followers, which stands in order: sorting all leaders would take memory for each text."""
        grouped = self._database.execute(
            "SELECT count(*) FROM names INDEXED BY followers WHERE leader <> number GROUP BY leader"
        )
        sizes = Counter(1 + followers for (followers,) in grouped)
        total = self._database.execute("SELECT count(*) FROM names").fetchone()[0]
        sizes[1] = total - sum(size * count for size, count in sizes.items())
        return +sizes

    def _leader(self, number: int) -> int:
        row = self._database.execute("SELECT leader FROM names WHERE number = ?", (number,)).fetchone()
        return number if row is None else int(row[0])

    def _size(self, leader: int) -> int:
        query = "SELECT count(*) FROM names WHERE leader = ? AND leader <> number"
        return 1 + int(self._database.execute(query, (leader,)).fetchone()[0])
