"""The cache against its yardsticks, in one run: lookup time by size, exact hits, cold starts, and wrong hits on pairs.

python benchmarks/cache.py --pairs PAIRS.tsv.gz --yardsticks FOLDER --out benchmarks/results/cache.md

Yardsticks: the source design's loop (a dict of vectors, scikit-learn's cosine_similarity on each), a bare numpy product as
the floor, GPTCache with FAISS and SQLite, and LangChain. LangChain ships no semantic cache over Qdrant; what is measured is its
Qdrant vector store, asked as its semantic caches ask theirs (nearest text, answer loaded from the metadata), in Qdrant's memory
mode, which writes nothing to disk. Both are taken from FOLDER (pip install --no-deps --target FOLDER gptcache faiss-cpu cachetools
sqlalchemy langchain-qdrant langchain-core langsmith langchain-protocol jsonpatch jsonpointer uuid-utils tenacity xxhash orjson
zstandard requests-toolbelt websockets). All are given the same vectors: no encoder is counted. Times are CPU milliseconds,
medians; what is not there is left out and said so.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from coverage import Cosines, Outcome, split
from page import deliver, head

from potstill.infer.cache import AnswerCache, Neighbourhood, OpenIndex
from potstill.infer.graph import BUILD_FROM, GrowingIndex
from potstill.infer.index import Index, MemoryIndex
from potstill.infer.key import exact_key
from potstill.infer.pairs import read_pairs, split_pairs
from potstill.infer.rule import Candidate, Rule, judge_neighbours
from potstill.infer.store import EntryStore, packed

DIMS = 384
QUESTION = "How much GPU memory do I need to run a small model?"
LOOPED = 10_000
"""The loop is not waited for beyond this many entries."""
RULE = Rule(0.95, "benchmark")


def cpu_ms(work: Callable[[int], Any], rounds: int) -> float:
    """Median CPU milliseconds of one call."""
    found = []
    for number in range(rounds):
        began = time.process_time()
        work(number)
        found.append(1000 * (time.process_time() - began))
    return statistics.median(found)


def vectors(count: int) -> np.ndarray:
    """Clustered unit vectors: questions come in topics."""
    draw = np.random.default_rng(0)
    centres = draw.normal(size=(max(1, count // 50), DIMS)).astype(np.float32)
    made = centres[draw.integers(0, len(centres), count)] + 0.6 * draw.normal(size=(count, DIMS)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def filled(store: EntryStore, made: np.ndarray) -> None:
    """Entries with vectors, in one transaction: what is measured is the lookup."""
    with store.exclusive() as connection:
        connection.executemany(
            "INSERT INTO entries (id, scope, namespace, question, answer, route, created) VALUES (?, 's', 'd', ?, ?, 't', 1.0)",
            (
                (exact_key("s", f"What is thing {n}?"), f"What is thing {n}?", "An answer. " * 40)
                for n in range(len(made))
            ),
        )
        connection.executemany(
            "INSERT INTO vectors VALUES (?, 'bench', ?)",
            ((number, packed(tuple(row))) for number, row in enumerate(made.tolist(), start=1)),
        )


class Bench:
    """An encoder of which only the id and the length are used."""

    id, dims = "bench", DIMS

    def unreadable(self, _text: str) -> str | None:
        """Nothing is."""
        return None

    def encode(self, texts: Sequence[str]) -> list[tuple[float, ...]]:
        """Not asked for."""
        raise NotImplementedError(texts)


@contextmanager
def looked_up(folder: Path, store: EntryStore, kind: str) -> Iterator[tuple[Callable[[np.ndarray], Any], Index]]:
    """Potstill's semantic lookup, end to end but for the encoder: index, entries, guard, count of the hit."""
    index: Index = MemoryIndex() if kind == "memory" else GrowingIndex(store, folder / kind, "bench", DIMS)
    cache = AnswerCache(store, Bench, lambda _: OpenIndex(index))
    cache.encoder()

    def look(vector: np.ndarray) -> Any:
        near = cache.near(Neighbourhood(encoder="bench", vectors={"bench": tuple(vector.tolist())}), "s", 2.0)
        candidates = [Candidate(found.entry.question, found.cosine) for found in near.neighbours]
        judged = judge_neighbours(candidates[0].question, candidates, RULE)
        store.served(near.neighbours[0].entry, 2.0)
        return judged

    look(np.ones(DIMS, np.float32))  # opens and fills the index
    yield look, index
    index.close()


