"""Qdrant Edge as an index: every vector compared, or a graph over them (HNSW, arXiv 1603.09320) where it was built.

Building one takes a CPU minute for 100,000 vectors, and Qdrant Edge lets no other Python code run meanwhile: see `graph`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from potstill.errors import MachineError
from potstill.files import write_atomic
from potstill.infer.bounds import LEVEL, lower_bound
from potstill.infer.encoder import Vector
from potstill.infer.index import PAGE, Near, unopened
from potstill.infer.store import StoredVector
from potstill.records import Record

LINKS, BUILD_WIDTH = 16, 100
"""The graph's M and ef_construction."""
FULL_SCAN_KB = 10_000
"""Scopes with fewer kilobytes of vectors are compared whole, as Qdrant's own default has it."""
SEARCH_WIDTHS = (64, 128, 256, 512)
"""ef, from the cheapest up; the first whose recall is enough is used."""
RECALL = 0.99
SAMPLE = 1000
TIED = 1e-6
GRAPH_FILE = "graph.json"


class Graph(Record):
    """What was measured of a graph: `ef` is the width to search with; None where none gave recall enough.

    `recall`: how many of `sample` stored vectors found their nearest other one, as comparing all vectors finds it.
    """

    schema_version: Literal[1] = 1
    vectors: int
    ef: int | None
    recall: float
    sample: int


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
        self._graph_file = folder / GRAPH_FILE
        self.graph = _measured(self._graph_file)
        new = not (folder / "edge_config.json").is_file()
        folder.mkdir(parents=True, exist_ok=True)
        params = qdrant_edge.EdgeVectorParams(size=dims, distance=qdrant_edge.Distance.Cosine)
        hnsw = qdrant_edge.HnswIndexConfig(LINKS, BUILD_WIDTH, FULL_SCAN_KB)
        always = qdrant_edge.EdgeOptimizersConfig(indexing_threshold=1)
        config = qdrant_edge.EdgeConfig(vectors=params, hnsw_config=hnsw, optimizers=always)
        try:
            opener = qdrant_edge.EdgeShard.create if new else qdrant_edge.EdgeShard.load
            self._shard = opener(str(folder), config)
            if new:
                keyword = qdrant_edge.PayloadSchemaType.Keyword
                self._shard.update(qdrant_edge.UpdateOperation.create_field_index("scope", keyword))
        except Exception as error:
            # Qdrant Edge raises bare Exception for everything; what it says is all there is to tell them apart.
            raise unopened(folder, error) from error

    def upsert(self, points: Sequence[StoredVector]) -> None:
        """Add or replace vectors; each is in the shard's write-ahead log when this returns."""
        made = [self._edge.Point(point.number, list(point.vector), {"scope": point.scope}) for point in points]
        self._update(self._edge.UpdateOperation.upsert_points(made))

    def search(self, vector: Vector, scope: str, limit: int) -> list[Near]:
        """The nearest of one scope, nearest first: of all vectors, or by a graph that was found good enough."""
        return self._nearest(vector, scope, limit, None if self.graph is None else self.graph.ef)

    def delete(self, numbers: Sequence[int]) -> None:
        """Take entries out."""
        self._update(self._edge.UpdateOperation.delete_points(list(numbers)))

    def numbers(self) -> set[int]:
        """All entries that are in."""
        found: set[int] = set()
        offset: Any = None
        while True:
            request = self._edge.ScrollRequest(limit=PAGE, offset=offset, with_payload=False, with_vector=False)
            records, offset = self._shard.scroll(request)
            found |= {int(record.id) for record in records}
            if offset is None:
                return found

    def count(self) -> int:
        """How many those are."""
        return int(self._shard.count(self._edge.CountRequest(exact=True)))

    def loose(self) -> int:
        """Vectors that are in no graph: these are compared one by one."""
        info = self._shard.info()
        return int(info.points_count - info.indexed_vectors_count)

    def build_graph(self) -> Graph:
        """Build the graph and measure it. Stops every thread of this process for as long as it takes."""
        self._shard.optimize()
        numbers = sorted(self.numbers())
        drawn = numbers[:: -(-len(numbers) // SAMPLE)]
        asked = [(record.id, record.vector, record.payload["scope"]) for record in self._records(drawn)]
        true = [self._other(number, vector, scope, None) for number, vector, scope in asked]
        for width in SEARCH_WIDTHS:
            found = [self._other(number, vector, scope, width) for number, vector, scope in asked]
            right = sum(mine >= best - TIED for mine, best in zip(found, true, strict=True))
            if enough := lower_bound(right, len(asked), LEVEL) > RECALL:
                break
        recall = right / len(asked)
        self.graph = Graph(vectors=len(numbers), ef=width if enough else None, recall=recall, sample=len(asked))
        write_atomic(self._graph_file, self.graph.to_line())
        return self.graph

    def close(self) -> None:
        """Flush, and let go of the folder."""
        self._shard.close()

    def _records(self, numbers: Sequence[int]) -> list[Any]:
        return list(self._shard.retrieve(list(numbers), with_payload=True, with_vector=True))

    def _other(self, number: int, vector: Vector, scope: str, width: int | None) -> float:
        """The cosine of the nearest vector but itself."""
        near = self._nearest(vector, scope, 2, width)
        return next((found.cosine for found in near if found.number != number), -1.0)

    def _nearest(self, vector: Vector, scope: str, limit: int, width: int | None) -> list[Near]:
        edge = self._edge
        condition = edge.FieldCondition(key="scope", match=edge.MatchValue(scope))
        request = edge.QueryRequest(
            limit=limit,
            query=edge.Query.Nearest(list(vector)),
            filter=edge.Filter(must=[condition]),
            params=edge.SearchParams(hnsw_ef=width, exact=width is None),
        )
        with _failing():
            return [Near(int(point.id), float(point.score)) for point in self._shard.query(request)]

    def _update(self, operation: Any) -> None:
        with _failing():
            self._shard.update(operation)


@contextmanager
def _failing() -> Iterator[None]:
    """Qdrant Edge raises bare Exception for a full disk and the like."""
    try:
        yield
    except Exception as error:
        if type(error) is not Exception:
            raise
        message = f"the cache's index failed: {error}"
        raise MachineError(message, hint="is the disk full? it is rebuilt from the cache's entries") from error


def _measured(path: Path) -> Graph | None:
    """What was measured; None where nothing was, or where it cannot be read: then every vector is compared."""
    try:
        return Graph.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
