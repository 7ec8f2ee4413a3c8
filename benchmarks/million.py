"""A cache of a million answers with vectors: disk, memory, lookups, eviction, and the index rebuilt from SQLite.

python benchmarks/million.py --entries 1000000 --dims 384 --out benchmarks/results/million.md

Vectors are clustered and synthetic. Times are CPU: medians of single calls in milliseconds, totals in seconds; memory is what
the process holds more than before. `--graph` waits for the HNSW graph too, which takes minutes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from cache import cpu_ms
from page import deliver, head

from potstill.infer.graph import LOOK_EVERY, GrowingIndex
from potstill.infer.index import Index, MemoryIndex, catch_up
from potstill.infer.key import Scope, exact_key
from potstill.infer.store import EntryStore, Fresh, packed
from potstill.infer.upkeep import export, restore, statistics

CHUNK = 50_000
TRAVELLERS = 100_000
"""Entries that are exported and imported."""
ROUNDS = 40


def drawn(count: int, dims: int) -> Iterator[np.ndarray]:
    """Clustered unit vectors, some at a time: a million at once would be what is measured."""
    draw = np.random.default_rng(0)
    centres = draw.normal(size=(count // 50, dims)).astype(np.float32)
    for start in range(0, count, CHUNK):
        size = min(CHUNK, count - start)
        made = centres[draw.integers(0, len(centres), size)]
        made = made + 0.6 * draw.normal(size=(size, dims)).astype(np.float32)
        yield made / np.linalg.norm(made, axis=1, keepdims=True)


def fill(store: EntryStore, count: int, dims: int, scope: str) -> None:
    """Entries with vectors, a chunk in a transaction."""
    store.name_scope(scope, "{}")
    number = 0
    for made in drawn(count, dims):
        with store.exclusive() as connection:
            for row in made:
                number += 1
                question = f"What is thing {number}?"
                connection.execute(
                    "INSERT INTO entries (id, scope, namespace, question, answer, route, created)"
                    " VALUES (?, ?, 'default', ?, ?, 'teacher', ?)",
                    (exact_key(scope, question), scope, question, "An answer. " * 40, float(number)),
                )
                connection.execute("INSERT INTO vectors VALUES (?, 'bench', ?)", (number, packed(row)))


def held_mb() -> float:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096 / 1e6


def megabytes(path: Path) -> float:
    """Size on disk, of a file or a folder; blocks, for Qdrant Edge's files have holes."""
    paths = [path] if path.is_file() else [found for found in path.rglob("*") if found.is_file()]
    return sum(found.stat().st_blocks * 512 for found in paths) / 1e6


