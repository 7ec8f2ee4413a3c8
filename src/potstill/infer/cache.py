"""Exact layer, then semantic layer: the store, the encoder and the index of one cache, opened as they are needed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pydantic import SecretStr

from potstill.config import CacheConfig
from potstill.errors import MachineError, PotstillError
from potstill.infer.encoder import LEFT_ALONE_S, Encoder, Lazy, Vector
from potstill.infer.graph import GrowingIndex, roomy
from potstill.infer.index import BrokenIndexError, Index, IndexBusyError, MemoryIndex, catch_up
from potstill.infer.loading import load_encoder
from potstill.infer.qdrant_index import open_local, open_server
from potstill.infer.store import Entry, EntryStore, Fresh
from potstill.records import text_sha
from potstill.workspace import Workspace

LONGEST_RETRY_S = 600.0
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

    `skipped` says why it was not asked. `encoder` and `vectors` (by encoder id) are what is stored with the answer, so
    that a question is encoded once.
    """

    neighbours: tuple[Neighbour, ...] = ()
    skipped: str | None = None
    encoder: str | None = None
    vectors: dict[str, Vector] = field(default_factory=dict)


@dataclass(frozen=True)
class OpenIndex:
    """An index, and the name under which the store remembers how far it has come; None: it starts empty each time.

    `stands_in`: it is a copy in memory, for one that could not be had; the other is tried again after a while.
    """

    index: Index
    name: str | None = None
    stands_in: bool = False


class AnswerCache:
    """The cache of one workspace. Neither encoder nor index is loaded before the first semantic lookup."""

    def __init__(
        self,
        store: EntryStore,
        make_encoder: Callable[[], Encoder],
        make_index: Callable[[Encoder], OpenIndex],
        *,
        broken: str | None = None,
    ) -> None:
        """`broken` says why the configured store is not in use."""
        self.store = store
        self.broken = broken
        self._encoder = Lazy(make_encoder)
        self._make_index = make_index
        self._opened: OpenIndex | None = None
        self._seen = 0
        self._left_alone_until = float("-inf")
        self._retry_s = LEFT_ALONE_S
        self._tried = 0.0

    def encoder(self) -> Encoder:
        """The encoder, loaded at the first call. Blocking."""
        return self._encoder.get()

    def encode(self, question: str) -> Neighbourhood:
        """Read a question with the encoder. Blocking, and free of the store: it may run in another thread."""
        encoder = self.encoder()
        if (reason := encoder.unreadable(question)) is not None:
            return Neighbourhood(skipped=reason, encoder=encoder.id)
        return Neighbourhood(encoder=encoder.id, vectors={encoder.id: encoder.encode([question])[0]})

    def near(self, read: Neighbourhood, scope: str, now: float, limit: int = NEIGHBOURS) -> Neighbourhood:
        """The nearest live entries of a scope to a question that `encode` has read."""
        encoder = self._encoder.loaded
        if read.skipped is not None or encoder is None:
            return read
        if time.monotonic() < self._left_alone_until:
            return Neighbourhood(skipped="its index failed a moment ago", encoder=encoder.id, vectors=read.vectors)
        try:
            found = self._current(encoder, now).search(read.vectors[encoder.id], scope, limit)
        except (MachineError, OSError) as error:
            self._left_alone_until = time.monotonic() + LEFT_ALONE_S
            self._let_go()
            if isinstance(error, MachineError):
                raise
            message = f"its index cannot be used: {error}"
            raise MachineError(message) from error
        entries = self.store.by_numbers([near.number for near in found], scope, now)
        live = tuple(Neighbour(entries[near.number], near.cosine) for near in found if near.number in entries)
        return Neighbourhood(neighbours=live, encoder=encoder.id, vectors=read.vectors)

    def put(self, fresh: Fresh, now: float, vectors: dict[str, Vector]) -> Entry:
        """Store an answer; the index learns of it at its next lookup."""
        return self.store.put(fresh, now, vectors)

    def close(self) -> None:
        """Let go of the index and the store."""
        self._let_go()
        self.store.close()

    def _let_go(self) -> None:
        if self._opened is not None:
            self._opened.index.close()
        self._opened = None

    def _current(self, encoder: Encoder, now: float) -> Index:
        """The index, brought up to date with what this and other processes have written."""
        opened = self._opened
        if opened is None or (opened.stands_in and abs(now - self._tried) >= self._retry_s):
            opened = self._open(opened, encoder, now)
        if self.store.seq() != self._seen:
            self._seen = self._caught_up(opened, encoder.id, self._seen)
        return opened.index

    def _open(self, before: OpenIndex | None, encoder: Encoder, now: float) -> OpenIndex:
        """Open the index; what stood in for it `before` does so for twice as long where it cannot be had yet."""
        opened = self._make_index(encoder)
        self._retry_s = min(2 * self._retry_s, LONGEST_RETRY_S) if before else LEFT_ALONE_S
        self._tried = now
        if before is not None and opened.stands_in:
            return before
        self._opened = opened
        self._seen = self._caught_up(opened, encoder.id, self.store.indexed(opened.name) if opened.name else 0)
        if opened.index.count() != self.store.count_vectors(encoder.id):  # it has lost something
            self._seen = self._caught_up(opened, encoder.id, 0)
        return opened

    def _caught_up(self, opened: OpenIndex, encoder: str, since: int) -> int:
        seq = self.store.seq()
        if since != seq or not since:
            catch_up(self.store, opened.index, encoder, since)
            if opened.name:
                self.store.note_indexed(opened.name, seq)
        return seq