def wait_for_graph(index: GrowingIndex) -> None:
    """Ask until the graph is built, beside."""
    anything = tuple([1.0] * DIMS)
    while index.graph is None:
        index.search(anything, "s", 1)
        time.sleep(0.02)
    print(index.graph, flush=True)


def source_loop(made: np.ndarray, queries: np.ndarray) -> float:
    """The source design: one call of scikit-learn for each stored vector."""
    from sklearn.metrics.pairwise import cosine_similarity

    stored = {f"What is thing {number}?": row for number, row in enumerate(made)}

    def look(number: int) -> float:
        return max(cosine_similarity([queries[number]], [row])[0][0] for row in stored.values())

    return cpu_ms(look, 3)


def gptcache(folder: Path, made: np.ndarray, queries: np.ndarray) -> float | None:
    """GPTCache's own `get` with FAISS and SQLite, its encoder replaced by a look-up of the given vectors."""
    try:
        from gptcache import Cache
        from gptcache.adapter.api import get
        from gptcache.manager import CacheBase, VectorBase, get_data_manager
        from gptcache.processor.pre import get_prompt
        from gptcache.similarity_evaluation.distance import SearchDistanceEvaluation
    except ImportError:
        return None
    known: dict[str, np.ndarray] = {f"q{number}": row for number, row in enumerate(queries)}
    manager = get_data_manager(
        CacheBase("sqlite", sql_url=f"sqlite:///{folder}/gpt.db"),
        VectorBase("faiss", dimension=DIMS, index_path=str(folder / "gpt.index")),
        max_size=10**9,
    )
    cache = Cache()
    cache.init(
        pre_embedding_func=get_prompt,
        embedding_func=lambda text, **_: known[text],
        data_manager=manager,
        similarity_evaluation=SearchDistanceEvaluation(),
    )
    texts = [f"What is thing {number}?" for number in range(len(made))]
    manager.import_data(texts, ["An answer. " * 40] * len(made), list(made), [None] * len(made))
    return cpu_ms(lambda number: get(f"q{number}", cache_obj=cache), min(50, len(queries)))


def langchain(made: np.ndarray, queries: np.ndarray) -> float | None:
    """The nearest text in LangChain's Qdrant store, and its answer."""
    try:
        from langchain_core.embeddings import Embeddings
        from langchain_core.load import dumps, loads
        from langchain_core.outputs import Generation
        from langchain_qdrant import QdrantVectorStore
        from qdrant_client import QdrantClient, models
    except ImportError:
        return None

    class Given(Embeddings):
        """Looks vectors up."""

        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return [made[int(text)].tolist() if text.isdigit() else made[0].tolist() for text in texts]

        def embed_query(self, text: str) -> list[float]:
            found: list[float] = queries[int(text)].tolist()
            return found

    warnings.filterwarnings("ignore", module="langchain|qdrant_client|__main__")
    client = QdrantClient(":memory:")
    params = models.VectorParams(size=DIMS, distance=models.Distance.COSINE)
    client.create_collection("cache", vectors_config=params)
    store = QdrantVectorStore(client, "cache", Given())
    answer = {"llm_string": "s", "return_val": dumps([Generation(text="An answer. " * 40)])}
    store.add_texts([str(number) for number in range(len(made))], [answer] * len(made), batch_size=1000)

    def look(number: int) -> Any:
        ((found, _),) = store.similarity_search_with_score(str(number), k=1)
        return loads(found.metadata["return_val"])

    return cpu_ms(look, min(30, len(queries)))


