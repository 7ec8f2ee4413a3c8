"""Looking after the cache: eviction, dropping by role or pattern, export and import, verdicts; and kill -9."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.errors import InputError, UsageError
from potstill.infer.cache import AnswerCache, OpenIndex
from potstill.infer.encoder import HashingEncoder
from potstill.infer.index import MemoryIndex
from potstill.infer.key import Scope, exact_key
from potstill.infer.labelling import near_pairs
from potstill.infer.store import PAGE, Entry, EntryStore, Fresh, Judged, packed, unpacked
from potstill.infer.upkeep import audits, export, matching, parse_filters, restore


def scope(namespace: str = "default", **changes: Any) -> Scope:
    """What a scope stands for."""
    made: dict[str, Any] = {
        "namespace": namespace,
        "language": "en",
        "roles": (("hardware-expert", "aa11"), ("cost-analyst", "bb22")),
        "student": None,
        "student_max_new_tokens": 48,
        "student_threshold": None,
        "student_least_cosine": None,
        "teacher_model": "gemini-3.5-flash-lite",
        "teacher_url": None,
        "thinking_budget": 0,
        "temperature": 0.0,
        "max_output_tokens": 128,
        "decide": "always",
        "decision": "merge",
        "templates": "cc33",
    }
    return Scope(**{**made, **changes})


def put(store: EntryStore, question: str, about: Scope | None = None, *, now: float = 1.0) -> Entry:
    """Store an answer to a question in a scope."""
    about = about or scope()
    store.name_scope(about.id, about.model_dump_json())
    fresh = Fresh(exact_key(about.id, question), about.id, about.namespace, question, "An answer.", "teacher", "gemini")
    return store.put(fresh, now, {"e": (1.0, 0.0)})


def test_what_was_used_longest_ago_is_evicted(tmp_path: Path) -> None:
    """Of three entries that one stays that was served last, and the one that came last; vectors go with their entries."""
    with EntryStore(tmp_path / "e.sqlite3") as store:
        first, _, last = (put(store, f"question {now}", now=float(now)) for now in (1, 2, 3))
        store.served(first, 9.0)
        assert store.evict(2) == 1
        assert {entry.number for entry in store.entries()} == {first.number, last.number} == store.numbers("e")
        assert store.rounds(first.id, 9.0) == 0
        assert store.evict(2) == 0


@pytest.mark.parametrize("limit", [1, 2, 50, 200])
def test_size_limit_is_kept_while_writing(tmp_path: Path, limit: int) -> None:
    """Two stores on one file never hold more than the limit, nor many less, and the last answers are among them."""
    path = tmp_path / "e.sqlite3"
    with EntryStore(path, max_entries=limit) as store, EntryStore(path, max_entries=limit) as other:
        for number in range(300):
            last = put((store, other)[number % 3 // 2], f"question {number}", now=float(number))
            assert store.count() <= limit
        assert store.count() >= 0.98 * limit
        assert last.number in store.numbers("e")


@pytest.mark.parametrize(
    ("filters", "left"),
    [
        (["role=cost-analyst"], {"c"}),
        (["prompt=bb2"], {"c"}),
        (["prompt=cc33"], set()),
        (["model=gemini-3.5-flash-lite"], {"b"}),
        (["namespace=other"], {"a", "c"}),
        (["pattern=*gpu*"], {"c"}),
        (["pattern=*gpu*", "namespace=other"], {"a", "c"}),
        (["route=student"], {"a", "b", "c"}),
    ],
)
def test_entries_are_found_by_what_they_depend_on(tmp_path: Path, filters: list[str], left: set[str]) -> None:
    """Role, prompt, model, namespace, route and pattern; several filters must all apply."""
    with EntryStore(tmp_path / "e.sqlite3") as store:
        names = {
            put(store, "Which GPU?").id: "a",
            put(store, "Which GPU?", scope("other", teacher_model="gemini-2.5-pro")).id: "b",
            put(store, "What is LoRA?", scope(roles=(("hardware-expert", "aa11"),))).id: "c",
        }
        gone = {names[entry.id] for entry in matching(store, parse_filters(filters))}
    assert {"a", "b", "c"} - gone == left


@pytest.mark.parametrize("text", ["rolle=x", "role", "role=", "=x"])
def test_unknown_filters_are_refused(text: str) -> None:
    """A filter that is none drops nothing: it is an error."""
    with pytest.raises(UsageError, match="NAME=VALUE"):
        parse_filters([text])


def test_export_and_import_carry_everything(tmp_path: Path) -> None:
    """Another cache has the same entries afterwards, with vectors, age and floor; a second import adds nothing."""
    with EntryStore(tmp_path / "one.sqlite3") as store:
        entry = put(store, "What is \u2028 LoRA?", now=5.0)
        store.raise_floor(entry.id, 0.9)
        put(store, "什麼是量化?")
        assert export(store, tmp_path / "out.jsonl") == 2
    with EntryStore(tmp_path / "two.sqlite3") as store:
        assert restore(store, tmp_path / "out.jsonl", 6.0) == (2, 0)
        assert restore(store, tmp_path / "out.jsonl", 6.0) == (0, 2)
        found = store.exact(entry.id, entry.scope, 6.0)
        assert found is not None
        assert (found.created, found.floor, found.question) == (5.0, 0.9, entry.question)
        assert {name: list(vector) for name, vector in store.vectors_of(found.number).items()} == {"e": [1.0, 0.0]}
        assert set(store.scopes()) == {entry.scope}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda line: line.replace("What is LoRA", "What is NoRA"), "not the key"),
        (lambda line: line.replace('"namespace":"default"', '"namespace":"other"', 1), "not the key"),
        (lambda line: line.replace('"answer"', '"anser"'), "anser|answer"),
        (lambda line: line.replace("AACAPwAAAAA=", "AACAPw"), "vectors"),
        (lambda line: line[:40], "line"),
    ],
)
def test_forged_exports_are_refused_whole(tmp_path: Path, change: Any, words: str) -> None:
    """An entry under another question's key would poison the cache: file and line are named, and nothing is taken in."""
    with EntryStore(tmp_path / "one.sqlite3") as store:
        put(store, "Is this fine?")
        put(store, "What is LoRA?")
        export(store, tmp_path / "out.jsonl")
    fine, other = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    (tmp_path / "out.jsonl").write_text(f"{fine}\n{change(other)}\n", encoding="utf-8")
    with EntryStore(tmp_path / "two.sqlite3") as store:
        with pytest.raises(InputError, match=rf"out\.jsonl:2: .*({words})"):
            restore(store, tmp_path / "out.jsonl", 2.0)
        assert store.count() == 0