def spent(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """CPU seconds, megabytes more than before, and the result."""
    began, before = time.process_time(), held_mb()
    result = work()
    return time.process_time() - began, held_mb() - before, result


def indexes(store: EntryStore, folder: Path, dims: int, *, graph: bool) -> Iterator[str]:
    """Each index: built from SQLite, asked, and brought up to date after an eviction."""
    makers: dict[str, Callable[[], Index]] = {
        "memory": MemoryIndex,
        "edge": lambda: GrowingIndex(store, folder / "edge", "bench", dims),
    }
    queries = [tuple(row) for row in next(drawn(CHUNK, dims))[:ROUNDS].tolist()]
    for name, make in makers.items():
        index = make()
        built, memory, _ = spent(lambda index=index: catch_up(store, index, "bench"))
        look = cpu_ms(lambda number, index=index: index.search(queries[number], "s", 5), ROUNDS)
        size = f"{megabytes(folder / name):,.0f} MB" if name == "edge" else "-"
        yield f"| {name} | {built:.0f} s | {memory:,.0f} MB | {size} | {look:.2f} ms |"
        if name == "edge" and graph and isinstance(index, GrowingIndex):
            yield with_graph(index, queries, folder)
        index.close()


def with_graph(index: GrowingIndex, queries: list[tuple[float, ...]], folder: Path) -> str:
    """The same after the graph is built."""
    began = time.monotonic()
    for _ in range(LOOK_EVERY):
        index.search(queries[0], "s", 5)
    while index.graph is None:
        time.sleep(1)
        index.search(queries[0], "s", 5)
    waited = time.monotonic() - began
    look = cpu_ms(lambda number: index.search(queries[number], "s", 5), ROUNDS)
    found = index.graph
    about = f"ef {found.ef}, recall {found.recall:.3f} of {found.sample}"
    return f"| edge, graph ({about}) | {waited:.0f} s beside | | {megabytes(folder / 'edge'):,.0f} MB | {look:.2f} ms |"


def entries(store: EntryStore, count: int) -> Iterator[str]:
    """Single calls on the entries, then what drops many."""
    key = [exact_key("s", f"What is thing {number * 997 % count + 1}?") for number in range(200)]
    yield f"| exact hit | {cpu_ms(lambda number: store.exact(key[number], 's', 2.0), 200):.3f} ms |"
    vector = {"bench": store.vectors_of(1)["bench"]}
    fresh = [Fresh(f"c1:x{number}", "s", "default", "q", "a", "teacher", None) for number in range(200)]
    yield f"| write, with its vector | {cpu_ms(lambda number: store.put(fresh[number], 1e9, vector), 200):.3f} ms |"
    yield f"| drop one | {cpu_ms(lambda number: store.forget(key[number]), 200):.3f} ms |"
    yield f"| size limit looked at, 64 over (once in 64 writes) | {cpu_ms(lambda n: store.evict(count - 64 * (n + 1)), 10):.1f} ms |"
    seconds, _, gone = spent(lambda: store.evict(count * 9 // 10))
    yield f"| evict {gone:,} | {seconds:.1f} s |"
    seconds, _, _ = spent(lambda: statistics(store))
    yield f"| statistics | {seconds:.2f} s |"


def travel(folder: Path, dims: int) -> Iterator[str]:
    """Export and import."""
    scope = Scope.model_validate(SCOPE)
    with EntryStore(folder / "from.sqlite3") as store:
        fill(store, TRAVELLERS, dims, scope.id)
        with store.exclusive() as connection:
            connection.execute("UPDATE scopes SET about = ?", (scope.model_dump_json(),))
        seconds, memory, count = spent(lambda: export(store, folder / "out.jsonl"))
        yield f"| export {count:,} | {seconds:.0f} s, {memory:,.0f} MB of memory, a file of {megabytes(folder / 'out.jsonl'):,.0f} MB |"
    with EntryStore(folder / "to.sqlite3") as store:
        seconds, memory, (added, _) = spent(lambda: restore(store, folder / "out.jsonl", 1.0))
        yield f"| import {added:,} | {seconds:.0f} s, {memory:,.0f} MB of memory |"


SCOPE = {
    "namespace": "default",
    "language": "en",
    "roles": [["ai-expert", "0" * 64]],
    "student": None,
    "student_max_new_tokens": 512,
    "student_threshold": None,
    "student_least_cosine": None,
    "teacher_model": "gemini-3.5-flash-lite",
    "teacher_url": None,
    "thinking_budget": None,
    "temperature": 0.7,
    "max_output_tokens": 1024,
    "decide": "always",
    "decision": "merge",
    "templates": "0" * 64,
}


def main() -> None:
    """Fill, measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--dims", type=int, default=384)
    parser.add_argument("--graph", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    page = [*head("A million answers"), "", f"{options.entries:,} entries, vectors of {options.dims}.", ""]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with EntryStore(folder / "entries.sqlite3") as store:
            fill(store, options.entries, options.dims, "s")
            page += ["| index | built from SQLite, CPU | memory | disk | lookup p50, CPU |", "|---|---|---|---|---|"]
            for row in indexes(store, folder, options.dims, graph=options.graph):
                page.append(row)
                print(row, flush=True)
            page += ["", f"SQLite file: {megabytes(folder / 'entries.sqlite3'):,.0f} MB.", ""]
            page += [
                "| entries in SQLite | CPU |",
                "|---|---|",
                *entries(store, options.entries),
                *travel(folder, options.dims),
            ]
    deliver(page, options.out)


if __name__ == "__main__":
    main()
