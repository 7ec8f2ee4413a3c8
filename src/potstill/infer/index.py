"""Nearest vectors within one scope: one port, and adapters for memory, Qdrant Edge and qdrant-client.

An index holds numbers, scopes and vectors, nothing else, and is rebuilt from the store at any time. Scores are cosine
similarity, 1 for equal directions. A search never crosses a scope.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from potstill.errors import MachineError
from potstill.infer.encoder import Vector
from potstill.infer.store import StoredVector

CHUNK = 256
"""Points sent together."""
FIRST_ROWS = 64
SERVER_TIMEOUT_S = 10
LOCKED = ("WouldBlock", "already accessed")
"""What Qdrant Edge and qdrant-client's local mode say when another process has the folder open."""


class IndexBusyError(MachineError):
    """Another process holds the embedded index."""


@dataclass(frozen=True)
class Near:
    """An entry's number and the cosine similarity of its question."""

    number: int
    cosine: float


class Index(Protocol):
    """Vectors by scope."""

    def upsert(self, points: Sequence[StoredVector]) -> None:
        """Add vectors, or put them in place of older ones of the same number."""

    def search(self, vector: Vector, scope: str, limit: int) -> list[Near]:
        """The nearest of one scope, nearest first."""

    def delete(self, numbers: Sequence[int]) -> None:
        """Take entries out; unknown numbers are no error."""

    def numbers(self) -> set[int]:
        """All entries that are in."""

    def close(self) -> None:
        """Let go of files and connections."""


class MemoryIndex:
    """All vectors in memory, one matrix a scope, compared by numpy: exact, without files, open to any number of processes."""

    def __init__(self) -> None:
        self._shelves: dict[str, _Shelf] = {}
        self._scopes: dict[int, str] = {}

    def upsert(self, points: Sequence[StoredVector]) -> None:
        """Add or replace vectors."""
        self.delete([point.number for point in points])
        for scope in dict.fromkeys(point.scope for point in points):
            chosen = {point.number: point.vector for point in points if point.scope == scope}
            shelf = self._shelves.setdefault(scope, _Shelf(len(points[0].vector)))
            shelf.add(list(chosen), list(chosen.values()))
            self._scopes |= dict.fromkeys(chosen, scope)

    def search(self, vector: Vector, scope: str, limit: int) -> list[Near]:
        """The nearest of one scope, nearest first."""
        shelf = self._shelves.get(scope)
        return shelf.nearest(vector, limit) if shelf else []

    def delete(self, numbers: Sequence[int]) -> None:
        """Take entries out."""
        for number in numbers:
            if (scope := self._scopes.pop(number, None)) is not None:
                self._shelves[scope].remove(number)

    def numbers(self) -> set[int]:
        """All entries that are in."""
        return set(self._scopes)

    def close(self) -> None:
        """Nothing to let go of."""


class _Shelf:
    """The unit vectors of one scope in a matrix that doubles as it fills; the last row takes a removed one's place."""

    def __init__(self, dims: int) -> None:
        import numpy as np

        self._np = np
        self._matrix = np.zeros((FIRST_ROWS, dims), np.float32)
        self._numbers: list[int] = []
        self._rows: dict[int, int] = {}

    def add(self, numbers: Sequence[int], vectors: Sequence[Vector]) -> None:
        first, last = len(self._numbers), len(self._numbers) + len(numbers)
        while last > len(self._matrix):
            self._matrix = self._np.concatenate([self._matrix, self._np.zeros_like(self._matrix)])
        self._matrix[first:last] = self._units(vectors)
        self._numbers += numbers
        self._rows |= dict(zip(numbers, range(first, last), strict=True))

    def remove(self, number: int) -> None:
        row, last = self._rows.pop(number), self._numbers.pop()
        if last != number:
            self._matrix[row] = self._matrix[len(self._numbers)]
            self._numbers[row] = last
            self._rows[last] = row

    def nearest(self, vector: Vector, limit: int) -> list[Near]:
        count = len(self._numbers)
        cosines = self._matrix[:count] @ self._units([vector])[0]
        every = self._np.arange(count)
        chosen = self._np.argpartition(-cosines, limit - 1)[:limit] if count > limit else every
        ranked = sorted(chosen.tolist(), key=lambda row: (-cosines[row], self._numbers[row]))
        return [Near(self._numbers[row], float(cosines[row])) for row in ranked]

    def _units(self, vectors: Sequence[Vector]) -> Any:
        made = self._np.array(vectors, self._np.float32)
        lengths = self._np.linalg.norm(made, axis=1, keepdims=True)
        return made / self._np.where(lengths > 0, lengths, 1)


