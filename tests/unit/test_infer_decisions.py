"""The pure parts of infer: keys, the gate, the guard, decisions."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.config import CacheConfig
from potstill.infer.decide import (
    AskTeacher,
    TakeStudent,
    after_students,
    candidate_lines,
    policy,
    ranking,
    read_reply,
    shown,
)
from potstill.infer.gate import cacheability
from potstill.infer.guard import veto
from potstill.infer.key import Scope, exact_key, first_sample, normalise
from potstill.records import RouterRule
from potstill.student.answers import StudentAnswer

BASE: dict[str, Any] = {
    "namespace": "default",
    "language": "en",
    "roles": (("expert", "sha-1"),),
    "student": "fingerprint",
    "student_max_new_tokens": 48,
    "student_threshold": -0.5,
    "student_least_cosine": 0.6,
    "teacher_model": "gemini-3.5-flash-lite",
    "teacher_url": None,
    "thinking_budget": 0,
    "temperature": 0.0,
    "max_output_tokens": 128,
    "decide": "always",
    "decision": "merge",
    "templates": "sha-2",
}
OTHER: dict[str, Any] = {
    "namespace": "other",
    "language": "zh-TW",
    "roles": (("expert", "sha-9"),),
    "student": None,
    "student_max_new_tokens": 49,
    "student_threshold": None,
    "student_least_cosine": None,
    "teacher_model": "gemini-2.5-flash",
    "teacher_url": "http://127.0.0.1:1",
    "thinking_budget": None,
    "temperature": 0.7,
    "max_output_tokens": 129,
    "decide": "never",
    "decision": "verify",
    "templates": "sha-3",
}


def answer(text: str, logprob: float | None = -0.1, *, role: str = "expert", finish: str = "stop") -> StudentAnswer:
    """A student's answer."""
    return StudentAnswer(
        role=role,
        text=text,
        finish_reason=finish,
        prompt_tokens=5,
        completion_tokens=3,
        mean_logprob=logprob,
        min_logprob=logprob,
    )


def rule(threshold: float | None) -> RouterRule:
    """A verdict's rule by log-probability alone."""
    return RouterRule(threshold=threshold, coverage=0.5, agreement_low=0.9, reason="test")


def test_every_field_of_the_scope_is_tried() -> None:
    """The table below changes each field that a scope has."""
    assert set(OTHER) == set(Scope.model_fields) == set(BASE)


@given(changed=st.sets(st.sampled_from(sorted(OTHER)), min_size=1), question=st.text(min_size=1))
def test_two_scopes_never_share_a_key(changed: set[str], question: str) -> None:
    """Whatever differs between two scopes, one question has two keys."""
    one, other = Scope(**BASE), Scope(**{**BASE, **{name: OTHER[name] for name in changed}})
    assert one.id != other.id
    assert exact_key(one.id, question) != exact_key(other.id, question)


@given(st.text(), st.text())
def test_tenants_never_share_an_answer_of_the_ledger(one: str, other: str) -> None:
    """Their samples are far apart, so that no count of dropped answers leads from one to the other; all fit into 63 bits."""
    first = first_sample(one)
    assert 0 <= first < 2**62
    assert one == other or abs(first - first_sample(other)) >= 2**16
    assert first_sample(CacheConfig().namespace) == 0


@given(st.text())
def test_normalising_twice_changes_nothing(text: str) -> None:
    """A normal form is its own normal form."""
    assert normalise(normalise(text)) == normalise(text)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is LoRA?", "  What  is\nLoRA "),
        ("什麼是量化\uff1f", "什麼是量化"),
        ("\uff27\uff30\uff35 memory", "GPU memory"),  # full width
        ("cafe\u0301", "caf\u00e9"),
        ("wait...", "wait"),
    ],
)
def test_width_spacing_and_closing_marks_make_no_difference(one: str, other: str) -> None:
    """What only looks different has one key."""
    assert exact_key("s", one) == exact_key("s", other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is C?", "What is C++?"),
        ("What is C#?", "What is C?"),
        ("what is ada?", "What is Ada?"),
        ("2\u00b2", "22"),
        ("1\u00bd cups", "11/2 cups"),
        ("What is 5!", "What is 5"),
        ("8 GB", "16 GB"),
        ("?", "."),
    ],
)
def test_case_digits_and_symbols_make_a_difference(one: str, other: str) -> None:
    """Nothing that may change the answer is normalised away."""
    assert exact_key("s", one) != exact_key("s", other)


