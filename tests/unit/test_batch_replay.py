"""Batches that go on where they stopped, their summary, and the replay of traces under other rules."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.errors import InputError
from potstill.infer.batch import BatchResult, Failure, Journal, Row, answer_all, percentiles, summarise, summary_lines
from potstill.infer.replay import escalated, read_traces, replay, wanted
from potstill.records import Trace


def trace(route: str = "teacher", cost: str = "0.01", baseline: str = "0.01", **more: Any) -> Trace:
    """One recorded question."""
    made: dict[str, Any] = {
        "id": "0",
        "at": datetime.now(UTC),
        "query": "q",
        "namespace": "default",
        "route": route,
        "reason": "test",
        "cosine": None,
        "mean_logprob": None,
        "roles": (),
        "model": None,
        "entry_id": None,
        "cost_usd": Decimal(cost),
        "baseline_usd": Decimal(baseline),
        "latency_s": 0.1,
    }
    return Trace(**{**made, **more})


def row(question: str) -> Row:
    """One answer."""
    return Row(question=question, answer=f"answer to {question}", trace=trace())


class Answers:
    """A router that answers everything and counts."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def answer(self, question: str) -> Row:
        """Answer."""
        self.asked.append(question)
        return row(question)


async def test_batch_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """What the journal holds is not asked again; the output has every question in order, and the journal is gone."""
    questions = [f"question {place}" for place in range(10)]
    journal = Journal(tmp_path / "out.jsonl")
    for place in (7, 2):
        journal.add(place, row(questions[place]))
    router = Answers()
    result = await answer_all(router, questions, 3, known=journal.known(questions))
    journal.finish(result)
    assert sorted(router.asked) == sorted(set(questions) - {"question 7", "question 2"})
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["question"] for line in lines] == questions
    assert not (tmp_path / "out.jsonl.partial").exists()


def test_torn_line_is_left_out_and_written_over(tmp_path: Path) -> None:
    """A process that died while it wrote leaves half a line: the others count, and the next one is whole."""
    journal = Journal(tmp_path / "out.jsonl")
    journal.add(0, row("a"))
    with (tmp_path / "out.jsonl.partial").open("ab") as file:
        file.write(b'{"place": 1, "row": {"ques')
    assert set(journal.known(["a", "b"])) == {0}
    journal.add(1, row("b"))
    assert set(journal.known(["a", "b"])) == {0, 1}


@pytest.mark.parametrize("text", ['{"place": 5, "row": {}}\n', "no\n", '{"place": 0}\n'])
def test_foreign_journal_is_refused(tmp_path: Path, text: str) -> None:
    """A journal that is none, or of other questions, is an error that says what to do, not a mix of two batches."""
    (tmp_path / "out.jsonl.partial").write_text(text)
    with pytest.raises(InputError, match=r"out\.jsonl\.partial:1"):
        Journal(tmp_path / "out.jsonl").known(["a"])
    (tmp_path / "out.jsonl.partial").unlink()
    Journal(tmp_path / "out.jsonl").add(0, row("a"))
    with pytest.raises(InputError, match="other questions"):
        Journal(tmp_path / "out.jsonl").known(["b"])


def test_journal_stays_while_something_is_missing(tmp_path: Path) -> None:
    """A failed question stands in the output with its error, and the journal waits for the rerun."""
    journal = Journal(tmp_path / "out.jsonl")
    journal.add(0, row("a"))
    journal.finish(BatchResult({0: row("a")}, (Failure(1, "b", "refused"),), None))
    first, second = (json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines())
    assert (first["answer"], second) == ("answer to a", {"question": "b", "error": "refused"})
    assert set(journal.known(["a", "b"])) == {0}


@given(st.lists(st.floats(0, 100), min_size=1, max_size=50))
def test_percentiles_are_values_that_were_seen(values: list[float]) -> None:
    """Each percentile is one of the values, they rise, and so many per cent lie at or below."""
    found = percentiles(values)
    assert list(found) == ["p50", "p90", "p99"]
    assert set(found.values()) <= set(values)
    for name, value in found.items():
        assert sum(other <= value for other in values) >= int(name[1:]) / 100 * len(values)


def test_summary_says_when_the_router_is_dearer_and_from_where_it_pays() -> None:
    """Merges at 1.5 times the price: below a third of hits the router is dearer, and the summary says both figures."""
    traces = [trace("exact", "0", "0.01"), *[trace("merged", "0.015", "0.01")] * 9]
    summary = summarise(traces)
    assert summary.break_even == pytest.approx(1 / 3)
    assert summary.saved_usd == Decimal("-0.035")
    text = "\n".join(summary_lines(summary))
    assert "hit rate 10%" in text
    assert "DEARER" in text
    assert "1.50 times Gemini alone: cheaper only from a hit rate of 33% on" in text
    assert summarise([trace()]).break_even is None
    assert summarise([]).latency_s == {}