def test_verdicts_are_bounded_by_source(tmp_path: Path) -> None:
    """Audits and feedback are counted apart, each with its interval; those before a moment can be left out."""
    with EntryStore(tmp_path / "e.sqlite3") as store:
        for number in range(10):
            store.note_judged(Judged("audit", "d", "q", "c", fits=number > 0), float(number))
        store.note_judged(Judged("feedback", "d", "q", "c", fits=False), 20.0)
        first, second = audits(store.judged())
        assert len(store.judged(since=9.0)) == 2
    assert (first.source, first.judged, first.wrong) == ("audit", 10, 1)
    assert first.low < 0.1 < first.high
    assert (second.source, second.wrong) == ("feedback", 1)


def test_changes_tell_what_came_and_went(tmp_path: Path) -> None:
    """From a `seq` on: what came, what went, and what came and went is only gone; another encoder's are not told."""
    with EntryStore(tmp_path / "e.sqlite3") as store:
        old = put(store, "old")
        seq = store.seq()
        new, brief = put(store, "new"), put(store, "brief")
        store.forget(brief.id)
        store.forget(old.id)
        came, gone = store.changes("e", seq)
        assert (came, sorted(gone)) == ([new.number], sorted([old.number, brief.number]))
        assert store.changes("another", 0) == ([], [])


