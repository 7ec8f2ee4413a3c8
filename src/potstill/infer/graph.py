"""A Qdrant Edge index whose graph is built beside it, by a process of its own, and taken over once it is measured.

Only a process that asks often builds one: a single question is not worth a CPU minute. What the graph lacks, because it
came later, is compared one by one; when that is much, a new graph is built from the store.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from potstill.errors import MachineError
from potstill.infer.edge_index import EdgeIndex, Graph
from potstill.infer.encoder import Vector
from potstill.infer.index import Near, catch_up
from potstill.infer.store import EntryStore, StoredVector

BUILD_FROM = 8_000
"""Vectors outside the graph from which a new one is worth building: at 10,000 it halves a lookup, below that it is no faster."""
BUILD_SHARE = 0.25
"""As above, as a share of those inside: a graph is built anew a few times while a cache grows tenfold."""
LOOK_EVERY = 100
"""Whether a graph is wanted is looked at once in so many searches; a command that asks once never does."""
SEQ_FILE = "seq"
LEAST_FREE_BYTES = 200_000_000
"""Qdrant Edge maps its files: on a full disk the system kills the process that writes to them, so it stops before."""
GRAPH_COPIES = 3
"""Times its vectors' size that a new index with its graph may take while it is built."""
FLOAT_BYTES = 4
NICE = 10


class GrowingIndex:
    """Implements `index.Index` over Qdrant Edge; not to be shared between threads."""

    def __init__(
        self, store: EntryStore, folder: Path, encoder: str, dims: int, *, build_from: int = BUILD_FROM
    ) -> None:
        """Open or create the shard, while nobody else opens one; errors as `EdgeIndex` has them."""
        self._build_from = build_from
        self._store, self._folder, self._encoder, self._dims = store, folder, encoder, dims
        self._searches = 0
        self._building: _Building | None = None
        with store.exclusive():  # two processes that create one shard at the same time break it
            self._index = EdgeIndex(folder, dims)

    @property
    def graph(self) -> Graph | None:
        """What was measured of the graph in use."""
        return self._index.graph

    def upsert(self, points: Sequence[StoredVector]) -> None:
        """Add or replace vectors; raises MachineError where the disk is nearly full."""
        if not roomy(self._folder):
            message = f"the disk of {self._folder} is nearly full"
            raise MachineError(message, hint="free some space; until then the index is kept in memory")
        self._index.upsert(points)

    def search(self, vector: Vector, scope: str, limit: int) -> list[Near]:
        """The nearest of one scope, nearest first."""
        self._searches += 1
        if self._building is not None:
            self._take_over(self._building)
        elif self._searches % LOOK_EVERY == 0 and self._store.path is not None and self._worth_building():
            self._building = _Building(self._store.path, self._folder, self._encoder, self._dims)
        return self._index.search(vector, scope, limit)

    def delete(self, numbers: Sequence[int]) -> None:
        """Take entries out."""
        self._index.delete(numbers)

    def numbers(self) -> set[int]:
        """All entries that are in."""
        return self._index.numbers()

    def count(self) -> int:
        """How many those are."""
        return self._index.count()

    def close(self) -> None:
        """Let go of the folder; a graph that is being built is given up."""
        if self._building is not None:
            self._building.give_up()
        self._index.close()

    def _worth_building(self) -> bool:
        inside = self._index.graph.vectors if self._index.graph else 0
        if self._index.loose() <= max(self._build_from, BUILD_SHARE * inside):
            return False
        return roomy(self._folder, GRAPH_COPIES * FLOAT_BYTES * self._dims * self._index.count())

    def _take_over(self, building: _Building) -> None:
        """Put a finished index in place of this one. A kill on the way costs the index, which is rebuilt."""
        state = building.process.poll()
        if state is None:
            return
        seq = building.seq() if state == 0 else None
        if seq is not None:
            with self._store.exclusive():
                self._index.close()
                shutil.rmtree(self._folder)
                building.folder.rename(self._folder)
                self._index = EdgeIndex(self._folder, self._dims)
            building.process.communicate()
            catch_up(self._store, self._index, self._encoder, seq)
            self._building = None


def roomy(folder: Path, extra_bytes: int = 0) -> bool:
    """Whether there is disk enough for an index in a folder, which need not be there yet, to go on safely."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(there).free >= LEAST_FREE_BYTES + extra_bytes


class _Building:
    """A child process that fills and builds an index in a folder beside the one in use."""

    def __init__(self, database: Path, beside: Path, encoder: str, dims: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"{beside.name}.", dir=beside.parent))
        # -P: a module in the folder that this was started in must not take the place of a library's.
        command = [sys.executable, "-P", "-m", __name__, str(database), str(self.folder), encoder, str(dims)]
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet)  # noqa: S603  (this Python)

    def seq(self) -> int | None:
        """Up to where in the store's changes the index goes; None where it did not come to an end."""
        try:
            return int((self.folder / SEQ_FILE).read_text(encoding="ascii"))
        except (OSError, ValueError):
            return None

    def give_up(self) -> None:
        """End the child, if it has not ended, and drop what it made."""
        self.process.communicate()  # closes its standard input
        shutil.rmtree(self.folder, ignore_errors=True)


def build(database: Path, folder: Path, encoder: str, dims: int) -> Graph:
    """Fill an index from a store, build its graph and measure it. Blocking, for minutes."""
    with EntryStore(database) as store:
        seq = store.seq()
        index = EdgeIndex(folder, dims)
        catch_up(store, index, encoder)
    graph = index.build_graph()
    index.close()
    (folder / SEQ_FILE).write_text(str(seq), encoding="ascii")
    return graph


def end_with_parent() -> None:
    """Go on in a child of this process, which waits for it, and ends it when standard input closes: when who started it is gone.

    A thread could not do it: while Qdrant Edge builds a graph no other Python code runs.
    """
    gone, held = os.pipe()
    worker = os.fork()
    if worker == 0:
        os.close(gone)  # `held` closes when this process ends
        return
    os.close(held)
    ready, _, _ = select.select([sys.stdin, gone], [], [])
    if gone not in ready:
        os.kill(worker, signal.SIGKILL)
    _, status = os.waitpid(worker, 0)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


if __name__ == "__main__":
    os.nice(NICE)
    end_with_parent()
    build(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
