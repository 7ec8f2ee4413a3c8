"""Exact layer, then semantic layer: the store, the encoder and the index of one cache, opened as they are needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from potstill.config import CacheConfig
from potstill.infer.encoder import Encoder, Vector, load_encoder
from potstill.infer.index import (
    CHUNK,
    EdgeIndex,
    Index,
    IndexBusyError,
    MemoryIndex,
    open_local,
    open_server,
)
from potstill.infer.store import Entry, EntryStore, Fresh
from potstill.records import text_sha
from potstill.workspace import Workspace

NEIGHBOURS = 5
"""Candidates of a semantic lookup: where the nearest is vetoed, the next may still fit."""


@dataclass(frozen=True)
class Neighbour:
    """A stored answer and how near its question is."""

    entry: Entry
    cosine: float


@dataclass(frozen=True)
class Neighbourhood:
    """What the semantic layer knows about a question.

    `skipped` says why it was not asked. `vectors` (by encoder id) is what is stored with the answer, so that a question
    is encoded once.
    """

    neighbours: tuple[Neighbour, ...] = ()
    skipped: str | None = None
    vectors: dict[str, Vector] = field(default_factory=dict)


class AnswerCache:
    """The cache of one workspace. Neither encoder nor index is loaded before the first semantic lookup."""

    def __init__(
        self, store: EntryStore, make_encoder: Callable[[], Encoder], make_index: Callable[[Encoder], Index]
    ) -> None:
        self.store = store
        self._make_encoder = make_encoder
        self._make_index = make_index
        self._encoder: Encoder | None = None
        self._index: Index | None = None
        self._seen: tuple[int, int] | None = None

    def encode(self, question: str) -> Neighbourhood:
        """Read a question with the encoder. Blocking, and free of the store: it may run in another thread."""
        if self._encoder is None:
            self._encoder = self._make_encoder()
        if (reason := self._encoder.unreadable(question)) is not None:
            return Neighbourhood(skipped=reason)
        return Neighbourhood(vectors={self._encoder.id: self._encoder.encode([question])[0]})

    def near(self, read: Neighbourhood, scope: str, now: float) -> Neighbourhood:
        """The nearest live entries of a scope to a question that `encode` has read."""
        encoder = self._encoder
        if read.skipped is not None or encoder is None:
            return read
        if self._index is None:
            self._index = self._make_index(encoder)
        if (version := self.store.version(encoder.id)) != self._seen:
            catch_up(self.store, self._index, encoder.id)
            self._seen = version
        found = self._index.search(read.vectors[encoder.id], scope, NEIGHBOURS)
        entries = ((self.store.by_number(near.number, scope, now), near.cosine) for near in found)
        live = tuple(Neighbour(entry, cosine) for entry, cosine in entries if entry is not None)
        return Neighbourhood(neighbours=live, vectors=read.vectors)

    def put(self, fresh: Fresh, now: float, vectors: dict[str, Vector]) -> Entry:
        """Store an answer; the index learns of it at its next lookup."""
        return self.store.put(fresh, now, vectors)

    def close(self) -> None:
        """Let go of the index and the store."""
        if self._index is not None:
            self._index.close()
        self.store.close()


def open_cache(config: CacheConfig, workspace: Workspace) -> AnswerCache:
    """The cache that a config names, below `cache.path` or in the workspace."""
    entries = entries_file(config, workspace)
    store = EntryStore(entries, ttl_s=config.ttl_s)

    def make_index(encoder: Encoder) -> Index:
        return _open_index(config, entries.parent / workspace.cache_index.name, store, encoder)

    return AnswerCache(
        store, lambda: load_encoder(config.encoder, entries.parent / workspace.encoders.name), make_index
    )


def entries_file(config: CacheConfig, workspace: Workspace) -> Path:
    """Where the entries of a config's cache lie."""
    return Path(config.path) / workspace.cache_entries.name if config.path else workspace.cache_entries


def catch_up(store: EntryStore, index: Index, encoder: str) -> None:
    """Make an index hold exactly the vectors that the store has of an encoder."""
    wanted, present = store.numbers(encoder), index.numbers()
    if gone := present - wanted:
        index.delete(sorted(gone))
    for chunk in _chunks(sorted(wanted - present)):
        index.upsert(store.vectors(encoder, chunk))


def _open_index(config: CacheConfig, folder: Path, store: EntryStore, encoder: Encoder) -> Index:
    """The configured index; while another process holds an embedded one, a copy in memory."""
    name = text_sha(encoder.id)[:16]
    if config.url is not None:
        return open_server(config.url, f"potstill-{store.id}-{name}", encoder.dims)
    try:
        with store.exclusive():  # two processes that create one shard at the same time break it
            if config.index == "local":
                return open_local(folder / f"local-{name}", encoder.dims)
            return EdgeIndex(folder / f"edge-{name}", encoder.dims)
    except IndexBusyError:
        return MemoryIndex()


def _chunks(numbers: Sequence[int]) -> list[Sequence[int]]:
    return [numbers[start : start + CHUNK] for start in range(0, len(numbers), CHUNK)]