def open_cache(config: CacheConfig, workspace: Workspace, server_key: SecretStr | None = None) -> AnswerCache:
    """The cache that a config names, below `cache.path` or in the workspace; `server_key` is for a Qdrant server.

    One that cannot be used is passed by: answers are then kept in memory for as long as this process runs.
    """
    path = entries_file(config, workspace)
    broken = None
    try:
        store = EntryStore(path, ttl_s=config.ttl_s, max_entries=config.max_entries)
    except PotstillError as error:
        broken = error.message
        store = EntryStore(None, ttl_s=config.ttl_s, max_entries=config.max_entries)

    def make_index(encoder: Encoder) -> OpenIndex:
        if broken is not None:
            return OpenIndex(MemoryIndex())
        if config.url is not None:
            return _open_server(config.url, server_key, store, encoder)
        return _open_embedded(config, path.parent / workspace.cache_index.name, store, encoder)

    return AnswerCache(store, lambda: open_encoder(config, workspace), make_index, broken=broken)


def open_encoder(config: CacheConfig, workspace: Workspace) -> Encoder:
    """The encoder of a config's cache, its graph kept beside the entries; raises MachineError where it cannot be had."""
    return load_encoder(config.encoder, entries_file(config, workspace).parent / workspace.encoders.name)


def entries_file(config: CacheConfig, workspace: Workspace) -> Path:
    """Where the entries of a config's cache lie."""
    return Path(config.path) / workspace.cache_entries.name if config.path else workspace.cache_entries


def _open_server(url: str, key: SecretStr | None, store: EntryStore, encoder: Encoder) -> OpenIndex:
    """The collection of a cache file on a Qdrant server."""
    collection = f"potstill-{store.id}-{_name(encoder)}"
    server = open_server(url, collection, encoder.dims, key)
    return _trusted(OpenIndex(server, collection), store, new=server.fresh)


def _open_embedded(config: CacheConfig, folder: Path, store: EntryStore, encoder: Encoder) -> OpenIndex:
    """The embedded index; while another process holds it, or the disk is full, a copy in memory stands in for it."""
    name = _name(encoder)
    kind = f"{config.index}-{name}-{store.id[:8]}"
    new = not (folder / kind).is_dir()
    if not roomy(folder):
        return OpenIndex(MemoryIndex(), stands_in=True)
    open_it = partial(_open_folder, config.index, folder / kind, store, encoder)
    try:
        opened = open_it()
    except IndexBusyError:
        return OpenIndex(MemoryIndex(), stands_in=True)
    except BrokenIndexError:
        shutil.rmtree(folder / kind)
        opened, new = open_it(), True
    for other in set(folder.glob(f"{config.index}-{name}*")) - {folder / kind}:
        shutil.rmtree(other, ignore_errors=True)  # half built, or of a cache file that is gone
    return _trusted(OpenIndex(opened, kind), store, new=new)


def _name(encoder: Encoder) -> str:
    return text_sha(encoder.id)[:16]


def _open_folder(kind: str, folder: Path, store: EntryStore, encoder: Encoder) -> Index:
    if kind == "edge":
        return GrowingIndex(store, folder, encoder.id, encoder.dims)
    with store.exclusive():
        return open_local(folder, encoder.dims)


def _trusted(opened: OpenIndex, store: EntryStore, *, new: bool) -> OpenIndex:
    """An index whose numbers are this store's: one that the store has not filled is emptied.

    A cache file that was deleted, or put back from a copy, counts anew, and its numbers then mean other entries.
    """
    if opened.name and new:
        store.note_indexed(opened.name, 0)
    elif opened.name and store.indexed(opened.name) == 0:
        opened.index.delete(sorted(opened.index.numbers()))
    return opened