def lookups(size: int, folder: Path) -> dict[str, float | None]:
    """CPU milliseconds of one lookup at one size."""
    made = vectors(size)
    draw = np.random.default_rng(1)
    queries = made[draw.integers(0, size, 60)] + 0.02 * draw.normal(size=(60, DIMS)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    found: dict[str, float | None] = {"floor: numpy product": cpu_ms(lambda number: (made @ queries[number]).max(), 60)}
    with EntryStore(folder / "entries.sqlite3") as store:
        filled(store, made)
        for kind in ("memory", "edge"):
            with looked_up(folder, store, kind) as (look, index):
                found[f"potstill, {kind}"] = cpu_ms(lambda number, look=look: look(queries[number]), 60)
                if kind == "edge":
                    found["potstill, edge with graph"] = None
                    if isinstance(index, GrowingIndex) and size >= BUILD_FROM:
                        wait_for_graph(index)
                        found["potstill, edge with graph"] = cpu_ms(lambda number, look=look: look(queries[number]), 60)
        key = exact_key("s", "What is thing 7?")
        found["potstill, exact hit"] = cpu_ms(lambda _: store.exact(exact_key("s", "What is thing 7?"), "s", 2.0), 200)
        assert store.exact(key, "s", 2.0) is not None
    found["source design's loop"] = source_loop(made, queries) if size <= LOOPED else None
    found["GPTCache, FAISS and SQLite"] = gptcache(folder, made, queries)
    found["LangChain, Qdrant in memory"] = langchain(made, queries)
    return found


def cold(folder: Path) -> list[str]:
    """CPU seconds of a whole `potstill infer` that hits, against the emulator."""
    command = Path(sys.executable).parent / "potstill"
    emulator = [str(command), "emulator", "--port", "0", "--json", "--faq", "hardware.en"]
    with subprocess.Popen(emulator, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        text = ""
        while not text.rstrip().endswith("}"):
            text += process.stdout.readline()
        env = {**os.environ, "GOOGLE_GEMINI_BASE_URL": json.loads(text)["url"], "GEMINI_API_KEY": "any-text"}
        lines = []
        for name, question in (
            ("first of all", QUESTION),
            ("exact hit", QUESTION),
            ("semantic hit", f"Please tell me: {QUESTION}"),
        ):
            spent = []
            for _ in range(1 if name == "first of all" else 7):
                before = resource.getrusage(resource.RUSAGE_CHILDREN)
                subprocess.run(
                    [command, "infer", question, "-q"], cwd=folder, env=env, check=True, stdout=subprocess.DEVNULL
                )
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
            lines.append(f"| {name} | {statistics.median(spent):.2f} |")
        process.terminate()
    return lines


def promises(path: Path, folder: Path) -> list[str]:
    """The promised and the observed wrong rate on held-out pairs, beside the best fixed cosine under the same bound."""
    pairs = read_pairs(path)
    made = split(pairs, Cosines("all-MiniLM-L6-v2", pairs, folder), "")
    held = len(split_pairs(pairs)["heldout"])
    return [
        f"| {rate:.1%} | {_promise(found.rule, held)} | {_promise(found.fixed, held)} |" for rate, found in made.items()
    ]


def _promise(found: Outcome | None, held: int) -> str:
    if found is None or not found.served:
        return "off | |"
    return (
        f"{found.rule}, {found.upper:.1%} | {found.wrong / found.served:.1%} ({found.wrong} of {found.served}) "
        f"| {found.served / held:.1%}"
    )


def main() -> None:
    """Run what is wanted and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=Path)
    parser.add_argument("--yardsticks", type=Path)
    parser.add_argument("--sizes", type=int, nargs="*", default=[1_000, 10_000, 100_000])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.yardsticks:
        sys.path.append(str(options.yardsticks))
    page = [*head("The cache"), ""]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        page += timing(options.sizes, folder)
        page += [
            "",
            "## A whole command from cold",
            "",
            "| `potstill infer` | CPU seconds |",
            "|---|---|",
            *cold(folder),
        ]
        if options.pairs:
            page += ["", "## Wrong hits on held-out pairs", "", f"{options.pairs.name}, MiniLM in float32.", ""]
            page += [
                "| promised | rule, bound | wrong, held out | served | fixed cosine with guard, bound | wrong, held out | served |"
            ]
            page += ["|---" * 7 + "|", *promises(options.pairs, folder)]
    deliver(page, options.out)


def timing(sizes: list[int], folder: Path) -> list[str]:
    """The table of lookups, with ratios to the floor."""
    table = {}
    for size in sizes:
        place = folder / str(size)
        place.mkdir()
        table[size] = lookups(size, place)
    lines = ["## One lookup, CPU ms (times the floor)", "", "| | " + " | ".join(f"{size:,}" for size in sizes) + " |"]
    lines.append("|---" * (len(sizes) + 1) + "|")
    for name in table[sizes[0]]:
        cells = []
        for size in sizes:
            value, floor = table[size][name], table[size]["floor: numpy product"]
            cells.append("not measured" if value is None else f"{value:.3f} ({value / floor:.1f})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    main()
