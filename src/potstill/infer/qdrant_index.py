"""qdrant-client as an index: its local mode, or a Qdrant server."""

from __future__ import annotations

import pickle
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from potstill.errors import MachineError
from potstill.infer.encoder import Vector
from potstill.infer.index import PAGE, Near, unopened
from potstill.infer.store import StoredVector

SERVER_TIMEOUT_S = 5
SERVER_EF = 128
"""The width of a server's graph search; what it builds, and when, is its own affair."""
KEY_VARIABLE = "POTSTILL_QDRANT_API_KEY"


class QdrantIndex:
    """A collection behind qdrant-client: a server, its local mode, or its memory mode.

    Local mode is not thread-safe, so one lock is held around every call.
    """

    def __init__(self, client: Any, collection: str, dims: int, *, server: bool = False) -> None:
        """Open or create the collection; a server is told how to search, local mode is not."""
        from qdrant_client import models

        self._client, self._collection, self._models = client, collection, models
        self._lock = threading.Lock()
        self._search = models.SearchParams(hnsw_ef=SERVER_EF) if server else None
        self.fresh = not client.collection_exists(collection)
        if self.fresh:
            params = models.VectorParams(size=dims, distance=models.Distance.COSINE)
            client.create_collection(collection, vectors_config=params)
        if server:  # also where a creator died between the two: making it twice is no error
            keyword = models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, is_tenant=True)
            client.create_payload_index(collection, "scope", field_schema=keyword, wait=True)

    def upsert(self, points: Sequence[StoredVector]) -> None:
        """Add or replace vectors."""
        made = [
            self._models.PointStruct(id=point.number, vector=list(point.vector), payload={"scope": point.scope})
            for point in points
        ]
        with self._asking():
            self._client.upsert(self._collection, points=made, wait=True)

    def search(self, vector: Vector, scope: str, limit: int) -> list[Near]:
        """The nearest of one scope, nearest first."""
        condition = self._models.FieldCondition(key="scope", match=self._models.MatchValue(value=scope))
        with self._asking():
            found = self._client.query_points(
                self._collection,
                query=list(vector),
                query_filter=self._models.Filter(must=[condition]),
                limit=limit,
                with_payload=False,
                search_params=self._search,
            )
        return [Near(int(point.id), float(point.score)) for point in found.points]

    def delete(self, numbers: Sequence[int]) -> None:
        """Take entries out."""
        if not numbers:  # the client refuses an empty request
            return
        with self._asking():
            self._client.delete(self._collection, points_selector=list(numbers), wait=True)

    def numbers(self) -> set[int]:
        """All entries that are in."""
        found: set[int] = set()
        offset: Any = None
        while True:
            with self._asking():
                records, offset = self._client.scroll(
                    self._collection, limit=PAGE, offset=offset, with_payload=False, with_vectors=False
                )
            found |= {int(record.id) for record in records}
            if offset is None:
                return found

    def count(self) -> int:
        """How many those are."""
        with self._asking():
            return int(self._client.count(self._collection, exact=True).count)

    def close(self) -> None:
        """Let go of the folder or the connection."""
        self._client.close()

    @contextmanager
    def _asking(self) -> Iterator[None]:
        from qdrant_client.http.exceptions import ApiException

        try:
            with self._lock:
                yield
        except (ApiException, OSError) as error:
            message = f"the Qdrant server failed: {str(error).strip() or type(error).__name__}"
            raise _refused(error) or MachineError(message, hint="is it still there?") from error


def open_local(folder: Path, dims: int) -> QdrantIndex:
    """qdrant-client's local mode on a folder; raises IndexBusyError where another process has it."""
    client = _client_module()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return QdrantIndex(client.QdrantClient(path=str(folder)), "entries", dims)
    except (RuntimeError, ValueError, EOFError, sqlite3.Error, pickle.UnpicklingError) as error:
        raise unopened(folder, error) from error


def open_server(url: str, collection: str, dims: int, key: SecretStr | None = None) -> QdrantIndex:
    """A collection on a Qdrant server; raises MachineError where the server does not answer, or refuses the key."""
    client = _client_module()
    from qdrant_client.http.exceptions import ApiException

    try:
        connected = client.QdrantClient(
            url=url, timeout=SERVER_TIMEOUT_S, check_compatibility=False, **_key_options(key)
        )
        return QdrantIndex(connected, collection, dims, server=True)
    except (ApiException, OSError) as error:
        if (refused := _refused(error)) is not None:
            raise refused from error
        message = f"no Qdrant server answers at cache.url {url}: {error}"
        raise MachineError(message, hint="start it, or unset cache.url for the embedded index") from error


def _key_options(key: SecretStr | None) -> dict[str, Any]:
    """How qdrant-client sends a key: as a header of its own, for `api_key` warns on loopback too; by https where no scheme says."""
    if key is None:
        return {}
    secret = key.get_secret_value()
    if not (secret.isascii() and secret.isprintable()):  # the HTTP client would quote it in its error
        message = f"{KEY_VARIABLE} holds characters that no key has"
        raise MachineError(message, hint="was it copied whole, without line breaks?")
    return {"headers": {"api-key": secret}, "https": True}


def _refused(error: Exception) -> MachineError | None:
    """A server's refusal of the key, or of none."""
    status = getattr(error, "status_code", None)
    if status not in {401, 403}:
        return None
    message = f"the Qdrant server refused ({status}): {KEY_VARIABLE} is missing, wrong, or may not write there"
    return MachineError(message, hint="set it in the environment to the cluster's API key")


def _client_module() -> Any:
    try:
        import qdrant_client
    except ImportError as error:
        message = "this cache index needs qdrant-client"
        raise MachineError(message, hint="pip install 'potstill[local]', or set cache.index: edge") from error
    return qdrant_client
