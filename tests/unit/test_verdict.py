"""The verdict's statistics: scores, intervals, the router's threshold, break-even."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.samples import line_of

from potstill.distill.asking import Judged, answers
from potstill.distill.judge import Case, Evidence, break_even, own_agreement, score, verdict
from potstill.distill.router import router_rule
from potstill.distill.stats import interval, low_less, wilson_low
from potstill.records import Ceiling, Duel, Sample, Verdict
from potstill.student.answers import StudentAnswer
from potstill.student.scripted import ScriptedStudent

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def sample(
    question: str = "why", answer: str = "because of heat", role: str = "expert", prompt: str = "p", number: int = 0
) -> Sample:
    """One line of a dataset."""
    return line_of(("user", question), ("assistant", answer), role=role, prompt_id=prompt, sample=number)


def judged(value: float, logprob: float, prompt: str = "p", *, role: str = "expert", cut: bool = False) -> Judged:
    """An answer with a given score and confidence."""
    answer = StudentAnswer(
        role=role,
        text="x",
        finish_reason="length" if cut else "stop",
        prompt_tokens=1,
        completion_tokens=1,
        mean_logprob=logprob,
    )
    return Judged(sample(role=role, prompt=prompt), answer, value, exact=value == 1)


def many(value: float, logprob: float, count: int, name: str = "p") -> list[Judged]:
    """Equal answers to different prompts."""
    return [judged(value, logprob, f"{name}{number}") for number in range(count)]


def decide(rows: list[Judged], **evidence: object) -> Verdict:
    """The verdict on answers that were as good before training."""
    return verdict(case(), Evidence(rows, rows, **evidence), NOW)


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


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_interval_holds_the_mean(values: list[float]) -> None:
    """The bootstrap interval lies in the range of the answers, its ends in order."""
    found = interval(values, list(map(str, range(len(values)))))
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_score_lies_in_its_interval(values: list[float]) -> None:
    """The ends of a score's interval are in order around it, in 0..1."""
    found = score([judged(value, -1, str(place)) for place, value in enumerate(values)])
    assert 0 <= found.low <= found.score + 1e-9
    assert found.score - 1e-9 <= found.high <= 1
    assert found.n == len(values)


def test_a_few_perfect_answers_prove_little() -> None:
    """Three perfect answers, or thirty to three prompts, are no yes at a margin of 0.1; thirty-five prompts are."""
    assert not decide(many(1.0, -1, 3)).can_replace
    assert not decide(many(1.0, -1, 3) * 10).can_replace
    assert not decide(many(1.0, -1, 34)).can_replace
    assert decide(many(1.0, -1, 35)).can_replace
    assert score(many(0.0, -1, 3)).high > 0.5, "nor do a few that are all wrong"


@given(st.integers(1, 500), st.data())
def test_wilson_bound_is_below_the_share(total: int, data: st.DataObject) -> None:
    """The lower bound never exceeds the share that was seen, and grows with it."""
    good = data.draw(st.integers(0, total))
    assert 0 <= wilson_low(good, total, 0.01) <= good / total + 1e-12
    if good:
        assert wilson_low(good - 1, total, 0.01) <= wilson_low(good, total, 0.01)


@given(st.integers(1, 500), st.data())
def test_wilson_bound_solves_the_score_equation(total: int, data: st.DataObject) -> None:
    """Were the bound the true share, what was seen would lie 1.6449 standard errors above it: the 5 % quantile."""
    good = data.draw(st.integers(1, total))
    low = wilson_low(good, total, 0.05)
    error = (low * (1 - low) / total) ** 0.5
    assert abs((good / total - low) - 1.6448536 * error) < 1e-6


def test_interval_agrees_with_the_normal_one() -> None:
    """On 400 scores, half of them 1 and half 0, the ends lie 1.96 standard errors from the mean."""
    found = interval([0.0, 1.0] * 200, [str(place) for place in range(400)])
    assert found.mean == 0.5
    assert abs(found.low - (0.5 - 1.96 * 0.025)) < 0.006
    assert abs(found.high - (0.5 + 1.96 * 0.025)) < 0.006


