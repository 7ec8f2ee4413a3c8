"""The graph over Qdrant Edge's vectors: built beside the index, taken over whole, and used only where it is good."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from potstill.infer.edge_index import GRAPH_FILE, EdgeIndex, Graph
from potstill.infer.graph import LOOK_EVERY, SEQ_FILE, GrowingIndex, roomy
from potstill.infer.index import MemoryIndex, catch_up
from potstill.infer.store import EntryStore, Fresh, packed

DIMS, COUNT = 16, 400
WAIT_S = 60


def vector(number: int) -> list[float]:
    """A direction of its own for each number."""
    draw = random.Random(number)
    return [draw.gauss(0, 1) for _ in range(DIMS)]


def put(store: EntryStore, number: int) -> int:
    """An entry with its vector."""
    fresh = Fresh(f"c1:{number}", "s", "default", f"What is thing {number}?", "An answer.", "teacher", None)
    return store.put(fresh, 1.0, {"e": vector(number)}).number


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EntryStore]:
    """A store of some hundred entries."""
    with EntryStore(tmp_path / "entries.sqlite3") as opened:
        for number in range(COUNT):
            put(opened, number)
        yield opened


def test_graph_is_built_beside_the_index_and_taken_over(
    store: EntryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Searches go on meanwhile; what came and went meanwhile is there afterwards; neighbours are those of comparing all.

    A file of the folder that it is started in is never run, whatever its name.
    """
    (tmp_path / "sqlite3.py").write_text("raise SystemExit(1)", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    index = GrowingIndex(store, tmp_path / "index" / "edge", "e", DIMS, build_from=100)
    catch_up(store, index, "e")
    for _ in range(LOOK_EVERY):
        index.search(vector(7), "s", 3)
    new = put(store, COUNT)
    store.forget("c1:3")
    until = time.monotonic() + WAIT_S
    while index.graph is None and time.monotonic() < until:
        assert index.search(vector(7), "s", 3)[0].cosine == pytest.approx(1.0)
        time.sleep(0.05)
    assert index.graph is not None
    assert index.graph.vectors >= COUNT - 1
    assert new in index.numbers()
    plain = MemoryIndex()
    catch_up(store, plain, "e")
    for number in range(COUNT, COUNT + 20):
        mine, true = index.search(vector(number), "s", 3), plain.search(vector(number), "s", 3)
        assert [near.number for near in mine] == [near.number for near in true]
    index.close()
    assert [path.name for path in (tmp_path / "index").iterdir()] == ["edge"]


def test_graph_that_is_not_done_is_given_up(store: EntryStore, tmp_path: Path) -> None:
    """A process that ends leaves neither a child nor a half-built folder."""
    index = GrowingIndex(store, tmp_path / "index" / "edge", "e", DIMS, build_from=100)
    catch_up(store, index, "e")
    for _ in range(LOOK_EVERY):
        index.search(vector(7), "s", 3)
    assert len(list((tmp_path / "index").iterdir())) == 2
    index.close()
    assert [path.name for path in (tmp_path / "index").iterdir()] == ["edge"]


def test_a_build_ends_with_who_started_it(tmp_path: Path) -> None:
    """When the process that wanted a graph is killed, its end of the pipe closes: nothing builds on, nothing is finished."""
    database, folder = tmp_path / "entries.sqlite3", tmp_path / "edge"
    with EntryStore(database) as store, store.exclusive() as connection:
        rows = [(number, f"c1:{number}") for number in range(1, 20_001)]
        connection.executemany(
            "INSERT INTO entries (number, id, scope, namespace, question, answer, route, created)"
            " VALUES (?, ?, 's', 'd', 'q', 'a', 't', 1.0)",
            rows,
        )
        connection.executemany(
            "INSERT INTO vectors VALUES (?, 'e', ?)", ((number, packed(vector(number))) for number, _ in rows)
        )
    command = [sys.executable, "-m", "potstill.infer.graph", str(database), str(folder), "e", str(DIMS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        until = time.monotonic() + WAIT_S
        while not folder.is_dir() and time.monotonic() < until:
            time.sleep(0.01)
        process.stdin.close()
        assert process.stdout.read() == b""  # ends when neither of its processes holds it any more
    assert process.returncode != 0
    assert folder.is_dir()
    assert not (folder / SEQ_FILE).exists()


def test_a_small_index_has_no_graph(store: EntryStore, tmp_path: Path) -> None:
    """Below tens of thousands of vectors comparing all is as fast: nothing is built."""
    index = GrowingIndex(store, tmp_path / "index" / "edge", "e", DIMS)
    catch_up(store, index, "e")
    for _ in range(3 * LOOK_EVERY):
        index.search(vector(7), "s", 3)
    assert [path.name for path in (tmp_path / "index").iterdir()] == ["edge"]
    index.close()


def test_room_on_the_disk_is_asked_for_before_it_is_used(tmp_path: Path) -> None:
    """A folder that is yet to be made counts as its disk; what no disk has room for is told in time."""
    assert roomy(tmp_path / "not" / "there")
    assert not roomy(tmp_path, 10**18)


@pytest.mark.parametrize(
    "text", ["torn {", Graph(vectors=COUNT, ef=None, recall=0.9, sample=COUNT).to_line()], ids=["torn", "poor"]
)
def test_graph_without_proof_is_not_used(store: EntryStore, tmp_path: Path, text: str) -> None:
    """Where recall was too low, or its measurement cannot be read, every vector is compared."""
    folder = tmp_path / "edge"
    index = EdgeIndex(folder, DIMS)
    catch_up(store, index, "e")
    assert index.build_graph().ef is not None
    index.close()
    (folder / GRAPH_FILE).write_text(text, encoding="utf-8")
    again = EdgeIndex(folder, DIMS)
    assert again.graph is None or again.graph.ef is None
    assert again.loose() == 0
    assert again.search(vector(7), "s", 1)[0].cosine == pytest.approx(1.0)
    again.close()
