"""The cached answers and their vectors in SQLite: the exact layer, and what every index can be rebuilt from.

Several processes may read and write (WAL). Row numbers are never used twice, so that an index that lags behind can name
an entry that is gone, but never a wrong one.
"""

from __future__ import annotations

import sqlite3
import sys
from array import array
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from potstill.errors import InputError, MachineError
from potstill.infer.claims import Claims
from potstill.infer.database import Transaction, open_database, unusable
from potstill.infer.encoder import Vector

COLUMNS = "number, id, scope, namespace, question, answer, route, model, created, hits, floor"
NAMES = tuple(COLUMNS.split(", "))
PAGE = 500
EVICT_EVERY = 64
"""The size limit is looked at once in so many new entries, of a small cache more often: counting rows is not free."""
KEPT_CHANGES = 100_000
"""An index that lags behind by more changes than these is compared with the store as a whole."""
EVICTION = (
    "DELETE FROM entries WHERE number IN"
    " (SELECT number FROM entries ORDER BY coalesce(last_hit, created), number LIMIT ?)"
)
DROPPED = (
    "INSERT INTO rounds SELECT id, 1 FROM entries WHERE {condition}"
    " ON CONFLICT (id) DO UPDATE SET dropped = dropped + 1"
)


@dataclass(frozen=True)
class Fresh:
    """An answer that is about to be stored. `id` is the exact key; `route` and `model` say where it came from."""

    id: str
    scope: str
    namespace: str
    question: str
    answer: str
    route: str
    model: str | None


@dataclass(frozen=True)
class Entry(Fresh):
    """A stored answer. `created` is in Unix seconds; `hits` counts how often it was served.

    `floor`: a semantic hit on it must score above this, because one that scored so was wrong (as in vCache,
    arXiv 2502.03771, each entry learns its own threshold).
    """

    number: int
    created: float
    hits: int
    floor: float


@dataclass(frozen=True)
class Judged:
    """A question beside a cached one, and whether the cached answer fits; `source` is audit, shadow or feedback."""

    source: str
    namespace: str
    question: str
    cached: str
    fits: bool


@dataclass(frozen=True)
class StoredVector:
    """The vector of one entry."""

    number: int
    scope: str
    vector: Vector