class EdgeIndex:
    """Qdrant Edge, Qdrant's engine inside this process; its folder belongs to one process at a time."""

    def __init__(self, folder: Path, dims: int) -> None:
        """Open or create the shard; raises IndexBusyError where another process has it, MachineError where it is broken."""
        try:
            import qdrant_edge
        except ImportError as error:
            message = "cache.index: edge needs qdrant-edge-py"
            raise MachineError(message, hint="pip install 'potstill[local]', or set cache.index: local") from error
        self._edge = qdrant_edge
        new = not (folder / "edge_config.json").is_file()
        folder.mkdir(parents=True, exist_ok=True)
        params = qdrant_edge.EdgeVectorParams(size=dims, distance=qdrant_edge.Distance.Cosine)
        config = qdrant_edge.EdgeConfig(vectors=params)
        try:
            opener = qdrant_edge.EdgeShard.create if new else qdrant_edge.EdgeShard.load
            self._shard = opener(str(folder), config)
            if new:
                keyword = qdrant_edge.PayloadSchemaType.Keyword
                self._shard.update(qdrant_edge.UpdateOperation.create_field_index("scope", keyword))
        except Exception as error:
            # Qdrant Edge raises bare Exception for everything; what it says is all there is to tell them apart.
            raise _unopened(folder, error) from error

    def upsert(self, points: Sequence[StoredVector]) -> None:
        """Add or replace vectors; each is in the shard's write-ahead log when this returns."""
        made = [self._edge.Point(point.number, list(point.vector), {"scope": point.scope}) for point in points]
        self._shard.update(self._edge.UpdateOperation.upsert_points(made))

    def search(self, vector: Vector, scope: str, limit: int) -> list[Near]:
        """The nearest of one scope, nearest first."""
        edge = self._edge
        condition = edge.FieldCondition(key="scope", match=edge.MatchValue(scope))
        request = edge.QueryRequest(
            limit=limit, query=edge.Query.Nearest(list(vector)), filter=edge.Filter(must=[condition])
        )
        return [Near(int(point.id), float(point.score)) for point in self._shard.query(request)]

    def delete(self, numbers: Sequence[int]) -> None:
        """Take entries out."""
        self._shard.update(self._edge.UpdateOperation.delete_points(list(numbers)))

    def numbers(self) -> set[int]:
        """All entries that are in."""
        found: set[int] = set()
        offset: Any = None
        while True:
            request = self._edge.ScrollRequest(limit=CHUNK, offset=offset, with_payload=False, with_vector=False)
            records, offset = self._shard.scroll(request)
            found |= {int(record.id) for record in records}
            if offset is None:
                return found

    def close(self) -> None:
        """Flush, and let go of the folder."""
        self._shard.close()


class QdrantIndex:
    """A collection behind qdrant-client: a server, its local mode, or its memory mode.

    Local mode is not thread-safe, so one lock is held around every call.
    """

    def __init__(self, client: Any, collection: str, dims: int) -> None:
        from qdrant_client import models

        self._client, self._collection, self._models = client, collection, models
        self._lock = threading.Lock()
        self.fresh = not client.collection_exists(collection)
        if self.fresh:
            params = models.VectorParams(size=dims, distance=models.Distance.COSINE)
            client.create_collection(collection, vectors_config=params)

    def upsert(self, points: Sequence[StoredVector]) -> None:
        """Add or replace vectors."""
        made = [
            self._models.PointStruct(id=point.number, vector=list(point.vector), payload={"scope": point.scope})
            for point in points
        ]
        with self._lock:
            self._client.upsert(self._collection, points=made, wait=True)

    def search(self, vector: Vector, scope: str, limit: int) -> list[Near]:
        """The nearest of one scope, nearest first."""
        condition = self._models.FieldCondition(key="scope", match=self._models.MatchValue(value=scope))
        with self._lock:
            found = self._client.query_points(
                self._collection,
                query=list(vector),
                query_filter=self._models.Filter(must=[condition]),
                limit=limit,
                with_payload=False,
            )
        return [Near(int(point.id), float(point.score)) for point in found.points]

    def delete(self, numbers: Sequence[int]) -> None:
        """Take entries out."""
        with self._lock:
            self._client.delete(self._collection, points_selector=list(numbers), wait=True)

    def numbers(self) -> set[int]:
        """All entries that are in."""
        found: set[int] = set()
        offset: Any = None
        while True:
            with self._lock:
                records, offset = self._client.scroll(
                    self._collection, limit=CHUNK, offset=offset, with_payload=False, with_vectors=False
                )
            found |= {int(record.id) for record in records}
            if offset is None:
                return found

    def close(self) -> None:
        """Let go of the folder or the connection."""
        self._client.close()


def open_local(folder: Path, dims: int) -> QdrantIndex:
    """qdrant-client's local mode on a folder; raises IndexBusyError where another process has it."""
    client = _client_module()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return QdrantIndex(client.QdrantClient(path=str(folder)), "entries", dims)
    except RuntimeError as error:
        raise _unopened(folder, error) from error


def open_server(url: str, collection: str, dims: int) -> QdrantIndex:
    """A collection on a Qdrant server; raises MachineError where the server does not answer."""
    client = _client_module()
    from qdrant_client.http.exceptions import ApiException

    try:
        return QdrantIndex(
            client.QdrantClient(url=url, timeout=SERVER_TIMEOUT_S, check_compatibility=False), collection, dims
        )
    except (ApiException, OSError) as error:
        message = f"no Qdrant server answers at cache.url {url}: {error}"
        raise MachineError(message, hint="start it, or unset cache.url for the embedded index") from error


def _client_module() -> Any:
    try:
        import qdrant_client
    except ImportError as error:
        message = "this cache index needs qdrant-client"
        raise MachineError(message, hint="pip install 'potstill[local]', or set cache.index: edge") from error
    return qdrant_client


def _unopened(folder: Path, error: Exception) -> MachineError:
    if any(sign in str(error) for sign in LOCKED):
        return IndexBusyError(f"{folder} is held by another process")
    message = f"the index in {folder} cannot be opened: {error}"
    return MachineError(message, hint="delete that folder: it is rebuilt from the cache's entries")
