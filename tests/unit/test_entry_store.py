"""The cached answers in SQLite: life, scope, several writers."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from potstill.errors import InputError
from potstill.infer.claims import LEASE_S
from potstill.infer.index import MemoryIndex, catch_up
from potstill.infer.store import EntryStore, Fresh
from potstill.infer.upkeep import statistics


def fresh(identity: str = "c1:1", scope: str = "a", question: str = "What is LoRA?") -> Fresh:
    """An answer to store."""
    return Fresh(identity, scope, "default", question, "An adapter.", "teacher", "gemini")


def test_entry_lives_its_time_and_a_hit_adds_none(tmp_path: Path) -> None:
    """The time to live counts from creation; being served does not renew it."""
    with EntryStore(tmp_path / "e.sqlite3", ttl_s=10) as store:
        entry = store.put(fresh(), 100.0)
        store.served(entry, 109.0)
        assert store.exact("c1:1", "a", 109.9) is not None
        assert store.exact("c1:1", "a", 110.0) is None
        assert store.by_numbers([entry.number], "a", 110.0) == {}
        assert store.drop_expired(110.0) == 1
        assert store.count() == 0


def test_dropped_answers_are_counted(tmp_path: Path) -> None:
    """Forgetting and expiring count a round, so that the next answer is asked for anew; replacing does not."""
    with EntryStore(tmp_path / "e.sqlite3", ttl_s=10) as store:
        store.put(fresh(), 1.0)
        store.put(fresh(), 2.0)
        assert store.rounds("c1:1", 3.0) == 0
        assert store.forget("c1:1")
        assert not store.forget("c1:1")
        store.put(fresh(), 3.0)
        store.drop_expired(13.0)
        assert store.rounds("c1:1", 13.0) == 2
        store.put(fresh(), 14.0)
        assert store.rounds("c1:1", 23.9) == 2
        assert store.rounds("c1:1", 24.0) == 3
        assert store.count() == 0


def test_entry_is_found_in_its_scope_only(tmp_path: Path) -> None:
    """Neither its key nor its number leads to an entry of another scope."""
    with EntryStore(tmp_path / "e.sqlite3") as store:
        entry = store.put(fresh(), 1.0)
        assert store.exact("c1:1", "b", 2.0) is None
        assert store.by_numbers([entry.number], "b", 2.0) == {}


def test_numbers_are_never_used_twice(tmp_path: Path) -> None:
    """An index that lags behind never names a wrong entry."""
    with EntryStore(tmp_path / "e.sqlite3") as store:
        first = store.put(fresh(), 1.0)
        store.forget("c1:1")
        assert store.put(fresh(), 2.0).number > first.number


def test_dropping_an_entry_does_not_read_every_vector(tmp_path: Path) -> None:
    """The vectors of an entry are found by its number: eviction at a hundred thousand entries would stall otherwise."""
    with EntryStore(tmp_path / "e.sqlite3") as store, store.exclusive() as connection:
        plan = connection.execute("EXPLAIN QUERY PLAN DELETE FROM vectors WHERE number = 1").fetchall()
    assert [row[3].split()[0] for row in plan] == ["SEARCH"]


def test_index_that_lags_behind_too_far_is_compared_as_a_whole(tmp_path: Path) -> None:
    """Where the changes that an index lacks are no longer kept, it still comes to hold what the store has."""
    with EntryStore(tmp_path / "e.sqlite3") as store:
        store.put(fresh("c1:1"), 1.0, {"e": (1.0, 0.0)})
        index, seen = MemoryIndex(), store.seq()
        catch_up(store, index, "e")
        store.forget("c1:1")
        kept = store.put(fresh("c1:2"), 1.0, {"e": (0.0, 1.0)})
        with store.exclusive() as connection:
            connection.execute("DELETE FROM changes WHERE seq <= ?", (seen + 1,))
        catch_up(store, index, "e", seen)
        assert index.numbers() == {kept.number}


def test_statistics_by_namespace(tmp_path: Path) -> None:
    """Entries, hits and routes are counted for each namespace."""
    with EntryStore(tmp_path / "e.sqlite3") as store:
        store.served(store.put(fresh(), 1.0), 2.0)
        store.put(fresh("c1:2"), 1.0)
        (found,) = statistics(store)
    assert (found.namespace, found.entries, found.hits, found.routes) == ("default", 2, 1, {"teacher": 2})


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
        assert len(store.numbers("e")) == 200


def test_claims_are_exclusive_until_released_or_run_out(tmp_path: Path) -> None:
    """One process at a time holds a question; a lease that nobody renews ends, and only its owner can end it before."""
    path = tmp_path / "entries.sqlite3"
    with EntryStore(path) as one, EntryStore(path) as other:
        assert one.claims.take("q", 100.0)
        assert not other.claims.take("q", 100.0 + LEASE_S - 1)
        one.claims.renew("q", 109.0)
        assert not other.claims.take("q", 100.0 + LEASE_S + 1)
        other.claims.release("q")
        assert not other.claims.take("q", 110.0)
        one.claims.release("q")
        assert other.claims.take("q", 110.0)
        assert one.claims.take("q", 110.0 + LEASE_S), "its owner was killed"
        assert one.claims.take("another", 110.0)
        assert other.claims.take("another", 110.0 - 3 * LEASE_S), "the clock was set back"
        assert other.claims.take("another", 110.0 - 3 * LEASE_S), "its own claim stands in nobody's way"
