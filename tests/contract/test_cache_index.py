"""One contract for every index: memory, Qdrant Edge, qdrant-client on a folder and over HTTP."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import pytest
from tests.qdrant_stand_in import qdrant_stand_in

from potstill.config import CacheConfig, read_secrets
from potstill.errors import MachineError
from potstill.infer.cache import AnswerCache, OpenIndex, open_cache
from potstill.infer.edge_index import EdgeIndex
from potstill.infer.encoder import HashingEncoder, Vector
from potstill.infer.index import Index, IndexBusyError, MemoryIndex, catch_up
from potstill.infer.qdrant_index import KEY_VARIABLE, open_local, open_server
from potstill.infer.store import EntryStore, Fresh, StoredVector
from potstill.workspace import Workspace

DIMS = 4
SERVER = os.environ.get("POTSTILL_QDRANT_URL")
"""A real Qdrant server to hold to the same contract, with `POTSTILL_QDRANT_API_KEY` where it wants a key."""
SERVER_KEY = read_secrets().qdrant_key
EAST, NORTH, NEAR_EAST = (1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.8, 0.6, 0.0, 0.0)


@contextmanager
def over_http(_: Path) -> Iterator[Index]:
    """The class that talks to a server, over a server's protocol."""
    with qdrant_stand_in() as (url, _client), closing(open_server(url, "entries", DIMS)) as index:
        yield index


@contextmanager
def on_a_server(_: Path) -> Iterator[Index]:
    """A collection of its own on the server of the environment, which is dropped after."""
    from qdrant_client import QdrantClient

    assert SERVER is not None
    name = f"potstill-test-{uuid.uuid4().hex}"
    with closing(open_server(SERVER, name, DIMS, SERVER_KEY)) as index:
        yield index
    headers = {} if SERVER_KEY is None else {"api-key": SERVER_KEY.get_secret_value()}
    with closing(QdrantClient(url=SERVER, headers=headers, check_compatibility=False)) as client:
        client.delete_collection(name)


OPENERS: dict[str, Callable[[Path], AbstractContextManager[Index]]] = {
    "memory": lambda _: closing(MemoryIndex()),
    "edge": lambda folder: closing(EdgeIndex(folder, DIMS)),
    "local": lambda folder: closing(open_local(folder, DIMS)),
    "server": over_http,
    **({} if SERVER is None else {"real_server": on_a_server}),
}
ON_DISK = ("edge", "local")


@pytest.fixture(params=OPENERS)
def index(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Index]:
    """Each index in turn, empty."""
    with OPENERS[request.param](tmp_path / "index") as opened:
        yield opened


def points(*vectors: Vector, scope: str = "a", first: int = 1) -> list[StoredVector]:
    """Vectors numbered from `first`."""
    return [StoredVector(number, scope, vector) for number, vector in enumerate(vectors, start=first)]


def test_empty_index_finds_nothing(index: Index) -> None:
    """An empty index has no numbers and no neighbours."""
    assert index.numbers() == set()
    assert index.search(EAST, "a", 5) == []


def test_nearest_comes_first_with_its_cosine(index: Index) -> None:
    """Scores are cosine similarity, highest first."""
    index.upsert(points(NORTH, EAST, NEAR_EAST))
    found = index.search(EAST, "a", 5)
    assert [near.number for near in found] == [2, 3, 1]
    assert [near.cosine for near in found] == pytest.approx([1.0, 0.8, 0.0], abs=1e-5)


def test_length_of_a_vector_does_not_matter(index: Index) -> None:
    """Cosine, not the dot product: a longer vector is no nearer."""
    index.upsert(points((5.0, 0.0, 0.0, 0.0)))
    assert index.search((0.1, 0.0, 0.0, 0.0), "a", 1)[0].cosine == pytest.approx(1.0, abs=1e-5)


def test_scopes_are_apart(index: Index) -> None:
    """A search sees its own scope only, however near another scope's vector is."""
    index.upsert(points(EAST, scope="a"))
    index.upsert(points(NEAR_EAST, scope="b", first=2))
    assert [near.number for near in index.search(EAST, "b", 5)] == [2]
    assert index.search(EAST, "c", 5) == []


def test_limit_is_kept(index: Index) -> None:
    """No more than asked for."""
    index.upsert(points(EAST, NORTH, NEAR_EAST))
    assert len(index.search(EAST, "a", 2)) == 2


