"""One contract for every index: memory, Qdrant Edge, qdrant-client on a folder and in memory; and for every encoder."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from potstill.errors import InputError, MachineError
from potstill.infer.cache import AnswerCache, catch_up
from potstill.infer.encoder import HashingEncoder, SentenceEncoder, Vector, load_encoder
from potstill.infer.index import EdgeIndex, Index, IndexBusyError, MemoryIndex, QdrantIndex, open_local, open_server
from potstill.infer.store import EntryStore, Fresh, StoredVector, read_statistics

DIMS = 4
EAST, NORTH, NEAR_EAST = (1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.8, 0.6, 0.0, 0.0)


def in_memory(_: Path) -> Index:
    """The class that talks to a server, on qdrant-client's memory mode."""
    from qdrant_client import QdrantClient

    return QdrantIndex(QdrantClient(":memory:"), "entries", DIMS)


OPENERS: dict[str, Callable[[Path], Index]] = {
    "memory": lambda _: MemoryIndex(),
    "edge": lambda folder: EdgeIndex(folder, DIMS),
    "local": lambda folder: open_local(folder, DIMS),
    "client": in_memory,
}
ON_DISK = ("edge", "local")


@pytest.fixture(params=OPENERS)
def index(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Index]:
    """Each index in turn, empty."""
    opened = OPENERS[request.param](tmp_path / "index")
    yield opened
    opened.close()


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
    """The same number holds one vector; a deleted one is gone; an unknown one is no error."""
    index.upsert(points(EAST))
    index.upsert(points(NORTH))
    assert index.search(EAST, "a", 5)[0].cosine == pytest.approx(0.0, abs=1e-5)
    index.delete([1, 99])
    assert index.numbers() == set()
    assert index.search(NORTH, "a", 5) == []


def test_more_points_than_one_page(index: Index) -> None:
    """All numbers come back, beyond one page of a scroll."""
    index.upsert(points(*([EAST] * 600)))
    assert index.numbers() == set(range(1, 601))


@pytest.mark.parametrize("name", ON_DISK)
def test_index_on_disk_is_there_again(name: str, tmp_path: Path) -> None:
    """What was put in stands after closing and opening."""
    opened = OPENERS[name](tmp_path)
    opened.upsert(points(EAST))
    opened.close()
    again = OPENERS[name](tmp_path)
    assert again.numbers() == {1}
    again.close()