class EntryStore:
    """The entries of one cache folder. Use it as a context manager; not to be shared between threads."""

    def __init__(self, path: Path | None, *, ttl_s: int | None = None, max_entries: int | None = None) -> None:
        """Open or create the file; None: in memory. Raises MachineError, or InputError for a file of another kind."""
        self.path = path
        self._ttl_s = ttl_s
        self._max_entries = max_entries
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = open_database(path)
        except sqlite3.OperationalError as error:
            raise unusable(error) from error
        except sqlite3.DatabaseError as error:
            message = f"{path} is not a readable cache: {error}"
            raise InputError(
                message, hint="choose another cache.path, or delete the file: it is only a cache"
            ) from error
        except OSError as error:
            message = f"cannot create {path}: {error.strerror}"
            raise MachineError(message) from error
        self.claims = Claims(self._connection)
        """Who is working on which question."""
        self.id = str(self._connection.execute("SELECT store_id FROM about").fetchone()[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def put(self, fresh: Fresh, now: float, vectors: dict[str, Vector] | None = None) -> Entry:
        """Store an answer in place of an older one to the same question; `vectors` by encoder id."""
        with Transaction(self._connection) as connection:
            connection.execute("DELETE FROM entries WHERE id = ?", (fresh.id,))
            number = connection.execute(
                "INSERT INTO entries (id, scope, namespace, question, answer, route, model, created)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (fresh.id, fresh.scope, fresh.namespace, fresh.question, fresh.answer, fresh.route, fresh.model, now),
            ).lastrowid
            connection.executemany(
                "INSERT INTO vectors VALUES (?, ?, ?)",
                [(number, encoder, packed(vector)) for encoder, vector in (vectors or {}).items()],
            )
        self._keep_limit(int(number or 0))
        return Entry(**vars(fresh), number=int(number or 0), created=now, hits=0, floor=0.0)

    def _keep_limit(self, number: int) -> None:
        """Evict so many that the limit is not passed before the next look, whichever process writes then."""
        if self._max_entries is None:
            return
        every = min(EVICT_EVERY, 1 + self._max_entries // EVICT_EVERY)
        if number % every == 0:
            self.evict(self._max_entries - (every - 1))

    def exact(self, identity: str, scope: str, now: float) -> Entry | None:
        """The live entry of an exact key in its scope."""
        return next(self._live("id = ?", [identity], scope, now), None)

    def by_numbers(self, numbers: Sequence[int], scope: str, now: float) -> dict[int, Entry]:
        """The live entries that an index named, as far as they stand in this scope."""
        found = self._live(f"number IN ({_marks(numbers)})", numbers, scope, now)
        return {entry.number: entry for entry in found}

    def served(self, entry: Entry, now: float) -> None:
        """Count a hit. It does not make the entry any younger."""
        with Transaction(self._connection) as connection:
            connection.execute("UPDATE entries SET hits = hits + 1, last_hit = ? WHERE number = ?", (now, entry.number))

    def rounds(self, identity: str, now: float) -> int:
        """How often an answer to this question was dropped: the next one must be asked for anew.

        One that stands there and is too old is dropped here, for a server lives longer than an answer.
        """
        if self._ttl_s is not None:
            self._drop("id = ? AND created <= ?", identity, now - self._ttl_s)
        row = self._connection.execute("SELECT dropped FROM rounds WHERE id = ?", (identity,)).fetchone()
        return int(row[0]) if row else 0

    def forget(self, identity: str) -> bool:
        """Drop one answer; False where there is none of that id."""
        return self._drop("id = ?", identity) > 0

    def drop_expired(self, now: float) -> int:
        """Drop what is older than the time to live, counted from its creation; how many that were."""
        return 0 if self._ttl_s is None else self._drop("created <= ?", now - self._ttl_s)

    def evict(self, keep: int) -> int:
        """Drop what was used longest ago until `keep` entries are left; how many those were.

        Nothing is asked anew for it: the ledger still has the answer, which was neither wrong nor old.
        """
        with Transaction(self._connection) as connection:
            count = int(connection.execute("SELECT count(*) FROM entries").fetchone()[0])
            gone = connection.execute(EVICTION, (max(0, count - keep),)).rowcount
            connection.execute("DELETE FROM changes WHERE seq <= (SELECT max(seq) FROM changes) - ?", (KEPT_CHANGES,))
            return gone

    def raise_floor(self, identity: str, score: float) -> bool:
        """A semantic hit on this entry that scored so was wrong: it must score higher from now on."""
        with Transaction(self._connection) as connection:
            change = "UPDATE entries SET floor = max(floor, ?) WHERE id = ?"
            return connection.execute(change, (score, identity)).rowcount > 0

    def name_scope(self, identity: str, about: str) -> None:
        """Keep what a scope stands for (JSON), so that entries can be found by role, prompt or model."""
        known = self._connection.execute("SELECT 1 FROM scopes WHERE id = ?", (identity,)).fetchone()
        if known is None:
            with Transaction(self._connection) as connection:
                connection.execute("INSERT OR IGNORE INTO scopes VALUES (?, ?)", (identity, about))

    def scopes(self) -> dict[str, str]:
        """What each scope stands for, as JSON."""
        return dict(self._connection.execute("SELECT id, about FROM scopes").fetchall())

    def note_judged(self, judged: Judged, now: float) -> None:
        """Keep a verdict on a would-be hit, for the next calibration."""
        values = (now, judged.source, judged.namespace, judged.question, judged.cached, int(judged.fits))
        with Transaction(self._connection) as connection:
            connection.execute("INSERT INTO judged VALUES (?, ?, ?, ?, ?, ?)", values)

    def judged(self, since: float = 0.0) -> list[Judged]:
        """The verdicts from a moment on."""
        rows = self._connection.execute(
            "SELECT source, namespace, question, cached, fits FROM judged WHERE at >= ? ORDER BY at", (since,)
        )
        return [Judged(row[0], row[1], row[2], row[3], bool(row[4])) for row in rows]

    def count(self) -> int:
        """Entries, live or expired."""
        return int(self._connection.execute("SELECT count(*) FROM entries").fetchone()[0])

    def tally(self) -> list[tuple[str, str, int, int]]:
        """Namespace, route, entries and hits, of each pair of the first two."""
        query = "SELECT namespace, route, count(*), sum(hits) FROM entries GROUP BY namespace, route ORDER BY 1, 2"
        return self._connection.execute(query).fetchall()

    def entries(self, *, newest_first: bool = False) -> Iterator[Entry]:
        """All entries in the order in which they came, or the other way round; a page at a time is in memory."""
        after, beyond, order = (sys.maxsize, "<", "DESC") if newest_first else (0, ">", "ASC")
        while rows := self._connection.execute(
            f"SELECT {COLUMNS} FROM entries WHERE number {beyond} ? ORDER BY number {order} LIMIT {PAGE}",  # noqa: S608  (constants)
            (after,),
        ).fetchall():
            yield from (Entry(**dict(zip(NAMES, row, strict=True))) for row in rows)
            after = rows[-1][0]

    def vectors_of(self, number: int) -> dict[str, Vector]:
        """The vectors of one entry by encoder."""
        rows = self._connection.execute("SELECT encoder, vector FROM vectors WHERE number = ?", (number,))
        return {encoder: unpacked(vector) for encoder, vector in rows}

    def seq(self) -> int:
        """Grows whenever vectors come or go, in whichever process."""
        return int(self._connection.execute("SELECT coalesce(max(seq), 0) FROM changes").fetchone()[0])

    def first_change(self) -> int:
        """The oldest `seq` that is still known."""
        return int(self._connection.execute("SELECT coalesce(min(seq), 0) FROM changes").fetchone()[0])

    def changes(self, encoder: str, since: int) -> tuple[list[int], list[int]]:
        """Entries whose vectors of an encoder came, and went, after a `seq`; one that came and went only went.

        Only from `first_change` on.
        """
        rows = self._connection.execute(
            "SELECT number, gone FROM changes WHERE seq > ? AND encoder = ? ORDER BY seq", (since, encoder)
        )
        last = dict(rows.fetchall())
        return [number for number, gone in last.items() if not gone], [number for number, gone in last.items() if gone]

    def indexed(self, name: str) -> int:
        """The `seq` up to which an index on disk is known to hold everything; 0 for an unknown one."""
        row = self._connection.execute("SELECT seq FROM indexed WHERE name = ?", (name,)).fetchone()
        return int(row[0]) if row else 0

    def note_indexed(self, name: str, seq: int) -> None:
        """An index on disk holds everything up to here."""
        with Transaction(self._connection) as connection:
            connection.execute("INSERT OR REPLACE INTO indexed VALUES (?, ?)", (name, seq))

    def numbers(self, encoder: str) -> set[int]:
        """All entries that have a vector of this encoder."""
        rows = self._connection.execute("SELECT number FROM vectors WHERE encoder = ?", (encoder,))
        return {int(row[0]) for row in rows}

    def count_vectors(self, encoder: str) -> int:
        """How many those are."""
        row = self._connection.execute("SELECT count(*) FROM vectors WHERE encoder = ?", (encoder,)).fetchone()
        return int(row[0])

    def vectors(self, encoder: str, numbers: Sequence[int]) -> list[StoredVector]:
        """The vectors of some entries, by number; entries that are gone are left out."""
        rows = self._connection.execute(
            "SELECT number, scope, vector FROM vectors JOIN entries USING (number)"  # noqa: S608  (marks only)
            f" WHERE encoder = ? AND number IN ({_marks(numbers)}) ORDER BY number",
            (encoder, *numbers),
        )
        return [StoredVector(number, scope, unpacked(vector)) for number, scope, vector in rows]

    def exclusive(self) -> AbstractContextManager[sqlite3.Connection]:
        """While this is held, no other process writes here, or holds it too. Not to be nested with writing."""
        return Transaction(self._connection)

    def _live(self, condition: str, values: Sequence[str | int], scope: str, now: float) -> Iterator[Entry]:
        youngest = now - self._ttl_s if self._ttl_s is not None else float("-inf")
        rows = self._connection.execute(
            f"SELECT {COLUMNS} FROM entries WHERE {condition} AND scope = ? AND created > ?",  # noqa: S608  (constants)
            (*values, scope, youngest),
        )
        return (Entry(**dict(zip(NAMES, row, strict=True))) for row in rows.fetchall())

    def _drop(self, condition: str, *values: Any) -> int:
        with Transaction(self._connection) as connection:
            connection.execute(DROPPED.format(condition=condition), values)
            return connection.execute(f"DELETE FROM entries WHERE {condition}", values).rowcount  # noqa: S608  (constants)


def packed(vector: Vector) -> bytes:
    """A vector as little-endian float32, whatever the machine."""
    values = array("f", vector)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def unpacked(data: bytes) -> Vector:
    """The vector of its bytes; raises ValueError where they are no whole numbers."""
    values = array("f")
    values.frombytes(data)
    if sys.byteorder == "big":
        values.byteswap()
    return values


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))