def test_answers_to_one_prompt_are_drawn_together() -> None:
    """Ten copies of the answers to each of four prompts are no more evidence than one: the interval stays as wide."""
    values = [1.0, 1.0, 0.0, 1.0]
    prompts = ["a", "b", "c", "d"]
    assert interval(values * 10, prompts * 10) == interval(values, prompts)


def test_router_leaves_the_uncertain_to_the_teacher() -> None:
    """Where only the unsure answers are wrong, the threshold lies above them and the bound keeps the promise."""
    rows = [judged(1.0, -0.1 - i / 1000, f"a{i}") for i in range(150)]
    rows += [judged(0.0, -5.0 - i, f"b{i}") for i in range(30)]
    rule = router_rule(rows, 0.1, Decimal("0.001"))
    assert rule.threshold is not None
    assert -5.0 < rule.threshold < -0.1
    assert rule.agreement_low >= 0.9
    assert 0.5 < rule.coverage < 1
    chosen = next(point for point in rule.curve if point.threshold == rule.threshold)
    assert chosen.risk_high == 1 - rule.agreement_low
    assert abs(chosen.saved_usd_per_1000 - Decimal(str(rule.coverage))) < Decimal("0.001")


def test_router_without_evidence_has_no_threshold() -> None:
    """Ten right answers prove no 90 % agreement, and the rule says so in place of a threshold."""
    rule = router_rule(many(1.0, -0.1, 10), 0.1)
    assert rule.threshold is None
    assert rule.coverage == 0
    assert "no threshold" in rule.reason


def test_the_first_threshold_that_fails_ends_it() -> None:
    """A looser threshold is not tried where a stricter one has failed, however well it would do: no second chance."""
    right = [judged(1.0, -1.0 - number / 1000, f"b{number}") for number in range(400)]
    rule = router_rule([*many(0.0, -0.1, 20, "a"), *right], 0.1)
    assert max(point.agreement_low for point in rule.curve) >= 0.9
    assert rule.threshold is None
    assert "surest" in rule.reason


def test_equally_sure_answers_are_routed_alike() -> None:
    """Wrong answers as sure as the right ones count against the threshold, whatever their order."""
    assert router_rule([*many(1.0, -1.0, 150, "a"), *many(0.0, -1.0, 150, "b")], 0.1).threshold is None


def test_roles_of_one_prompt_are_one_case() -> None:
    """As `infer` takes the surest of the roles' answers, the rule counts prompts, each by its surest answer."""
    sure, unsure = many(1.0, -0.1, 100), [judged(0.0, -3.0, f"p{i}", role="other") for i in range(100)]
    rule = router_rule([*unsure, *sure], 0.1)
    assert rule.threshold == -0.1
    assert rule.coverage == 1
    assert "100 of 100 answers" in rule.reason


def test_cut_off_answers_never_stand_alone() -> None:
    """An answer that hit the token limit is sent on, however sure the student is of it."""
    cut = [judged(1.0, -0.01, f"c{i}", cut=True) for i in range(100)]
    rule = router_rule([*cut, *many(1.0, -0.5, 100)], 0.1)
    assert rule.coverage == 0.5


def test_verdict_needs_the_interval_not_the_mean() -> None:
    """A mean above 1 - margin with a wide interval is a no; a sure one is a yes."""
    assert not decide([*many(1.0, -1, 10), judged(0.0, -1, "wrong")]).can_replace
    assert decide(many(1.0, -1, 60)).can_replace


def test_the_teacher_is_the_ceiling() -> None:
    """Where the teacher agrees with itself by 0.6 only, a student at 0.55 is as good within a margin of 0.1."""
    rows = many(0.55, -1, 60)
    assert not decide(rows).can_replace
    known = Ceiling(n=500, score=0.6, low=0.56, high=0.64, source="asked once more")
    assert decide(rows, ceiling=known).can_replace


def test_a_vague_ceiling_proves_less() -> None:
    """A ceiling known to 0.1 only adds its error to the student's: the same two means no longer prove the margin."""
    vague = Ceiling(n=50, score=0.6, low=0.5, high=0.7, source="asked once more")
    found = decide(many(0.55, -1, 60), ceiling=vague)
    assert not found.can_replace
    assert "0.45, is below 0.50" in found.reason
    assert found.replaces_by_role == {"expert": False}
    assert abs(low_less(0.8, 0.77, vague.model_copy(update={"high": 0.64})) - 0.75) < 1e-12


