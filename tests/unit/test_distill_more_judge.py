"""The verdict's statistics: scores, intervals, the router's threshold, break-even."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.distill.judge import Case, Judged, answers, router_rule, same, score, verdict, wilson_low, word_f1
from potstill.records import Message, Sample, Usage
from potstill.student.answers import StudentAnswer
from potstill.student.scripted import ScriptedStudent

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def sample(question: str = "why", answer: str = "because of heat", role: str = "expert") -> Sample:
    """One line of a dataset."""
    turns = (Message(role="user", content=question), Message(role="assistant", content=answer))
    return Sample(
        id="c1:0",
        messages=turns,
        role=role,
        prompt_id="p",
        sample=0,
        model="teacher",
        finish_reason="STOP",
        usage=Usage(),
        cost_usd=Decimal("0.001"),
        prompt_sha="0",
        created_at=NOW,
    )


def judged(value: float, logprob: float) -> Judged:
    """An answer with a given score and confidence."""
    answer = StudentAnswer(
        role="expert", text="x", finish_reason="stop", prompt_tokens=1, completion_tokens=1, mean_logprob=logprob
    )
    return Judged(sample(), answer, value, exact=value == 1)


def case(**changes: object) -> Case:
    """A case with a margin of 0.1, some of its values changed."""
    values = {
        "student": "s",
        "base": "b",
        "teacher_model": "t",
        "margin": 0.1,
        "paid_usd": Decimal("0.10"),
        "teacher_usd_per_request": Decimal("0.03"),
    }
    return Case(**{**values, **changes})


@given(st.text(max_size=60), st.text(max_size=60))
def test_word_f1_is_a_share_and_symmetric(left: str, right: str) -> None:
    """Word F1 lies in 0..1 and does not depend on which answer is called the reference."""
    assert 0 <= word_f1(left, right) <= 1
    assert word_f1(left, right) == word_f1(right, left)


def test_word_f1_reads_chinese_by_character() -> None:
    """A Chinese answer without spaces that shares half of its characters scores one half."""
    assert word_f1("記憶體大", "記憶電源") == 0.5


@given(st.text(max_size=60))
def test_spacing_does_not_count(text: str) -> None:
    """Two answers that differ only in spacing are the same."""
    assert same(f"  {text}\n", text)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_interval_holds_the_mean(values: list[float]) -> None:
    """The bootstrap interval lies in 0..1, and its ends are in order around the range of the answers."""
    found = score([judged(value, -1) for value in values])
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9
    assert found.n == len(values)


@given(st.integers(1, 500), st.data())
def test_wilson_bound_is_below_the_share(total: int, data: st.DataObject) -> None:
    """The lower bound never exceeds the share that was seen, and grows with it."""
    good = data.draw(st.integers(0, total))
    assert 0 <= wilson_low(good, total, 0.01) <= good / total + 1e-12
    if good:
        assert wilson_low(good - 1, total, 0.01) <= wilson_low(good, total, 0.01)


def test_router_leaves_the_uncertain_to_the_teacher() -> None:
    """Where only the unsure answers are wrong, the threshold lies above them and the bound keeps the promise."""
    rows = [judged(1.0, -0.1 - i / 1000) for i in range(150)] + [judged(0.0, -5.0 - i) for i in range(30)]
    rule = router_rule(rows, 0.1)
    assert rule.threshold is not None
    assert -5.0 < rule.threshold < -0.1
    assert rule.agreement_low >= 0.9
    assert 0.5 < rule.coverage < 1


def test_router_without_evidence_has_no_threshold() -> None:
    """Ten right answers prove no 90 % agreement, and the rule says so in place of a threshold."""
    rule = router_rule([judged(1.0, -0.1)] * 10, 0.1)
    assert rule.threshold is None
    assert rule.coverage == 0
    assert "no threshold" in rule.reason


def test_equally_sure_answers_are_routed_alike() -> None:
    """Wrong answers as sure as the right ones count against the threshold, whatever their order."""
    assert router_rule([judged(1.0, -1.0)] * 150 + [judged(0.0, -1.0)] * 150, 0.1).threshold is None


def test_verdict_needs_the_interval_not_the_mean() -> None:
    """A mean above 1 - margin with a wide interval is a no; a sure one is a yes."""
    unsure = [judged(1.0, -1)] * 10 + [judged(0.0, -1)]
    sure = [judged(1.0, -1)] * 60
    assert not verdict(case(), unsure, unsure, NOW).can_replace
    assert verdict(case(), unsure, sure, NOW).can_replace


def test_break_even_is_rounded_up() -> None:
    """10 cents at 3 cents a request are back after 4 requests; a free teacher never pays back."""
    rows = [judged(1.0, -1)] * 5
    assert verdict(case(), rows, rows, NOW).break_even_requests == 4
    free = case(paid_usd=Decimal(0), teacher_usd_per_request=Decimal(0))
    assert verdict(free, rows, rows, NOW).break_even_requests is None


def test_held_out_questions_are_asked_without_the_answer() -> None:
    """The student sees the chat up to the question; the teacher's answer is only compared with."""
    student = ScriptedStudent(lambda query: query.messages[-1].content, roles=("expert",))
    found = answers(student, [sample("q1", "q1"), sample("q2", "other")], 9)
    assert [item.exact for item in found] == [True, False]
    assert all(query.messages[-1].role == "user" for query in student.asked)