@given(st.lists(st.floats(width=32, allow_nan=False), max_size=20))
def test_packing_keeps_every_float32(values: list[float]) -> None:
    """A vector comes back as it went in."""
    assert list(unpacked(packed(values))) == values


def test_killed_writer_loses_nothing_that_it_acknowledged(tmp_path: Path) -> None:
    """Kill -9 in the middle of writing: every answer whose write was reported is there, and the file opens."""
    path = tmp_path / "e.sqlite3"
    code = (
        "import sys\nfrom pathlib import Path\nfrom potstill.infer.store import EntryStore, Fresh\n"
        "store = EntryStore(Path(sys.argv[1]))\nn = 0\nwhile True:\n"
        "    store.put(Fresh(f'id-{n}', 's', 'd', 'q', 'a', 'teacher', None), 1.0, {'e': (1.0, 0.0)})\n"
        "    print(n, flush=True)\n    n += 1\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        acknowledged = [int(process.stdout.readline()) for _ in range(200)]
        os.kill(process.pid, signal.SIGKILL)
        acknowledged += [int(line) for line in process.stdout.read().splitlines() if line]
    with EntryStore(path) as store:
        kept = {entry.id for entry in store.entries()}
        assert {f"id-{number}" for number in acknowledged} <= kept
        assert len(store.numbers("e")) == len(kept)


def test_entries_come_newest_first_too(tmp_path: Path) -> None:
    """Beyond one page, the one order is the other turned round, and nothing is left out."""
    with EntryStore(tmp_path / "e.sqlite3") as store:
        with store.exclusive() as connection:
            connection.executemany(
                "INSERT INTO entries (id, scope, namespace, question, answer, route, created) VALUES (?, 's', 'd', 'q', 'a', 't', 1)",
                [(str(number),) for number in range(2 * PAGE + 1)],
            )
        newest = [entry.number for entry in store.entries(newest_first=True)]
        assert newest == list(reversed([entry.number for entry in store.entries()]))
        assert len(newest) == 2 * PAGE + 1


@pytest.mark.parametrize("most", [1, 3])
def test_fewer_pairs_to_judge_are_the_first_of_more(tmp_path: Path, most: int) -> None:
    """What is not remembered once enough linked pairs are found changes none of the pairs that are given, and doubles none."""
    encoder = HashingEncoder()
    with EntryStore(tmp_path / "e.sqlite3") as store:
        for text in ("small", "large", "new"):
            question = f"How much GPU memory do I need for {text} models?"
            fresh = Fresh(text, "s", "d", question, "answer", "teacher", None)
            store.put(fresh, 1.0, {encoder.id: encoder.encode([question])[0]})
        cache = AnswerCache(store, lambda: encoder, lambda _: OpenIndex(MemoryIndex()))
        every = [frozenset((item.question, item.entry.question)) for item in near_pairs(cache, 9, 2.0)]
        found = [frozenset((item.question, item.entry.question)) for item in near_pairs(cache, most, 2.0)]
    assert len(set(every)) == len(every) == 3
    assert found == every[:most]


def test_pairs_to_judge_have_no_question_in_common_first(tmp_path: Path) -> None:
    """Of near questions that all resemble one another, pairs without a common question come first, the others after."""
    questions = [f"How much GPU memory do I need for {word} models?" for word in ("small", "large", "new", "old")]
    encoder = HashingEncoder()
    with EntryStore(tmp_path / "e.sqlite3") as store:
        for number, text in enumerate(questions):
            fresh = Fresh(str(number), "s", "d", text, "answer", "teacher", None)
            store.put(fresh, 1.0, {encoder.id: encoder.encode([text])[0]})
        cache = AnswerCache(store, lambda: encoder, lambda _: OpenIndex(MemoryIndex()))
        found = near_pairs(cache, 5, 2.0)
    first = [text for item in found[:2] for text in (item.question, item.entry.question)]
    assert sorted(first) == sorted(questions)
    assert len(found) == 5