def recorded() -> list[Trace]:
    """A day of ten questions."""
    return [
        trace("exact", "0"),
        trace("semantic", "0", cosine=0.96),
        trace("teacher", nearest_cosine=0.9, nearest_agreement=0.2),
        trace("merged", "0.015", mean_logprob=-0.1, student_agreement=0.9),
        trace("merged", "0.015", mean_logprob=-2.0, student_agreement=0.1),
        trace("student", "0", mean_logprob=-0.05),
        *[trace()] * 4,
    ]


def test_replay_prices_other_rules() -> None:
    """A lower threshold turns a question into a hit that is known to disagree; trusting the student saves his questions."""
    outcomes = {found.rule: found for found in replay(recorded())}
    was = outcomes["as it was"]
    assert (was.hits, was.students, was.gemini, was.cost_usd) == (2, 1, 7, Decimal("0.080"))
    strict = outcomes["exact hits only, then Gemini alone"]
    assert (strict.hits, strict.gemini, strict.share_of_all_gemini) == (1, 9, pytest.approx(0.9))
    loose = outcomes["cosine >= 0.85, then Gemini alone"]
    assert (loose.hits, loose.disagreed, loose.compared) == (3, 1, 1)
    trusting = outcomes["cosine >= 0.85, then student where log-probability >= -2.00 (100%)"]
    assert (trusting.students, trusting.gemini, trusting.disagreed, trusting.compared) == (3, 4, 2, 3)
    careful = outcomes["cosine >= 0.85, then student where log-probability >= -0.10 (75%)"]
    assert (careful.students, careful.disagreed) == (2, 1)


@pytest.mark.parametrize(
    ("threshold", "decide", "verdict", "counts", "words"),
    [
        (0.85, None, None, (3, 1, 6), "cosine >= 0.85, then student as served"),
        (0.98, None, None, (1, 1, 8), "cosine >= 0.98, then student as served"),
        (None, "always", -0.5, (2, 0, 8), "hits as served, then Gemini alone"),
        (None, "never", -0.5, (2, 3, 5), "hits as served, then student wherever it answered"),
        (0.85, "uncertain", -0.5, (3, 2, 5), "cosine >= 0.85, then student where log-probability >= -0.50"),
        (None, "uncertain", None, (2, 0, 8), "hits as served, then Gemini alone"),
    ],
)
def test_replay_answers_what_is_asked(
    threshold: float | None, decide: Any, verdict: float | None, counts: tuple[int, int, int], words: str
) -> None:
    """A threshold or a decide mode that is set stands right below what was recorded; what is not set stays as recorded."""
    found = replay(recorded(), wanted(threshold, decide, verdict))[1]
    assert (found.hits, found.students, found.gemini) == counts
    assert found.rule == f"as asked: {words}"
    assert wanted(None, None, -0.5) is None


@given(st.lists(st.sampled_from(recorded()), min_size=1, max_size=30))
def test_replay_counts_each_question_once(traces: list[Trace]) -> None:
    """Under every rule hits, student answers and Gemini's are all the questions, and a looser rule never costs more."""
    outcomes = replay(traces)
    assert {found.hits + found.students + found.gemini for found in outcomes} == {len(traces)}
    costs = {found.rule: found.cost_usd for found in outcomes}
    assert costs["cosine >= 0.85, then Gemini alone"] <= costs["cosine >= 0.98, then Gemini alone"]


def test_random_escalations_bound_what_the_student_says_alone() -> None:
    """Only answers that were drawn at random count: one of three disagreed, between a twentieth and nearly all."""
    drawn = [trace("merged", escalated=True, student_agreement=value) for value in (0.9, 0.8, 0.1)]
    found = escalated([*recorded(), *drawn])
    assert (found.seen, found.disagreed) == (3, 1)
    assert found.low < 0.05
    assert found.high > 0.8
    assert escalated([]).high == 1.0


def test_traces_of_a_folder_and_bad_ones(tmp_path: Path) -> None:
    """All files of a folder are read; one that is no trace is named, one that is torn passed over; none is told."""
    with pytest.raises(InputError, match="no traces"):
        read_traces(tmp_path, tmp_path)
    (tmp_path / "a.jsonl").write_text(trace().to_line())
    (tmp_path / "b.jsonl").write_text(trace().to_line() * 2)
    assert len(read_traces(tmp_path, tmp_path)) == 3
    (tmp_path / "a.jsonl").write_text(trace().to_line()[:40] + trace().to_line() + trace().to_line())
    assert len(read_traces(tmp_path, tmp_path)) == 3
    (tmp_path / "b.jsonl").write_text(trace().to_line() + "{}\n")
    with pytest.raises(InputError, match=r"b\.jsonl:2: id"):
        read_traces(tmp_path, tmp_path)


def test_older_traces_still_read() -> None:
    """A line without the newer fields reads as before."""
    older = json.loads(trace().model_dump_json())
    for name in ("score", "nearest_cosine", "nearest_agreement", "student_agreement", "escalated"):
        older.pop(name)
    assert Trace.model_validate(older) == Trace.model_validate(older)
    assert not Trace.model_validate(older).escalated