@pytest.mark.parametrize("name", ON_DISK)
def test_second_process_is_told_that_it_is_busy(name: str, tmp_path: Path) -> None:
    """An embedded index belongs to one process; the second is told so by its own error."""
    opened = OPENERS[name](tmp_path)
    opener = {"edge": "EdgeIndex", "local": "open_local"}[name]
    code = (
        f"from pathlib import Path\nfrom potstill.infer.index import {opener}, IndexBusyError\n"
        f"try:\n    {opener}(Path({str(tmp_path)!r}), {DIMS})\nexcept IndexBusyError:\n    print('busy')\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    opened.close()
    assert result.stdout.strip() == "busy", result.stderr
    assert issubclass(IndexBusyError, MachineError)


def test_broken_shard_is_a_clear_error(tmp_path: Path) -> None:
    """A folder that Qdrant Edge cannot read is a MachineError that says what to do."""
    (tmp_path / "edge_config.json").write_text("{")
    with pytest.raises(MachineError, match="cannot be opened") as caught:
        EdgeIndex(tmp_path, DIMS)
    assert "rebuilt" in str(caught.value.hint)


def test_no_server_is_a_clear_error() -> None:
    """A server that is not there is a MachineError, not a stack of foreign ones."""
    with pytest.raises(MachineError, match="no Qdrant server"):
        open_server("http://127.0.0.1:9", "entries", DIMS)


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
        cache = AnswerCache(mine, lambda: encoder, lambda _: index)
        read = cache.encode("What is LoRA?")
        assert cache.near(read, "a", 2.0).neighbours == ()
        foreign.put(fresh(), 1.0, read.vectors)
        assert [found.entry.id for found in cache.near(read, "a", 2.0).neighbours] == ["c1:1"]
        assert cache.near(read, "b", 2.0).neighbours == ()
        foreign.forget("c1:1")
        assert cache.near(read, "a", 2.0).neighbours == ()


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
        "    print(type(cache._index).__name__, flush=True); sys.stdin.readline()\n    cache.close()\n"
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
    held = {"edge": "EdgeIndex", "local": "QdrantIndex"}[kind]
    assert found == [sorted([held, "MemoryIndex", "MemoryIndex"])] * 8


def test_entry_lives_its_time_and_a_hit_adds_none(tmp_path: Path) -> None:
    """The time to live counts from creation; being served does not renew it."""
    with EntryStore(tmp_path / "e.sqlite3", ttl_s=10) as store:
        entry = store.put(fresh(), 100.0)
        store.served(entry, 109.0)
        assert store.exact("c1:1", "a", 109.9) is not None
        assert store.exact("c1:1", "a", 110.0) is None
        assert store.by_number(entry.number, "a", 110.0) is None
        assert store.drop_expired(110.0) == 1
        assert store.statistics() == ()


def test_dropped_answers_are_counted(tmp_path: Path) -> None:
    """Forgetting and expiring count a round, so that the next answer is asked for anew; replacing does not."""
    with EntryStore(tmp_path / "e.sqlite3", ttl_s=10) as store:
        store.put(fresh(), 1.0)
        store.put(fresh(), 2.0)
        assert store.rounds("c1:1") == 0
        assert store.forget("c1:1")
        assert not store.forget("c1:1")
        store.put(fresh(), 3.0)
        store.drop_expired(13.0)
        assert store.rounds("c1:1") == 2


def test_entry_is_found_in_its_scope_only(tmp_path: Path) -> None:
    """Neither its key nor its number leads to an entry of another scope."""
    with EntryStore(tmp_path / "e.sqlite3") as store:
        entry = store.put(fresh(), 1.0)
        assert store.exact("c1:1", "b", 2.0) is None
        assert store.by_number(entry.number, "b", 2.0) is None


def test_numbers_are_never_used_twice(tmp_path: Path) -> None:
    """An index that lags behind never names a wrong entry."""
    with EntryStore(tmp_path / "e.sqlite3") as store:
        first = store.put(fresh(), 1.0)
        store.forget("c1:1")
        assert store.put(fresh(), 2.0).number > first.number


def test_statistics_by_namespace(tmp_path: Path) -> None:
    """Entries and hits are counted, also by a reader that never writes; a missing file is an empty cache."""
    path = tmp_path / "e.sqlite3"
    assert read_statistics(path) == ()
    assert not path.exists()
    with EntryStore(path) as store:
        store.served(store.put(fresh(), 1.0), 2.0)
        store.put(fresh("c1:2"), 1.0)
    (found,) = read_statistics(path)
    assert (found.namespace, found.entries, found.hits) == ("default", 2, 1)


def test_foreign_file_is_refused(tmp_path: Path) -> None:
    """Neither a text nor another program's database is taken for a cache."""
    import sqlite3

    text, other = tmp_path / "a", tmp_path / "b"
    text.write_text("no database, but long enough to be looked at as one" * 100)
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE t (x)")
    connection.close()
    for path in (text, other):
        with pytest.raises(InputError):
            EntryStore(path)


def test_many_may_be_the_first(tmp_path: Path) -> None:
    """Whoever opens a new cache at the same moment as others gets it, and all get the same one."""

    def identity(path: Path, together: threading.Barrier) -> str:
        together.wait()
        with EntryStore(path) as store:
            return store.id

    with ThreadPoolExecutor(6) as pool:
        for place in range(60):
            path, together = tmp_path / f"{place}.sqlite3", threading.Barrier(6)
            assert len(set(pool.map(identity, [path] * 6, [together] * 6))) == 1


def test_four_processes_write_at_once(tmp_path: Path) -> None:
    """Nothing is lost when several processes store answers at the same time."""
    path = tmp_path / "e.sqlite3"
    code = (
        "import sys\nfrom pathlib import Path\nfrom potstill.infer.store import EntryStore, Fresh\n"
        "with EntryStore(Path(sys.argv[1])) as store:\n    for n in range(50):\n"
        "        store.put(Fresh(f'{sys.argv[2]}-{n}', 's', 'd', 'q', 'a', 'teacher', None), 1.0, {'e': (1.0, 0.0)})\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, path, str(n)]) for n in range(4)]
    assert [process.wait() for process in running] == [0, 0, 0, 0]
    with EntryStore(path) as store:
        assert store.version("e")[1] == 200


@pytest.fixture(scope="module")
def minilm() -> SentenceEncoder:
    """The real MiniLM, from the package that carries it."""
    return SentenceEncoder("all-MiniLM-L6-v2")


@pytest.fixture(params=["hashing", "minilm"])
def encoder(request: pytest.FixtureRequest) -> HashingEncoder | SentenceEncoder:
    """The fake and the real encoder."""
    return HashingEncoder() if request.param == "hashing" else request.getfixturevalue("minilm")


def cosine(one: Vector, other: Vector) -> float:
    """Dot product of unit vectors."""
    return sum(left * right for left, right in zip(one, other, strict=True))


def test_encoder_makes_unit_vectors(encoder: HashingEncoder | SentenceEncoder) -> None:
    """A vector has the stated dimensions and length one, and one text always has the same vector."""
    texts = ["What is a LoRA adapter?", "x", "How much memory?"]
    vectors = encoder.encode(texts)
    assert {len(vector) for vector in vectors} == {encoder.dims}
    assert [cosine(vector, vector) for vector in vectors] == pytest.approx([1.0] * 3, abs=1e-5)
    assert cosine(encoder.encode(texts[:1])[0], vectors[0]) == pytest.approx(1.0, abs=1e-5)


def test_encoder_puts_paraphrases_nearer(encoder: HashingEncoder | SentenceEncoder) -> None:
    """The same question in other words is nearer than another question."""
    one, same, other = encoder.encode(
        ["How much GPU memory do I need?", "How much GPU memory is needed?", "What is a good batch size?"]
    )
    assert cosine(one, same) > cosine(one, other)


def test_encoder_reads_english(encoder: HashingEncoder | SentenceEncoder) -> None:
    """English is readable, nothing is not."""
    assert encoder.unreadable("How much GPU memory do I need?") is None
    assert encoder.unreadable("  ") is not None


def test_hashing_id_is_stable_across_processes() -> None:
    """Hashing does not depend on the process: its vectors may be stored."""
    code = "from potstill.infer.encoder import HashingEncoder as E; print(E(8).encode(['abc'])[0])"
    outputs = {subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout for _ in range(2)}
    assert len(outputs) == 1


def test_minilm_knows_what_it_cannot_read(minilm: SentenceEncoder) -> None:
    """Chinese is mostly unknown tokens, and a long text would be cut: both are told."""
    assert "does not know" in str(minilm.unreadable("現在的顯示卡需要多少記憶體?"))
    assert "more than the 256" in str(minilm.unreadable("memory " * 300))


def test_minilm_needs_no_network() -> None:
    """The packaged model loads in a process in which every connection is refused."""
    code = (
        "import socket\n"
        "def refuse(*a, **k): raise SystemExit('network: ' + repr(a[1:]))\n"
        "socket.socket.connect = refuse; socket.getaddrinfo = refuse\n"
        "from potstill.infer.encoder import SentenceEncoder\n"
        "print(SentenceEncoder('all-MiniLM-L6-v2').id)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("all-MiniLM-L6-v2/")


def test_minilm_id_names_its_weights(minilm: SentenceEncoder) -> None:
    """The id carries model, weights and precision, and is the same for the same weights."""
    name, sha, precision = minilm.id.split("/")
    assert (name, precision) == ("all-MiniLM-L6-v2", "float32")
    assert len(sha) == 16


def test_unknown_folder_is_a_clear_error(tmp_path: Path) -> None:
    """A folder without a model is a MachineError that names it."""
    with pytest.raises(MachineError, match="cannot be loaded"):
        load_encoder(str(tmp_path))