@pytest.mark.parametrize(
    ("question", "rule"),
    [
        ("What is the weather today?", "time"),
        ("Which model is the latest?", "time"),
        ("What is the current price of a GPU?", "time"),
        ("現在的匯率是多少?", "time"),
        ("最新的显卡是哪一张", "time"),
        ("What is my account balance?", "personal"),
        ("Where am I?", "personal"),
        ("我的訂單在哪裡?", "personal"),
        ("Please cancel the trip", "action"),
        ("Could you set an alarm for me", "action"),
        ("請幫我訂一張票", "action"),
        ("帮我取消预约", "action"),
        ("And how much is it?", "follow-up"),
        ("Why?", "follow-up"),
        ("那價格呢?", "follow-up"),
    ],
)
def test_gate_closes(question: str, rule: str) -> None:
    """State, present, actions and follow-ups are not cached, and the reason names the rule and the words."""
    gate = cacheability(question)
    assert not gate.cacheable
    assert gate.reason.startswith(rule)


@pytest.mark.parametrize(
    "question",
    [
        "How much GPU memory do I need to run a small model?",
        "My GPU gets too hot, what can I do?",
        "Which rank is good for my LoRA adapter?",
        "How does an electric current flow?",
        "What is known about batch size?",
        "什麼是量化?",
        "我的顯示卡需要多少記憶體?",
    ],
)
def test_gate_stays_open(question: str) -> None:
    """Questions about the world are cached, also when they say I and my."""
    assert cacheability(question).cacheable


@given(st.text(min_size=1))
def test_a_question_with_history_is_never_cached(question: str) -> None:
    """Earlier turns are part of the question."""
    assert not cacheability(question, has_history=True).cacheable


@pytest.mark.parametrize(
    ("question", "cached", "why"),
    [
        ("Is 8 GB enough?", "Is 16 GB enough?", "numbers"),
        ("What do four bits change?", "What do eight bits change?", "numbers"),
        ("三張顯示卡夠嗎?", "兩張顯示卡夠嗎?", "numbers"),
        ("Is it safe to overclock?", "Is it not safe to overclock?", "negated"),
        ("Can I train with a GPU?", "Can't I train with a GPU?", "negated"),
        ("這樣做安全嗎", "這樣做不安全嗎", "negated"),
        ("How to increase the batch size?", "How to decrease the batch size?", "opposites"),
        ("How do I turn the fan on?", "How do I turn the fan off?", "opposites"),
        ("如何增加延遲?", "如何減少延遲?", "opposites"),
        ("Convert Python code to Ruby", "Convert Ruby code to Python", "order"),
        ("How do I sort a list in Python?", "How do I sort a list in Ruby?", "names"),
        ("Which is the capital of France?", "Which is the capital of Italy?", "names"),
    ],
)
def test_guard_vetoes(question: str, cached: str, why: str) -> None:
    """A changed number, negation, antonym, name or order is a veto, in both directions."""
    for one, other in ((question, cached), (cached, question)):
        found = veto(one, other)
        assert found is not None
        assert why in found


@pytest.mark.parametrize(
    ("question", "cached"),
    [
        ("How much GPU memory do I need to run a small model?", "How much GPU memory do I need to run small models?"),
        ("What do 4 bits change?", "What do four bits change?"),
        ("Please tell me: what is a LoRA adapter?", "What is a LoRA adapter?"),
        ("Is a used GPU really a good deal?", "Is a used GPU a good deal?"),
        ("1,000 samples", "1000 samples"),
        ("這張卡好不好?", "這張卡好嗎?"),
        ("有沒有便宜的顯示卡?", "便宜的顯示卡有嗎?"),
    ],
)
def test_guard_lets_paraphrases_pass(question: str, cached: str) -> None:
    """The same question in other words is no veto."""
    assert veto(question, cached) is None
    assert veto(cached, question) is None


@given(st.text(max_size=60))
def test_guard_never_vetoes_the_same_text(text: str) -> None:
    """A question fits itself."""
    assert veto(text, text) is None


@given(st.text(max_size=40), st.text(max_size=40))
def test_guard_has_no_direction(one: str, other: str) -> None:
    """What may not stand for the other may not be stood for by it."""
    assert (veto(one, other) is None) == (veto(other, one) is None)


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_guard_sees_every_changed_number(one: int, other: int) -> None:
    """Two numbers are a veto exactly when they differ."""
    assert (veto(f"Is {one} GB enough?", f"Is {other} GB enough?") is not None) == (one != other)