def test_upsert_replaces_and_delete_removes(index: Index) -> None:
    """The same number holds one vector; a deleted one is gone; an unknown one, or none, is no error."""
    index.upsert(points(EAST))
    index.upsert(points(NORTH))
    assert index.search(EAST, "a", 5)[0].cosine == pytest.approx(0.0, abs=1e-5)
    index.delete([1, 99])
    index.delete([])
    assert index.numbers() == set()
    assert index.search(NORTH, "a", 5) == []


def test_more_points_than_one_page(index: Index) -> None:
    """All numbers come back, beyond one page of a scroll."""
    index.upsert(points(*([EAST] * 600)))
    assert index.numbers() == set(range(1, 601))
    assert index.count() == 600


@pytest.mark.parametrize("name", ON_DISK)
def test_index_on_disk_is_there_again(name: str, tmp_path: Path) -> None:
    """What was put in stands after closing and opening."""
    with OPENERS[name](tmp_path) as opened:
        opened.upsert(points(EAST))
    with OPENERS[name](tmp_path) as again:
        assert again.numbers() == {1}


@pytest.mark.parametrize("name", ON_DISK)
def test_second_process_is_told_that_it_is_busy(name: str, tmp_path: Path) -> None:
    """An embedded index belongs to one process; the second is told so by its own error."""
    module, opener = {"edge": ("edge_index", "EdgeIndex"), "local": ("qdrant_index", "open_local")}[name]
    code = (
        f"from pathlib import Path\nfrom potstill.infer.{module} import {opener}\nfrom potstill.infer.index import IndexBusyError\n"
        f"try:\n    {opener}(Path({str(tmp_path)!r}), {DIMS})\nexcept IndexBusyError:\n    print('busy')\n"
    )
    with OPENERS[name](tmp_path):
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "busy", result.stderr
    assert issubclass(IndexBusyError, MachineError)


def test_broken_shard_is_a_clear_error(tmp_path: Path) -> None:
    """A folder that Qdrant Edge cannot read is a MachineError that says what to do."""
    (tmp_path / "edge_config.json").write_text("{")
    with pytest.raises(MachineError, match="cannot be opened") as caught:
        EdgeIndex(tmp_path, DIMS)
    assert "rebuilt" in str(caught.value.hint)