def test_equal_scores_on_few_prompts_prove_nothing() -> None:
    """28 prompts, all as good as the ceiling, are a no, because a student that fails in a tenth may show none; 29 are a yes."""
    known = Ceiling(n=500, score=0.6, low=0.59, high=0.61, source="asked once more")
    few = decide(many(0.6, -1, 28), ceiling=known)
    assert not few.can_replace
    assert few.replaces_by_role == {"expert": False}
    assert "28 prompts cannot prove a margin of 0.1" in few.reason
    assert decide(many(0.6, -1, 29), ceiling=known).replaces_by_role == {"expert": True}
    assert decide(many(0.6, -1, 29), ceiling=known).can_replace
    assert not decide([*many(0.6, -1, 28), *many(0.6, -1, 28)], ceiling=known).can_replace


def test_a_few_judged_answers_prove_nothing() -> None:
    """Three ties in the judge's eyes are no proof either, neither over all nor for the role."""
    rows = [replace(item, points=0.5) for item in many(0.2, -1, 60)]
    duel = Duel(n=60, wins=0, ties=60, losses=0, score=0.5, low=0.5, high=0.5, cost_usd=Decimal(0))
    assert decide(rows, duel=duel).replaces_by_role == {"expert": True}
    told = [*rows[:3], *(replace(item, points=None) for item in rows[3:])]
    found = decide(told, duel=duel.model_copy(update={"n": 3, "ties": 3}))
    assert not found.can_replace
    assert found.replaces_by_role == {"expert": False}


def test_a_judge_decides_before_the_wording() -> None:
    """Answers in other words that the judge finds equal replace the teacher's; those it finds worse do not."""
    rows = many(0.2, -1, 60)
    duel = Duel(n=60, wins=0, ties=60, losses=0, score=0.5, low=0.5, high=0.5, cost_usd=Decimal(0))
    assert decide(rows, duel=duel).can_replace
    assert not decide(rows, duel=duel.model_copy(update={"low": 0.3})).can_replace


def test_each_role_has_its_own_verdict() -> None:
    """A role whose answers are wrong cannot be replaced, though another can."""
    wrong = [judged(0.0, -1, f"w{i}", role="poet") for i in range(60)]
    assert decide([*many(1.0, -1, 60), *wrong]).replaces_by_role == {"expert": True, "poet": False}


def test_own_agreement_needs_several_samples() -> None:
    """Two equal answers of the teacher to one prompt agree fully; a dataset with one answer each knows no ceiling."""
    assert own_agreement([sample(prompt="a"), sample(prompt="b")]) is None
    found = own_agreement([sample(prompt="a"), sample(prompt="a", number=1), sample(prompt="b")])
    assert found is not None
    assert (found.n, found.score) == (1, 1.0)


def test_break_even_is_rounded_up() -> None:
    """10 cents at 3 cents a request are back after 4 requests; where half is answered, after 7; a free teacher never."""
    assert break_even(case(requests_a_day=8), 1.0) == (4, 0.5)
    assert break_even(case(), 0.5)[0] == 7
    assert break_even(case(), 0.0) == (None, None)
    free = case(paid_usd=Decimal(0), teacher_usd_per_request=Decimal(0))
    assert break_even(free, 1.0) == (None, None)


def test_old_verdicts_are_read() -> None:
    """A verdict.json written before the newer fields existed is still one."""
    newer = {"replaces_by_role", "ceiling", "duel", "near_duplicates", "coverage_paid", "requests_a_day"}
    old = decide(many(1.0, -1, 60)).model_dump(mode="json", exclude=newer | {"break_even_days"})
    assert Verdict.model_validate(old).can_replace


def test_held_out_questions_are_asked_without_the_answer() -> None:
    """The student sees the chat up to the question; the teacher's answer is only compared with."""
    student = ScriptedStudent(lambda query: query.messages[-1].content, roles=("expert",))
    found = answers(student, [sample("q1", "q1"), sample("q2", "other")], 9)
    assert [item.exact for item in found] == [True, False]
    assert all(query.messages[-1].role == "user" for query in student.asked)