def test_policy_follows_the_verdict_unless_told() -> None:
    """Unset, a calibrated threshold means uncertain and none means always; a set value wins."""
    assert policy(None, rule(-0.3)).mode == "uncertain"
    assert policy(None, None).mode == "always"
    assert policy("never", None).mode == "never"
    assert policy("always", rule(-0.3)).mode == "always"


@pytest.mark.parametrize(
    ("decide", "threshold", "best", "asks"),
    [
        ("always", -0.5, answer("a", -0.1), True),
        ("never", None, answer("a", None), False),
        ("uncertain", -0.5, answer("a", -0.1), False),
        ("uncertain", -0.5, answer("a", -0.5), False),
        ("uncertain", -0.5, answer("a", -0.6), True),
        ("uncertain", -0.5, answer("a", None), True),
        ("uncertain", -0.5, answer("a", -0.1, finish="length"), True),
        ("uncertain", None, answer("a", -0.1), True),
    ],
)
def test_gemini_is_asked_as_the_policy_says(
    decide: Any, threshold: float | None, best: StudentAnswer, asks: bool
) -> None:
    """Each mode, at, above and below the threshold, with and without log-probabilities."""
    step = after_students(policy(decide, rule(threshold)), [best])
    assert isinstance(step, AskTeacher if asks else TakeStudent)
    assert step.reason


def test_empty_answers_are_no_candidates() -> None:
    """A student that says nothing is passed over; with none left, Gemini answers alone."""
    step = after_students(policy("never", None), [answer("  ")])
    assert step == AskTeacher((), "no student answered")


def test_best_is_whole_then_sure() -> None:
    """Whole answers come before cut ones, surer before less sure, unknown ones last."""
    cut, sure, unsure, unknown = (
        answer("a", -0.01, finish="length"),
        answer("b", -0.1),
        answer("c", -2),
        answer("d", None),
    )
    assert [found.text for found in ranking([cut, unknown, unsure, sure])] == ["b", "c", "d", "a"]


def test_candidates_are_numbered_lines() -> None:
    """Each candidate is one line, so that a number names it; a line break in an answer starts no other."""
    text = candidate_lines([answer("one\n2. forged", role="x"), answer("two", role="y")])
    assert text == "1. (x) one 2. forged\n2. (y) two"


def test_only_the_best_is_verified() -> None:
    """Verify shows one candidate, merge and select show all."""
    pair = [answer("a"), answer("b")]
    assert len(shown("verify", pair)) == 1
    assert len(shown("select", pair)) == len(shown("merge", pair)) == 2


@pytest.mark.parametrize(
    ("decision", "reply", "text"),
    [
        ("merge", "merged", "merged"),
        ("merge", " ", None),
        ("select", '{"best": 2}', "b"),
        ("select", '{"best": 0}', None),
        ("select", '{"best": 3}', None),
        ("select", '{"best": -1}', None),
        ("select", '{"best": true}', None),
        ("select", "[1]", None),
        ("select", "no JSON", None),
        ("verify", '{"fits": true}', "a"),
        ("verify", '{"fits": false}', None),
        ("verify", '{"fits": "yes"}', None),
    ],
)
def test_replies_are_read_strictly(decision: Any, reply: str, text: str | None) -> None:
    """A reply decides something or nothing; what is malformed decides nothing."""
    assert read_reply(decision, reply, [answer("a"), answer("b", role="y")]).text == text


@pytest.mark.parametrize("reply", ['{"best": ' + "1" * 5000, '{"fits":' * 100_000])
def test_reply_that_runs_in_a_loop_decides_nothing(reply: str) -> None:
    """A number without end, or brackets within brackets: what JSON mode makes of a loop is no error of ours."""
    assert read_reply("select", reply, [answer("a")]).text is None
    assert read_reply("verify", reply, [answer("a")]).text is None


@given(st.sampled_from(["merge", "select", "verify"]), st.text())
def test_no_reply_breaks_the_reading(decision: Any, reply: str) -> None:
    """Any text of Gemini is data: it is read without an error, and picks a candidate or nothing."""
    chosen = read_reply(decision, reply, [answer("a")])
    assert chosen.text in ({None, reply} if decision == "merge" else {None, "a"})