def test_server_of_the_environment_is_held_to_the_contract() -> None:
    """`POTSTILL_QDRANT_URL` has every test of an index run on that server too, with its key; nothing is left there."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "real_server", __file__]
    with qdrant_stand_in("the-key") as (url, client):
        env = {**os.environ, "POTSTILL_QDRANT_URL": url, KEY_VARIABLE: "the-key"}
        result = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        left = client.get_collections().collections
    assert result.returncode == 0, result.stdout
    assert left == []


def test_no_server_is_a_clear_error() -> None:
    """A server that is not there is a MachineError, not a stack of foreign ones."""
    with pytest.raises(MachineError, match="no Qdrant server"):
        open_server("http://127.0.0.1:9", "entries", DIMS)


def test_server_that_goes_away_is_left_alone_for_a_while(tmp_path: Path) -> None:
    """The lookup says what failed; the next one does not wait for the server again; the entries are untouched."""
    encoder = HashingEncoder(DIMS)
    with EntryStore(tmp_path / "entries.sqlite3") as store:
        with qdrant_stand_in() as (url, _):
            cache = AnswerCache(store, lambda: encoder, lambda _: OpenIndex(open_server(url, "c", DIMS), "c"))
            read = cache.encode("What is LoRA?")
            store.put(fresh(), 1.0, read.vectors)
            assert len(cache.near(read, "a", 2.0).neighbours) == 1
        with pytest.raises(MachineError, match="Qdrant server failed"):
            cache.near(read, "a", 2.0)
        assert "failed a moment ago" in str(cache.near(read, "a", 2.0).skipped)
        assert store.count() == 1


def test_server_that_wants_a_key(tmp_path: Path) -> None:
    """The key in the environment opens a cluster; without it, or with a wrong one, the error names the variable, never the key."""
    config, workspace = CacheConfig(encoder="hashing"), Workspace(tmp_path)
    remember(workspace, "c1:1", "How hot may a card run?")
    with qdrant_stand_in("the-cluster-key") as (url, client):
        config = config.model_copy(update={"url": url})
        for given in ({}, {KEY_VARIABLE: "a-wrong-key"}, {KEY_VARIABLE: "a-broken\nkey"}):
            with closing(open_cache(config, workspace, read_secrets(given).qdrant_key)) as cache:
                read = cache.encode("How hot may a card run?")
                with pytest.raises(MachineError, match=KEY_VARIABLE) as caught:
                    cache.near(read, "a", 2.0)
                assert not any(key in f"{caught.value} {caught.value.hint}" for key in given.values())
        assert client.get_collections().collections == []
        key = read_secrets({KEY_VARIABLE: "the-cluster-key"}).qdrant_key
        with closing(open_cache(config, workspace, key)) as cache:
            (found,) = cache.near(cache.encode("How hot may a card run?"), "a", 2.0).neighbours
        assert found.entry.id == "c1:1"


def test_server_that_lost_its_collection_is_filled_again(tmp_path: Path) -> None:
    """Every collection can be deleted on the server at any time: the store has what it held."""
    config = CacheConfig(encoder="hashing")
    with qdrant_stand_in() as (url, client):
        workspace, config = Workspace(tmp_path), config.model_copy(update={"url": url})
        remember(workspace, "c1:1", "How hot may a card run?")
        for _ in range(2):
            cache = open_cache(config, workspace)
            (found,) = cache.near(cache.encode("How hot may a card run?"), "a", 2.0).neighbours
            assert found.entry.id == "c1:1"
            cache.close()
            (collection,) = client.get_collections().collections
            client.delete_collection(collection.name)


def fresh(identity: str = "c1:1", scope: str = "a", question: str = "What is LoRA?") -> Fresh:
    """An answer to store."""
    return Fresh(identity, scope, "default", question, "An adapter.", "teacher", "gemini")


def test_any_index_catches_up_with_the_store(index: Index, tmp_path: Path) -> None:
    """Entries that are missing are added, entries that are gone are removed: the index is derived, the store is true."""
    index.upsert(points(EAST, first=77))
    with EntryStore(tmp_path / "entries.sqlite3") as store:
        one = store.put(fresh("c1:1"), 1.0, {"e": EAST})
        two = store.put(fresh("c1:2"), 1.0, {"e": NORTH})
        store.put(fresh("c1:3"), 1.0, {"another": NORTH})
        catch_up(store, index, "e")
        assert index.numbers() == {one.number, two.number}
        store.forget("c1:1")
        catch_up(store, index, "e")
        assert index.numbers() == {two.number}


def test_cache_finds_what_another_writer_added(index: Index, tmp_path: Path) -> None:
    """A lookup sees entries that came by another connection, and no longer those that it forgot."""
    path = tmp_path / "entries.sqlite3"
    encoder = HashingEncoder(DIMS)
    with EntryStore(path) as mine, EntryStore(path) as foreign:
        cache = AnswerCache(mine, lambda: encoder, lambda _: OpenIndex(index))
        read = cache.encode("What is LoRA?")
        assert cache.near(read, "a", 2.0).neighbours == ()
        foreign.put(fresh(), 1.0, read.vectors)
        assert [found.entry.id for found in cache.near(read, "a", 2.0).neighbours] == ["c1:1"]
        assert cache.near(read, "b", 2.0).neighbours == ()
        foreign.forget("c1:1")
        assert cache.near(read, "a", 2.0).neighbours == ()


def looked_up(workspace: Workspace, kind: str, question: str) -> list[str]:
    """Ids of the entries near a question, by a cache that is opened and closed for it."""
    cache = open_cache(CacheConfig(encoder="hashing", index=kind), workspace)
    found = cache.near(cache.encode(question), "a", 2.0)
    cache.close()
    return [near.entry.id for near in found.neighbours]


def remember(workspace: Workspace, identity: str, question: str) -> None:
    """Store one answer with the vector of its question."""
    with EntryStore(workspace.cache_entries) as store:
        encoder = HashingEncoder()
        vectors = {encoder.id: encoder.encode([question])[0]}
        store.put(fresh(identity, question=question), 1.0, vectors)


@pytest.mark.parametrize("kind", ON_DISK)
def test_index_of_a_deleted_cache_names_no_entry_of_the_new_one(tmp_path: Path, kind: str) -> None:
    """Entries are numbered anew in a new file: the old index's vector of number 1 must not lead to the new number 1."""
    workspace = Workspace(tmp_path)
    remember(workspace, "c1:old", "How hot may a card run?")
    assert looked_up(workspace, kind, "How hot may a card run?") == ["c1:old"]
    for path in workspace.cache.glob("entries.sqlite3*"):
        path.unlink()
    remember(workspace, "c1:new", "What does a kilowatt hour cost?")
    cache = open_cache(CacheConfig(encoder="hashing", index=kind), workspace)
    found = cache.near(cache.encode("How hot may a card run?"), "a", 2.0).neighbours
    cache.close()
    assert [near.entry.id for near in found] == ["c1:new"]
    assert found[0].cosine < 0.5
    assert len(list(workspace.cache_index.iterdir())) == 1


@pytest.mark.parametrize("kind", ON_DISK)
@pytest.mark.parametrize("harm", ["torn", "emptied", "gone"])
def test_harmed_index_is_built_anew(tmp_path: Path, kind: str, harm: str) -> None:
    """Files cut short, files lost, or the whole folder lost: the next lookup finds what the store has, without a word."""
    workspace = Workspace(tmp_path)
    remember(workspace, "c1:1", "How hot may a card run?")
    assert looked_up(workspace, kind, "How hot may a card run?") == ["c1:1"]
    (folder,) = workspace.cache_index.iterdir()
    if harm == "torn":
        for path in (path for path in folder.rglob("*") if path.is_file()):
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        shutil.rmtree(folder)
    if harm == "emptied":
        folder.mkdir()
    assert looked_up(workspace, kind, "How hot may a card run?") == ["c1:1"]


def test_what_stands_in_for_an_index_gives_way_to_it(tmp_path: Path) -> None:
    """A server whose index another process held takes it over after that is gone: it looks after 30 s, then 60, then 120."""
    workspace = Workspace(tmp_path)
    remember(workspace, "c1:1", "How hot may a card run?")
    holder, server = (open_cache(CacheConfig(encoder="hashing"), workspace) for _ in range(2))
    read = holder.encode("How hot may a card run?")
    server.encode("x")
    for cache, now in ((holder, 0), (server, 0), (server, 30), (server, 90)):
        assert [near.entry.id for near in cache.near(read, "a", now).neighbours] == ["c1:1"]
    holder.close()
    remember(workspace, "c1:2", "How hot may a card run, at most?")
    (folder,) = workspace.cache_index.iterdir()
    assert len(server.near(read, "a", 209).neighbours) == 2
    EdgeIndex(folder, HashingEncoder().dims).close()  # nobody holds it
    assert len(server.near(read, "a", 210).neighbours) == 2
    with pytest.raises(IndexBusyError):
        EdgeIndex(folder, HashingEncoder().dims)
    server.close()


@pytest.mark.parametrize("kind", ["edge", "local"])
def test_many_may_be_the_first_at_the_index(tmp_path: Path, kind: str) -> None:
    """Of processes that open a new index at the same moment one gets it, and the others search a copy in memory."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom potstill.config import CacheConfig\n"
        "from potstill.infer.cache import open_cache\nfrom potstill.workspace import Workspace\n"
        f"config = CacheConfig(encoder='hashing', index={kind!r})\nimport qdrant_client, qdrant_edge\n"
        "for n in range(8):\n    cache = open_cache(config, Workspace(Path(sys.argv[1]) / str(n)))\n"
        "    print('ready', flush=True); sys.stdin.readline()\n"
        "    cache.near(cache.encode('What is LoRA?'), 's', 1.0)\n"
        "    print(type(cache._opened.index).__name__, flush=True); sys.stdin.readline()\n    cache.close()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    running = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) for _ in range(3)
    ]
    found: list[list[str]] = []
    for step in range(16):
        said = [process.stdout.readline().strip() for process in running if process.stdout]
        found += [sorted(said)] if step % 2 else []
        for process in running:
            assert process.stdin
            process.stdin.write("go\n")
    for process in running:
        process.communicate()
    assert [process.returncode for process in running] == [0, 0, 0]
    held = {"edge": "GrowingIndex", "local": "QdrantIndex"}[kind]
    assert found == [sorted([held, "MemoryIndex", "MemoryIndex"])] * 8
